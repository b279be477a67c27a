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

from cil.errors import ConfigError, DataError
from cil.models.base import (
    Condition,
    EdmSchedule,
    FirstStage,
    ImageToVideoModel,
    Posterior,
)
from cil.models.storage import read_json

__all__ = [
    "Condition",
    "EdmSchedule",
    "FirstStage",
    "ImageToVideoModel",
    "Posterior",
    "build",
    "families",
    "load",
    "load_first_stage",
]

_FAMILIES = {"tiny": "cil.models.tiny"}
_FIRST_STAGES = {"patch_pca": ("cil.models.patch_pca", "PatchPCA")}


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


def load_first_stage(path: str | Path) -> FirstStage:
    """Read a first-stage folder of any kind.

    Args:
        path: a folder that ``FirstStage.save`` wrote, such as ``MODEL/first_stage``.

    Returns:
        The first stage.

    Raises:
        DataError: no such folder, unknown kind, or a damaged one.
    """
    kind = read_json(Path(path) / "first_stage.json").get("kind")
    if kind not in _FIRST_STAGES:
        known = ", ".join(sorted(_FIRST_STAGES))
        raise DataError(f"{path} holds an unknown kind of first stage, {kind!r}; known: {known}")
    module, name = _FIRST_STAGES[kind]
    first_stage = getattr(importlib.import_module(module), name)
    return cast(FirstStage, first_stage.load(Path(path)))


def _module(family: str) -> ModuleType:
    """Import the module of a family."""
    if family not in _FAMILIES:
        raise ConfigError(f"unknown model family {family!r}; known: {', '.join(families())}")
    return importlib.import_module(_FAMILIES[family])
