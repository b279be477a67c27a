"""First stage of the ``tiny`` family: probabilistic PCA of image patches.

A patch x of p * p * 3 values in [-1, 1] is x = mu + U z + e with z_i ~ N(0, lambda_i - s2) and
e ~ N(0, s2): U holds the top C principal directions, lambda_i the variances along them and s2 the
mean variance in all others. Encoding gives the exact posterior of z, so mean and std are honest.

    moments = PatchMoments(patch_size=4)        # per worker; exact, so merge in any order
    moments.update(frames)
    codec = PatchPCA.fit(moments, latent_channels=8)
    posterior = codec.encode(frames)            # (F, C, H / 4, W / 4)

Source: Tipping and Bishop, Probabilistic Principal Component Analysis, JRSS B 61 (1999), equations
(6) to (8), with an orthonormal basis in place of W.

All sums have the same bytes for any thread count and any library: bytes, basis and latents are
multiples of powers of two, coarse enough for float64 to add them without rounding.
"""

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from cil.errors import ConfigError, DataError
from cil.models.base import FORMAT_VERSION, Posterior
from cil.models.frames import as_frames, from_patches, to_patches
from cil.models.patch_moments import PatchMoments
from cil.models.storage import digest, read_json, read_tensors, write_json, write_tensors
from cil.shapes import check_shape

__all__ = ["PatchMoments", "PatchPCA"]

_HALF_RANGE = 127.5  # one unit of a pixel in [-1, 1], in bytes
_BASIS_GRID = 2.0**24  # the finest grid on which float32 holds every number in [-1, 1]
_MEAN_GRID = 2.0**12
_LATENT_GRID = 2.0**16


class PatchPCA:
    """Patches to latents and back; see the module's docstring. Implements ``FirstStage``."""

    kind = "patch_pca"

    def __init__(
        self, *, patch_size: int, basis: Tensor, mean: Tensor, variances: Tensor, residual: Tensor
    ) -> None:
        """Take the parts of a fitted codec; use ``fit`` or ``load``.

        Args:
            patch_size: side of a patch in pixels.
            basis: (D, C) float32, orthonormal columns.
            mean: (D,) float32, in bytes.
            variances: (C,) float64, lambda_i for pixels in [-1, 1], each > residual.
            residual: () float64, s2 for pixels in [-1, 1], >= 0.
        """
        check_shape("basis", basis, "D C", D=patch_size * patch_size * 3)
        check_shape("mean", mean, "D", D=basis.shape[0])
        check_shape("variances", variances, "C", C=basis.shape[1])
        self._patch_size = patch_size
        self._tensors = {"basis": basis, "mean": mean, "residual": residual, "variances": variances}
        self._gain = (variances - residual) / variances
        self._std = (residual * self._gain).sqrt()

    @classmethod
    def fit(cls, moments: PatchMoments, *, latent_channels: int) -> Self:
        """Fit the codec to all patches seen.

        Args:
            moments: of the training frames.
            latent_channels: C, number of directions kept, 1 <= C < D.

        Returns:
            The codec, a pure function of the arguments.

        Raises:
            ConfigError: ``latent_channels`` out of range.
            DataError: no more patches than values in one, or patches that vary too little.
        """
        size = moments.total.numel()
        if not 1 <= latent_channels < size:
            raise ConfigError(
                f"latent_channels must be in 1..{size - 1} for patches of {moments.patch_size} x "
                f"{moments.patch_size} x 3 values, got {latent_channels}; 4 to 16 is usual"
            )
        if moments.count <= size:
            raise DataError(
                f"too few frames to fit the codec: more than {size} patches are needed, got "
                f"{moments.count}; give more frames or a smaller patch_size"
            )
        mean = moments.total / moments.count
        covariance = (moments.second / moments.count - mean[:, None] * mean) / _HALF_RANGE**2
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
        kept, residual = values[:latent_channels], values[latent_channels:].mean()
        # A direction with less than 1e-9 squared grey levels is rounding, not data.
        directions = int((values > 1e-9 / _HALF_RANGE**2).sum())
        if directions < latent_channels or kept[-1] <= residual:
            raise DataError(
                f"the frames vary in {directions} directions only, {latent_channels} "
                "latent_channels were asked for; lower latent_channels or give other frames"
            )
        basis = _on_grid(vectors[:, :latent_channels], _BASIS_GRID)
        # An eigenvector has no sign of its own: make its largest entry positive.
        largest = basis.abs().argmax(0)
        basis = basis * basis[largest, torch.arange(latent_channels)].sign()
        return cls(
            patch_size=moments.patch_size,
            basis=basis.float(),
            mean=_on_grid(mean, _MEAN_GRID).float(),
            variances=kept.clone(),
            residual=residual,
        )

    @property
    def scaling_factor(self) -> float:
        """1 / RMS of the latents over the patches the codec was fitted to."""
        prior = self._tensors["variances"] - self._tensors["residual"]
        return float(prior.mean().rsqrt())

    @property
    def latent_channels(self) -> int:
        """C, number of directions kept."""
        return self._tensors["basis"].shape[1]

    @property
    def downsampling(self) -> int:
        """Side of a patch in pixels."""
        return self._patch_size

    def encode(self, frames: Any) -> Posterior:
        """Encode frames: mean_i = g_i u_i^T (x - mu), std_i = sqrt(s2 g_i), g = 1 - s2 / lambda.

        Args:
            frames: (F, H, W, 3) uint8 RGB, a torch tensor or a numpy array.

        Returns:
            The posterior of the unscaled latents, (F, C, h, w) float32.

        Raises:
            DataError: another dtype or shape, or a size that ``downsampling`` does not divide.
        """
        patches = to_patches(as_frames(frames, divisor=self._patch_size), self._patch_size).double()
        centred = patches - self._tensors["mean"].double()
        projected = centred @ self._tensors["basis"].double() / _HALF_RANGE
        mean = (projected * self._gain).float().permute(0, 3, 1, 2).contiguous()
        std = self._std.float()[:, None, None].expand_as(mean).contiguous()
        return Posterior(mean=mean, std=std)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents: x = mu + U (z / g), which undoes the shrinkage of the posterior mean.

        Args:
            latents: (F, C, h, w) floating point, unscaled.

        Returns:
            (F, H, W, 3) uint8 RGB.

        Raises:
            DataError: another shape, or a value that is not finite.
        """
        check_shape("latents", latents, "F C h w", C=self.latent_channels)
        if not bool(latents.isfinite().all()):
            raise DataError(
                "latents must be finite, got NaN or Inf; look for the step that made them"
            )
        projected = _on_grid(latents.cpu().double().permute(0, 2, 3, 1) / self._gain, _LATENT_GRID)
        pixels = projected @ self._tensors["basis"].double().T * _HALF_RANGE
        pixels = (pixels + self._tensors["mean"].double()).round().clamp(0, 255)
        return from_patches(pixels, self._patch_size).to(torch.uint8)

    def fingerprint(self) -> str:
        """Return the sha256 (64 hex digits) over settings and weights: it names the latents."""
        return digest(self._settings(), self._tensors)

    def save(self, folder: Path) -> None:
        """Write ``first_stage.json`` and ``first_stage.safetensors`` into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / "first_stage.safetensors", self._tensors)
        described = {"scaling_factor": self.scaling_factor, "fingerprint": self.fingerprint()}
        write_json(folder / "first_stage.json", {**self._settings(), **described})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            DataError: a file is missing or damaged, or the two do not belong together.
        """
        settings = read_json(folder / "first_stage.json")
        if settings.get("kind") != cls.kind or settings.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{folder} must hold a {cls.kind} first stage of format {FORMAT_VERSION}, got "
                f"{settings.get('kind')!r} of format {settings.get('format_version')!r}"
            )
        try:
            tensors = read_tensors(folder / "first_stage.safetensors")
            codec = cls(patch_size=settings["patch_size"], **tensors)
        except (KeyError, TypeError, RuntimeError) as error:
            raise DataError(f"{folder} is incomplete ({error}); save the first stage again") from (
                error
            )
        if codec.fingerprint() != settings.get("fingerprint"):
            raise DataError(
                f"{folder} is damaged: its weights have the fingerprint {codec.fingerprint()}, "
                f"its settings say {settings.get('fingerprint')}; save the first stage again"
            )
        return codec

    def _settings(self) -> dict[str, Any]:
        """Return what the fingerprint covers besides the weights."""
        return {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "latent_channels": self.latent_channels,
            "patch_size": self._patch_size,
        }


def _on_grid(values: Tensor, grid: float) -> Tensor:
    """Round to multiples of ``1 / grid``, which must be a power of two."""
    return (values * grid).round() / grid
