"""Metrics of sets of videos from their features: FVD, KVD, FVD-infinity, Inception Score.

In: features of the real clips and of an arm. Out: `Measurement`s; absent, with the reason, where
the extractor is not configured or there are too few clips. Distances take the first seed of each
clip, so that there are as many generated videos as real clips; the score takes all videos.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cil.errors import DataError
from cil.metrics.measured import (
    measure_frechet,
    measure_frechet_infinity,
    measure_inception,
    measure_kernel,
)
from cil.metrics.measurement import Measurement
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.features import Features
from pipelines.evaluate.units import REAL_ARM

__all__ = ["extractor_fields", "set_measures"]

_OF_SETS = ("i3d", "videomae", "features")
"""Settings of the extractors of distances."""


def set_measures(
    rows: Sequence[Mapping[str, Any]],
    features: Features,
    key: str,
    settings: EvaluateConfig,
    extractors: Mapping[str, Mapping[str, str]],
    *,
    seed: int,
    absent: Mapping[str, str],
) -> dict[str, Measurement]:
    """Measure the distances and scores of one arm and setting.

    Args:
        rows: of the arm and setting, in the order of its features.
        features: of all arms and of the real clips.
        key: of the arm in ``features``.
        settings: of evaluation.
        extractors: ``sha256`` and ``preprocessing`` of those that are there.
        seed: of subsets and shuffles.
        absent: why the others are not.
    """
    found: dict[str, Measurement] = {}
    for extractor in _OF_SETS:
        names = _names(extractor)
        if extractor not in extractors:
            found |= {name: Measurement.missing(absent[extractor]) for name in names}
            continue
        known = extractor_fields(extractors[extractor])
        pairs = _pairs(rows, features, key, extractor)
        found |= _distances(names, *pairs, known=known, seed=seed)
    if "c3d" in extractors:
        scores, known = features[key]["c3d"], extractor_fields(extractors["c3d"])
        found["inception_score"] = _inception(scores, settings, known, seed=seed)
    else:
        found["inception_score"] = Measurement.missing(absent["c3d"])
    return found


def extractor_fields(extractor: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a measurement that say what it was extracted by."""
    return {
        "extractor_sha256": extractor["sha256"],
        "preprocessing": extractor.get("preprocessing"),
    }


def _names(extractor: str) -> tuple[str, str, str]:
    if extractor == "i3d":
        return "fvd", "kvd", "fvd_infinity"
    return f"{extractor}_frechet", f"{extractor}_kernel", f"{extractor}_frechet_infinity"


def _pairs(
    rows: Sequence[Mapping[str, Any]], features: Features, key: str, extractor: str
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], tuple[str, ...]]:
    """Return the features of real clips and of their first videos, both finite."""
    real, made = features[REAL_ARM][extractor], features[key][extractor]
    order = {clip: place for place, clip in enumerate(dict.fromkeys(r["clip_key"] for r in rows))}
    first: dict[str, int] = {}
    for place, row in enumerate(rows):
        first.setdefault(row["clip_key"], place)
    both = [(order[clip], place) for clip, place in first.items()]
    kept = [
        (one, other)
        for one, other in both
        if np.isfinite(real[one]).all() and np.isfinite(made[other]).all()
    ]
    left_out = len(both) - len(kept)
    warnings = (
        (f"{left_out} of {len(both)} clips are left out: a video is not finite",)
        if left_out
        else ()
    )
    return real[[one for one, _ in kept]], made[[other for _, other in kept]], warnings


def _distances(
    names: tuple[str, str, str],
    real: npt.NDArray[Any],
    made: npt.NDArray[Any],
    warnings: tuple[str, ...],
    *,
    known: dict[str, Any],
    seed: int,
) -> dict[str, Measurement]:
    measures: tuple[Callable[[], Measurement], ...] = (
        lambda: measure_frechet(real, made, **known),
        lambda: measure_kernel(real, made, **known),
        lambda: measure_frechet_infinity(real, made, seed=seed, **known),
    )
    return {
        name: _or_missing(measure, known).warned(*warnings)
        for name, measure in zip(names, measures, strict=True)
    }


def _inception(
    scores: npt.NDArray[Any], settings: EvaluateConfig, known: dict[str, Any], *, seed: int
) -> Measurement:
    finite = scores[np.isfinite(scores).all(axis=1)]
    taken = finite[: settings.inception_videos]
    measured = _or_missing(
        lambda: measure_inception(
            taken, splits=settings.inception_splits, probabilities=True, seed=seed, **known
        ),
        known,
    )
    if len(finite) < len(scores):
        return measured.warned(
            f"{len(scores) - len(finite)} of {len(scores)} videos are left out: not finite"
        )
    return measured


def _or_missing(measure: Callable[[], Measurement], known: Mapping[str, Any]) -> Measurement:
    """Measure; too few clips make it absent with that reason."""
    try:
        return measure()
    except DataError as error:
        return Measurement.missing(str(error), **known)
