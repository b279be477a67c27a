"""Intervals and paired comparisons by resampling clips.

What is resampled is what was drawn: clips. Videos of the same clip with several seeds are not
independent, so give the clips as ``groups``, and whole clips are resampled.

`bootstrap_interval` is for means and ratios of sums. For distances of sets (Fréchet, kernel) and
the Inception Score use `jackknife_interval`: a bootstrap repeats clips, which by itself inflates a
distance.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from cil.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    Values = npt.NDArray[np.float64]

__all__ = [
    "Interval",
    "PairedDifference",
    "bootstrap_interval",
    "jackknife_interval",
    "mean",
    "paired_difference",
    "ratio_of_sums",
    "sign_test",
]

_CHUNK = 1 << 22
"""Numbers drawn at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A statistic and how far it may be off."""

    value: float
    """The statistic of all rows."""
    low: float | None
    """Lower end; None where the interval cannot be had, see ``reason``."""
    high: float | None
    """Upper end."""
    level: float
    """Share of intervals made this way that hold the truth, if all is well: 0.95."""
    n: int
    """Independent clips (groups) behind it."""
    seed: int | None
    """Of the resampling; None where nothing is drawn."""
    reason: str | None = None
    """Why there are no ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """How the values of one arm differ from those of another on the same clips and seeds."""

    mean: float
    """Mean of first less second."""
    low: float | None
    """Lower end of the bootstrap interval of the mean; None for one clip."""
    high: float | None
    """Upper end."""
    level: float
    """Of the interval."""
    p: float
    """Two-sided sign test over clips; says nothing about the size of the difference."""
    n: int
    """Independent clips."""
    num_positive: int
    """Clips where the first is larger."""
    num_negative: int
    """Clips where the second is larger; the rest are ties."""
    seed: int
    """Of the bootstrap."""


def mean(values: "Values") -> float:
    """Return the mean over rows."""
    return float(np.mean(values))


def ratio_of_sums(numerator: "Values", denominator: "Values") -> float:
    """Return sum over sum; NaN where the denominator is 0."""
    bottom = float(np.sum(denominator))
    return float(np.sum(numerator)) / bottom if bottom else math.nan


def bootstrap_interval(
    values: Any,
    statistic: Callable[..., float] = mean,
    *,
    seed: int,
    num: int = 2000,
    level: float = 0.95,
    groups: Sequence[Any] | None = None,
) -> Interval:
    """Return a statistic of clips and its percentile interval over resampled clips.

    Args:
        values: (N, ...) finite values; or a tuple of such arrays, whose rows belong together and
            are resampled together.
        statistic: of the arrays, such as `mean` or `ratio_of_sums`.
        seed: of the resampling.
        num: resamples, >= 100.
        level: of the interval, in (0, 1).
        groups: (N,) labels of rows that are not independent, for example the clip of each video.

    Returns:
        The interval, without ends for a single clip, or where a resample has no value.

    Raises:
        DataError: no rows, different numbers of rows, values that are not finite or a statistic
            that is not.
    """
    arrays = _arrays(values)
    count = len(arrays[0])
    if num < 100 or not 0 < level < 1:
        raise DataError(f"num must be >= 100 and level in (0, 1), got {num} and {level}")
    value = _finite_statistic(statistic, arrays)
    members = _members(groups, count)

    def without(reason: str) -> Interval:
        return Interval(
            value=value,
            low=None,
            high=None,
            level=level,
            n=len(members),
            seed=seed,
            reason=reason,
        )

    if len(members) < 2:
        return without("one clip has no spread")
    generator = np.random.Generator(np.random.Philox(seed))
    drawn: list[float] = []
    for chunk in _resamples(generator, len(members), num):
        if statistic is mean and groups is None and arrays[0].ndim == 1:
            drawn.extend(arrays[0][chunk].mean(axis=1))
            continue
        for row in chunk:
            places = np.concatenate([members[k] for k in row]) if groups is not None else row
            drawn.append(float(statistic(*(array[places] for array in arrays))))
    if not np.isfinite(drawn).all():
        return without("the statistic has no value in some resamples, such as a ratio over 0")
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(
        value=value, low=float(low), high=float(high), level=level, n=len(members), seed=seed
    )


def jackknife_interval(
    values: Any,
    statistic: Callable[..., float],
    *,
    num_parts: int = 20,
    level: float = 0.95,
) -> Interval:
    """Return a statistic of whole sets and a normal interval by leaving out one part at a time.

    Args:
        values: (N, ...) array, or a tuple of arrays, which may differ in their numbers of rows;
            part k of each is left out together. Rows of equal place should be independent.
        statistic: of the arrays, such as a Fréchet distance.
        num_parts: contiguous parts of about equal size, >= 2; fewer where there are fewer rows.
        level: of the interval, in (0, 1).

    Returns:
        The interval; its ``n`` is the smallest number of rows. It measures the spread and leaves
        the bias, so the interval of a Fréchet distance is that of distances of this n.

    Raises:
        DataError: fewer than two rows, or a statistic that is not finite.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 11.
    """
    arrays = _arrays(values, equal=False)
    least = min(len(array) for array in arrays)
    parts = min(num_parts, least)
    if parts < 2 or not 0 < level < 1:
        raise DataError(f"a jackknife needs at least 2 clips and parts, got {least} and {parts}")
    value = _finite_statistic(statistic, arrays)
    left = []
    for part in range(parts):
        kept = []
        for array in arrays:
            start, end = part * len(array) // parts, (part + 1) * len(array) // parts
            kept.append(np.concatenate([array[:start], array[end:]]))
        left.append(_finite_statistic(statistic, kept))
    spread = (parts - 1) / parts * float(np.sum((np.array(left) - np.mean(left)) ** 2))
    reach = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(spread)
    return Interval(
        value=value, low=value - reach, high=value + reach, level=level, n=least, seed=None
    )


def paired_difference(
    first: Any,
    second: Any,
    *,
    seed: int,
    num: int = 2000,
    level: float = 0.95,
    groups: Sequence[Any] | None = None,
) -> PairedDifference:
    """Compare two arms by the differences first - second on the same clips and seeds.

    Args:
        first: (N,) values of one arm.
        second: (N,) values of the other, row by row of the same clip and seed.
        seed: of the bootstrap.
        num: resamples.
        level: of the interval.
        groups: (N,) the clip of each row, where there are several seeds for a clip; the sign test
            is then over the clips' mean differences.

    Raises:
        DataError: different numbers of rows, none, or values that are not finite.
    """
    one, other = _arrays((first, second))
    if one.ndim != 1 or other.ndim != 1:
        raise DataError(f"paired values must be (N,), got {one.shape} and {other.shape}")
    gaps = one - other
    interval = bootstrap_interval(gaps, seed=seed, num=num, level=level, groups=groups)
    per_clip = [float(gaps[rows].mean()) for rows in _members(groups, len(gaps))]
    positive, negative = sum(gap > 0 for gap in per_clip), sum(gap < 0 for gap in per_clip)
    return PairedDifference(
        mean=interval.value,
        low=interval.low,
        high=interval.high,
        level=level,
        p=sign_test(positive, negative),
        n=interval.n,
        num_positive=positive,
        num_negative=negative,
        seed=seed,
    )


def sign_test(num_positive: int, num_negative: int) -> float:
    """Return the two-sided p of the exact sign test; ties are left out, and without any it is 1."""
    count, fewer = num_positive + num_negative, min(num_positive, num_negative)
    tail: int = sum(math.comb(count, k) for k in range(fewer + 1))
    share: float = 2 * tail / (1 << count)
    return min(1.0, share)


def _arrays(values: Any, *, equal: bool = True) -> list["Values"]:
    parts = values if isinstance(values, tuple) else (values,)
    arrays = [np.asarray(part, dtype=np.float64) for part in parts]
    if any(array.ndim == 0 or not array.size for array in arrays):
        raise DataError("there is nothing to resample: got no rows")
    lengths = sorted({len(array) for array in arrays})
    if equal and len(lengths) > 1:
        raise DataError(f"rows that belong together must be as many, got {lengths}")
    if not all(np.isfinite(array).all() for array in arrays):
        raise DataError("values must be finite, got NaN or Inf; leave those clips out and say so")
    return arrays


def _finite_statistic(statistic: Callable[..., float], arrays: Sequence["Values"]) -> float:
    value = float(statistic(*arrays))
    if not math.isfinite(value):
        raise DataError(f"the statistic has no finite value, got {value}; is a denominator 0?")
    return value


def _members(groups: Sequence[Any] | None, count: int) -> list[Any]:
    if groups is None:
        return [np.array([row]) for row in range(count)]
    labels = list(groups)
    if len(labels) != count:
        raise DataError(f"groups must name {count} rows, got {len(labels)}")
    places: dict[Any, list[int]] = {}
    for row, label in enumerate(labels):
        places.setdefault(label, []).append(row)
    return [np.array(rows) for rows in places.values()]


def _resamples(generator: np.random.Generator, count: int, num: int) -> Any:
    """Yield (k, count) places; `random` is stable between versions of numpy, `choice` is not."""
    size = max(1, min(num, _CHUNK // count))
    for start in range(0, num, size):
        rows = min(size, num - start)
        yield (generator.random((rows, count)) * count).astype(np.int64)
