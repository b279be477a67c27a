"""Kernel distance (KVD, the video form of KID): squared MMD with a cubic polynomial kernel.

Unlike the Fréchet distance its unbiased form does not depend on the number of clips, which makes
it the better choice for few of them.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from cil.errors import DataError
from cil.metrics.features import as_rows

if TYPE_CHECKING:
    from cil.metrics.features import Rows

__all__ = ["kernel_distance"]

_BLOCK = 1024
"""Rows of the kernel matrix held at a time."""


def kernel_distance(real: Any, fake: Any, *, unbiased: bool = True) -> float:
    """Return the squared MMD of two sets of features with the kernel (x.y / D + 1)^3.

    Args:
        real: (N, D) features, finite, N >= 2.
        fake: (M, D) features, finite, M >= 2; M may differ from N.
        unbiased: leave the pairs of a clip with itself out. The result may then be negative, and
            its mean over draws of one law is 0.

    Returns:
        The distance, over all clips (not a mean over subsets, as image KID is often computed).

    Raises:
        DataError: fewer than two clips, different widths, or a value that is not finite.

    Source: Binkowski et al., arXiv 1801.01401.
    """
    first, second = as_rows("real features", real), as_rows("fake features", fake)
    if first.shape[1] != second.shape[1]:
        raise DataError(
            f"both sets need features of one extractor, got {first.shape[1]} and "
            f"{second.shape[1]} columns"
        )
    if min(len(first), len(second)) < 2:
        raise DataError(
            f"a kernel distance needs at least 2 clips in each set, got {len(first)} and "
            f"{len(second)}"
        )
    across = math.fsum(_sums(first, second)) / (len(first) * len(second))
    within = _within(first, unbiased) + _within(second, unbiased)
    return within - 2 * across


def _within(rows: "Rows", unbiased: bool) -> float:
    total, count = math.fsum(_sums(rows, rows)), len(rows)
    if not unbiased:
        return total / count**2
    own = np.sum((np.einsum("nd,nd->n", rows, rows) / rows.shape[1] + 1) ** 3)
    return (total - float(own)) / (count * (count - 1))


def _sums(rows: "Rows", others: "Rows") -> Iterator[float]:
    for start in range(0, len(rows), _BLOCK):
        yield float(np.sum((rows[start : start + _BLOCK] @ others.T / rows.shape[1] + 1) ** 3))
