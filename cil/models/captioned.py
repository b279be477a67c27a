"""Families in folders of diffusers that read captions: their encoders, the empty text, saving.

A family is a subclass of `CaptionedModel` that names its image processor and reads its two
encoders. A caption is what a data set holds, a prompt, or the empty text, whose tokens are known
without a text encoder where the data set was encoded with one.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cil.conditioning import keep_mask
from cil.errors import ConfigError
from cil.models.adapter import ModelAdapter, ModelSettings
from cil.models.base import ClipConditions, Condition, FirstStage, Guidance
from cil.models.diffusers_network import copy_part, save_network
from cil.models.null_condition import NullCondition
from cil.models.pretrained import part_of
from cil.shapes import append_dims

__all__ = ["CaptionedModel"]


class CaptionedModel(ModelAdapter):
    """A network that attends to a caption, and its parts. Implements ``ImageToVideoModel``."""

    image_processor: ClassVar[str]
    """Folder beside image_encoder/ that says how its pixels are made."""
    network_folder: ClassVar[str]
    """Folder of the network."""

    def __init__(
        self,
        *,
        config: ModelSettings,
        network: nn.Module,
        first_stage: FirstStage | None,
        encoders: Path | None = None,
        text_encoder: Path | None = None,
        null_condition: NullCondition | None = None,
    ) -> None:
        """Take the parts.

        Args:
            config: settings.
            network: of diffusers.
            first_stage: the codec.
            encoders: folder with image_encoder/ and the image processor.
            text_encoder: folder with text_encoder/ and tokenizer/.
            null_condition: tokens of the empty text, where there is no text encoder.
        """
        super().__init__(config=config, network=network, first_stage=first_stage)
        self._encoders, self._text_folder = encoders, text_encoder
        self._null_condition = null_condition

    @abstractmethod
    def read_image_encoder(self, folder: Path) -> Any:
        """Return the ``ImageEncoder`` of a folder, as this family uses it."""

    @abstractmethod
    def read_text_encoder(self, folder: Path) -> Any:
        """Return the ``TextEncoder`` of a folder, as this family uses it."""

    @property
    def guidance(self) -> Guidance:
        """Guidance of the same scale for all frames."""
        return Guidance(first=self.config.guidance_scale, last=self.config.guidance_scale)

    @cached_property
    def _image_encoder(self) -> Any:
        if self._encoders is None:
            raise ConfigError(
                "this model has no image encoder; load it from a folder with image_encoder/, or "
                "pass encoders="
            )
        return self.read_image_encoder(self._encoders)

    @cached_property
    def _text_encoder(self) -> Any:
        if self._text_folder is None:
            raise ConfigError(
                "this model has no text encoder; load it from a folder with text_encoder/ and "
                "tokenizer/, or pass text_encoder="
            )
        return self.read_text_encoder(self._text_folder)

    def encode_condition(self, frame: Any) -> Tensor:
        """Make CLIP's tokens of an image (H, W, 3) uint8: (L, D) float32."""
        tokens: Tensor = self._image_encoder.encode(frame)
        return tokens

    def clean_condition(
        self, frame: Any, *, num_clips: int = 1, prompt: str | None = None
    ) -> Condition:
        """Condition on one image without noise, and on a text; see ``ImageToVideoModel``.

        Args:
            frame: (H, W, 3) uint8 RGB of the model's size, a torch tensor or a numpy array.
            num_clips: B, rows of the batch, all alike.
            prompt: None is the empty text.
        """
        return self.told(super().clean_condition(frame, num_clips=num_clips), prompt)

    def told(self, condition: Condition, text: str | None) -> Condition:
        """Return the condition with the tokens of a text; None is the empty one."""
        latents = condition.conditioning_latents
        tokens = self._text(text).to(latents.device)
        return replace(condition, text_embeds=tokens.expand(latents.shape[0], *tokens.shape))

    def drop_captions(
        self, clips: ClipConditions, *, uniform: Tensor, dropout: float
    ) -> tuple[ClipConditions, Tensor]:
        """Drop captions to the empty one.

        Args:
            clips: with their captions.
            uniform: (B,) draws that decide.
            dropout: probability, > 0.

        Returns:
            The clips, and which of them kept their caption: (B,), 1 or 0.
        """
        text = clips.text_embeds
        assert text is not None
        keep = keep_mask(uniform, dropout)
        text = torch.where(append_dims(keep, 3) > 0, text, self._text(None).to(text))
        return replace(clips, text_embeds=text), keep

    def save_parts(self, folder: Path, *, state_dict: Mapping[str, Tensor] | None) -> None:
        """Write network, first stage, encoders and the tokens of the empty text.

        Args:
            folder: of the pipeline; made if it is not there.
            state_dict: replaces the network's weights, for EMA.
        """
        save_network(self.network, folder / self.network_folder, state_dict=state_dict)
        self.first_stage.save(folder)
        for parts, source in (
            (("image_encoder", self.image_processor), self._encoders),
            (("text_encoder", "tokenizer"), self._text_folder),
        ):
            if source is not None:
                copy_part(part_of(source, parts[0]), folder / parts[0])
                copy_part(source / parts[1], folder / parts[1])
        if self._null_condition is not None:
            self._null_condition.save(folder)

    def _text(self, text: str | None) -> Tensor:
        """Return the tokens of a text (L, D); those of the empty one are kept."""
        if text:
            tokens: Tensor = self._text_encoder.encode(text).tokens
            return tokens
        return self._empty_text

    @cached_property
    def _empty_text(self) -> Tensor:
        if self._null_condition is not None:
            return self._null_condition.text_embeds
        tokens: Tensor = self._text_encoder.encode("").tokens
        return tokens
