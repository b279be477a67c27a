"""Analytic-Init: start sampling at a time M before the end, from the best isotropic Gaussian.

At start time M the noisy latents alpha * clean + sigma * noise have mean alpha * E[clean] and the
isotropic Gaussian nearest to them in KL divergence is

    N(alpha * mean, (sigma^2 + alpha^2 * variance) I),    variance = tr(Cov[clean]) / d

`LatentMoments` estimates mean and variance from clips in any order and any number of parts;
`AnalyticInit` holds them, draws from the Gaussian and reads and writes files.

Source: Zhao et al. 2024, arXiv 2406.15735, section 4.1 (VP); VE and flow by the same argument.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cil.errors import ConfigError, DataError
from cil.shapes import append_dims, check_shape

__all__ = ["AnalyticInit", "LatentMoments", "Layout"]

Layout = Literal["dynamicrafter", "svd"]

# layout -> (key of the mean, key of the variance); own files use the first row.
_KEYS: dict[str, tuple[str, str]] = {
    "cil": ("mean", "variance"),
    "dynamicrafter": ("Expectation_X0", "Tr_Cov_d"),
    "svd": ("Expectation_x_0", "trCov_d"),
}


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
        return self._mean

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
        if not bool(torch.isfinite(values).all()):
            raise DataError("latents must be finite, got NaN or Inf; find and drop the broken clip")
        if std is not None and std.shape != latents.shape:
            raise DataError(
                f"std must have the shape {tuple(latents.shape)} of the latents, "
                f"got {tuple(std.shape)}"
            )
        if values.shape[0] == 0:
            return self
        mean = values.mean(dim=0)
        m2 = (values - mean).square().sum(dim=0)
        if std is not None:
            spread = std.detach().to("cpu", torch.float64)
            if not bool(torch.isfinite(spread).all()) or bool((spread < 0).any()):
                raise DataError("std must be finite and >= 0; find and drop the broken clip")
            m2 = m2 + spread.square().sum(dim=0)
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
        self._mean = self._mean + delta * (count / total)
        self._m2 = self._m2 + m2 + delta.square() * (self._count * count / total)
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


@dataclass(frozen=True, slots=True, eq=False)
class AnalyticInit:
    """The Gaussian that sampling starts from: mean, variance, and what they came from.

    Args:
        mean: (F, C, H, W) mean of the clean latents in the scale of training.
        variance: tr(Cov) / d of the clean latents in that scale, >= 0.
        metadata: where the numbers came from (dataset, encoder, count), written to files.

    Raises:
        DataError: the mean has another number of dimensions, or a value is not finite.
    """

    mean: Tensor
    variance: float
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_shape("mean", self.mean, "F C H W")
        if not bool(torch.isfinite(self.mean).all()):
            raise DataError("mean must be finite, got NaN or Inf; estimate the statistics again")
        if not (math.isfinite(float(self.variance)) and self.variance >= 0):
            raise DataError(
                f"variance must be >= 0 and finite, got {self.variance}; "
                "if the mean is right, the file may hold the two in swapped order"
            )

    @classmethod
    def from_moments(
        cls, moments: LatentMoments, metadata: Mapping[str, str] | None = None
    ) -> "AnalyticInit":
        """Take mean and variance from moments and note the number of clips."""
        notes = {"count": str(moments.count)} | dict(metadata or {})
        return cls(moments.mean, moments.variance, notes)

    def draw(self, noise: Tensor, *, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """Draw the latents that sampling starts from.

        Args:
            noise: (B, F, C, H, W) standard normal.
            alpha: factor of the clean latents at the start time, a number or (B,): 1 for EDM,
                sqrt(alphas_cumprod) for VP, 1 - t for flow.
            sigma: factor of the noise at the start time, a number or (B,): sigma for EDM,
                sqrt(1 - alphas_cumprod) for VP, t for flow.

        Returns:
            (B, F, C, H, W) alpha * mean + sqrt(sigma^2 + alpha^2 * variance) * noise, dtype of
            ``noise``.

        Raises:
            DataError: noise of another shape than the mean.
        """
        frames, channels, height, width = self.mean.shape
        check_shape("noise", noise, "B F C H W", F=frames, C=channels, H=height, W=width)
        wide = noise.double()
        a = torch.as_tensor(alpha, dtype=torch.float64, device=noise.device)
        s = torch.as_tensor(sigma, dtype=torch.float64, device=noise.device)
        std = torch.sqrt(s.square() + a.square() * self.variance)
        mean = self.mean.to(wide)
        if a.ndim or s.ndim:
            std = append_dims(std, 5)
            a = append_dims(a, 5)
        return (a * mean + std * wide).to(noise.dtype)

    def scaled(self, factor: float) -> "AnalyticInit":
        """Return the statistics of latents that are multiplied by ``factor``.

        Use it for a VAE's scaling factor, and for dynamic rescale at the start time.
        """
        return AnalyticInit(self.mean * factor, self.variance * factor**2, dict(self.metadata))

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with ``mean`` and ``variance`` in float64, and the metadata."""
        from safetensors.torch import save_file

        tensors = {
            "mean": self.mean.to("cpu", torch.float64).contiguous(),
            "variance": torch.tensor([self.variance], dtype=torch.float64),
        }
        save_file(tensors, str(path), metadata={"format": "cil-analytic-init"} | self.metadata)

    def export(self, path: str | Path, layout: Layout) -> None:
        """Write the statistics as the paper's authors publish them, in float32.

        Args:
            path: file to write: safetensors for that suffix, else a torch file.
            layout: ``dynamicrafter`` (also VideoCrafter): ``Expectation_X0`` (1, C, F, H, W) and
                ``Tr_Cov_d``; ``svd``: ``Expectation_x_0`` (F, C, H, W) and ``trCov_d``.

        Raises:
            ConfigError: the layout is neither.
        """
        if layout not in ("dynamicrafter", "svd"):
            raise ConfigError(f"layout must be 'dynamicrafter' or 'svd', got {layout!r}")
        mean_key, variance_key = _KEYS[layout]
        mean = self.mean.to("cpu", torch.float32)
        if layout == "dynamicrafter":
            mean = mean.permute(1, 0, 2, 3)[None]
        tensors = {
            mean_key: mean.contiguous(),
            variance_key: torch.tensor([self.variance], dtype=torch.float32),
        }
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(tensors, str(path))
        else:
            torch.save(tensors, path)

    @classmethod
    def load(cls, path: str | Path) -> "AnalyticInit":
        """Read statistics from our own file or a released one, safetensors or torch.

        Torch files are read with ``weights_only=True``: nothing in them is executed.

        Args:
            path: file with one of the three pairs of keys.

        Returns:
            The statistics, with the mean as (F, C, H, W).

        Raises:
            DataError: the file is missing, damaged, holds more than tensors, or other keys.
        """
        tensors, metadata = _read_tensors(Path(path))
        layout = next((name for name, keys in _KEYS.items() if set(keys) <= set(tensors)), None)
        if layout is None:
            wanted = "; ".join(" and ".join(pair) for pair in _KEYS.values())
            raise DataError(
                f"{path} must hold one of the pairs {wanted}, got {sorted(tensors)}; "
                "is it a file of Analytic-Init statistics?"
            )
        mean_key, variance_key = _KEYS[layout]
        mean, variance = tensors[mean_key], tensors[variance_key]
        if layout == "dynamicrafter":
            check_shape(mean_key, mean, "N C F H W", N=1)
            mean = mean[0].permute(1, 0, 2, 3)
        if variance.numel() != 1:
            raise DataError(
                f"{variance_key} in {path} must hold one number, got {tuple(variance.shape)}; "
                "the released SVD code swaps mean and variance, this file may come from it"
            )
        return cls(mean.contiguous(), float(variance), metadata)


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise DataError(f"no statistics file at {path}; run `cil estimate`, or check the path")
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(str(path), framework="pt") as file:
                metadata = dict(file.metadata() or {})
                metadata.pop("format", None)
                return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as tensors ({type(error).__name__}: {error}); it is truncated "
            "or holds pickled objects, which are refused; get it again, or save it as safetensors"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise DataError(f"{path} must hold a dict of tensors, got {type(loaded).__name__}")
    return loaded, {}
