"""What a run takes from the folder of published weights that `model.pretrained` names.

In: a validated configuration. Out: one that names first stage and encoders, and hashes of weights.
"""

from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from cil.errors import ConfigError
from cil.models.lvdm_folder import text_part
from cil.models.null_condition import NULL_CONDITION_FILE
from pipelines.config import RunConfig
from pipelines.model_settings import FAMILIES_WITH_TEXT, LVDM_FAMILIES, WAN_TEXT_LENGTH
from pipelines.settings import ConditionConfig
from pipelines.storage import hash_of_folder

__all__ = ["is_missing", "model_identity", "with_parts_if_there", "with_pretrained_parts"]

NETWORK_FOLDER = "unet"
_NETWORKS = (NETWORK_FOLDER, "image_projector")
_FOLDER_OF_FAMILY = {"wan": "transformer"}
"""Folder of the network, by family; ``unet`` where none is named."""
_READ_FOLDERS = {"i2vgenxl": (NETWORK_FOLDER, "scheduler"), "wan": ("transformer", "scheduler")}
"""Parts that decide what is trained, by family; the networks where none are named."""

_POOLED = ConditionConfig(
    image_tokens="pooled", image_layer="last", image_crop="none", text_layer="last"
)
_HIDDEN = replace(_POOLED, image_tokens="hidden", text_layer="penultimate")
_OF_FAMILY = {
    **dict.fromkeys(LVDM_FAMILIES, _HIDDEN),
    "i2vgenxl": replace(_POOLED, image_crop="square", text_layer="penultimate"),
    "wan": ConditionConfig(
        image_tokens="hidden",
        image_layer="penultimate",
        image_crop="clip",
        text_layer="last",
        text_length=WAN_TEXT_LENGTH,
    ),
}
"""What the encoders give, by family; pooled tokens where none are named."""


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
    if not (folder / _network_folder(config.model.family)).is_dir():
        raise ConfigError(_how_to_get(config.model.family, place))
    if config.model.family == "tiny":
        return config  # its first stage is the data set's, and it has no encoders
    first_stage, condition = config.first_stage, _of_family(config)
    if first_stage.path is None:
        first_stage = replace(first_stage, path=place)
    if condition.image_encoder is None:
        if not (folder / "image_encoder").is_dir():
            raise ConfigError(
                f"model.pretrained = {place} has no image_encoder/; download the whole pipeline, "
                "or name one by condition.image_encoder"
            )
        condition = replace(condition, image_encoder=place)
    if config.model.family in FAMILIES_WITH_TEXT and condition.text_encoder is None:
        if (folder / "text_encoder").is_dir():
            condition = replace(condition, text_encoder=str(text_part(folder)))
        elif not (folder / NULL_CONDITION_FILE).is_file():
            raise ConfigError(
                f"model.pretrained = {place} has neither text_encoder/ nor {NULL_CONDITION_FILE}; "
                "import the checkpoint with a tokenizer, or name condition.text_encoder"
            )
    return replace(config, first_stage=first_stage, condition=condition)


def is_missing(config: RunConfig) -> bool:
    """Tell whether `model.pretrained` names a place where nothing is."""
    place = config.model.pretrained
    return place is not None and not Path(place).exists()


def with_parts_if_there(config: RunConfig) -> RunConfig:
    """Name the parts as `with_pretrained_parts`, for what only looks at settings.

    Where the folder of `model.pretrained` is missing, first stage and encoders stay unnamed; what
    the encoders give is set as the family wants it.
    """
    if is_missing(config):
        return replace(config, condition=_of_family(config))
    return with_pretrained_parts(config)


def _how_to_get(family: str, place: str) -> str:
    if family not in LVDM_FAMILIES:
        return (
            f"model.pretrained must be a folder with {_network_folder(family)}/, as diffusers "
            f"writes a pipeline, got {place}; download it there"
        )
    return (
        f"model.pretrained must be a model folder that cil import wrote, with {NETWORK_FOLDER}/, "
        f"got {place}; make it of the published checkpoint: cil import {family} model.ckpt "
        "--tokenizer FOLDER --out FOLDER"
    )


def _network_folder(family: str) -> str:
    return _FOLDER_OF_FAMILY.get(family, NETWORK_FOLDER)


def _of_family(config: RunConfig) -> ConditionConfig:
    """Set which tokens the encoders give, where that was left to the family."""
    own = _OF_FAMILY.get(config.model.family, _POOLED)
    asked = config.condition
    return replace(
        asked,
        image_tokens=asked.image_tokens or own.image_tokens,
        image_layer=asked.image_layer or own.image_layer,
        image_crop=asked.image_crop or own.image_crop,
        text_layer=asked.text_layer or own.text_layer,
        text_length=asked.text_length or own.text_length,
    )


def model_identity(config: RunConfig) -> dict[str, Any]:
    """Return what decides the network that training begins with, as plain data."""
    settings = asdict(config.model)
    if config.model.pretrained is None:
        return settings
    folder = Path(config.model.pretrained).absolute()
    parts = [folder / part for part in _READ_FOLDERS.get(config.model.family, _NETWORKS)]
    hashes = "-".join(_hash(str(part)) for part in parts if part.is_dir())
    return {**settings, "pretrained": hashes}


@lru_cache(maxsize=8)
def _hash(folder: str) -> str:
    """Hash a folder once in a process."""
    return hash_of_folder(Path(folder))
