"""The frozen encoders of a data set: first stage, image tokens, text; and what identifies them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cil.models import FirstStage, load_first_stage
from cil.models.condition_encoders import ImageEncoder, TextEncoder
from cil.models.first_stage import FirstStageOptions, takes_no_options
from cil.models.null_condition import NullCondition
from pipelines.config import RunConfig
from pipelines.model_settings import token_width
from pipelines.settings import ConditionConfig, EncodeConfig

__all__ = ["ConditionEncoders", "compute_device", "condition_identity", "first_stage_for_encoding"]


def compute_device(config: EncodeConfig) -> str:
    """Return the device that encodes: the worker's GPU, or the CPU."""
    return "cuda" if config.use_gpu else "cpu"


def first_stage_for_encoding(folder: str | Path, config: EncodeConfig) -> FirstStage:
    """Read a first stage and set it up as ``encode`` says.

    Raises:
        DataError: no such folder, or a damaged one.
    """
    if takes_no_options(folder):
        return load_first_stage(folder)
    options = FirstStageOptions(
        device=compute_device(config),
        dtype=config.compute_dtype,
        frames_per_chunk=config.frames_per_chunk,
        tile_size=config.tile_size,
    )
    return load_first_stage(folder, options=options)


def condition_identity(config: RunConfig) -> dict[str, Any]:
    """Return what decides the bytes of the encoded conditions.

    Raises:
        ConfigError: an encoder cannot be read.
    """
    encoders = ConditionEncoders(config.condition, config.encode, token_width(config.model))
    return encoders.identity()


@dataclass(init=False)
class ConditionEncoders:
    """Encodes the conditions of a clip: the image of its first frame, and its caption."""

    def __init__(self, config: ConditionConfig, encode: EncodeConfig, token_width: int) -> None:
        """Read the encoders that the configuration names.

        Args:
            config: which encoders.
            encode: device and arithmetic.
            token_width: D of the zero token that is stored without an image encoder.
        """
        device, dtype = compute_device(encode), encode.compute_dtype
        self._width = token_width
        self._image = self._text = None
        if config.image_encoder is not None:
            self._image = ImageEncoder.from_folder(
                Path(config.image_encoder),
                tokens=config.image_tokens or "pooled",
                layer=config.image_layer or "last",
                crop=config.image_crop or "none",
                device=device,
                dtype=dtype,
            )
        if config.text_encoder is not None:
            self._text = TextEncoder.from_folder(
                Path(config.text_encoder),
                max_length=config.text_length,
                layer=config.text_layer or "last",
                device=device,
                dtype=dtype,
            )

    def identity(self) -> dict[str, Any]:
        """Return what decides the bytes that `encode` gives."""
        image = self._image.fingerprint() if self._image else {"zeros": [1, self._width]}
        return {"image": image, "text": self._text.fingerprint() if self._text else None}

    def encode(self, frame: Any, caption: str | None) -> dict[str, Tensor]:
        """Encode the conditions of one clip.

        Args:
            frame: (H, W, 3) uint8 RGB, the conditioning frame.
            caption: text of the clip, if there is any.

        Returns:
            ``image_embeds`` (L, D) and, with a text encoder, ``text_embeds`` (L, D), float32.
        """
        image = self._image.encode(frame) if self._image else torch.zeros(1, self._width)
        if self._text is None:
            return {"image_embeds": image}
        return {"image_embeds": image, "text_embeds": self._text.encode(caption).tokens}

    def null_condition(self) -> NullCondition | None:
        """Encode the empty caption and a grey image; None without a text encoder."""
        if self._text is None:
            return None
        image = self._image.encode_grey() if self._image else torch.zeros(1, self._width)
        return NullCondition(text_embeds=self._text.encode(None).tokens, image_embeds=image)
