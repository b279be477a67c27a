"""Whether a data set holds what a model needs, before any worker starts."""

from cil.errors import ConfigError
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
    tokens = reader.clip(0).image_embeds
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
    asked = _asked_first_stage(config)
    if asked != first_stage.fingerprint():
        raise ConfigError(
            f"the data set was encoded with the first stage {first_stage.fingerprint()[:12]}, "
            f"first_stage.path has {asked[:12]}; encode again into another output.dataset, or name "
            "the first stage that it was encoded with"
        )


def _asked_first_stage(config: RunConfig) -> str:
    """Return the fingerprint of the first stage that the settings name."""
    from cil.models import load_first_stage

    assert config.first_stage.path is not None  # `model.pretrained` names one
    return load_first_stage(config.first_stage.path).fingerprint()
