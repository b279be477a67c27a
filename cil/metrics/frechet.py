"""Fréchet distance between two sets of features, and its extrapolation to infinitely many clips.

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

With centred rows X and Y the last trace is the nuclear norm of X Y^T / sqrt(n1 n2), which needs no
square root of a matrix and is exact for fewer clips than features.

The distance of two finite samples of the same law is not 0: it falls as 1/n. Never compare two of
different n; `frechet_infinity` fits the line against 1/n.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cil.errors import DataError
from cil.metrics.features import FeatureStatistics, as_rows, check_rows

if TYPE_CHECKING:
    from cil.metrics.features import Rows

__all__ = ["FrechetLine", "fit_line", "frechet_distance", "frechet_infinity"]


def frechet_distance(real: Any, fake: Any, *, ddof: int = 0) -> float:
    """Return the squared Fréchet distance of two sets of features, as FID and FVD are reported.

    Args:
        real: (N, D) features, finite, N >= 2; or their `FeatureStatistics`.
        fake: the same for the other set.
        ddof: of the covariances. 0 is the custom of FVD (StyleGAN-V, cd-fvd), 1 that of image FID
            (torch-fidelity); the two differ by about 1/N.

    Returns:
        >= 0, in squared units of the features.

    Raises:
        DataError: fewer than two clips, different widths, or a value that is not finite.

    Source: Heusel et al., arXiv 1706.08500; Unterthiner et al., arXiv 1812.01717.
    """
    first, second = (_factored(name, x) for name, x in (("real", real), ("fake", fake)))
    for name, part in (("real clips", first), ("generated clips", second)):
        check_rows(name, part.count, ddof)
    if len(first.mean) != len(second.mean):
        raise DataError(
            f"both sets need features of one extractor, got {len(first.mean)} and "
            f"{len(second.mean)} columns"
        )
    divisors = first.count - ddof, second.count - ddof
    shared = np.linalg.norm(first.factor @ second.factor.T, ord="nuc")
    squared = (
        np.sum((first.mean - second.mean) ** 2)
        + first.trace / divisors[0]
        + second.trace / divisors[1]
        - 2 * shared / np.sqrt(divisors[0] * divisors[1])
    )
    return max(float(squared), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Factored:
    """Rows whose outer products sum to the scatter matrix; no more of them than columns."""

    count: int
    mean: "Rows"
    factor: "Rows"
    trace: float


def _factored(name: str, features: Any) -> _Factored:
    if isinstance(features, FeatureStatistics):
        scatter = features.scatter
        values, vectors = np.linalg.eigh(scatter)
        # Centred rows span at most count - 1 directions; what is left over is rounding.
        values = np.clip(values, 0, None)
        values[: max(len(values) - max(features.count - 1, 0), 0)] = 0
        return _Factored(
            count=features.count,
            mean=features.mean,
            factor=(vectors * np.sqrt(values)).T,
            trace=float(np.trace(scatter)),
        )
    rows = as_rows(f"{name} features", features)
    check_rows(f"{name} clips", len(rows), 0)
    mean = rows.mean(axis=0)
    centred = rows - mean
    factor: Rows = centred
    if len(rows) > rows.shape[1]:
        factor = np.asarray(np.linalg.qr(centred, mode="r"))
    return _Factored(
        count=len(rows), mean=mean, factor=factor, trace=float(np.sum(centred * centred))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FrechetLine:
    """Fréchet distances of subsets and the line through them against 1/n."""

    intercept: float
    """The extrapolation to infinitely many clips; may be slightly negative."""
    slope: float
    """Rise of the distance with 1/n; > 0 where few clips inflate it."""
    sizes: tuple[int, ...]
    """Clips in each subset, of either set."""
    values: tuple[float, ...]
    """Fréchet distance of each subset."""
    ddof: int
    """Of the covariances."""
    seed: int
    """Of the draw of the subsets."""


def fit_line(sizes: Sequence[int], values: Sequence[float]) -> tuple[float, float]:
    """Fit ``value = intercept + slope / size`` by least squares.

    Returns:
        Intercept and slope.

    Raises:
        DataError: fewer than two different sizes, or as many sizes as values are not given.
    """
    if len(sizes) != len(values) or len(set(sizes)) < 2:
        raise DataError(
            f"a line needs values at two sizes or more, got {len(values)} values at sizes "
            f"{sorted(set(sizes))}"
        )
    inverse = 1 / np.asarray(sizes, dtype=np.float64)
    heights = np.asarray(values, dtype=np.float64)
    centred = inverse - inverse.mean()
    slope = float(centred @ (heights - heights.mean()) / (centred @ centred))
    return float(heights.mean() - slope * inverse.mean()), slope


def frechet_infinity(
    real: Any,
    fake: Any,
    *,
    seed: int,
    num_sizes: int = 8,
    num_repeats: int = 3,
    ddof: int = 0,
) -> FrechetLine:
    """Extrapolate the Fréchet distance to infinitely many clips from subsets of both sets.

    Args:
        real: (N, D) features.
        fake: (M, D) features. Row k of both may belong together: nothing is made of it.
        seed: of the draw of the subsets.
        num_sizes: sizes of subsets, evenly from a quarter of the smaller set to all of it.
        num_repeats: subsets of each size.
        ddof: of the covariances.

    Raises:
        DataError: fewer than 16 clips in a set, or features that `frechet_distance` refuses.

    Source: Chong and Forsyth, arXiv 1911.07023, applied to videos.
    """
    first, second = as_rows("real features", real), as_rows("fake features", fake)
    most = min(len(first), len(second))
    if most < 16:
        raise DataError(f"extrapolation needs at least 16 clips in each set, got {most}")
    generator = np.random.Generator(np.random.Philox(seed))
    sizes, values = [], []
    for size in np.linspace(most // 4, most, num_sizes).round().astype(int):
        for _ in range(num_repeats):
            parts = (rows[generator.permutation(len(rows))[:size]] for rows in (first, second))
            values.append(frechet_distance(*parts, ddof=ddof))
            sizes.append(int(size))
    intercept, slope = fit_line(sizes, values)
    return FrechetLine(
        intercept=intercept,
        slope=slope,
        sizes=tuple(sizes),
        values=tuple(values),
        ddof=ddof,
        seed=seed,
    )
