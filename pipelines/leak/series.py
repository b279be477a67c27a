"""Curves of the report: each measure of each arm against t or M, as values with intervals.

In: the tables. Out: plain rows, which plots, page, JSON and CSV share.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipelines.leak.evidence import Resampling
from pipelines.leak.probe_table import MEASURES, ProbeTable
from pipelines.leak.resamples import ClipResamples, Estimate, Quantity
from pipelines.leak.sample_table import SAMPLE_MEASURES, SampleTable, Start

__all__ = ["Point", "points_of_probe", "points_of_samples"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A measure of an arm at one place, and what it is against the arm's reference."""

    arm: str
    measure: str
    time: float | None
    """Rank t of a one-step measure."""
    level: float | None
    """Noise level there, in the unit of the arm's schedule."""
    start: Start | None
    """Start of a sampled video."""
    estimate: Estimate
    difference: Estimate | None
    """Arm minus reference, paired; None for a reference."""
    p: float | None
    """Of the sign test over clips."""


def points_of_probe(
    probe: ProbeTable, references: dict[str, str | None], resampling: Resampling
) -> list[Point]:
    """Return all one-step measures.

    Args:
        probe: of the arms.
        references: by arm, None for an arm that has none.
        resampling: of the clips.
    """
    clips = resampling.clips(len(probe.keys))
    found = []
    for measure in MEASURES:
        for arm, reference in references.items():
            for time in probe.times(measure):
                mine = probe.quantity(clips, arm, time, measure)
                difference, p = None, None
                if reference is not None:
                    theirs = probe.quantity(clips, reference, time, measure)
                    difference = (mine - theirs).estimate(resampling.level)
                    p = probe.sign_test(arm, reference, (time,), measure)
                found.append(
                    Point(
                        arm=arm,
                        measure=measure,
                        time=time,
                        level=probe.levels[arm][time],
                        start=None,
                        estimate=mine.estimate(resampling.level),
                        difference=difference,
                        p=p,
                    )
                )
    return found


def points_of_samples(
    samples: SampleTable | None, references: dict[str, str | None], resampling: Resampling
) -> list[Point]:
    """Return all measures of sampled videos; see `points_of_probe`."""
    if samples is None or not samples.keys:
        return []
    clips = resampling.clips(len(samples.keys))
    return list(_of_samples(samples, references, clips, resampling.level))


def _of_samples(
    samples: SampleTable,
    references: dict[str, str | None],
    clips: ClipResamples,
    level: float,
) -> Iterator[Point]:
    measures: Sequence[str] = SAMPLE_MEASURES
    for measure in measures:
        for arm, reference in references.items():
            for start in samples.starts(arm):
                mine = samples.quantity(clips, arm, start, measure)
                theirs: Quantity | None = None
                p = None
                if reference is not None and (reference, start) in samples.values:
                    theirs = samples.quantity(clips, reference, start, measure)
                    p = samples.sign_test(arm, reference, start, measure)
                yield Point(
                    arm=arm,
                    measure=measure,
                    time=None,
                    level=None,
                    start=start,
                    estimate=mine.estimate(level),
                    difference=None if theirs is None else (mine - theirs).estimate(level),
                    p=p,
                )
