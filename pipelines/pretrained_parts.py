"""What a run takes from the folder of published weights that `model.pretrained` names.

In: a validated configuration. Out: one that names first stage and encoders, and hashes of weights.
"""

from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from cil.errors import ConfigError
from pipelines.config import RunConfig
from pipelines.storage import hash_of_folder

__all__ = ["model_identity", "with_pretrained_parts"]

NETWORK_FOLDER = "unet"


def with_pretrained_parts(config: RunConfig) -> RunConfig:
    """Name the first stage and the encoders of `model.pretrained` where none are named.

    Args:
        config: as it was given.

    Returns:
        The configuration that the stages see.

    Raises:
        ConfigError: the folder is not there, or has no such part.
    """
    place = config.model.pretrained
    if place is None:
        return config
    folder = Path(place)
    if not (folder / NETWORK_FOLDER).is_dir():
        raise ConfigError(
            f"model.pretrained must be a folder with {NETWORK_FOLDER}/, as diffusers writes a "
            f"pipeline, got {place}; download it there"
        )
    first_stage, condition = config.first_stage, config.condition
    if first_stage.path is None:
        first_stage = replace(first_stage, path=place)
    if condition.image_encoder is None:
        if not (folder / "image_encoder").is_dir():
            raise ConfigError(
                f"model.pretrained = {place} has no image_encoder/; download the whole pipeline, "
                "or name one by condition.image_encoder"
            )
        condition = replace(condition, image_encoder=place)
    return replace(config, first_stage=first_stage, condition=condition)


def model_identity(config: RunConfig) -> dict[str, Any]:
    """Return what decides the network that training begins with, as plain data."""
    settings = asdict(config.model)
    if config.model.pretrained is None:
        return settings
    return {**settings, "pretrained": _hash(str(Path(config.model.pretrained).absolute()))}


@lru_cache(maxsize=4)
def _hash(folder: str) -> str:
    """Hash a network's weights once in a process."""
    return hash_of_folder(Path(folder) / NETWORK_FOLDER)
