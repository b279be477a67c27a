"""First stage of the Wan models: diffusers' ``AutoencoderKLWan``, which compresses time by four.

    codec = WanFirstStage.from_diffusers("Wan2.1-I2V-14B-480P-Diffusers")
    posterior = codec.encode(frames)            # (1 + (F - 1) / 4, C, H / 8, W / 8)

Latents are standardised by the mean and the standard deviation of each channel that the weights
were published with, so the scaling factor is 1. The first frame of latents is that of the first
frame alone; each further one is of four frames and of what was before them (the encoder is causal),
so clips have 4 k + 1 frames. A clip goes through the network in pieces of four frames whatever
the options say, and its bytes depend on the clip and on the type of the arithmetic alone.

What a network is conditioned on is the encoding of a clip of which the first frame is the image and
the others are grey. Because the encoder looks back, the image shows in the later frames too.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from cil.errors import ConfigError, DataError
from cil.models.autoencoder_kl import AutoencoderKLFirstStage
from cil.models.base import Posterior
from cil.models.frames import as_frames
from cil.models.pretrained import exact_arithmetic

__all__ = ["TEMPORAL_DOWNSAMPLING", "WanFirstStage", "wan_latent_frames"]

TEMPORAL_DOWNSAMPLING = 4
"""Frames of a clip for each frame of latents after the first; fixed in diffusers' class."""


def wan_latent_frames(num_frames: int) -> int:
    """Return the frames of the latents of a clip, 1 + (F - 1) / 4.

    Raises:
        DataError: F is not 4 k + 1.
    """
    if num_frames < 1 or num_frames % TEMPORAL_DOWNSAMPLING != 1:
        below = max(num_frames - 1, 0) // TEMPORAL_DOWNSAMPLING * TEMPORAL_DOWNSAMPLING + 1
        raise DataError(
            f"a clip must have 4 k + 1 frames, since this first stage makes one frame of latents "
            f"of the first and of every four after it, got {num_frames}; use {below} or "
            f"{below + TEMPORAL_DOWNSAMPLING}"
        )
    return 1 + (num_frames - 1) // TEMPORAL_DOWNSAMPLING


class WanFirstStage(AutoencoderKLFirstStage):
    """Clips to latents and back by the autoencoder of Wan. Implements ``ClipFirstStage``."""

    kind: ClassVar[str] = "autoencoder_kl_wan"
    classes: ClassVar[tuple[str, ...]] = ("AutoencoderKLWan",)

    @property
    def scaling_factor(self) -> float:
        """1: latents are standardised already."""
        return 1.0

    @property
    def latent_channels(self) -> int:
        """C, channels of the latents."""
        return int(self._config["z_dim"])

    @property
    def downsampling(self) -> int:
        """H / h = W / w: two for each stage of the encoder but the last."""
        stages = len(self._config["dim_mult"])
        return int(2 ** (stages - 1)) * int(self._config.get("patch_size") or 1)

    def latent_frames(self, num_frames: int) -> int:
        """Return the frames of the latents of a clip; see `wan_latent_frames`."""
        return wan_latent_frames(num_frames)

    def encode(self, frames: Any) -> Posterior:
        """Encode the frames of one clip.

        Args:
            frames: (F, H, W, 3) uint8 RGB, a torch tensor or a numpy array; F = 4 k + 1.

        Returns:
            The posterior of the standardised latents, (1 + (F - 1) / 4, C, h, w) float32, CPU.

        Raises:
            DataError: another shape or dtype, sizes that do not divide, or latents that are not
                finite.
        """
        tensor = as_frames(frames, divisor=self.downsampling)
        wan_latent_frames(len(tensor))
        pixels = tensor.to(self._device).permute(3, 0, 1, 2).float() / 127.5 - 1.0
        return self._posterior(pixels)

    def encode_conditioning(self, frame: Any, num_frames: int) -> Tensor:
        """Encode a clip whose first frame is the image and whose others are grey.

        Args:
            frame: (H, W, 3) uint8 RGB, a torch tensor or a numpy array.
            num_frames: F of the clip, 4 k + 1.

        Returns:
            (1 + (F - 1) / 4, C, h, w) float32 on the CPU: the mean of the posterior.

        Raises:
            DataError: as ``encode``.
        """
        image = as_frames(frame[None], divisor=self.downsampling)
        wan_latent_frames(num_frames)
        pixels = image.to(self._device).permute(3, 0, 1, 2).float() / 127.5 - 1.0
        rows, columns = pixels.shape[2:]
        grey = pixels.new_zeros(3, num_frames - 1, rows, columns)  # which no uint8 image is
        return self._posterior(torch.cat([pixels, grey], dim=1)).mean

    def decode(self, latents: Tensor) -> Tensor:
        """Decode the latents of one clip; F frames of them give 4 F - 3.

        Args:
            latents: (F, C, h, w) floating point, standardised.

        Returns:
            (4 F - 3, H, W, 3) uint8 RGB on the CPU.

        Raises:
            DataError: another shape, or a value that is not finite, given or made.
        """
        self._check_latents(latents)
        with exact_arithmetic(self._device):
            mean, std = self._statistics()
            wide = latents.to(self._device, torch.float32) * std + mean
            planes = wide.permute(1, 0, 2, 3)[None].to(self._dtype)
            return self._bytes(self._decoder.decode(planes).sample[0].permute(1, 0, 2, 3)).cpu()

    def _posterior(self, pixels: Tensor) -> Posterior:
        """Encode (3, F, H, W) in [-1, 1], on the device."""
        with exact_arithmetic(self._device):
            mean, std = self._statistics()
            gaussian = self._encoder.encode(pixels[None].to(self._dtype)).latent_dist
            # the log variance is clamped by the class of the posterior
            own, spread = (
                value[0].float().permute(1, 0, 2, 3) for value in (gaussian.mean, gaussian.std)
            )
            made = Posterior(mean=((own - mean) / std).cpu(), std=(spread / std).cpu())
        return self._finite(made)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the channels, (C, 1, 1) each."""
        made = [
            torch.tensor(self._config[name], dtype=torch.float32, device=self._device)
            for name in ("latents_mean", "latents_std")
        ]
        return made[0][:, None, None], made[1][:, None, None]

    def _check(self) -> None:
        config = self._config
        steps = sum(bool(step) for step in config["temperal_downsample"])
        if 2**steps != TEMPORAL_DOWNSAMPLING:
            raise DataError(
                f"this {self._class} compresses time by {2**steps}, and diffusers' class reads "
                "four frames at a time; use the config.json that the weights were published with"
            )
        lengths = {name: len(config[name] or ()) for name in ("latents_mean", "latents_std")}
        if set(lengths.values()) != {self.latent_channels}:
            raise DataError(
                f"this {self._class} must give latents_mean and latents_std of its "
                f"{self.latent_channels} channels, got {lengths}; use the config.json that the "
                "weights were published with"
            )
        if not min(config["latents_std"]) > 0:
            raise DataError(f"latents_std of this {self._class} must be > 0")
        if self.options.tile_size is not None:
            raise ConfigError(
                f"a {self._class} encodes whole frames, got tile_size {self.options.tile_size}; "
                "leave encode.tile_size out"
            )
