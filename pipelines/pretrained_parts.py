"""What a run takes from the folder of published weights that `model.pretrained` names.

In: a validated configuration. Out: one that names first stage and encoders, and hashes of weights.
"""

from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from cil.errors import ConfigError
from pipelines.config import RunConfig
from pipelines.storage import hash_of_folder

__all__ = ["model_identity", "with_pretrained_parts"]

NETWORK_FOLDER = "unet"
_READ_FOLDERS = {"i2vgenxl": (NETWORK_FOLDER, "scheduler")}
"""Parts that decide what is trained, by family; the network alone where none are named."""
_TEXT_LAYERS: dict[str, Literal["last", "penultimate"]] = {"i2vgenxl": "penultimate"}
"""Families that attend to captions, and the layer that they take."""
_IMAGE_CROPS: dict[str, Literal["none", "square"]] = {"i2vgenxl": "square"}
"""Families that show CLIP a part of the image only."""


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
    family = config.model.family
    if condition.image_crop is None:
        condition = replace(condition, image_crop=_IMAGE_CROPS.get(family, "none"))
    if family in _TEXT_LAYERS:
        if condition.text_encoder is None:
            if not (folder / "text_encoder").is_dir():
                raise ConfigError(
                    f"model.pretrained = {place} has no text_encoder/; download the whole "
                    "pipeline, or name one by condition.text_encoder"
                )
            condition = replace(condition, text_encoder=place)
        if condition.text_layer is None:
            condition = replace(condition, text_layer=_TEXT_LAYERS[family])
    return replace(config, first_stage=first_stage, condition=condition)


def model_identity(config: RunConfig) -> dict[str, Any]:
    """Return what decides the network that training begins with, as plain data."""
    settings = asdict(config.model)
    if config.model.pretrained is None:
        return settings
    folder = Path(config.model.pretrained).absolute()
    parts = _READ_FOLDERS.get(config.model.family, (NETWORK_FOLDER,))
    hashes = [_hash(str(folder / part)) for part in parts]
    return {**settings, "pretrained": hashes[0] if len(hashes) == 1 else hashes}


@lru_cache(maxsize=8)
def _hash(folder: str) -> str:
    """Hash a folder once in a process."""
    return hash_of_folder(Path(folder))
