"""The sampled videos as numbers per clip: motion, its error and alignment, by arm and start.

In: the rows of `pipelines.evaluate`, one per video. Out: a `SampleTable`, in which the videos of
one clip are one number, so that clips can be resampled.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.evaluate.clip_measures import UNUSABLE
from pipelines.leak.resamples import ClipResamples, Numbers, Quantity, sign_test_of

__all__ = ["SAMPLE_MEASURES", "SampleTable", "Start", "sample_table"]

SAMPLE_MEASURES = ("motion", "motion_real", "motion_error", "alignment_mse", "ssim")


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Start:
    """Where sampling begins."""

    time: float
    """Start time M in (0, 1]."""
    analytic_init: bool

    def __str__(self) -> str:
        """Name it for people."""
        return f"M {self.time:g}, {'Analytic-Init' if self.analytic_init else 'unit noise'}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleTable:
    """Measures of the sampled videos."""

    keys: tuple[str, ...]
    """Of the clips that have a number everywhere."""
    values: Mapping[tuple[str, Start], Mapping[str, Numbers]]
    """By arm and start, then by measure: (n,), means over the videos of a clip."""
    left_out: tuple[str, ...] = ()
    """Keys of clips with a video that is black or not finite, in any arm."""
    flags: Mapping[tuple[str, Start], Mapping[str, int]] = field(default_factory=dict)
    """How many videos have a flag, as ``jump``."""

    def starts(self, arm: str) -> list[Start]:
        """Return the starts that an arm was sampled from, ascending."""
        return sorted(start for name, start in self.values if name == arm)

    def quantity(self, clips: ClipResamples, arm: str, start: Start, measure: str) -> Quantity:
        """Return the mean of a measure."""
        return clips.mean(self.values[arm, start][measure])

    def sign_test(self, arm: str, reference: str, start: Start, measure: str) -> float | None:
        """Compare two arms clip by clip; see `resamples.sign_test_of`."""
        mine, theirs = (self.values[name, start][measure] for name in (arm, reference))
        return sign_test_of(mine - theirs)


def sample_table(rows: Sequence[Mapping[str, Any]]) -> SampleTable:
    """Put rows together.

    A clip with a video that is black or not finite in one arm is left out of all, as arms are
    compared on the same clips.

    Args:
        rows: with ``arm``, ``start_time``, ``analytic_init``, ``clip_key``, ``motion_consistent``,
            ``motion_real_consistent``, ``alignment_mse``, ``ssim``, ``flags`` and ``flags_real``.
    """
    by_clip: dict[tuple[str, Start], dict[str, list[dict[str, float]]]] = {}
    flags: dict[tuple[str, Start], Counter[str]] = {}
    keys: dict[str, bool] = {}
    for row in rows:
        start = Start(time=float(row["start_time"]), analytic_init=bool(row["analytic_init"]))
        where, key = (str(row["arm"]), start), str(row["clip_key"])
        numbers = _numbers(row)
        named = str(row.get("flags") or "").split()
        unusable = {*named, *str(row.get("flags_real") or "").split()} & set(UNUSABLE)
        good = not unusable and all(math.isfinite(value) for value in numbers.values())
        keys[key] = keys.get(key, True) and good
        by_clip.setdefault(where, {}).setdefault(key, []).append(numbers)
        flags.setdefault(where, Counter()).update(named)
    for own in by_clip.values():
        keys = {key: good and key in own for key, good in keys.items()}
    kept = [key for key, good in keys.items() if good]
    values = {
        where: {
            measure: np.array([np.mean([video[measure] for video in own[key]]) for key in kept])
            for measure in SAMPLE_MEASURES
        }
        for where, own in by_clip.items()
    }
    return SampleTable(
        keys=tuple(kept),
        values=values,
        left_out=tuple(key for key, good in keys.items() if not good),
        flags={where: dict(counts) for where, counts in flags.items() if counts},
    )


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    def number(name: str) -> float:
        value = row.get(name)
        return math.nan if value is None else float(value)

    motion, real = number("motion_consistent"), number("motion_real_consistent")
    return {
        "motion": motion,
        "motion_real": real,
        "motion_error": abs(motion - real),
        "alignment_mse": number("alignment_mse"),
        "ssim": number("ssim"),
    }
