"""The model class of the ``wan`` family: what it tells a network of Wan, and how it is saved.

Flow matching: noisy = (1 - t) clean + t noise, the network predicts noise - clean and is told
1000 t. Conditioning latents are the encoding of the image followed by grey frames, see
`cil.models.wan_vae`; a mask says that the first frame is known, and no noise is put on it. The
network attends to all of CLIP's tokens of the image and to 512 tokens of the caption. Guidance
leads away from the negative prompt, the image stays; training drops to the empty caption.
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cil.conditioning import keep_mask
from cil.errors import ConfigError, DataError
from cil.losses import Network
from cil.models.adapter import ModelAdapter
from cil.models.base import (
    ClipConditions,
    Condition,
    FirstStage,
    Guidance,
    TrainingConditions,
)
from cil.models.clip_first_stage import ClipFirstStage
from cil.models.diffusers_network import copy_part, write_own_settings
from cil.models.null_condition import NullCondition
from cil.models.pretrained import part_of
from cil.models.storage import read_json, write_json
from cil.models.wan_config import WanConfig, scheduler_config
from cil.models.wan_layers import WAN_KIND, WAN_LORA_TARGETS, WAN_TEXT_LENGTH, wan_network_call
from cil.network_input import Counter
from cil.parameterization import Parameterization
from cil.shapes import append_dims

__all__ = ["WanModel"]


class WanModel(ModelAdapter):
    """A network of Wan and its parts. Implements ``ImageToVideoModel``."""

    family = "wan"
    parameterization = Parameterization.FLOW

    def __init__(
        self,
        *,
        config: WanConfig,
        network: nn.Module,
        first_stage: FirstStage | None,
        encoders: Path | None = None,
        text_encoder: Path | None = None,
        null_condition: NullCondition | None = None,
    ) -> None:
        """Take the parts.

        Args:
            config: settings.
            network: a ``WanTransformer3DModel`` of diffusers.
            first_stage: the codec, one for whole clips.
            encoders: folder with image_encoder/ and image_processor/.
            text_encoder: folder with text_encoder/ and tokenizer/.
            null_condition: tokens of the empty text, where there is no text encoder.
        """
        if first_stage is not None and not isinstance(first_stage, ClipFirstStage):
            raise ConfigError(
                "a wan model needs a first stage that compresses time (AutoencoderKLWan), got "
                f"{type(first_stage).__name__}; encode the videos with that of the wan pipeline"
            )
        super().__init__(config=config, network=network, first_stage=first_stage)
        self._encoders, self._text_folder = encoders, text_encoder
        self._null_condition = null_condition

    @property
    def guidance(self) -> Guidance:
        """Guidance of the same scale for all frames."""
        return Guidance(first=self.config.guidance_scale, last=self.config.guidance_scale)

    @property
    def token_shape(self) -> tuple[int, int]:
        """(L, D) of CLIP's tokens: ViT-H/14 has one of the class and 256 of the patches."""
        return 257, int(self.config.network["image_dim"])

    @property
    def text_shape(self) -> tuple[int, int]:
        """(L, D) of the tokens of a caption."""
        return WAN_TEXT_LENGTH, int(self.config.network["text_dim"])

    @cached_property
    def _image_encoder(self) -> Any:
        from cil.models.condition_encoders import ImageEncoder

        if self._encoders is None:
            raise ConfigError(
                "this model has no image encoder; load it from a folder with image_encoder/, or "
                "pass encoders="
            )
        return ImageEncoder.from_folder(
            self._encoders, tokens="hidden", layer="penultimate", crop="clip"
        )

    @cached_property
    def _text_encoder(self) -> Any:
        from cil.models.condition_encoders import TextEncoder

        if self._text_folder is None:
            raise ConfigError(
                "this model has no text encoder; load it from a folder with text_encoder/ and "
                "tokenizer/, or pass text_encoder="
            )
        return TextEncoder.from_folder(self._text_folder, max_length=WAN_TEXT_LENGTH)

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
        return self._told(super().clean_condition(frame, num_clips=num_clips), prompt)

    def unconditional(self, condition: Condition) -> Condition:
        """Return the condition with the negative prompt; the image stays."""
        return self._told(condition, self.config.negative_prompt)

    def training_conditions(
        self,
        clips: ClipConditions,
        tokens: Tensor,
        *,
        uniform: Tensor,
        dropout: float,
        counter: Counter,
    ) -> TrainingConditions:
        """Drop the caption with probability ``dropout``, to the empty one; the image stays."""
        if dropout > 0 and clips.text_embeds is not None:
            keep, text = keep_mask(uniform, dropout), clips.text_embeds
            text = torch.where(append_dims(keep, 3) > 0, text, self._text(None).to(text))
            clips = replace(clips, text_embeds=text)
        return TrainingConditions(clips=clips, tokens=tokens, dropout=0.0)

    def _encode_image(self, frame: Any) -> Tensor:
        codec = cast(ClipFirstStage, self.first_stage)
        return codec.encode_conditioning(frame, self.config.num_frames)

    def _text(self, text: str | None) -> Tensor:
        """Return the tokens of a text (L, D); those of the empty one are kept."""
        if self._null_condition is not None and not text:
            return self._null_condition.text_embeds
        if not text:
            return self._empty_text
        tokens: Tensor = self._text_encoder.encode(text).tokens
        return tokens

    @cached_property
    def _empty_text(self) -> Tensor:
        tokens: Tensor = self._text_encoder.encode("").tokens
        return tokens

    def _told(self, condition: Condition, text: str | None) -> Condition:
        latents = condition.conditioning_latents
        tokens = self._text(text).to(latents.device)
        return replace(condition, text_embeds=tokens.expand(latents.shape[0], *tokens.shape))

    def network_call(self, clips: ClipConditions, *, network: nn.Module | None = None) -> Network:
        """Return what training's loss calls; see ``ImageToVideoModel.network_call``.

        Raises:
            DataError: the clips have no captions, or captions of another length.
        """
        text = clips.text_embeds
        if text is None or text.shape[1] != WAN_TEXT_LENGTH:
            got = "none" if text is None else f"{text.shape[1]} tokens"
            raise DataError(
                f"a wan model attends to captions of {WAN_TEXT_LENGTH} tokens, and the clips have "
                f"{got}; encode the data set with condition.text_encoder and condition.text_length "
                f"{WAN_TEXT_LENGTH} (an empty caption will do)"
            )
        return wan_network_call(
            self.network if network is None else network,
            text_embeds=text,
            dtype=next(self.network.parameters()).dtype,
        )

    def temporal_parameters(self) -> frozenset[str]:
        """Refuse: every layer of this network sees all frames.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "a wan network has no layers of its own for time: its attention sees all frames at "
            "once, got train.trainable 'temporal'; use 'lora', which adapts every attention, or "
            "'all'"
        )

    def lora_targets(self) -> tuple[str, ...]:
        """Return the linear layers that LoRA adapts, by the ends of their names."""
        return WAN_LORA_TARGETS

    def save(self, folder: Path, *, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write a pipeline of diffusers; ``state_dict`` replaces the network's weights, for EMA."""
        from diffusers import UniPCMultistepScheduler

        network = self.network
        if state_dict is not None:
            network = copy.deepcopy(network)
            network.load_state_dict(dict(state_dict))
        folder.mkdir(parents=True, exist_ok=True)
        network.save_pretrained(folder / WAN_KIND.folder)  # type: ignore[operator]
        self.first_stage.save(folder)
        for parts, source in (
            (("image_encoder", "image_processor"), self._encoders),
            (("text_encoder", "tokenizer"), self._text_folder),
        ):
            if source is not None:
                copy_part(part_of(source, parts[0]), folder / parts[0])
                copy_part(source / parts[1], folder / parts[1])
        if self._null_condition is not None:
            self._null_condition.save(folder)
        UniPCMultistepScheduler(**scheduler_config(self.config)).save_pretrained(
            folder / "scheduler"
        )
        write_json(folder / "model_index.json", _model_index(folder))
        elsewhere = {"network", "flow_shift", "num_train_timesteps"}  # transformer/, scheduler/
        settings = {k: v for k, v in asdict(self.config).items() if k not in elsewhere}
        write_own_settings(folder, self.family, settings)


def _model_index(folder: Path) -> dict[str, Any]:
    """Return what diffusers reads to know the parts of the pipeline that lie in a folder."""
    import diffusers

    vision = folder / "image_encoder" / "config.json"
    words = folder / "tokenizer" / "tokenizer_config.json"
    encoder = read_json(vision)["architectures"][0] if vision.is_file() else "CLIPVisionModel"
    tokenizer = read_json(words).get("tokenizer_class") if words.is_file() else None
    return {
        "_class_name": "WanImageToVideoPipeline",
        "_diffusers_version": diffusers.__version__,
        "image_encoder": ["transformers", encoder],
        "image_processor": ["transformers", "CLIPImageProcessor"],
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", tokenizer or "T5TokenizerFast"],
        "transformer": ["diffusers", WAN_KIND.class_name],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
