"""From the rows of all videos to numbers with intervals: the content of ``metrics.json``.

In: the rows of ``per_clip.parquet`` and the features. Out: for each arm and setting a `Measurement`
per name, over clips (the seeds of a clip stay together), and paired differences against the first
arm. Videos that are not finite or black are counted and in no mean; see docs/evaluation.md.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cil.errors import DataError
from cil.metrics.measurement import Measurement
from cil.metrics.resampling import bootstrap_interval, mean, paired_difference, ratio_of_sums
from pipelines.evaluate.arms import Arm
from pipelines.evaluate.clip_measures import UNUSABLE
from pipelines.evaluate.clip_set import EvaluationSet
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.distances import extractor_fields, set_measures
from pipelines.evaluate.extractors import SCORES
from pipelines.evaluate.features import Features, feature_key

__all__ = ["METRICS_FILE", "setting_of", "summarise"]

METRICS_FILE = "metrics.json"
_VERSION = 1

Row = Mapping[str, Any]
Values = npt.NDArray[np.float64]

_MEANS = {
    "motion": "motion",
    "motion_consistent": "motion_consistent",
    "motion_median": "motion_median",
    "first_transition": "first_transition",
    "jump": "jump",
    "consistent_share": "consistent_share",
    "dynamic_degree_dis": "moves",
    "ssim": "ssim",
    "histogram": "histogram",
    "alignment_mse": "alignment_mse",
    "luminance": "luminance",
}
"""Columns whose mean over clips is a measure, by its name."""
_REAL = {
    "motion_real": "motion_real",
    "motion_real_consistent": "motion_real_consistent",
    "dynamic_degree_dis_real": "moves_real",
    "luminance_real": "luminance_real",
}
_GAPS = {
    "motion_error": lambda row: row["motion"] - row["motion_real"],
    "motion_error_absolute": lambda row: abs(row["motion"] - row["motion_real"]),
    "motion_error_consistent": lambda row: abs(
        row["motion_consistent"] - row["motion_real_consistent"]
    ),
}
"""Differences from the real clip, by the name of their mean."""
_KNOWN = {
    *_MEANS.values(),
    *_REAL.values(),
    *("arm", "start_time", "analytic_init", "clip_key", "seed", "fps", "num_frames"),
    *("flags", "flags_real", "video", "video_real", "image"),
}


def summarise(
    rows: Sequence[Row],
    features: Features,
    settings: EvaluateConfig,
    *,
    chosen: EvaluationSet,
    arms: Sequence[Arm],
    extractors: Mapping[str, Mapping[str, str]],
    absent: Mapping[str, str],
    seed: int,
) -> dict[str, Any]:
    """Take the rows of an evaluation together.

    Args:
        rows: of ``per_clip.parquet``, those of an arm and setting together.
        features: of ``features.npz``.
        settings: of evaluation.
        chosen: the clips.
        arms: in order; the first is what others are compared with.
        extractors: ``sha256`` and ``preprocessing`` of those that are there.
        absent: why the others are not.
        seed: of resampling.

    Returns:
        What ``metrics.json`` says, plain data.
    """
    groups = _by_setting(rows)
    results = []
    for (arm, start_time, analytic_init), own in groups.items():
        key = feature_key(arm, start_time, analytic_init)
        measures = {
            **_measures(own, settings, seed, extractors, absent),
            **set_measures(own, features, key, settings, extractors, absent=absent, seed=seed),
        }
        results.append(
            {
                "arm": arm,
                "start_time": start_time,
                "analytic_init": analytic_init,
                "num_videos": len(own),
                "num_clips": len({row["clip_key"] for row in own}),
                "flags": flag_counts(own),
                "flags_real": flag_counts(
                    list({row["clip_key"]: row for row in own}.values()), real=True
                ),
                "measures": {name: measure.as_dict() for name, measure in measures.items()},
            }
        )
    return {
        "format_version": _VERSION,
        "set": {
            "sha256": chosen.sha256,
            "num_clips": len(chosen.clips),
            "seeds": list(chosen.seeds),
            "bucket": chosen.bucket,
            "fps": chosen.fps,
            "reference": chosen.reference,
            "clips": settings.clips,
        },
        "arms": {arm.name: {"kind": arm.kind, "sha256": arm.identity} for arm in arms},
        "extractors": {name: dict(each) for name, each in extractors.items()},
        "resampling": {
            "seed": seed,
            "samples": settings.bootstrap_samples,
            "level": settings.confidence,
        },
        "results": results,
        "comparisons": list(_comparisons(groups, settings, seed)),
    }


def setting_of(row: Row) -> tuple[str, float | None, bool | None]:
    """Return the arm, start time and Analytic-Init of a row."""
    return row["arm"], row["start_time"], row["analytic_init"]


def flag_counts(rows: Sequence[Row], *, real: bool = False) -> dict[str, int]:
    """Count the flags of videos, or of their real clips."""
    counts: dict[str, int] = {}
    for row in rows:
        for flag in row["flags_real" if real else "flags"].split():
            counts[flag] = counts.get(flag, 0) + 1
    return dict(sorted(counts.items()))


def is_usable(row: Row, *, with_real: bool = False) -> bool:
    """Tell whether a video, and on request its real clip, may be in a mean."""
    flags = row["flags"].split() + (row["flags_real"].split() if with_real else [])
    return not set(flags) & set(UNUSABLE)


def _by_setting(rows: Sequence[Row]) -> dict[tuple[str, float | None, bool | None], list[Row]]:
    groups: dict[tuple[str, float | None, bool | None], list[Row]] = {}
    for row in rows:
        groups.setdefault(setting_of(row), []).append(row)
    return groups


def _measures(
    rows: Sequence[Row],
    settings: EvaluateConfig,
    seed: int,
    extractors: Mapping[str, Mapping[str, str]],
    absent: Mapping[str, str],
) -> dict[str, Measurement]:
    def measured(value: Callable[[Row], Any], *, real: bool = False) -> Measurement:
        return _mean_over_clips(rows, value, settings, seed, real=real)

    found = {name: measured(_column(column)) for name, column in _MEANS.items()}
    for name, gap in _GAPS.items():
        found[name] = measured(gap, real=True)
    for name, column in _REAL.items():
        found[name] = measured(_column(column), real=True)
    for extractor, columns in SCORES.items():
        for column in columns:
            if extractor in extractors:
                known = extractor_fields(extractors[extractor])
                found[column] = replace(measured(_column(column)), **known)
            else:
                found[column] = Measurement.missing(absent[extractor])
    found["motion_ratio"] = _ratio(rows, settings, seed)
    return found


def _column(name: str) -> Callable[[Row], Any]:
    return lambda row: row[name]


def _more_columns(row: Row) -> list[str]:
    """Name the columns of the extractors that are configured."""
    return [name for name in row if name not in _KNOWN]


def _mean_over_clips(
    rows: Sequence[Row],
    value: Callable[[Row], Any],
    settings: EvaluateConfig,
    seed: int,
    *,
    real: bool,
) -> Measurement:
    usable = [row for row in rows if is_usable(row, with_real=real)]
    warnings = _left_out(len(rows), len(usable))
    if not usable:
        return Measurement.missing("every video is black or not finite", warnings=warnings)
    interval = bootstrap_interval(
        per_clip(usable, value),
        seed=seed,
        num=settings.bootstrap_samples,
        level=settings.confidence,
    )
    return Measurement.of(interval, warnings=(*warnings, *_suspicious(usable)))


def _ratio(rows: Sequence[Row], settings: EvaluateConfig, seed: int) -> Measurement:
    """Measure the consistent motion of all videos over that of the real clips."""
    usable = [row for row in rows if is_usable(row, with_real=True)]
    warnings = _left_out(len(rows), len(usable))
    if not usable:
        return Measurement.missing("every video is black or not finite", warnings=warnings)
    above = per_clip(usable, _column("motion_consistent"))
    below = per_clip(usable, _column("motion_real_consistent"))
    if not below.sum() > 0:
        return Measurement.missing("no real clip moves", warnings=warnings)
    interval = bootstrap_interval(
        (above, below),
        ratio_of_sums,
        seed=seed,
        num=settings.bootstrap_samples,
        level=settings.confidence,
    )
    return Measurement.of(interval, warnings=warnings)


def per_clip(rows: Sequence[Row], value: Callable[[Row], Any]) -> Values:
    """Return the mean of a value over the videos of each clip, in the order of the clips."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["clip_key"], []).append(float(value(row)))
    return np.array([mean(np.array(values)) for values in found.values()])


def _left_out(total: int, used: int) -> tuple[str, ...]:
    if total == used:
        return ()
    return (f"{total - used} of {total} videos are black or not finite and not in it",)


def _suspicious(rows: Sequence[Row]) -> tuple[str, ...]:
    counts = flag_counts(rows)
    return tuple(
        f"{count} of {len(rows)} videos are flagged {flag}; look at them"
        for flag, count in counts.items()
    )


def _comparisons(
    groups: Mapping[tuple[str, float | None, bool | None], Sequence[Row]],
    settings: EvaluateConfig,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Compare each arm with the first one at the same setting, else at its first setting.

    The first arm's further settings are compared with its first.
    """
    keys = list(groups)
    first = [key for key in keys if key[0] == keys[0][0]]
    for key in keys:
        same = [other for other in first if other[1:] == key[1:]]
        against = same[0] if same and key[0] != first[0][0] else first[0]
        if key == against:
            continue
        yield {
            "arm": key[0],
            "start_time": key[1],
            "analytic_init": key[2],
            "against": {
                "arm": against[0],
                "start_time": against[1],
                "analytic_init": against[2],
            },
            "differences": _differences(groups[key], groups[against], settings, seed),
        }


def _differences(
    rows: Sequence[Row], others: Sequence[Row], settings: EvaluateConfig, seed: int
) -> dict[str, Any]:
    """Compare the videos of the same clip and seed; pairs with an unusable one are left out."""
    theirs = {(row["clip_key"], row["seed"]): row for row in others}
    pairs = [
        (row, theirs[row["clip_key"], row["seed"]])
        for row in rows
        if (row["clip_key"], row["seed"]) in theirs
    ]
    values: dict[str, tuple[Callable[[Row], Any], bool]] = {
        **{name: (_column(column), False) for name, column in _MEANS.items()},
        **{name: (gap, True) for name, gap in _GAPS.items()},
        **{name: (_column(name), False) for name in _more_columns(rows[0])},
    }
    found: dict[str, Any] = {}
    for name, (value, real) in values.items():
        usable = [
            (one, other)
            for one, other in pairs
            if is_usable(one, with_real=real) and is_usable(other)
        ]
        if not usable or any(name not in other and name not in _KNOWN_NAMES for _, other in usable):
            found[name] = {"absent": "no clip has a usable video in both"}
            continue
        difference = paired_difference(
            [float(value(one)) for one, _ in usable],
            [float(value(other)) for _, other in usable],
            seed=seed,
            num=settings.bootstrap_samples,
            level=settings.confidence,
            groups=[one["clip_key"] for one, _ in usable],
        )
        found[name] = {**asdict(difference), "left_out": len(pairs) - len(usable)}
    return found


_KNOWN_NAMES = {*_MEANS, *_GAPS}


def check_rows(rows: Sequence[Row]) -> None:
    """Refuse a table in which the arms do not have the same clips.

    Raises:
        DataError: they differ.
    """
    clips = {key: {row["clip_key"] for row in own} for key, own in _by_setting(rows).items()}
    if len({frozenset(keys) for keys in clips.values()}) > 1:
        raise DataError("the arms do not have the same clips; evaluate them in one command")
