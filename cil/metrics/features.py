"""Mean and covariance of feature rows over any number of parts, in any order.

In: features (N, D) of clips, part by part. Out: `FeatureStatistics`, whose state is small (D x D),
merges exactly and is all that a Fréchet distance needs.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cil.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    Rows = npt.NDArray[np.float64]

__all__ = ["FeatureStatistics", "as_rows"]


def as_rows(name: str, features: Any) -> "Rows":
    """Return features as (N, D) float64.

    Args:
        name: what the message calls them.
        features: (N, D), an array or a torch tensor of any floating-point dtype, on any device.

    Raises:
        DataError: another shape, or a value that is not finite.
    """
    if hasattr(features, "detach"):
        features = features.detach().cpu().double().numpy()
    rows: Rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise DataError(f"{name} must be (N, D) with D >= 1, got {rows.shape}; one row for a clip")
    wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if wrong.size:
        raise DataError(
            f"{name} must be finite, got NaN or Inf in {wrong.size} of {len(rows)} rows, first in "
            f"row {wrong[0]}; find the broken clip or the wrong weights"
        )
    return rows


class FeatureStatistics:
    """Mean and covariance of features, mergeable, float64, exact to 1e-12 under any sharding.

    Source: Chan, Golub, LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing
        Sample Variances".
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean: Rows | None = None
        self._m2: Rows | None = None

    @property
    def count(self) -> int:
        """Number of rows seen."""
        return self._count

    @property
    def width(self) -> int:
        """Number of features in a row, D; 0 while nothing was seen."""
        return 0 if self._mean is None else len(self._mean)

    @property
    def mean(self) -> "Rows":
        """Mean row, (D,) float64.

        Raises:
            DataError: nothing was seen.
        """
        if self._mean is None:
            raise DataError("there are no features yet, got 0 rows; update the statistics first")
        return self._mean.copy()

    @property
    def scatter(self) -> "Rows":
        """Sum of the outer products of the centred rows, (D, D) float64.

        Raises:
            DataError: nothing was seen.
        """
        if self._m2 is None:
            raise DataError("there are no features yet, got 0 rows; update the statistics first")
        return self._m2.copy()

    def covariance(self, ddof: int) -> "Rows":
        """Return the covariance, (D, D) float64.

        Args:
            ddof: what is taken off the number of rows to divide by: 0 or 1.

        Raises:
            DataError: fewer than two rows, or another ``ddof``.
        """
        check_rows("features", self._count, ddof)
        return self.scatter / (self._count - ddof)

    def update(self, features: Any) -> "FeatureStatistics":
        """Add rows, (N, D); N may be 0.

        Returns:
            self.

        Raises:
            DataError: another shape than before, or a value that is not finite.
        """
        rows = as_rows("features", features)
        if not len(rows):
            return self
        mean = rows.mean(axis=0)
        centred = rows - mean
        return self._add(len(rows), mean, centred.T @ centred)

    def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """Add the rows of other statistics, which stay as they are and may be empty.

        Returns:
            self.

        Raises:
            DataError: they are of another width.
        """
        if other._mean is None or other._m2 is None:
            return self
        return self._add(other._count, other._mean, other._m2)

    def _add(self, count: int, mean: "Rows", m2: "Rows") -> "FeatureStatistics":
        if self._mean is None or self._m2 is None:
            self._count, self._mean, self._m2 = count, mean.copy(), m2.copy()
            return self
        if mean.shape != self._mean.shape:
            raise DataError(
                f"features must have {len(self._mean)} columns as those before them, got "
                f"{len(mean)}; keep one FeatureStatistics for each extractor"
            )
        total = self._count + count
        delta = mean - self._mean
        self._m2 = self._m2 + m2 + np.outer(delta, delta) * (self._count * count / total)
        self._mean = self._mean + delta * (count / total)
        self._count = total
        return self

    def state_dict(self) -> dict[str, "npt.NDArray[Any]"]:
        """Return the state as arrays: ``count`` always, ``mean`` and ``m2`` unless empty."""
        state: dict[str, npt.NDArray[Any]] = {"count": np.array(self._count, dtype=np.int64)}
        if self._mean is not None and self._m2 is not None:
            state |= {"mean": self._mean.copy(), "m2": self._m2.copy()}
        return state

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "FeatureStatistics":
        """Rebuild statistics from `state_dict`.

        Raises:
            DataError: an array is missing or of the wrong shape.
        """
        statistics = cls()
        needed = {"count"} if not int(state.get("count", 1)) else {"count", "mean", "m2"}
        if not needed <= set(state):
            raise DataError(f"statistics need the arrays {sorted(needed)}, got {sorted(state)}")
        statistics._count = int(state["count"])
        if statistics._count:
            mean = as_rows("mean", np.asarray(state["mean"])[None])[0]
            m2 = as_rows("m2", state["m2"])
            if m2.shape != (len(mean), len(mean)):
                raise DataError(f"m2 must be {len(mean)} x {len(mean)}, got {m2.shape}")
            statistics._mean, statistics._m2 = mean.copy(), m2.copy()
        return statistics


def check_rows(name: str, count: int, ddof: int) -> None:
    """Refuse a covariance of fewer than two rows, and a ``ddof`` other than 0 and 1."""
    if ddof not in (0, 1):
        raise DataError(f"ddof must be 0 (the custom of FVD) or 1, got {ddof}")
    if count < 2:
        raise DataError(f"a covariance of {name} needs at least 2 clips, got {count}; take more")
