"""What every family of image-to-video models is made of, whatever library its network comes from.

    FirstStage          frames (F, H, W, 3) uint8  <->  latents (F, C, h, w), unscaled
    Condition           all that the network is told besides the noisy latents
    ImageToVideoModel   a network, its first stage and its settings: ``model.denoise(...)``

Letters as in ``cil.shapes``; h and w are latents, H and W pixels. A model folder holds

    model.json          format_version, family and every setting that sampling needs
    unet/               the network as diffusers writes it: config.json and safetensors; the
                        transformers of diffusers are in transformer/
    first_stage/        first_stage.json, and first_stage.safetensors or vae/ as diffusers writes it
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from cil.losses import Network
from cil.network_input import Counter
from cil.noise_schedule import NoiseSchedule
from cil.parameterization import Parameterization

__all__ = [
    "FORMAT_VERSION",
    "ClipConditions",
    "Condition",
    "FirstStage",
    "Guidance",
    "ImageToVideoModel",
    "Posterior",
    "TrainingConditions",
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
class ClipConditions:
    """What a network may be told of each clip that no noise is added to; a family takes its own.

    Attributes:
        fps: (B,) float32, frames per second of the clip, in Hz.
        motion_bucket_id: (B,) float32, 0..255, as Stable Video Diffusion has it.
        frame_stride: (B,) float32, frames of the video from one frame of the clip to the next.
        text_embeds: (B, L, D) float32 tokens of the caption; None where there are none.
    """

    fps: Tensor
    motion_bucket_id: Tensor
    frame_stride: Tensor
    text_embeds: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """Return the same with all tensors on a device."""
        return self._with(lambda tensor: tensor.to(device))

    def rows(self, indices: Tensor) -> Self:
        """Return the conditions of some clips, (B',) int64."""
        return self._with(lambda tensor: tensor[indices])

    def _with(self, change: Callable[[Tensor], Tensor]) -> Self:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(self, **{k: change(v) for k, v in values.items() if v is not None})


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition(ClipConditions):
    """All that the network is told besides the noisy latents and their noise level.

    Attributes:
        conditioning_latents: (B, F, C, h, w) float32, times the model's ``conditioning_scale``,
            already repeated over the frames, where they are those of an image, and already
            corrupted.
        image_embeds: (B, L, D) float32 tokens for cross-attention, as ``image_tokens`` gives them.
        sigma_cond: (B,) float32 >= 0, noise declared on ``conditioning_latents``; 0 for clean.
    """

    conditioning_latents: Tensor
    image_embeds: Tensor
    sigma_cond: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConditions:
    """What a family makes of the conditions of a training step, before TimeNoise.

    Attributes:
        clips: what is not noised, some of it dropped.
        tokens: (B, L, D) image tokens, some of them dropped or replaced.
        dropout: probability with which `cil.losses.denoising_loss` drops latents and tokens; 0
            where the family has dropped already what it drops.
    """

    clips: ClipConditions
    tokens: Tensor
    dropout: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Guidance:
    """Classifier-free guidance of sampling; see `cil.guidance.guide`.

    Attributes:
        first: scale of the first frame, >= 0; 1 is off.
        last: scale of the last frame; the frames between go linearly.
        rescale: share of the guidance rescale, in [0, 1].
    """

    first: float = 1.0
    last: float = 1.0
    rescale: float = 0.0

    @property
    def on(self) -> bool:
        """Whether there is anything to guide."""
        return (self.first, self.last) != (1.0, 1.0)


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
    def schedule(self) -> NoiseSchedule:
        """Noise levels of training and sampling."""
        ...

    @property
    def guidance(self) -> Guidance:
        """The guidance that the family's published sampler has."""
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
    def told_motion_of_clips(self) -> bool:
        """Whether training tells the network each clip's own motion, or the same for all."""
        ...

    @property
    def token_width(self) -> int:
        """D of the image tokens that a data set must hold for it."""
        ...

    @property
    def parameterization(self) -> Parameterization:
        """What the network predicts."""
        ...

    @property
    def token_shape(self) -> tuple[int, int]:
        """(L, D) of the image tokens that the network attends to."""
        ...

    @property
    def text_shape(self) -> tuple[int, int] | None:
        """(L, D) of the tokens of a caption; None where the network is told no text."""
        ...

    def network_call(self, clips: ClipConditions, *, network: nn.Module | None = None) -> Network:
        """Return prediction = call(NetworkInputs), which ``cil.losses.denoising_loss`` takes.

        Args:
            clips: what the network is told of the clips besides its inputs.
            network: called instead of ``self.network``, for example a wrapper that trains it.
        """
        ...

    def image_tokens(self, embeds: Tensor) -> Tensor:
        """Make the tokens that the network attends to, from those that a data set holds.

        Args:
            embeds: (B, L, D) float32, as ``encode_condition`` gives them for one image.

        Returns:
            (B, L', D') float32; the same where the family has no projector.
        """
        ...

    def training_conditions(
        self,
        clips: ClipConditions,
        tokens: Tensor,
        *,
        uniform: Tensor,
        dropout: float,
        counter: Counter,
    ) -> TrainingConditions:
        """Drop or replace conditions in training where the family has a rule of its own.

        Args:
            clips: of the batch.
            tokens: (B, L, D) of ``image_tokens``.
            uniform: (B,) numbers that decide what is dropped, ``TrainingDraws.dropout``.
            dropout: probability of each case that is dropped.
            counter: what other random numbers are a function of.
        """
        ...

    def temporal_parameters(self) -> frozenset[str]:
        """Return the names of the network's parameters that mix frames, as in its state dict."""
        ...

    def lora_targets(self) -> tuple[str, ...]:
        """Return the linear layers that LoRA adapts: their names, or ends of names at a dot."""
        ...

    def encode_condition(self, frame: Any) -> Tensor:
        """Encode one conditioning image as a data set holds it.

        Args:
            frame: (H, W, 3) uint8 RGB, a torch tensor or a numpy array.

        Returns:
            (L, D) float32.
        """
        ...

    def clean_condition(
        self, frame: Any, *, num_clips: int = 1, prompt: str | None = None
    ) -> Condition:
        """Condition on one image without noise, and declare none.

        Args:
            frame: (H, W, 3) uint8 RGB of the model's size, a torch tensor or a numpy array.
            num_clips: B, rows of the batch, all alike.
            prompt: caption, for families that are told one.

        Returns:
            The condition, float32 on the CPU.
        """
        ...

    def unconditional(self, condition: Condition) -> Condition:
        """Return what the network is told without a condition, for guidance."""
        ...

    def denoise(
        self,
        noisy: Tensor,
        level: Tensor,
        condition: Condition,
        *,
        network: nn.Module | None = None,
        guidance: Guidance | None = None,
    ) -> Tensor:
        """Estimate the clean latents.

        Args:
            noisy: (B, F, C, h, w) noisy latents, in the scale of training.
            level: (B,) their noise level: sigma for EDM, timestep for VP.
            condition: what the network is told.
            network: called instead of ``self.network``, for example a wrapper that trains it.
            guidance: calls the network without a condition as well, and extrapolates.

        Returns:
            (B, F, C, h, w), the estimate of the scaled clean latents.
        """
        ...

    def save(self, folder: Path, *, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write the model folder; ``state_dict`` replaces the network's own weights, for EMA."""
        ...
