"""What the probe found: sums per clip for each arm, rank t and measure.

In: the rows that `probe_units` keeps. Out: a `ProbeTable`, from which every number of the report
about one-step predictions is made without a model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cil.errors import DataError
from pipelines.leak.resamples import ClipResamples, Numbers, Quantity, sign_test_of

__all__ = ["MEASURES", "ProbeTable", "probe_table"]

MEASURES = (
    "motion_transfer_ratio",
    "condition_dominance",
    "one_step_mse",
    "frame_zero_mse",
    "frame_difference_ratio",
    "one_step_motion",
)
"""`one_step_motion` is decoded optical flow over that of the clip, at a few times only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeTable:
    """Numerators and denominators of the measures."""

    keys: tuple[str, ...]
    """Of the clips."""
    levels: Mapping[str, Mapping[float, float]]
    """Noise level by arm and rank t, in the unit of the arm's schedule."""
    sums: Mapping[tuple[str, float, str], tuple[Numbers, Numbers]]
    """By arm, rank and measure: (n,) each."""

    def times(self, measure: str) -> list[float]:
        """Return the ranks that a measure was taken at, ascending."""
        return sorted({time for _, time, name in self.sums if name == measure})

    def quantity(self, clips: ClipResamples, arm: str, time: float, measure: str) -> Quantity:
        """Return a measure of an arm at a rank as a ratio of sums."""
        return clips.ratio(*self.sums[arm, time, measure])

    def sign_test(
        self, arm: str, reference: str, times: Sequence[float], measure: str
    ) -> float | None:
        """Compare two arms clip by clip; see `resamples.sign_test_of`.

        The difference of a clip is that of its own ratios, summed over the ranks.
        """
        total = np.zeros(len(self.keys))
        for time in times:
            total += self._per_clip(arm, time, measure) - self._per_clip(reference, time, measure)
        return sign_test_of(total)

    def _per_clip(self, arm: str, time: float, measure: str) -> Numbers:
        top, bottom = self.sums[arm, time, measure]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(top / bottom)


def probe_table(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> ProbeTable:
    """Put rows of units together.

    Args:
        rows: each with ``arm``, ``time``, ``level``, ``keys`` and ``sums`` (measure to numerators
            and denominators in the order of the keys).
        keys: of all clips, in the order that the table is to have.

    Raises:
        DataError: a clip is missing, or a number is not finite.
    """
    place = {key: number for number, key in enumerate(keys)}
    sums: dict[tuple[str, float, str], tuple[Numbers, Numbers]] = {}
    levels: dict[str, dict[float, float]] = {}
    for row in rows:
        where = [place[key] for key in row["keys"]]
        levels.setdefault(row["arm"], {})[row["time"]] = row["level"]
        for measure, (top, bottom) in row["sums"].items():
            index = (row["arm"], row["time"], measure)
            if index not in sums:
                sums[index] = (np.full(len(keys), np.nan), np.full(len(keys), np.nan))
            sums[index][0][where], sums[index][1][where] = top, bottom
    for (arm, time, measure), parts in sums.items():
        bad = ~np.isfinite(np.stack(parts)).all(axis=0)
        if bad.any():
            raise DataError(
                f"{measure} of arm {arm} at t {time:g} is missing or not finite for clip "
                f"{keys[int(np.flatnonzero(bad)[0])]}, and {int(bad.sum()) - 1} more; the network "
                "gave NaN there, which is never averaged in"
            )
    return ProbeTable(keys=tuple(keys), levels=levels, sums=sums)
