"""Whether a data set holds what a model needs, before any worker starts."""

from pathlib import Path

from cil.errors import ConfigError
from cil.models import ClipFirstStage, load_first_stage
from pipelines.config import RunConfig
from pipelines.dataset import TrainingData
from pipelines.model_folder import new_model
from pipelines.selection.bucket import Bucket

__all__ = ["check_conditions"]


def check_conditions(config: RunConfig, data: TrainingData) -> None:
    """Refuse a data set that was encoded for another model.

    Args:
        config: the run; its network is built without published weights.
        data: the data set; one clip of its largest bucket is read.

    Raises:
        ConfigError: another first stage or other image tokens than the model has, or tokens of
            another frame than the conditioning frame.
        DataError: the data set is damaged.
    """
    reader = data.largest
    first_stage = reader.first_stage()
    model = new_model(
        config,
        Bucket.parse(reader.bucket),
        latent_channels=first_stage.latent_channels,
        downsampling=first_stage.downsampling,
    )
    clip = reader.clip(0)
    tokens = clip.image_embeds
    if isinstance(first_stage, ClipFirstStage) != (clip.conditioning_latents is not None):
        raise ConfigError(
            "the data set holds no conditioning latents, and its first stage needs them beside "
            "those of the clips; encode the videos again"
        )
    if config.train.conditioning_frame == "random" and clip.conditioning_latents is not None:
        raise ConfigError(
            "train.conditioning_frame random conditions on any frame of a clip, and the data set "
            "holds conditioning latents of the first frame only; use first"
        )
    replaced = getattr(model.config, "image_token_replacement", 0.0)
    if config.train.conditioning_frame == "random" and tokens.any() and replaced < 1:
        raise ConfigError(
            "train.conditioning_frame random conditions on any frame of a clip, and the data set "
            "holds image tokens of the first frame only, which would show another image; encode "
            "without condition.image_encoder, set model.image_token_replacement to 1 where the "
            "family has it, or use first"
        )
    stored = tokens.shape[-1]
    if model.token_width != stored:
        raise ConfigError(
            f"the image tokens of the data set have the width {stored}, the network of "
            f"model.family {config.model.family} takes {model.token_width}; encode for this model "
            "into another output.dataset, or use the model that it was encoded for"
        )
    if config.model.pretrained is None:
        return
    place = _first_stage_place(config)
    asked = load_first_stage(place).fingerprint()
    if asked != first_stage.fingerprint():
        raise ConfigError(
            f"the data set was encoded with the first stage {first_stage.fingerprint()[:12]}, "
            f"{place} has {asked[:12]}; encode again into another output.dataset with "
            f"first_stage.path = {place}, or name the first stage that it was encoded with"
        )


def _first_stage_place(config: RunConfig) -> str:
    """Return where the first stage of the published weights, or of a tiny model, is."""
    if config.first_stage.path is not None and config.model.family != "tiny":
        return config.first_stage.path
    assert config.model.pretrained is not None
    return str(Path(config.model.pretrained) / "first_stage")
