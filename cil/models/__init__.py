"""Image-to-video models by family name: ``build`` makes one, ``load`` reads a model folder.

    model = cil.models.build("tiny", seed=0, first_stage=codec, num_frames=8, height=32, width=32)
    model.save(folder)
    model = cil.models.load("tiny", folder)

A family is a module with ``build(**config)`` and ``load(folder)``. Its libraries (diffusers,
safetensors) are imported when a model is made, not when this package is.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from cil.errors import ConfigError
from cil.models.base import (
    ClipConditions,
    Condition,
    FirstStage,
    Guidance,
    ImageToVideoModel,
    Posterior,
    TrainingConditions,
)
from cil.models.clip_first_stage import ClipFirstStage
from cil.models.first_stage import FirstStageOptions, load_first_stage

__all__ = [
    "ClipConditions",
    "ClipFirstStage",
    "Condition",
    "FirstStage",
    "FirstStageOptions",
    "Guidance",
    "ImageToVideoModel",
    "Posterior",
    "TrainingConditions",
    "build",
    "config_class",
    "families",
    "load",
    "load_first_stage",
]

_FAMILIES = {
    "dynamicrafter": ("cil.models.dynamicrafter", "cil.models.lvdm_config", "DynamiCrafterConfig"),
    "i2vgenxl": ("cil.models.i2vgenxl", "cil.models.i2vgenxl_config", "I2VGenXLConfig"),
    "svd": ("cil.models.svd", "cil.models.svd_config", "SVDConfig"),
    "tiny": ("cil.models.tiny", "cil.models.tiny_config", "TinyConfig"),
    "videocrafter1": ("cil.models.videocrafter1", "cil.models.lvdm_config", "VideoCrafter1Config"),
    "wan": ("cil.models.wan", "cil.models.wan_config", "WanConfig"),
}
"""By name: module of the family, and the module and class of its settings."""


def families() -> tuple[str, ...]:
    """Return the names that ``build`` and ``load`` know, sorted."""
    return tuple(sorted(_FAMILIES))


def config_class(family: str) -> Any:
    """Return the dataclass of a family's settings, without its libraries.

    Raises:
        ConfigError: unknown family.
    """
    _check_known(family)
    _, module, name = _FAMILIES[family]
    return getattr(importlib.import_module(module), name)


def build(family: str, **config: Any) -> ImageToVideoModel:
    """Make a model with fresh weights.

    Args:
        family: a name of ``families()``.
        **config: the family's settings; see its configuration class.

    Returns:
        The model, on the CPU, float32.

    Raises:
        ConfigError: unknown family, unknown setting, or a value out of range.
    """
    return cast(ImageToVideoModel, _module(family).build(**config))


def load(family: str, path: str | Path, **options: Any) -> ImageToVideoModel:
    """Read a model folder, or published weights where the family has some.

    Args:
        family: a name of ``families()``; must be the one written in the folder.
        path: what ``model.save`` wrote, or what was published.
        **options: what the family's ``load`` takes besides, to exchange parts and settings.

    Returns:
        The model, on the CPU, float32, in evaluation mode.

    Raises:
        ConfigError: unknown family.
        DataError: no such folder, another family's, or a damaged one.
    """
    return cast(ImageToVideoModel, _module(family).load(Path(path), **options))


def _module(family: str) -> ModuleType:
    """Import the module of a family."""
    _check_known(family)
    return importlib.import_module(_FAMILIES[family][0])


def _check_known(family: str) -> None:
    if family not in _FAMILIES:
        raise ConfigError(f"unknown model family {family!r}; known: {', '.join(families())}")
