"""What the verdict is decided by: each arm against its reference, with intervals.

In: a `ProbeTable`, a `SampleTable` and the arms. Out: `Contrast`s. Leak measures are means over the
ranks of `DECISION_TIMES`; those of videos are at the largest start time without Analytic-Init.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipelines.leak.arms import LeakArm
from pipelines.leak.config import DECISION_TIMES
from pipelines.leak.probe_table import ProbeTable
from pipelines.leak.resamples import ClipResamples, Estimate, Quantity, mean_of
from pipelines.leak.sample_table import SampleTable, Start

__all__ = ["Contrast", "ControlShare", "Evidence", "Resampling", "compared_start", "gather"]

_OF_THE_PROBE = ("motion_transfer_ratio", "condition_dominance", "one_step_mse", "frame_zero_mse")
_OF_THE_SAMPLES = ("alignment_mse", "motion", "motion_error")


@dataclass(frozen=True, kw_only=True, slots=True)
class Resampling:
    """How intervals are made."""

    seed: int
    num: int
    """Resamples."""
    level: float
    """Share of them inside an interval."""

    def clips(self, count: int) -> ClipResamples:
        """Draw the resamples of so many clips."""
        return ClipResamples(count, seed=self.seed, num=self.num)


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrast:
    """A measure of an arm and of its reference, on the same clips with the same noise."""

    arm: Estimate
    reference: Estimate
    difference: Estimate
    """Arm minus reference, paired."""
    p: float | None
    """Of the sign test over clips."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlShare:
    """How much of an arm's gain its control has, and what is left between the two."""

    control: str
    preset: str
    motion_transfer: Estimate
    """Gain of the control over the reference, over the gain of the arm."""
    dominance: Estimate
    left: Contrast
    """Motion transfer of the arm against the control."""
    left_dominance: Contrast
    """Condition dominance of the arm against the control."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Everything about one arm that the verdict looks at."""

    arm: str
    reference: str
    contrasts: dict[str, Contrast]
    """By measure; a measure that was not taken is missing."""
    controls: tuple[ControlShare, ...] = field(default=())


def compared_start(samples: SampleTable | None) -> Start | None:
    """Return where arms are compared: at the largest M, with unit noise if it is there."""
    if samples is None or not samples.values:
        return None
    starts = {start for _, start in samples.values}
    return max(starts, key=lambda start: (start.time, not start.analytic_init))


def gather(
    arms: Sequence[LeakArm],
    probe: ProbeTable,
    samples: SampleTable | None,
    resampling: Resampling,
) -> list[Evidence]:
    """Compare every arm with its reference and its controls.

    Args:
        arms: all arms.
        probe: of these arms.
        samples: of these arms; None without videos.
        resampling: of the clips.
    """
    maker = _Contrasts(probe, samples, resampling)
    presets = {arm.name: arm.preset for arm in arms}
    found = []
    for arm in arms:
        if arm.reference is None:
            continue
        shares = tuple(
            maker.share(arm.name, arm.reference, control, presets[control])
            for control in arm.controls
            if control != arm.reference
        )
        found.append(
            Evidence(
                arm=arm.name,
                reference=arm.reference,
                contrasts=maker.all(arm.name, arm.reference),
                controls=shares,
            )
        )
    return found


class _Contrasts:
    def __init__(
        self, probe: ProbeTable, samples: SampleTable | None, resampling: Resampling
    ) -> None:
        self._probe, self._samples, self._level = probe, samples, resampling.level
        self._clips = resampling.clips(len(probe.keys))
        self._start = compared_start(samples)
        if samples is not None and samples.keys:
            self._sampled = resampling.clips(len(samples.keys))

    def all(self, arm: str, reference: str) -> dict[str, Contrast]:
        contrasts = {name: self._probed(arm, reference, name) for name in _OF_THE_PROBE}
        samples, start = self._samples, self._start
        if samples is None or start is None or not samples.keys:
            return contrasts
        if all((name, start) in samples.values for name in (arm, reference)):
            for name in _OF_THE_SAMPLES:
                mine, theirs = (
                    samples.quantity(self._sampled, each, start, name) for each in (arm, reference)
                )
                p = samples.sign_test(arm, reference, start, name)
                contrasts[name] = self._contrast(mine, theirs, p)
        return contrasts

    def share(self, arm: str, reference: str, control: str, preset: str) -> ControlShare:
        shares = []
        for measure in ("motion_transfer_ratio", "condition_dominance"):
            base = self._mean(reference, measure)
            gain = self._mean(arm, measure) - base
            shares.append(((self._mean(control, measure) - base) / gain).estimate(self._level))
        return ControlShare(
            control=control,
            preset=preset,
            motion_transfer=shares[0],
            dominance=shares[1],
            left=self._probed(arm, control, "motion_transfer_ratio"),
            left_dominance=self._probed(arm, control, "condition_dominance"),
        )

    def _probed(self, arm: str, reference: str, measure: str) -> Contrast:
        p = self._probe.sign_test(arm, reference, DECISION_TIMES, measure)
        return self._contrast(self._mean(arm, measure), self._mean(reference, measure), p)

    def _mean(self, arm: str, measure: str) -> Quantity:
        return mean_of(
            [self._probe.quantity(self._clips, arm, time, measure) for time in DECISION_TIMES]
        )

    def _contrast(self, mine: Quantity, theirs: Quantity, p: float | None) -> Contrast:
        return Contrast(
            arm=mine.estimate(self._level),
            reference=theirs.estimate(self._level),
            difference=(mine - theirs).estimate(self._level),
            p=p,
        )
