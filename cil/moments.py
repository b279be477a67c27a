"""Mean and variance of clean latents over any number of parts, in any order.

`LatentMoments` is the state of one part; `jackknife` gives the standard errors of several.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cil.errors import DataError
from cil.shapes import check_shape

__all__ = ["LatentMoments", "StandardErrors", "jackknife", "merged"]


def _is_finite(values: Tensor) -> bool:
    """Tell whether all values are finite, in one pass: NaN wins over both extremes."""
    low, high = torch.aminmax(values)
    return bool(low.isfinite()) and bool(high.isfinite())


class LatentMoments:
    """Mean and variance of clean latents, mergeable and exact to 1e-12 in any order.

    Everything is float64 on the CPU. ``variance`` divides by the number of clips, as the paper's
    estimator does.

    Source: Chan, Golub, LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing
        Sample Variances".
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean: Tensor | None = None
        self._m2: Tensor | None = None

    @property
    def count(self) -> int:
        """Number of clips seen."""
        return self._count

    @property
    def mean(self) -> Tensor:
        """Mean of the clips, (F, C, H, W) float64.

        Raises:
            DataError: no clip was seen.
        """
        if self._mean is None:
            raise DataError("the moments hold no clip yet, got count = 0; update them with latents")
        return self._mean.clone()

    @property
    def position_variance(self) -> Tensor:
        """Variance at each position, (F, C, H, W) float64.

        Raises:
            DataError: no clip was seen.
        """
        if self._m2 is None:
            raise DataError("the moments hold no clip yet, got count = 0; update them with latents")
        return self._m2 / self._count

    @property
    def variance(self) -> float:
        """Mean variance over positions, tr(Cov) / d; 0 for one clip without a posterior.

        Raises:
            DataError: no clip was seen.
        """
        return float(self.position_variance.mean())

    def update(self, latents: Tensor, std: Tensor | None = None) -> "LatentMoments":
        """Add clips.

        Args:
            latents: (N, F, C, H, W) clean latents in the scale of training, or the means of their
                posteriors; N may be 0.
            std: (N, F, C, H, W) standard deviations of the posteriors, in the same scale. By the
                law of total variance their mean square joins the variance.

        Returns:
            self.

        Raises:
            DataError: shapes differ from each other or from earlier clips, or a value is not
                finite.
        """
        check_shape("latents", latents, "N F C H W")
        values = latents.detach().to("cpu", torch.float64)
        if std is not None and std.shape != latents.shape:
            raise DataError(
                f"std must have the shape {tuple(latents.shape)} of the latents, "
                f"got {tuple(std.shape)}"
            )
        if values.numel() == 0:
            return self
        if not _is_finite(values):
            raise DataError("latents must be finite, got NaN or Inf; find and drop the broken clip")
        # Clip by clip: torch is slow at reducing the first dimension. A first stage's latents may
        # lie in memory with their channels last; files hold them in order.
        mean = values[0].clone(memory_format=torch.contiguous_format)
        for clip in values[1:]:
            mean.add_(clip)
        mean.div_(values.shape[0])
        m2 = torch.zeros_like(mean)
        if values.shape[0] > 1:  # one clip does not differ from its own mean
            for clip in values:
                delta = clip - mean
                m2.addcmul_(delta, delta)
        if std is not None:
            spread = std.detach().to("cpu", torch.float64)
            if not _is_finite(spread) or bool(spread.amin() < 0):
                raise DataError("std must be finite and >= 0; find and drop the broken clip")
            for clip in spread:
                m2.addcmul_(clip, clip)
        return self._add(values.shape[0], mean, m2)

    def merge(self, other: "LatentMoments") -> "LatentMoments":
        """Add the clips of other moments, which stay as they are.

        Args:
            other: moments of other clips of the same shape; may be empty.

        Returns:
            self.

        Raises:
            DataError: the shapes differ.
        """
        if other._mean is None or other._m2 is None:
            return self
        return self._add(other._count, other._mean, other._m2)

    def _add(self, count: int, mean: Tensor, m2: Tensor) -> "LatentMoments":
        if self._mean is None or self._m2 is None:
            self._count, self._mean, self._m2 = count, mean.clone(), m2.clone()
            return self
        if mean.shape != self._mean.shape:
            raise DataError(
                f"latents must have the shape (F C H W) = {tuple(self._mean.shape)} of the clips "
                f"before them, got {tuple(mean.shape)}; keep one LatentMoments for each bucket"
            )
        total = self._count + count
        delta = mean - self._mean
        self._mean.add_(delta, alpha=count / total)
        self._m2.add_(m2).addcmul_(delta, delta, value=self._count * count / total)
        self._count = total
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state as tensors: ``count`` always, ``mean`` and ``m2`` unless empty."""
        state = {"count": torch.tensor(self._count, dtype=torch.int64)}
        if self._mean is not None and self._m2 is not None:
            state |= {"mean": self._mean.clone(), "m2": self._m2.clone()}
        return state

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> "LatentMoments":
        """Rebuild moments from `state_dict`.

        Raises:
            DataError: a tensor is missing.
        """
        moments = cls()
        if "count" not in state:
            raise DataError(f"moments need the tensor 'count', got {sorted(state)}")
        moments._count = int(state["count"])
        if moments._count:
            if not {"mean", "m2"} <= set(state):
                raise DataError(f"moments need the tensors 'mean' and 'm2', got {sorted(state)}")
            moments._mean = state["mean"].to("cpu", torch.float64).clone()
            moments._m2 = state["m2"].to("cpu", torch.float64).clone()
        return moments


def merged(parts: Sequence[LatentMoments]) -> LatentMoments:
    """Merge parts in their order into new moments; the parts stay as they are."""
    total = LatentMoments()
    for part in parts:
        total.merge(part)
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class StandardErrors:
    """How well the parts determine the statistics."""

    mean: float
    """Standard error of the mean, root mean square over positions, in the unit of the latents."""
    variance: float
    """Standard error of the variance, in that unit squared."""
    num_parts: int
    """Number of parts that were not empty."""


def jackknife(parts: Sequence[LatentMoments]) -> StandardErrors:
    """Estimate standard errors by leaving out one part at a time.

    Args:
        parts: moments of disjoint, exchangeable parts, for example shards; about equal in count.

    Returns:
        Standard errors of mean and variance.

    Raises:
        DataError: fewer than two parts hold clips.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 11 (delete one
        group).
    """
    full = [part for part in parts if part.count]
    count = len(full)
    if count < 2:
        raise DataError(f"standard errors need at least 2 parts with clips, got {count}")
    # Merged prefixes and suffixes: leaving out each part costs two merges instead of all.
    prefixes, suffixes = [LatentMoments()], [LatentMoments()]
    for part in full[:-1]:
        prefixes.append(merged([prefixes[-1], part]))
    for part in reversed(full[1:]):
        suffixes.append(merged([part, suffixes[-1]]))
    left_out = [merged(pair) for pair in zip(prefixes, reversed(suffixes), strict=True)]
    means = torch.stack([moments.mean for moments in left_out])
    variances = torch.tensor([moments.variance for moments in left_out], dtype=torch.float64)
    factor = (count - 1) / count
    spread = (means - means.mean(dim=0)).square().sum(dim=0) * factor
    variance_spread = (variances - variances.mean()).square().sum() * factor
    return StandardErrors(
        mean=math.sqrt(float(spread.mean())),
        variance=math.sqrt(float(variance_spread)),
        num_parts=count,
    )
