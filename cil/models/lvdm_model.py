"""What the families of the LVDM network share: `cil.models.dynamicrafter`, `videocrafter1`.

Both are VP models whose context is the caption's 77 tokens and then the image's, which a frozen
projector makes from the hidden tokens of CLIP. A data set stores the hidden tokens; the projector
lies beside the network and is applied where tokens are wanted, on their device.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cil.conditioning import keep_text_and_image, replace_by_noise
from cil.errors import ConfigError, DataError
from cil.losses import Network, NetworkInputs
from cil.models.adapter import ModelAdapter
from cil.models.base import ClipConditions, Condition, FirstStage, Guidance, TrainingConditions
from cil.models.lvdm.attention import TemporalTransformer
from cil.models.lvdm.config import IMAGE_TOKENS_PER_FRAME, TEXT_TOKENS
from cil.models.lvdm.layers import TemporalConvBlock
from cil.models.lvdm_config import LVDMSettings
from cil.models.lvdm_folder import LVDMFolders, save_lvdm, text_part
from cil.models.null_condition import NullCondition
from cil.network_input import Counter
from cil.rng import BATCH_SAMPLE_ID, Stream, normal, uniform
from cil.shapes import append_dims

__all__ = ["LVDMModel"]

_LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "to_k_ip", "to_v_ip")


class LVDMModel(ModelAdapter):
    """A network of LVDM and its parts. Implements ``ImageToVideoModel``."""

    def __init__(
        self,
        *,
        config: LVDMSettings,
        network: nn.Module,
        image_projector: nn.Module,
        first_stage: FirstStage | None,
        null_condition: NullCondition | None = None,
        folders: LVDMFolders | None = None,
    ) -> None:
        """Take the parts.

        Args:
            config: settings.
            network: an ``LVDMUNet``.
            image_projector: a ``Resampler``; it is frozen.
            first_stage: the codec.
            null_condition: what is told without caption and image; needed for guidance and for
                dropping conditions in training.
            folders: where the encoders are.
        """
        super().__init__(config=config, network=network, first_stage=first_stage)
        self.image_projector = image_projector.eval().requires_grad_(requires_grad=False)
        self.null_condition = null_condition
        self._folders = LVDMFolders() if folders is None else folders

    @property
    def guidance(self) -> Guidance:
        """The guidance of the published sampler, over all frames alike."""
        config = self.config
        scale = config.guidance_scale
        return Guidance(first=scale, last=scale, rescale=config.guidance_rescale)

    @property
    def token_shape(self) -> tuple[int, int]:
        """(L, D) of the projected image tokens."""
        frames = self.config.num_frames if self.config.tokens_per_frame else 1
        return IMAGE_TOKENS_PER_FRAME * frames, self.config.unet.context_dim

    @property
    def token_width(self) -> int:
        """Width of the image encoder's tokens, which the projector takes."""
        projector: Any = self.image_projector
        return int(projector.proj_in.in_features)

    @property
    def text_shape(self) -> tuple[int, int]:
        """(L, D) of the tokens of a caption."""
        return TEXT_TOKENS, self.config.unet.context_dim

    @cached_property
    def _image_encoder(self) -> Any:
        from cil.models.condition_encoders import ImageEncoder

        if self._folders.image_encoder is None:
            raise ConfigError(
                "this model has no image encoder; load it from a folder with image_encoder/, or "
                "pass encoders="
            )
        return ImageEncoder.from_folder(self._folders.image_encoder, tokens="hidden")

    @cached_property
    def _text_encoder(self) -> Any:
        from cil.models.condition_encoders import TextEncoder

        if self._folders.text_encoder is None:
            raise ConfigError(
                "this model has no text encoder, so there can be no prompt; load it from a folder "
                "with text_encoder/, or leave the prompt out"
            )
        part = text_part(self._folders.text_encoder)
        return TextEncoder.from_folder(part, layer="penultimate")

    def encode_condition(self, frame: Any) -> Tensor:
        """Make CLIP's hidden tokens of an image (H, W, 3) uint8: (L, D) float32."""
        tokens: Tensor = self._image_encoder.encode(frame)
        return tokens

    @torch.no_grad()
    def image_tokens(self, embeds: Tensor) -> Tensor:
        """Project hidden tokens (B, L, D); see ``ImageToVideoModel.image_tokens``."""
        tokens: Tensor = self.image_projector.to(embeds.device)(embeds.float())
        return tokens

    def network_call(self, clips: ClipConditions, *, network: nn.Module | None = None) -> Network:
        """Return what training's loss calls; see ``ImageToVideoModel.network_call``."""
        called = self.network if network is None else network
        dtype = next(self.network.parameters()).dtype
        told = {self.config.rate_argument: self.rate(clips).round().clamp(min=1).long()}

        def call(inputs: NetworkInputs) -> Tensor:
            tokens = inputs.tokens
            assert tokens is not None
            batch, frames = inputs.noisy.shape[:2]
            if self.config.tokens_per_frame and tokens.shape[1] != IMAGE_TOKENS_PER_FRAME * frames:
                raise DataError(
                    f"the image projector made {tokens.shape[1]} tokens, and clips of {frames} "
                    f"frames need {IMAGE_TOKENS_PER_FRAME} for each; train on clips of "
                    f"{self.config.num_frames} frames"
                )
            context = torch.cat([self._text(clips, batch, tokens.device), tokens], dim=1)
            seen = inputs.concatenated() if self.config.concatenates else inputs.noisy
            prediction: Tensor = called(
                seen.transpose(1, 2).to(dtype), inputs.time, context.to(dtype), **told
            )
            return prediction.transpose(1, 2).float()

        return call

    def rate(self, clips: ClipConditions) -> Tensor:
        """Return what the network is told of speed, (B,)."""
        return clips.fps

    def training_conditions(
        self,
        clips: ClipConditions,
        tokens: Tensor,
        *,
        uniform: Tensor,
        dropout: float,
        counter: Counter,
    ) -> TrainingConditions:
        """Drop the caption, the image tokens or both; then replace image tokens by noise.

        Each of the three cases has probability ``dropout``. Conditioning latents stay. Replacing
        has one draw for all clips of a step.
        """
        if dropout > 0:
            keep_text, keep_image = keep_text_and_image(uniform, dropout)
            null = self._null()
            text = self._text(clips, tokens.shape[0], tokens.device)
            nothing = self.image_tokens(null.image_embeds[None].to(tokens.device))
            tokens = torch.where(append_dims(keep_image, 3) > 0, tokens, nothing)
            empty = null.text_embeds[None].to(text)
            text = torch.where(append_dims(keep_text, 3) > 0, text, empty)
            clips = replace(clips, text_embeds=text)
        if self.config.image_token_replacement > 0:
            tokens = self._replaced(tokens, counter)
        return TrainingConditions(clips=clips, tokens=tokens, dropout=0.0)

    def _replaced(self, tokens: Tensor, counter: Counter) -> Tensor:
        shared = {"seed": counter.seed, "step": counter.step}
        noise = normal(
            tokens.shape[1:],
            sample_ids=counter.sample_ids.to(tokens.device),
            stream=Stream.TOKEN_NOISE,
            **shared,
        )
        drawn = uniform((), sample_ids=[BATCH_SAMPLE_ID], stream=Stream.TOKEN_REPLACE, **shared)
        each = drawn.to(tokens.device).expand(tokens.shape[0])
        return replace_by_noise(tokens, noise, each, self.config.image_token_replacement)

    def clean_condition(
        self, frame: Any, *, num_clips: int = 1, prompt: str | None = None
    ) -> Condition:
        """Condition on one image without noise, and on a prompt.

        Args:
            frame: (H, W, 3) uint8 RGB of the model's size, a torch tensor or a numpy array.
            num_clips: B, rows of the batch, all alike.
            prompt: a caption, which needs the text encoder; without one the network is told the
                null text.

        Returns:
            The condition, float32 on the CPU.
        """
        condition = super().clean_condition(frame, num_clips=num_clips)
        text = self._text_encoder.encode(prompt).tokens if prompt else self._null().text_embeds
        return replace(
            condition,
            text_embeds=text.expand(num_clips, *text.shape),
            frame_stride=condition.frame_stride * self.config.sampling_frame_stride,
        )

    def unconditional(self, condition: Condition) -> Condition:
        """Return the condition with null text and the tokens of a grey image; latents stay."""
        null, device = self._null(), condition.image_embeds.device
        batch = condition.image_embeds.shape[0]
        tokens = self.image_tokens(null.image_embeds[None].to(device))
        text = null.text_embeds.to(device)
        return replace(
            condition,
            image_embeds=tokens.expand(batch, *tokens.shape[1:]),
            text_embeds=text.expand(batch, *text.shape),
        )

    def temporal_parameters(self) -> frozenset[str]:
        """Return the names of the network's parameters that mix frames, as in its state dict."""
        kinds = (TemporalTransformer, TemporalConvBlock)
        modules = [name for name, it in self.network.named_modules() if isinstance(it, kinds)]
        starts = tuple(f"{name}." for name in modules)
        names = (name for name, _ in self.network.named_parameters())
        return frozenset(name for name in names if name.startswith(starts))

    def lora_targets(self) -> tuple[str, ...]:
        """Return the linear layers of all attention, those of image tokens too."""
        return _LORA_TARGETS

    def save(self, folder: Path, *, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write the model folder; ``state_dict`` replaces the network's own weights, for EMA."""
        network = self.network.state_dict()
        if state_dict is not None:
            wrong = sorted(set(network) ^ set(state_dict))
            if wrong:
                raise DataError(
                    f"state_dict must hold the network's parameters; {len(wrong)} are missing or "
                    f"too many, the first is {wrong[0]}"
                )
            network = dict(state_dict)
        save_lvdm(
            folder,
            config=self.config,
            network=network,
            projector=self.image_projector.state_dict(),
            null_condition=self.null_condition,
            folders=self._folders,
        )
        self.first_stage.save(folder)

    def _text(self, clips: ClipConditions, batch: int, device: torch.device) -> Tensor:
        """Return the captions' tokens, (B, L, D); null text where a data set has none."""
        if clips.text_embeds is not None:
            return clips.text_embeds
        text = self._null().text_embeds.to(device)
        return text.expand(batch, *text.shape)

    def _null(self) -> NullCondition:
        if self.null_condition is None:
            raise ConfigError(
                f"this {self.family} model does not know what to be told without a caption and an "
                "image; encode with condition.text_encoder and condition.image_encoder, which "
                "writes it beside the data set, or load a model folder that holds it"
            )
        return self.null_condition
