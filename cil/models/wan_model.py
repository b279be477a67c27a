"""The model class of the ``wan`` family: what it tells a network of Wan, and how it is saved.

Flow matching: noisy = (1 - t) clean + t noise, the network predicts noise - clean and is told
1000 t. Conditioning latents are the encoding of the image followed by grey frames, see
`cil.models.wan_vae`; a mask says that the first frame is known, and no noise is put on it. The
network attends to all of CLIP's tokens of the image and to 512 tokens of the caption. Guidance
leads away from the negative prompt, the image stays; training drops to the empty caption.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from cil.errors import ConfigError, DataError
from cil.losses import Network
from cil.models.base import (
    ClipConditions,
    Condition,
    FirstStage,
    TrainingConditions,
)
from cil.models.captioned import CaptionedModel
from cil.models.clip_first_stage import ClipFirstStage
from cil.models.condition_encoders import ImageEncoder, TextEncoder
from cil.models.diffusers_network import write_own_settings
from cil.models.storage import read_json, write_json
from cil.models.wan_config import scheduler_config
from cil.models.wan_layers import WAN_KIND, WAN_LORA_TARGETS, WAN_TEXT_LENGTH, wan_network_call
from cil.network_input import Counter
from cil.parameterization import Parameterization

__all__ = ["WanModel"]


class WanModel(CaptionedModel):
    """A network of Wan and its parts. Implements ``ImageToVideoModel``."""

    family = "wan"
    parameterization = Parameterization.FLOW

    image_processor = "image_processor"
    network_folder = WAN_KIND.folder

    def __init__(self, *, first_stage: FirstStage | None, **parts: Any) -> None:
        """Take the parts of a ``CaptionedModel``; the first stage must be one for whole clips."""
        if first_stage is not None and not isinstance(first_stage, ClipFirstStage):
            raise ConfigError(
                "a wan model needs a first stage that compresses time (AutoencoderKLWan), got "
                f"{type(first_stage).__name__}; encode the videos with that of the wan pipeline"
            )
        super().__init__(first_stage=first_stage, **parts)

    @property
    def token_shape(self) -> tuple[int, int]:
        """(L, D) of CLIP's tokens: ViT-H/14 has one of the class and 256 of the patches."""
        return 257, int(self.config.network["image_dim"])

    @property
    def text_shape(self) -> tuple[int, int]:
        """(L, D) of the tokens of a caption."""
        return WAN_TEXT_LENGTH, int(self.config.network["text_dim"])

    def read_image_encoder(self, folder: Path) -> ImageEncoder:
        """Return CLIP, whose tokens before the last layer are attended to."""
        return ImageEncoder.from_folder(folder, tokens="hidden", layer="penultimate", crop="clip")

    def read_text_encoder(self, folder: Path) -> TextEncoder:
        """Return UMT5, for texts of 512 tokens."""
        return TextEncoder.from_folder(folder, max_length=WAN_TEXT_LENGTH)

    def unconditional(self, condition: Condition) -> Condition:
        """Return the condition with the negative prompt; the image stays."""
        return self.told(condition, self.config.negative_prompt)

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
            clips, _ = self.drop_captions(clips, uniform=uniform, dropout=dropout)
        return TrainingConditions(clips=clips, tokens=tokens, dropout=0.0)

    def _encode_image(self, frame: Any) -> Tensor:
        codec = cast(ClipFirstStage, self.first_stage)
        return codec.encode_conditioning(frame, self.config.num_frames)

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

        self.save_parts(folder, state_dict=state_dict)
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
