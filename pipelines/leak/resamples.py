"""Intervals by resampling clips, for ratios of sums, their differences and what is made of them.

All quantities of one `ClipResamples` share the resampled clips, so a difference between two arms is
a paired one. They are the resamples of `cil.metrics.resampling`, for many measures at once. Clips
are what is resampled: an interval says what other clips of the same kind would
give, and nothing about another training.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cil.errors import DataError
from cil.metrics.resampling import sign_test

__all__ = ["FEWEST_CLIPS", "ClipResamples", "Estimate", "Quantity", "mean_of", "sign_test_of"]

FEWEST_CLIPS = 8
"""With fewer, resampling gives intervals that are too short to decide anything by."""
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number with its interval."""

    value: float | None
    """None where nothing is measured, as the ratio of a motion to none."""
    low: float | None
    """Ends of the interval; None with a single clip."""
    high: float | None
    n: int
    """Clips."""

    @property
    def sign(self) -> int:
        """1 or -1 if the whole interval is above or below 0, else 0; always 0 for too few clips."""
        if self.low is None or self.high is None or self.n < FEWEST_CLIPS:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """A number and what it is for each resample of the clips."""

    point: float
    draws: Numbers
    """(R,) of the resamples."""
    n: int

    def __sub__(self, other: "Quantity") -> "Quantity":
        """Return the paired difference."""
        return Quantity(
            point=self.point - other.point, draws=self.draws - other.draws, n=min(self.n, other.n)
        )

    def __truediv__(self, other: "Quantity") -> "Quantity":
        """Return the ratio; NaN or infinite where the other one is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            point = float(np.float64(self.point) / np.float64(other.point))
            draws = self.draws / other.draws
        return Quantity(point=point, draws=draws, n=min(self.n, other.n))

    def estimate(self, level: float) -> Estimate:
        """Return the number with its percentile interval.

        Args:
            level: share of the resamples inside, in (0, 1). Where a resample has no value, there
                is no interval.
        """
        if not math.isfinite(self.point):
            return Estimate(value=None, low=None, high=None, n=self.n)
        if self.n < 2 or not np.isfinite(self.draws).all():
            return Estimate(value=self.point, low=None, high=None, n=self.n)
        tail = (1 - level) / 2
        low, high = np.quantile(self.draws, [tail, 1 - tail])
        return Estimate(value=self.point, low=float(low), high=float(high), n=self.n)


def mean_of(quantities: Sequence[Quantity]) -> Quantity:
    """Return the mean of quantities, as of one measure at several times."""
    return Quantity(
        point=float(np.mean([each.point for each in quantities])),
        draws=np.mean([each.draws for each in quantities], axis=0),
        n=min(each.n for each in quantities),
    )


class ClipResamples:
    """Resamples of some clips with replacement, the same for every measure and arm."""

    def __init__(self, num_clips: int, *, seed: int, num: int) -> None:
        """Draw the resamples.

        Args:
            num_clips: clips, >= 1.
            seed: of the draws, >= 0.
            num: resamples, >= 1.
        """
        self.num_clips = num_clips
        generator = np.random.Generator(np.random.Philox(seed))
        # the draws of `bootstrap_interval`, which are the same in all versions of numpy
        places = (generator.random((num, num_clips)) * num_clips).astype(np.int64)
        self._counts = np.stack([np.bincount(row, minlength=num_clips) for row in places]) * 1.0

    def ratio(self, top: Numbers, bottom: Numbers) -> Quantity:
        """Return a ratio of sums over clips.

        Args:
            top: (n,) numerators.
            bottom: (n,) denominators, >= 0.

        Raises:
            DataError: not one of each per clip, or a number is not finite.
        """
        for name, values in (("numerators", top), ("denominators", bottom)):
            if values.shape != (self.num_clips,) or not np.isfinite(values).all():
                raise DataError(
                    f"a measure needs one finite number for each of {self.num_clips} clips, its "
                    f"{name} are {values.shape} with {int((~np.isfinite(values)).sum())} not finite"
                )
        with np.errstate(divide="ignore", invalid="ignore"):
            point = float(top.sum() / np.float64(bottom.sum()))
            draws = (self._counts @ top) / (self._counts @ bottom)
        return Quantity(point=point, draws=draws, n=self.num_clips)

    def mean(self, values: Numbers) -> Quantity:
        """Return the mean of one number per clip."""
        return self.ratio(values, np.ones_like(values))


def sign_test_of(differences: Numbers) -> float | None:
    """Return the two-sided p of as uneven signs by chance; None if no difference is left.

    Args:
        differences: (n,) one per clip; zeros and what is not finite do not count.
    """
    above, below = int((differences > 0).sum()), int((differences < 0).sum())
    return sign_test(above, below) if above + below else None
