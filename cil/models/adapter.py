"""What all families share: the way from a network's prediction to denoised latents, and settings.

A family is a subclass of `ModelAdapter` around a network, see `ImageToVideoModel` for the whole
interface. It must have ``network_call``, ``encode_condition``, ``temporal_parameters``,
``lora_targets`` and ``save``; it may exchange the rest.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from cil.errors import ConfigError
from cil.guidance import frame_guidance_scale, guide
from cil.losses import Network, NetworkInputs
from cil.models.base import ClipConditions, Condition, FirstStage, Guidance, TrainingConditions
from cil.network_input import Counter
from cil.noise_schedule import NoiseSchedule
from cil.parameterization import Parameterization, input_scale, to_denoised
from cil.shapes import append_dims, check_shape

__all__ = ["ModelAdapter", "ModelSettings"]


class ModelSettings(Protocol):
    """The settings that every family has."""

    @property
    def num_frames(self) -> int:
        """F, frames of a clip."""
        ...

    @property
    def height(self) -> int:
        """H in pixels."""
        ...

    @property
    def width(self) -> int:
        """W in pixels."""
        ...

    @property
    def fps(self) -> float:
        """Frames per second of a sampled clip."""
        ...

    @property
    def motion_bucket_id(self) -> float:
        """Motion that the network is told in sampling."""
        ...

    @property
    def latents_shape(self) -> tuple[int, int, int, int]:
        """(F, C, h, w) of one clip."""
        ...

    @property
    def latent_channels(self) -> int:
        """C; the first stage must agree."""
        ...

    @property
    def downsampling(self) -> int:
        """Pixels per latent, each way; the first stage must agree."""
        ...

    @property
    def schedule(self) -> NoiseSchedule:
        """Noise levels of training and sampling."""
        ...


class ModelAdapter(ABC):
    """A network, its first stage and its settings. Implements ``ImageToVideoModel``."""

    family: ClassVar[str]
    told_motion_of_clips: bool = True
    parameterization: Parameterization

    def __init__(
        self, *, config: ModelSettings, network: nn.Module, first_stage: FirstStage | None
    ) -> None:
        if first_stage is not None:
            got = first_stage.latent_channels, first_stage.downsampling
            want = config.latent_channels, config.downsampling
            if got != want:
                raise ConfigError(
                    f"model.latent_channels and model.downsampling are {want}, the first stage has "
                    f"{got}; make them equal"
                )
        self.config: Any = config
        self.network = network
        self._first_stage = first_stage

    @property
    def first_stage(self) -> FirstStage:
        """The codec; a ``ConfigError`` when the model was built without one."""
        if self._first_stage is None:
            raise ConfigError("this model has no first stage; pass first_stage= to build()")
        return self._first_stage

    @property
    def schedule(self) -> NoiseSchedule:
        """Noise levels of training and sampling."""
        schedule: NoiseSchedule = self.config.schedule
        return schedule

    @property
    def guidance(self) -> Guidance:
        """No guidance."""
        return Guidance()

    @property
    def latents_shape(self) -> tuple[int, int, int, int]:
        """(F, C, h, w) of one clip."""
        shape: tuple[int, int, int, int] = self.config.latents_shape
        return shape

    @property
    def conditioning_scale(self) -> float:
        """The scaling factor: conditioning latents look like the clean ones."""
        return self.first_stage.scaling_factor

    @property
    def token_width(self) -> int:
        """D of the image tokens that a data set must hold for it."""
        return self.token_shape[1]

    @property
    def token_shape(self) -> tuple[int, int]:
        """(L, D) of the image tokens that the network attends to: here, one."""
        config: Any = self.network.config
        return 1, int(config.cross_attention_dim)

    @property
    def text_shape(self) -> tuple[int, int] | None:
        """(L, D) of the tokens of a caption; None where the network is told no text."""
        return None

    @abstractmethod
    def network_call(self, clips: ClipConditions, *, network: nn.Module | None = None) -> Network:
        """Return what training's loss calls; see ``ImageToVideoModel.network_call``."""

    @abstractmethod
    def temporal_parameters(self) -> frozenset[str]:
        """Return the names of the network's parameters that mix frames, as in its state dict."""

    @abstractmethod
    def lora_targets(self) -> tuple[str, ...]:
        """Return the linear layers that LoRA adapts, by the ends of their names."""

    @abstractmethod
    def encode_condition(self, frame: Any) -> Tensor:
        """Encode a conditioning image (H, W, 3) uint8 as a data set holds it: (L, D) float32."""

    @abstractmethod
    def save(self, folder: Path, *, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write the model folder; ``state_dict`` replaces the network's own weights, for EMA."""

    def image_tokens(self, embeds: Tensor) -> Tensor:
        """Return the tokens as they are stored; see ``ImageToVideoModel.image_tokens``."""
        return embeds

    def training_conditions(
        self,
        clips: ClipConditions,
        tokens: Tensor,
        *,
        uniform: Tensor,
        dropout: float,
        counter: Counter,
    ) -> TrainingConditions:
        """Leave dropping to the loss, which drops latents and tokens together."""
        return TrainingConditions(clips=clips, tokens=tokens, dropout=dropout)

    def clean_condition(
        self, frame: Any, *, num_clips: int = 1, prompt: str | None = None
    ) -> Condition:
        """Condition on one image without noise, and declare none.

        Args:
            frame: (H, W, 3) uint8 RGB of the model's size, a torch tensor or a numpy array.
            num_clips: B, rows of the batch, all alike.
            prompt: refused here; for families that are told a caption.

        Returns:
            The condition, float32 on the CPU.

        Raises:
            ConfigError: the family takes no prompt.
        """
        if prompt is not None:
            raise ConfigError(
                f"models of the family {self.family} take no prompt, got {prompt!r}; leave it out"
            )
        latents = self._encode_image(frame) * self.conditioning_scale
        check_shape("the image's latents", latents[0], "C h w", **self._latent_sizes())
        tokens = self.image_tokens(self.encode_condition(frame)[None])
        rows = torch.ones(num_clips)
        return Condition(
            conditioning_latents=latents.expand(num_clips, *self.latents_shape),
            image_embeds=tokens.expand(num_clips, *tokens.shape[1:]),
            fps=rows * self.config.fps,
            motion_bucket_id=rows * self.config.motion_bucket_id,
            frame_stride=rows,
            sigma_cond=rows * 0.0,
        )

    def unconditional(self, condition: Condition) -> Condition:
        """Return the condition with latents and tokens of zeros, all else as it was (SVD)."""
        return replace(
            condition,
            conditioning_latents=torch.zeros_like(condition.conditioning_latents),
            image_embeds=torch.zeros_like(condition.image_embeds),
        )

    def denoise(
        self,
        noisy: Tensor,
        level: Tensor,
        condition: Condition,
        *,
        network: nn.Module | None = None,
        guidance: Guidance | None = None,
    ) -> Tensor:
        """Estimate the clean latents; see ``ImageToVideoModel.denoise``."""
        check_shape("noisy", noisy, "B F C h w", **self._latent_sizes())
        alpha, sigma = self.schedule.scales(level)
        alpha, sigma = alpha.float(), sigma.float()
        prediction = self._predict(noisy, level, sigma, condition, network)
        if guidance is not None and guidance.on:
            without = self._predict(noisy, level, sigma, self.unconditional(condition), network)
            scale = frame_guidance_scale(guidance.first, guidance.last, noisy.shape[1])
            prediction = guide(prediction, without, scale, rescale=guidance.rescale)
        return to_denoised(prediction, noisy, self.parameterization, alpha=alpha, sigma=sigma)

    def _predict(
        self,
        noisy: Tensor,
        level: Tensor,
        sigma: Tensor,
        condition: Condition,
        network: nn.Module | None,
    ) -> Tensor:
        c_in = append_dims(input_scale(self.parameterization, sigma), noisy.ndim)
        return self.network_call(condition, network=network)(
            NetworkInputs(
                noisy=c_in * noisy,
                time=self.schedule.network_time(level),
                conditioning_latents=condition.conditioning_latents,
                tokens=condition.image_embeds,
                sigma_cond=condition.sigma_cond,
                keep=torch.ones_like(sigma),
            )
        )

    def _encode_image(self, frame: Any) -> Tensor:
        """Return the conditioning latents of an image, unscaled: (1, C, h, w), or (F, C, h, w)."""
        return self.first_stage.encode(frame[None]).mean

    def _latent_sizes(self) -> dict[str, int]:
        """Return the sizes that every clip's latents must have, by letter."""
        _, channels, rows, columns = self.latents_shape
        return {"C": channels, "h": rows, "w": columns}
