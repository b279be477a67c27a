"""What the network is told by cross-attention: tokens of the conditioning image and of the caption.

    encoder = ImageEncoder.from_folder("stable-video-diffusion-img2vid-xt")
    tokens = encoder.encode(frame)              # (1, 1024) float32: one pooled token
    encoder = TextEncoder.from_folder(folder)
    caption = encoder.encode("a red kite")      # caption.tokens (77, D) float32

Both are frozen, read local folders of transformers only, and encode one image or caption at a time,
so that the bytes do not depend on what else is encoded. ``fingerprint()`` names weights and
settings, not the device and dtype: name those beside it, bfloat16 changes tokens visibly.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from cil.errors import ConfigError, DataError
from cil.models.antialiased_resize import antialiased_resize
from cil.models.centre_square import centre_square, clip_square
from cil.models.frames import as_frames
from cil.models.pretrained import (
    architecture_of,
    check_device,
    check_dtype,
    exact_arithmetic,
    import_transformers,
    part_of,
    settings_of,
    transformers_network,
)
from cil.models.storage import digest, read_json

__all__ = ["EncodedCaption", "ImageEncoder", "TextEncoder", "load_tokenizer"]

Layer = Literal["last", "penultimate"]
Tokens = Literal["pooled", "hidden"]
Crop = Literal["none", "square", "clip"]

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_CLIP_TEXT = ("CLIPTextModel", "CLIPTextModelWithProjection")
_T5_TEXT = ("T5EncoderModel", "UMT5EncoderModel")
_CLIP_VISION = ("CLIPVisionModelWithProjection", "CLIPVisionModel")


class ImageEncoder:
    """The image half of CLIP: a conditioning frame to tokens."""

    def __init__(
        self,
        network: Any,
        *,
        mean: tuple[float, ...] = _CLIP_MEAN,
        std: tuple[float, ...] = _CLIP_STD,
        tokens: Tokens = "pooled",
        layer: Layer = "last",
        crop: Crop = "none",
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        """Take a network; use ``from_folder``, where the arguments are described."""
        _check_choice("tokens", tokens, get_args(Tokens))
        _check_choice("crop", crop, get_args(Crop))
        _check_choice("layer", layer, get_args(Layer))
        if tokens == "pooled" and layer != "last":
            raise ConfigError("layer is for tokens 'hidden'; the pooled token is of the last layer")
        self._device, self._dtype = check_device(device), check_dtype(dtype)
        self._tokens, self._layer, self._crop = tokens, layer, crop
        self._mean, self._std = mean, std
        self._size = int(network.config.image_size)
        settings = {
            "kind": "clip_image",
            "network": settings_of(network),
            "mean": mean,
            "std": std,
            "tokens": tokens,
            "layer": layer,
            **({} if crop == "none" else {"crop": crop}),
        }
        self._digest = digest(settings, network.state_dict())
        self._network = nn.Module.to(network, device=self._device, dtype=self._dtype)

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        tokens: Tokens = "pooled",
        layer: Layer = "last",
        crop: Crop = "none",
        device: str = "cpu",
        dtype: str = "float32",
    ) -> Self:
        """Read a ``CLIPVisionModelWithProjection``, or a ``CLIPVisionModel`` for hidden tokens.

        Args:
            folder: holds config.json and model.safetensors, and preprocessor_config.json where
                the colours are not normalised as by CLIP; or is a diffusers pipeline with these
                in ``image_encoder/`` and ``feature_extractor/`` or ``image_processor/``.
            tokens: ``pooled`` for one projected token (Stable Video Diffusion); ``hidden`` for
                the class token and one per patch, neither normed nor projected (DynamiCrafter).
            layer: of the ``hidden`` tokens; ``penultimate`` skips the last block.
            crop: ``none`` shows the whole image, its sides squeezed to a square (Stable Video
                Diffusion, DynamiCrafter); ``square`` its centre square (I2VGen-XL); ``clip`` too,
                as CLIP itself cuts it, with a bicubic filter (Wan).
            device: ``cpu``, ``cuda`` or ``cuda:N``.
            dtype: ``float32`` or ``bfloat16``.

        Returns:
            The encoder.

        Raises:
            ConfigError: an option that does not fit, or transformers is not installed.
            DataError: a file is missing, damaged, pickled or of another kind of network.
        """
        part = part_of(Path(folder), "image_encoder")
        name = architecture_of(part, _CLIP_VISION)
        if tokens == "pooled" and name != _CLIP_VISION[0]:
            raise DataError(
                f"{part} holds a {name}, which projects no pooled token; use tokens 'hidden', or a "
                f"{_CLIP_VISION[0]}"
            )
        mean: tuple[float, ...] = _CLIP_MEAN
        std: tuple[float, ...] = _CLIP_STD
        beside = (Path(folder) / place for place in ("feature_extractor", "image_processor"))
        for candidate in (part, *beside):
            described = candidate / "preprocessor_config.json"
            if described.is_file():
                values = read_json(described)
                mean = _colours(described, values.get("image_mean", mean))
                std = _colours(described, values.get("image_std", std))
        return cls(
            transformers_network(name, part),
            mean=mean,
            std=std,
            tokens=tokens,
            layer=layer,
            crop=crop,
            device=device,
            dtype=dtype,
        )

    def encode(self, frame: Any) -> Tensor:
        """Make the tokens of one image, resized to the encoder's square.

        Args:
            frame: (H, W, 3) uint8 RGB, a torch tensor or a numpy array.

        Returns:
            (L, D) float32 on the CPU; L = 1 for ``pooled``, 1 + patches for ``hidden``.

        Raises:
            DataError: another shape or dtype.
        """
        frames = as_frames(frame[None])
        if self._crop == "square":
            frames = centre_square(frames[0], self._size)[None]
        elif self._crop == "clip":
            frames = clip_square(frames[0], self._size)[None]
        pixels = frames.to(self._device).permute(0, 3, 1, 2)
        return self._encode(pixels.float() / 127.5 - 1.0)

    def encode_grey(self) -> Tensor:
        """Make the tokens of an image that is grey all over: (L, D) float32 on the CPU.

        Grey is the zero of pixels in [-1, 1], which no uint8 image is; networks are trained with it
        in place of an image that was dropped.
        """
        return self._encode(torch.zeros(1, 3, self._size, self._size, device=self._device))

    def _encode(self, pixels: Tensor) -> Tensor:
        """Encode pixels in [-1, 1], (1, 3, H, W)."""
        with exact_arithmetic(self._device):
            if self._crop == "none":
                pixels = antialiased_resize(pixels, self._size, self._size)
            pixels = pixels / 2.0 + 0.5
            mean, std = (pixels.new_tensor(c)[:, None, None] for c in (self._mean, self._std))
            hidden = self._tokens == "hidden"
            out = self._network(
                ((pixels - mean) / std).to(self._dtype), output_hidden_states=hidden
            )
            if not hidden:
                return _finite(out.image_embeds)
            return _finite(out.hidden_states[-1 if self._layer == "last" else -2][0])

    def fingerprint(self) -> str:
        """Return the sha256 (64 hex digits) over settings and weights: it names the tokens."""
        return self._digest


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedCaption:
    """The tokens of one caption.

    Attributes:
        tokens: (L, D) float32 on the CPU, L the same for every caption.
        num_tokens: tokens of the caption with its start and end marks, at most L.
        num_dropped: tokens of the caption that did not fit; 0 if nothing was cut off.
    """

    tokens: Tensor
    num_tokens: int
    num_dropped: int


class TextEncoder:
    """The text half of CLIP, or the encoder of T5 or UMT5: a caption to tokens.

    CLIP encodes the padding as well, as Stable Diffusion and DynamiCrafter do. T5 does not look at
    it, and rows after the caption are zero.
    """

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        *,
        max_length: int,
        layer: Layer = "last",
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        """Take a network and its tokenizer; use ``from_folder``, which describes the arguments."""
        _check_choice("layer", layer, get_args(Layer))
        self._is_clip = type(network).__name__ in _CLIP_TEXT
        if layer != "last" and not self._is_clip:
            raise ConfigError(f"layer must be 'last' for {type(network).__name__}, got {layer!r}")
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        settings = {
            "kind": "text",
            "class": type(network).__name__,
            "network": settings_of(network),
            "tokenizer": {k: v for k, v in rules.items() if k not in ("padding", "truncation")},
            "pad_token_id": tokenizer.pad_token_id,
            "max_length": max_length,
            "layer": layer,
        }
        self._device, self._dtype = check_device(device), check_dtype(dtype)
        self._tokenizer, self._max_length, self._layer = tokenizer, max_length, layer
        self._digest = digest(settings, network.state_dict())
        self._network = nn.Module.to(network, device=self._device, dtype=self._dtype)

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        max_length: int | None = None,
        layer: Layer = "last",
        device: str = "cpu",
        dtype: str = "float32",
    ) -> Self:
        """Read a ``CLIPTextModel``, with projection or not, or a ``T5`` or ``UMT5EncoderModel``.

        Args:
            folder: holds the network and its tokenizer; or is a diffusers pipeline with these in
                ``text_encoder/`` and ``tokenizer/``.
            max_length: L, tokens that a caption is padded or cut to, >= 2; by default the length
                of CLIP's position table (77). T5 has none and needs it given.
            layer: ``last``, or for CLIP ``penultimate``, which skips the last block but not the
                final norm (DynamiCrafter). A folder published without its last block needs
                ``last``.
            device: ``cpu``, ``cuda`` or ``cuda:N``.
            dtype: ``float32`` or ``bfloat16``.

        Returns:
            The encoder.

        Raises:
            ConfigError: an option that does not fit, or transformers is not installed.
            DataError: a file is missing, damaged, pickled or of another kind of network.
        """
        part = part_of(Path(folder), "text_encoder")
        name = architecture_of(part, (*_CLIP_TEXT, *_T5_TEXT))
        words = part if part == Path(folder) else Path(folder) / "tokenizer"
        network = transformers_network(name, part)
        limit = network.config.max_position_embeddings if name in _CLIP_TEXT else None
        length = max_length if max_length is not None else limit
        if length is None or length < 2 or (limit is not None and length > limit):
            allowed = "2 or more" if limit is None else f"from 2 to {limit}"
            raise ConfigError(f"max_length must be {allowed} for {name}, got {length}")
        return cls(
            network,
            load_tokenizer(words),
            max_length=length,
            layer=layer,
            device=device,
            dtype=dtype,
        )

    def encode(self, caption: str | None) -> EncodedCaption:
        """Make the tokens of one caption; None, a missing caption, is the empty string.

        Args:
            caption: any text; what does not fit is cut off at its end and counted.

        Returns:
            The tokens, and how many of them there were.
        """
        text = caption or ""
        whole = self._tokenizer(text, truncation=False, verbose=False)["input_ids"]
        batch = self._tokenizer(
            text,
            padding="max_length",
            truncation=True,
            max_length=self._max_length,
            return_tensors="pt",
        ).to(self._device)
        with exact_arithmetic(self._device):
            tokens = self._clip(batch) if self._is_clip else self._t5(batch)
        return EncodedCaption(
            tokens=_finite(tokens),
            num_tokens=min(len(whole), self._max_length),
            num_dropped=max(len(whole) - self._max_length, 0),
        )

    def fingerprint(self) -> str:
        """Return the sha256 over weights, tokenizer and settings: it names the tokens."""
        return self._digest

    def _clip(self, batch: Any) -> Tensor:
        """Run CLIP's text half: (L, D), after the final norm."""
        text_model = getattr(self._network, "text_model", self._network)
        out = text_model(batch["input_ids"], output_hidden_states=self._layer != "last")
        if self._layer == "last":
            return out.last_hidden_state[0]  # type: ignore[no-any-return]
        return text_model.final_layer_norm(out.hidden_states[-2])[0]  # type: ignore[no-any-return]

    def _t5(self, batch: Any) -> Tensor:
        """Run T5's encoder: (L, D), zero after the caption."""
        mask = batch["attention_mask"]
        out = self._network(batch["input_ids"], attention_mask=mask)
        tokens: Tensor = out.last_hidden_state[0]
        return torch.where(mask[0, :, None].bool(), tokens, torch.zeros_like(tokens))


def load_tokenizer(folder: Path) -> Any:
    """Read a tokenizer; only its own files, never code that lies beside them."""
    library = import_transformers()
    try:
        tokenizer = library.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise DataError(
            f"cannot read a tokenizer in {folder} ({error}); it needs tokenizer_config.json with "
            "tokenizer.json, or with vocab.json and merges.txt"
        ) from error
    if tokenizer.pad_token_id is None:
        raise DataError(f"the tokenizer in {folder} has no pad_token; set it and save it again")
    return tokenizer


def _colours(path: Path, values: Any) -> tuple[float, ...]:
    """Return three numbers that were read from a file."""
    if (
        not isinstance(values, list | tuple)
        or len(values) != 3
        or not all(isinstance(value, int | float) for value in values)
    ):
        raise DataError(f"{path} must give image_mean and image_std as 3 numbers, got {values!r}")
    return tuple(float(value) for value in values)


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a word that is none of those known."""
    if value not in known:
        raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def _finite(tokens: Tensor) -> Tensor:
    """Return tokens as float32 on the CPU; NaN or Inf is a ``DataError``."""
    tokens = tokens.float().cpu()
    if not bool(tokens.isfinite().all()):
        raise DataError("the encoder made tokens that are not finite; use dtype float32")
    return tokens
