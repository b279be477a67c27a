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
    Condition,
    FirstStage,
    ImageToVideoModel,
    Posterior,
)
from cil.models.first_stage import FirstStageOptions, load_first_stage

__all__ = [
    "Condition",
    "FirstStage",
    "FirstStageOptions",
    "ImageToVideoModel",
    "Posterior",
    "build",
    "families",
    "load",
    "load_first_stage",
]

_FAMILIES = {"tiny": "cil.models.tiny"}


def families() -> tuple[str, ...]:
    """Return the names that ``build`` and ``load`` know, sorted."""
    return tuple(sorted(_FAMILIES))


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


def load(family: str, path: str | Path) -> ImageToVideoModel:
    """Read a model folder.

    Args:
        family: a name of ``families()``; must be the one written in the folder.
        path: a folder that ``model.save`` wrote.

    Returns:
        The model, on the CPU, float32, in evaluation mode.

    Raises:
        ConfigError: unknown family.
        DataError: no such folder, another family's, or a damaged one.
    """
    return cast(ImageToVideoModel, _module(family).load(Path(path)))


def _module(family: str) -> ModuleType:
    """Import the module of a family."""
    if family not in _FAMILIES:
        raise ConfigError(f"unknown model family {family!r}; known: {', '.join(families())}")
    return importlib.import_module(_FAMILIES[family])
