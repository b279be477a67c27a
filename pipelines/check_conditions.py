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
        ConfigError: another first stage or other image tokens than the model has.
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
    stored = reader.clip(0).image_embeds.shape[-1]
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
