"""Tensors that lie in a safetensors file in memory, without copying them.

The safetensors library copies twice on the way from mapped memory to a tensor of another type; a
view is copied once, when it is converted. Format: https://github.com/huggingface/safetensors
"""

import json
import mmap
import warnings
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from cil.errors import DataError

__all__ = ["tensor_views"]

_TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
_LENGTH_BYTES = 8

with warnings.catch_warnings():  # torch says once per process that the memory is not writable
    warnings.simplefilter("ignore")
    torch.frombuffer(b"\0", dtype=torch.uint8)


def tensor_views(content: mmap.mmap | bytes, offset: int, size: int) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file that is a part of some memory.

    Args:
        content: the memory; it stays while a view of it does.
        offset: where the file begins, in bytes.
        size: its length in bytes.

    Returns:
        The tensors by name, in their stored types, bfloat16, float16, float32 or float64. They
        must not be written to.

    Raises:
        DataError: it is no such file.
    """
    start = offset + _LENGTH_BYTES
    length = int.from_bytes(content[offset:start], "little")
    if not 0 < length <= size - _LENGTH_BYTES:
        raise DataError(f"a safetensors file states a header of {length} bytes, it has {size}")
    data = start + length
    return {
        name: torch.frombuffer(content, dtype=dtype, count=prod(shape), offset=data + at).view(
            shape
        )
        for name, dtype, shape, at in _layout(content[start:data], offset + size - data)
    }


@lru_cache(maxsize=64)
def _layout(
    header: bytes, num_bytes: int
) -> tuple[tuple[str, torch.dtype, tuple[int, ...], int], ...]:
    """Parse a header, which is the same for all clips of a bucket: name, type, shape, start."""
    try:
        found = []
        for name, item in json.loads(header).items():
            if name == "__metadata__":
                continue
            dtype, shape = _TYPES[item["dtype"]], tuple(item["shape"])
            start, end = item["data_offsets"]
            if not all(isinstance(size, int) and size >= 0 for size in shape):
                raise ValueError(f"{name} has the shape {list(shape)}")
            if end - start != prod(shape) * dtype.itemsize or not 0 <= start < end <= num_bytes:
                raise ValueError(f"{name} lies outside of its file or has another size")
            found.append((name, dtype, shape, start))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"a safetensors file has a damaged header: {error}") from error
    return tuple(found)
