"""The measures of one training, as its stages wrote them down, with their standard errors.

In: the folder of a finished training. Out: a `Measure` for each name in `MEASURES`: a value, its
standard error and the number it is over, or why one of them is absent.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.config import RunConfig

__all__ = ["MEASURES", "Measure", "MeasureInfo", "measures_of", "over_seeds"]

_NO_VALIDATION = "there is no validation of the last step: "
_POOLED = "the validation keeps one ratio of sums over all clips"


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureInfo:
    """What a measure is, for people."""

    title: str
    meaning: str
    group: str
    """Heading that it stands under."""


_LOSS, _MOTION, _LEAK = "Loss", "Motion of the samples", "Leak of the condition in one step"

MEASURES: Mapping[str, MeasureInfo] = {
    "train_loss": MeasureInfo(
        title="training loss",
        meaning="mean of the last tenth of the steps, with the arm's own noise on the condition; "
        "other noise makes another task, so it does not compare arms",
        group=_LOSS,
    ),
    "val_loss": MeasureInfo(
        title="held-out loss, own noise",
        meaning="the same on held-out clips; it does not compare arms either",
        group=_LOSS,
    ),
    "val_loss_clean": MeasureInfo(
        title="held-out loss, clean condition",
        meaning="on held-out clips with a clean condition, as in sampling: the same task for all "
        "arms. Training on a clean condition lowers it, also where that is a leak",
        group=_LOSS,
    ),
    "val_motion_real": MeasureInfo(
        title="real",
        meaning="motion of the held-out clips, px/frame at a short side of 256 pixels",
        group=_MOTION,
    ),
    "val_motion_sample": MeasureInfo(
        title="samples",
        meaning="motion of the videos sampled from their first frames, same unit",
        group=_MOTION,
    ),
    "val_motion_ratio": MeasureInfo(
        title="samples / real",
        meaning="mean over mean: 1 moves as much as the real clips, 0 stands still",
        group=_MOTION,
    ),
    "val_motion_error": MeasureInfo(
        title="error",
        meaning="mean absolute difference per clip over the real mean",
        group=_MOTION,
    ),
    "val_consistent_share": MeasureInfo(
        title="consistent share",
        meaning="share of the pixels whose flow makes sense; under 0.7 look at the videos",
        group=_MOTION,
    ),
    "val_motion_transfer": MeasureInfo(
        title="motion transfer",
        meaning="share of the motion in the noisy video that reaches a one-step prediction, at "
        "t = 0.75; higher leaks less",
        group=_LEAK,
    ),
    "val_condition_dominance": MeasureInfo(
        title="condition dominance",
        meaning="how much the condition decides against the noisy video, at t = 0.75",
        group=_LEAK,
    ),
    "val_one_step_motion": MeasureInfo(
        title="one-step motion",
        meaning="motion of the one-step prediction over that of the clip, at t = 0.75",
        group=_LEAK,
    ),
}
"""All measures of a training, in the order of the report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """A measured value."""

    value: float | None
    error: float | None = None
    """Standard error of the mean over ``n``."""
    n: int | None = None
    """What it is over: steps, clips, videos, or seeds."""
    over: str | None = None
    """steps, clips, videos or seeds."""
    absent: str | None = None
    """Why the value, or its error, is not there."""


def measures_of(
    config: RunConfig, losses: Sequence[float], validation: Mapping[str, Any] | None, why: str
) -> dict[str, Measure]:
    """Collect the measures of one training.

    Args:
        config: of the training.
        losses: of all its steps.
        validation: what the validation of the last step wrote; None if there is none.
        why: there is no validation.
    """
    tail = losses[-max(1, len(losses) // 10) :]
    found = {
        "train_loss": Measure(
            value=statistics.fmean(tail) if tail else None,
            n=len(tail),
            over="steps",
            absent="steps follow one another, so their losses are not independent"
            if tail
            else "the metrics of the training are gone",
        )
    }
    for name in MEASURES:
        if name not in found:
            found[name] = (
                Measure(value=None, absent=f"{_NO_VALIDATION}{why}")
                if validation is None
                else _validated(name, validation, config)
            )
    return found


def _validated(name: str, record: Mapping[str, Any], config: RunConfig) -> Measure:
    metrics, counts = record["metrics"], record["n"]
    if name in ("val_loss", "val_loss_clean"):
        error = metrics.get(f"{name}_error")
        absent = None if error is not None else "one clip has no standard error"
        n = counts["loss"]
        return Measure(value=metrics[name], error=error, n=n, over="clips", absent=absent)
    group = MEASURES[name].group
    value = metrics.get(name)
    if group == _LEAK:
        if value is None:
            return Measure(value=None, absent="it needs two held-out clips of one bucket")
        return Measure(value=value, n=counts["leak"], over="clips", absent=_POOLED)
    if value is None:
        none = (
            "validate.num_videos is 0" if not config.validate.num_videos else "no real clip moves"
        )
        return Measure(value=None, absent=none)
    error = _motion_error(name, record["videos"])
    absent = None if error is not None else "one video has no standard error"
    return Measure(value=value, error=error, n=counts["videos"], over="videos", absent=absent)


def _motion_error(name: str, videos: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the standard error over videos; of ratios of means that of the ratio estimator."""
    real = [float(video["motion_real"]) for video in videos]
    made = [float(video["motion_sample"]) for video in videos]
    if len(videos) < 2:
        return None
    if name == "val_motion_ratio":
        return _error_of_ratio(made, real)
    if name == "val_motion_error":
        gaps = [abs(one - other) for one, other in zip(made, real, strict=True)]
        return _error_of_ratio(gaps, real)
    shares = [float(video["consistent_share"]) for video in videos]
    columns = {"val_motion_real": real, "val_motion_sample": made, "val_consistent_share": shares}
    return statistics.stdev(columns[name]) / math.sqrt(len(videos))


def _error_of_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Linearise mean(above) / mean(below) over pairs: the spread of above - ratio * below."""
    mean = statistics.fmean(below)
    ratio = statistics.fmean(above) / mean
    rest = [a - ratio * b for a, b in zip(above, below, strict=True)]
    return statistics.stdev(rest) / math.sqrt(len(rest)) / mean


def over_seeds(measures: Sequence[Measure]) -> Measure:
    """Return the mean over the seeds of an arm, with the standard error between them.

    Args:
        measures: of one name, one per finished training, at least one; one is returned as it is.
    """
    if len(measures) == 1:
        return measures[0]
    values = [measure.value for measure in measures if measure.value is not None]
    if not values:
        return Measure(value=None, absent=measures[0].absent)
    if len(values) < 2:
        return Measure(value=values[0], n=1, over="seeds", absent="one seed alone has this measure")
    error = statistics.stdev(values) / math.sqrt(len(values))
    return Measure(value=statistics.fmean(values), error=error, n=len(values), over="seeds")
