"""The two kinds of file in a model folder, JSON and safetensors: read, write and digest."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from cil.errors import DataError

__all__ = ["digest", "read_json", "read_tensors", "write_json", "write_tensors"]


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a mapping with sorted keys, so that equal values are equal bytes."""
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        DataError: the file is missing or is not one JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"cannot read {path} ({error.strerror}); give a folder that save() wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); write the folder again") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} must hold one JSON object, got {type(values).__name__}")
    return values


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name as safetensors; equal tensors are equal bytes."""
    from safetensors.torch import save_file

    save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU.

    Raises:
        DataError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return cast(dict[str, Tensor], load_file(path))
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read {path} ({error}); write the folder again") from error


def digest(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 (64 hex digits) over settings and tensors, whatever their order.

    Args:
        values: anything that JSON can hold; floats count by their shortest exact decimal form.
        tensors: by name; dtype, shape and bytes count.
    """
    sha = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        # As bytes: numpy has no bfloat16.
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
