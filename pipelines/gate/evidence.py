"""What the gate judges: both models on the same held-out clips, with the same noise and seeds.

In: the challenger, the champion if there is one, a configuration. Out: a `Measured` per rule, and
the leak report of the two as evidence. Everything is restartable, as evaluation is.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.config import RunConfig
from pipelines.evaluate.arms import Arm
from pipelines.gate.rules import Measured
from pipelines.leak.arms import describe_arms
from pipelines.leak.command import study_arms
from pipelines.leak.config import DECISION_TIMES
from pipelines.leak.report import Study

__all__ = ["DISTANCES", "GateEvidence", "measure_models"]

DISTANCES = {"fvd": "i3d", "videomae_frechet": "videomae"}
"""Distances of sets that are judged, and the setting of `evaluate` that each needs."""
CHALLENGER, CHAMPION = "challenger", "champion"
_OF_PROBE = ("motion_transfer_ratio",)
_OF_SAMPLES = ("motion_error", "alignment_mse")


@dataclass(frozen=True, kw_only=True, slots=True)
class GateEvidence:
    """What was measured."""

    measured: tuple[Measured, ...]
    distances: tuple[str, ...]
    """Names of the distances that must be there."""
    set_sha256: str
    """Hash of the frozen clips and seeds."""
    report: Path
    """Page of the leak report."""


def measure_models(
    config: RunConfig,
    challenger: Arm,
    champion: Arm | None,
    *,
    folder: Path,
    session: ExitStack,
    debug: bool = False,
) -> GateEvidence:
    """Measure both models.

    Args:
        config: the run; its section gate says on how many clips.
        challenger: the new model.
        champion: what people use; None measures the challenger alone.
        folder: of the gate.
        session: where Ray is entered when something is left to do.
        debug: show the logs of workers.

    Raises:
        ConfigError: the models do not make the same kind of video.
        StageError: a worker failed.
    """
    arms = [challenger] if champion is None else [champion, challenger]
    described = describe_arms(arms)
    studied = study_arms(_settings(config), described, folder=folder, session=session, debug=debug)
    distances = tuple(
        name for name, setting in DISTANCES.items() if getattr(config.evaluate, setting)
    )
    study = studied.study
    measured = _pairs(study) if champion is not None else _alone(study)
    (evaluation,) = studied.evaluations
    measured += [_distance(name, evaluation.metrics) for name in distances]
    return GateEvidence(
        measured=tuple(measured),
        distances=distances,
        set_sha256=evaluation.chosen.sha256,
        report=studied.page,
    )


def _settings(config: RunConfig) -> RunConfig:
    """Return settings of the leak report that measure what the gate asks for."""
    gate = config.gate
    leak = replace(
        config.leak,
        times=DECISION_TIMES,
        motion_times=(),
        num_clips=gate.num_clips,
        num_sampled_clips=gate.num_sampled_clips,
        seeds_per_clip=gate.seeds_per_clip,
        start_times=gate.start_times,
        analytic_init=False,
    )
    return replace(config, leak=leak)


def _pairs(study: Study) -> list[Measured]:
    (evidence,) = study.evidence
    found = []
    for name in (*_OF_PROBE, *_OF_SAMPLES):
        contrast = evidence.contrasts.get(name)
        if contrast is None:
            found.append(_absent(name))
            continue
        difference = contrast.difference
        found.append(
            Measured(
                name=name,
                challenger=contrast.arm.value,
                champion=contrast.reference.value,
                low=difference.low,
                high=difference.high,
                n=difference.n,
            )
        )
    return found


def _alone(study: Study) -> list[Measured]:
    """Take the values of a model without a champion: means over the ranks, and of the start."""
    found = []
    for name in _OF_PROBE:
        points = [
            point.estimate
            for point in study.probe
            if point.measure == name and point.time in DECISION_TIMES
        ]
        values = [point.value for point in points]
        whole = [value for value in values if value is not None]
        if not values or len(whole) < len(values):
            found.append(_absent(name))
        else:
            mean = sum(whole) / len(whole)
            found.append(Measured(name=name, challenger=mean, n=points[0].n))
    for name in _OF_SAMPLES:
        points = [
            point.estimate
            for point in study.sampled
            if point.measure == name and point.start == study.start
        ]
        found.append(
            Measured(name=name, challenger=points[0].value, n=points[0].n)
            if points
            else _absent(name)
        )
    return found


def _absent(name: str) -> Measured:
    return Measured(name=name, challenger=None, absent="no usable video, or no clip that moves")


def _distance(name: str, metrics: Mapping[str, Any]) -> Measured:
    """Compare distances by their own intervals: they are of sets, so clips cannot be paired."""
    by_arm: dict[str, dict[str, Any]] = {}
    for result in metrics["results"]:
        by_arm.setdefault(result["arm"], result["measures"].get(name) or {})
    mine, theirs = by_arm[CHALLENGER], by_arm.get(CHAMPION)
    if theirs is None:
        value, absent = mine.get("value"), mine.get("absent")
        return Measured(name=name, challenger=value, n=mine.get("n") or 0, absent=absent)
    ends = _difference_of_intervals(mine, theirs)
    return Measured(
        name=name,
        challenger=mine.get("value"),
        champion=theirs.get("value"),
        low=ends[0],
        high=ends[1],
        n=mine.get("n") or 0,
        absent=mine.get("absent"),
    )


def _difference_of_intervals(
    mine: Mapping[str, Any], theirs: Mapping[str, Any]
) -> tuple[float | None, float | None]:
    """Return the widest interval of the difference that the two intervals allow."""
    ends: Sequence[Any] = [mine.get("low"), mine.get("high"), theirs.get("low"), theirs.get("high")]
    if any(end is None for end in ends):
        return None, None
    return ends[0] - ends[3], ends[1] - ends[2]
