"""The ``i2vgenxl`` family: I2VGen-XL, in the folders that diffusers publishes and reads.

    model = load("i2vgen-xl", height=704, width=1280)
    frames = cil.generate.generate(model, image, seed=0, start_time=0.94, analytic_init=statistics)
    model.save(folder)      # opens with diffusers' I2VGenXLPipeline.from_pretrained

Variance preserving, the cosine schedule with zero terminal SNR, v prediction. Conditioning latents
are scaled as the clean ones; the network sees those of the first frame only. It is told the frame
rate as it is, attends to the caption and to CLIP's token of the image's centre square. Guidance
leads away from the negative prompt without the image token; the image's latents stay. Training
drops to the same, with the empty caption.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cil.conditioning import drop
from cil.errors import ConfigError, DataError
from cil.losses import Network
from cil.models.base import ClipConditions, Condition, FirstStage, TrainingConditions
from cil.models.captioned import CaptionedModel
from cil.models.condition_encoders import ImageEncoder, TextEncoder
from cil.models.diffusers_network import (
    NetworkKind,
    check_divides,
    check_known,
    folder_with,
    read_own_settings,
    write_own_settings,
)
from cil.models.first_stage import load_first_stage
from cil.models.i2vgenxl_config import (
    SCHEDULE_SETTINGS,
    I2VGenXLConfig,
    read_schedule,
    scheduler_config,
)
from cil.models.i2vgenxl_layers import (
    I2VGENXL_LORA_TARGETS,
    i2vgenxl_network_call,
    i2vgenxl_temporal_parameters,
    with_checkpointing,
)
from cil.models.null_condition import NullCondition
from cil.models.storage import write_json
from cil.network_input import Counter
from cil.parameterization import Parameterization

__all__ = ["I2VGenXLConfig", "I2VGenXLModel", "build", "load"]

_KIND = NetworkKind(family="i2vgenxl", class_name="I2VGenXLUNet", settings_name="I2VGenXLConfig")


class I2VGenXLModel(CaptionedModel):
    """A network of I2VGen-XL and its parts. Implements ``ImageToVideoModel``."""

    family = "i2vgenxl"

    image_processor = "feature_extractor"
    network_folder = _KIND.folder

    def __init__(self, *, config: I2VGenXLConfig, **parts: Any) -> None:
        """Take the parts of a ``CaptionedModel``."""
        super().__init__(config=config, **parts)
        self.parameterization = Parameterization(config.prediction_type)

    @property
    def text_shape(self) -> tuple[int, int]:
        """(L, D) of the tokens of a caption."""
        return 77, int(self.config.network.get("cross_attention_dim", 1024))

    def read_image_encoder(self, folder: Path) -> ImageEncoder:
        """Return CLIP, whose projected token of the image's centre square is attended to."""
        return ImageEncoder.from_folder(folder, crop="square")

    def read_text_encoder(self, folder: Path) -> TextEncoder:
        """Return CLIP's, whose tokens before the last layer are attended to."""
        return TextEncoder.from_folder(folder, layer="penultimate")

    def unconditional(self, condition: Condition) -> Condition:
        """Return the condition without the image token and with the negative prompt."""
        without = replace(condition, image_embeds=torch.zeros_like(condition.image_embeds))
        return self.told(without, self.config.negative_prompt)

    def training_conditions(
        self,
        clips: ClipConditions,
        tokens: Tensor,
        *,
        uniform: Tensor,
        dropout: float,
        counter: Counter,
    ) -> TrainingConditions:
        """Drop the caption and the image token together, with probability ``dropout``.

        A dropped caption is the empty one, a dropped token zero, as guidance has them; the image's
        latents stay. Noise on tokens, if any, is added to dropped ones too.
        """
        if dropout > 0 and clips.text_embeds is not None:
            clips, keep = self.drop_captions(clips, uniform=uniform, dropout=dropout)
            tokens = drop(tokens, keep)
        return TrainingConditions(clips=clips, tokens=tokens, dropout=0.0)

    def network_call(self, clips: ClipConditions, *, network: nn.Module | None = None) -> Network:
        """Return what training's loss calls; see ``ImageToVideoModel.network_call``.

        Raises:
            DataError: the clips have no captions.
        """
        if clips.text_embeds is None:
            raise DataError(
                "an i2vgenxl model attends to captions, and the clips have none; encode the data "
                "set with condition.text_encoder (an empty caption will do)"
            )
        return i2vgenxl_network_call(
            self.network if network is None else network,
            fps=clips.fps,
            text_embeds=clips.text_embeds,
            dtype=next(self.network.parameters()).dtype,
        )

    def temporal_parameters(self) -> frozenset[str]:
        """Return the names of the network's parameters that mix frames, as in its state dict."""
        return i2vgenxl_temporal_parameters(self.network)

    def lora_targets(self) -> tuple[str, ...]:
        """Return the linear layers that LoRA adapts, by the ends of their names."""
        return I2VGENXL_LORA_TARGETS

    def save(self, folder: Path, *, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write a pipeline of diffusers; ``state_dict`` replaces the network's weights, for EMA."""
        from diffusers import DDIMScheduler

        self.save_parts(folder, state_dict=state_dict)
        DDIMScheduler(**scheduler_config(self.config)).save_pretrained(folder / "scheduler")
        write_json(folder / "model_index.json", _model_index(self.first_stage))
        elsewhere = {"network", *SCHEDULE_SETTINGS}  # stand in unet/ and scheduler/
        settings = {k: v for k, v in asdict(self.config).items() if k not in elsewhere}
        write_own_settings(folder, self.family, settings)


def build(
    *,
    seed: int = 0,
    first_stage: FirstStage | None = None,
    encoders: Path | None = None,
    text_encoder: Path | None = None,
    null_condition: NullCondition | None = None,
    **config: Any,
) -> I2VGenXLModel:
    """Make a model with fresh weights, a pure function of the arguments.

    Args:
        seed: of the weights; the global generator is left as it was.
        first_stage: the codec, needed to save the model; training does not need it.
        encoders: folder with image_encoder/ and feature_extractor/, needed to sample.
        text_encoder: folder with text_encoder/ and tokenizer/, needed to sample.
        null_condition: tokens of the empty text, where there is no text encoder.
        **config: fields of ``I2VGenXLConfig``, and arguments of the network as its config.json has
            them.

    Returns:
        The model, on the CPU, float32.

    Raises:
        ConfigError: unknown setting, value out of range, or a first stage that does not fit.
    """
    settings = I2VGenXLConfig.of(config, network={})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = _KIND.new(settings.network)
    return I2VGenXLModel(
        config=settings,
        network=with_checkpointing(network),
        first_stage=first_stage,
        encoders=encoders,
        text_encoder=text_encoder,
        null_condition=null_condition,
    )


def load(
    folder: Path,
    *,
    first_stage: FirstStage | None = None,
    encoders: Path | None = None,
    text_encoder: Path | None = None,
    null_condition: NullCondition | None = None,
    weights: bool = True,
    **changes: Any,
) -> I2VGenXLModel:
    """Read a pipeline of diffusers, published or written by ``I2VGenXLModel.save``.

    Args:
        folder: holds unet/ and scheduler/, and vae/, image_encoder/, text_encoder/ and tokenizer/
            unless others are given.
        first_stage: the codec in place of the folder's.
        encoders: folder with image_encoder/ in place of this one.
        text_encoder: folder with text_encoder/ and tokenizer/ in place of this one.
        null_condition: tokens of the empty text in place of the folder's.
        weights: False leaves the network on the meta device, without weights, and reads no first
            stage, for plans.
        **changes: fields of ``I2VGenXLConfig`` in place of the folder's.

    Returns:
        The model, on the CPU, float32, in evaluation mode.

    Raises:
        ConfigError: a change that is no setting or does not fit.
        DataError: a part is missing, damaged, or of another family.
    """
    written = _KIND.config(folder)
    for name in ("attention_head_dim", "norm_num_groups"):
        check_divides(folder, written, name)
    own = read_own_settings(folder, I2VGenXLModel.family)
    check_known(changes, I2VGenXLConfig, I2VGenXLModel.family)
    try:
        settings = I2VGenXLConfig(**{**own, **read_schedule(folder)}, network=written)
    except (TypeError, ConfigError) as error:
        raise DataError(f"{folder} does not describe an i2vgenxl model: {error}") from error
    settings = replace(settings, **changes)
    if weights:
        network = _KIND.read(folder)
        first_stage = load_first_stage(folder) if first_stage is None else first_stage
    else:
        network = _KIND.new_without_weights(settings.network)
    network.eval()
    return I2VGenXLModel(
        config=settings,
        network=with_checkpointing(network),
        first_stage=first_stage,
        encoders=folder_with("image_encoder", encoders, folder),
        text_encoder=folder_with("text_encoder", text_encoder, folder),
        null_condition=NullCondition.load(folder) if null_condition is None else null_condition,
    )


def _model_index(first_stage: FirstStage) -> dict[str, Any]:
    """Return what diffusers reads to know the parts of the pipeline."""
    import diffusers

    vae = getattr(first_stage, "network_class", None)
    if vae != "AutoencoderKL":
        raise ConfigError(
            "an i2vgenxl model needs an AutoencoderKL as first stage, got "
            f"{vae or type(first_stage).__name__}"
        )
    return {
        "_class_name": "I2VGenXLPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", _KIND.class_name],
        "vae": ["diffusers", vae],
    }
