"""First stages by the kind that their folder names, so that a reader need not know it."""

import importlib
from pathlib import Path
from typing import cast

from cil.errors import DataError
from cil.models.base import FirstStage
from cil.models.storage import read_json

__all__ = ["load_first_stage"]

_KINDS = {"patch_pca": ("cil.models.patch_pca", "PatchPCA")}


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
    if kind not in _KINDS:
        known = ", ".join(sorted(_KINDS))
        raise DataError(f"{path} holds an unknown kind of first stage, {kind!r}; known: {known}")
    module, name = _KINDS[kind]
    first_stage = getattr(importlib.import_module(module), name)
    return cast(FirstStage, first_stage.load(Path(path)))
