"""Analytic-Init: start sampling at a time M before the end, from the best isotropic Gaussian.

At start time M the noisy latents alpha * clean + sigma * noise have mean alpha * E[clean] and the
isotropic Gaussian nearest to them in KL divergence is

    N(alpha * mean, (sigma^2 + alpha^2 * variance) I),    variance = tr(Cov[clean]) / d

`AnalyticInit` holds mean and variance, draws from the Gaussian and reads and writes files. The
numbers come from `LatentMoments`.

Source: Zhao et al. 2024, arXiv 2406.15735 (VP and EDM); flow by the same argument.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from cil.errors import ConfigError, DataError
from cil.moments import LatentMoments
from cil.noise_schedule import NoiseSchedule
from cil.shapes import append_dims, check_finite, check_shape

__all__ = ["AnalyticInit", "LatentMoments", "Layout"]

Layout = Literal["dynamicrafter", "svd"]

# layout -> (key of the mean, key of the variance); own files use the first row.
_KEYS: dict[str, tuple[str, str]] = {
    "cil": ("mean", "variance"),
    "dynamicrafter": ("Expectation_X0", "Tr_Cov_d"),
    "svd": ("Expectation_x_0", "trCov_d"),
}


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
        # One number, also where a tensor of one element is given.
        object.__setattr__(self, "variance", float(self.variance))
        if not (math.isfinite(self.variance) and self.variance >= 0):
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
        if tuple(noise.shape[1:]) != tuple(self.mean.shape):
            raise DataError(
                f"noise must have the shape (B F C H W) with (F C H W) = "
                f"{(frames, channels, height, width)} of the statistics, got {tuple(noise.shape)}; "
                "estimate them for this size, or take AnalyticInit.resized"
            )
        check_finite("noise", noise)
        wide = noise.double()
        a = torch.as_tensor(alpha, dtype=torch.float64, device=noise.device)
        s = torch.as_tensor(sigma, dtype=torch.float64, device=noise.device)
        std = torch.sqrt(s.square() + a.square() * self.variance)
        mean = self.mean.to(wide)
        if a.ndim or s.ndim:
            std = append_dims(std, 5)
            a = append_dims(a, 5)
        return (a * mean + std * wide).to(noise.dtype)

    def start(self, noise: Tensor, *, schedule: NoiseSchedule, level: float) -> Tensor:
        """Draw the latents that sampling starts from, at a level of a schedule.

        Dynamic rescale is honoured: where training scales the clean latents before noising them,
        the statistics are scaled alike (the released code forgets this).

        Args:
            noise: (B, F, C, H, W) standard normal.
            schedule: noise schedule.
            level: the first level that the sampler visits, for example ``schedule.start_level(M)``.

        Returns:
            (B, F, C, H, W), dtype of ``noise``.

        Raises:
            ConfigError: the level is outside the schedule.
            DataError: noise of another shape than the mean.
        """
        schedule.check_level(level)
        dtype = torch.int64 if isinstance(level, int) else torch.float64
        at = torch.tensor([level], dtype=dtype)
        alpha, sigma = schedule.scales(at)
        if float(alpha) == 0.0:
            warnings.warn(
                "Analytic-Init changes nothing at a start where alpha is 0 (zero terminal SNR, or "
                "flow at t = 1); start before the end, for example at 0.94",
                stacklevel=2,
            )
        scaled = self.scaled(float(schedule.clean_scale(at)))
        return scaled.draw(noise, alpha=float(alpha), sigma=float(sigma))

    def scaled(self, factor: float) -> "AnalyticInit":
        """Return the statistics of latents that are multiplied by ``factor``.

        Use it for a VAE's scaling factor, and for dynamic rescale at the start time.
        """
        return AnalyticInit(self.mean * factor, self.variance * factor**2, dict(self.metadata))

    def resized(self, num_frames: int, height: int, width: int) -> "AnalyticInit":
        """Return an approximation for another bucket: the mean is interpolated.

        Frames are linear in time, positions bilinear with antialiasing. The variance is kept, which
        assumes that it does not depend on the resolution; estimate the statistics on clips of that
        bucket where there are enough.

        Args:
            num_frames: frames of the bucket, >= 1.
            height: height of its latents, >= 1.
            width: width of its latents, >= 1.

        Returns:
            The statistics, with ``resized_from`` in their metadata.

        Raises:
            ConfigError: a size below 1.
        """
        if min(num_frames, height, width) < 1:
            got = (num_frames, height, width)
            raise ConfigError(f"the bucket must have sizes >= 1, got {got} (frames, height, width)")
        frames, channels, old_height, old_width = self.mean.shape
        mean = functional.interpolate(
            self.mean.double(), (height, width), mode="bilinear", antialias=True
        )
        in_time = mean.permute(1, 2, 3, 0).reshape(1, -1, frames)
        in_time = functional.interpolate(in_time, num_frames, mode="linear", align_corners=True)
        mean = in_time.reshape(channels, height, width, num_frames).permute(3, 0, 1, 2)
        origin = f"{frames}x{channels}x{old_height}x{old_width}"
        return AnalyticInit(
            mean.contiguous(), self.variance, self.metadata | {"resized_from": origin}
        )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with ``mean`` and ``variance`` in float64, and the metadata."""
        if Path(path).suffix != ".safetensors":
            raise ConfigError(
                f"path must end in .safetensors, got {path}; export() writes the released formats"
            )
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
            f"{path} cannot be read as tensors ({type(error).__name__}); it is truncated "
            "or holds pickled objects, which are refused; get it again, or save it as safetensors"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise DataError(f"{path} must hold a dict of tensors, got {type(loaded).__name__}")
    return loaded, {}
