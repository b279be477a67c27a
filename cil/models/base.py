"""What every family of image-to-video models is made of, whatever library its network comes from.

    FirstStage          frames (F, H, W, 3) uint8  <->  latents (F, C, h, w), unscaled
    Condition           all that the network is told besides the noisy latents
    ImageToVideoModel   a network, its first stage and its settings: ``model.denoise(...)``

Letters as in ``cil.shapes``; h and w are latents, H and W pixels. A model folder holds

    model.json          format_version, family and every setting that sampling needs
    unet/               the network as diffusers writes it: config.json and safetensors
    first_stage/        first_stage.json, and first_stage.safetensors or vae/ as diffusers writes it
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from cil.losses import Network
from cil.noise_schedule import EDMSchedule
from cil.parameterization import Parameterization

__all__ = [
    "FORMAT_VERSION",
    "Condition",
    "FirstStage",
    "ImageToVideoModel",
    "Posterior",
]

FORMAT_VERSION = 1
"""Version of the folders of models and first stages; raised when an old reader would fail."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Posterior:
    """The first stage's Gaussian over the latents of some frames, unscaled.

    Attributes:
        mean: (F, C, h, w) float32.
        std: (F, C, h, w) float32, >= 0.
    """

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Draw latents: ``mean + std * noise``.

        Args:
            noise: (F, C, h, w) float32 standard normal, drawn by the caller.

        Returns:
            (F, C, h, w) float32 unscaled latents.
        """
        return self.mean + self.std * noise


@runtime_checkable
class FirstStage(Protocol):
    """Frames to latents and back; fixed while a network is trained."""

    @property
    def scaling_factor(self) -> float:
        """Multiplies unscaled latents so that the network sees a mean square of about one."""
        ...

    @property
    def latent_channels(self) -> int:
        """C, channels of the latents."""
        ...

    @property
    def downsampling(self) -> int:
        """H / h = W / w; frame height and width must be multiples of it."""
        ...

    def encode(self, frames: Any) -> Posterior:
        """Encode frames.

        Args:
            frames: (F, H, W, 3) uint8 RGB, a torch tensor or a numpy array.

        Returns:
            The posterior of the unscaled latents, (F, C, h, w) float32.

        Raises:
            DataError: another shape or dtype, or a size that ``downsampling`` does not divide.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents.

        Args:
            latents: (F, C, h, w) floating point, unscaled.

        Returns:
            (F, H, W, 3) uint8 RGB.

        Raises:
            DataError: another shape.
        """
        ...

    def fingerprint(self) -> str:
        """Return the sha256 (64 hex digits) over settings and weights: it names the latents."""
        ...

    def save(self, folder: Path) -> None:
        """Write JSON and safetensors into ``folder``, which is made if missing."""
        ...

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote; the fingerprint is checked."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """All that the network is told besides the noisy latents and their noise level.

    Attributes:
        conditioning_latents: (B, F, C, h, w) float32, times the model's ``conditioning_scale``,
            already repeated over the frames and already corrupted.
        image_embeds: (B, L, D) float32 tokens for cross-attention.
        fps: (B,) float32, frames per second of the clip, as the family encodes it.
        motion_bucket_id: (B,) float32, 0..255.
        sigma_cond: (B,) float32 >= 0, noise declared on ``conditioning_latents``; 0 for clean.
    """

    conditioning_latents: Tensor
    image_embeds: Tensor
    fps: Tensor
    motion_bucket_id: Tensor
    sigma_cond: Tensor

    def to(self, device: torch.device) -> "Condition":
        """Return the condition with all tensors on a device."""
        return Condition(
            **{item.name: getattr(self, item.name).to(device) for item in fields(self)}
        )

    def rows(self, indices: Tensor) -> "Condition":
        """Return the condition of some clips, (B',) int64."""
        return Condition(**{item.name: getattr(self, item.name)[indices] for item in fields(self)})

    @property
    def added_time_ids(self) -> Tensor:
        """(B, 3) float32: fps, motion bucket and sigma_cond, in the order that SVD expects."""
        return torch.stack([self.fps, self.motion_bucket_id, self.sigma_cond], dim=1)


@runtime_checkable
class ImageToVideoModel(Protocol):
    """A network with its first stage and its settings; one interface for every family."""

    network: nn.Module

    @property
    def family(self) -> str:
        """Name in the registry of ``cil.models``."""
        ...

    @property
    def config(self) -> Any:
        """Frozen dataclass of all settings; ``num_frames``, ``height``, ``width``, ``fps`` too."""
        ...

    @property
    def first_stage(self) -> FirstStage:
        """The codec; a ``ConfigError`` when the model was built without one."""
        ...

    @property
    def schedule(self) -> EDMSchedule:
        """Noise levels of training and sampling."""
        ...

    @property
    def latents_shape(self) -> tuple[int, int, int, int]:
        """(F, C, h, w) of one clip."""
        ...

    @property
    def conditioning_scale(self) -> float:
        """Multiplies unscaled conditioning latents; families differ in whether they scale them."""
        ...

    @property
    def parameterization(self) -> Parameterization:
        """What the network predicts."""
        ...

    def network_call(
        self, *, fps: Tensor, motion_bucket_id: Tensor, network: nn.Module | None = None
    ) -> Network:
        """Return prediction = call(NetworkInputs), which ``cil.losses.denoising_loss`` takes.

        Args:
            fps: (B,) frames per second of the clips, as the family encodes it.
            motion_bucket_id: (B,), 0..255.
            network: called instead of ``self.network``, for example a wrapper that trains it.
        """
        ...

    def temporal_parameters(self) -> frozenset[str]:
        """Return the names of the network's parameters that mix frames, as in its state dict."""
        ...

    def lora_targets(self) -> tuple[str, ...]:
        """Return the linear layers that LoRA adapts: their names, or ends of names at a dot."""
        ...

    def encode_condition(self, frame: Any) -> Tensor:
        """Make the image tokens of one conditioning image.

        Args:
            frame: (H, W, 3) uint8 RGB, a torch tensor or a numpy array.

        Returns:
            (L, D) float32.
        """
        ...

    def clean_condition(self, frame: Any, *, num_clips: int = 1) -> Condition:
        """Condition on one image without noise, and declare none.

        Args:
            frame: (H, W, 3) uint8 RGB of the model's size, a torch tensor or a numpy array.
            num_clips: B, rows of the batch, all alike.

        Returns:
            The condition, float32 on the CPU.
        """
        ...

    def denoise(
        self,
        noisy: Tensor,
        sigma: Tensor,
        condition: Condition,
        *,
        network: nn.Module | None = None,
    ) -> Tensor:
        """Estimate the clean latents.

        Args:
            noisy: (B, F, C, h, w) scaled clean latents plus sigma times standard normal noise.
            sigma: (B,) > 0.
            condition: what the network is told.
            network: called instead of ``self.network``, for example a wrapper that trains it.

        Returns:
            (B, F, C, h, w), the estimate of the scaled clean latents.
        """
        ...

    def save(self, folder: Path, *, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write the model folder; ``state_dict`` replaces the network's own weights, for EMA."""
        ...
