"""Damage in a file of weights of full length: changed bytes, and weights that are no numbers.

In: a file, or tensors by name. Out: nothing, or one `DataError`. Torch maps a file without looking
at the checksums in it, so a bit that changed on the way would be trained on.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cil.errors import DataError

__all__ = ["check_finite", "check_sums_inside"]

_CHUNK = 1 << 20
"""Bytes, and numbers, that are looked at at once."""


def check_sums_inside(path: str | Path) -> None:
    """Compare every member of a file of torch.save with the CRC-32 that the file states for it.

    The file is read once, in chunks. Files of other kinds state none and are left alone.

    Args:
        path: of a file that `read_checkpoint` takes.

    Raises:
        DataError: a member is damaged.
    """
    path = Path(path)
    if not path.is_file() or not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _read_through(archive, member)
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise DataError(
            f"{path} is damaged inside: {error}. Its length is right and its content is not; "
            "download it again"
        ) from error


def check_finite(tensors: Mapping[str, Tensor], *, source: str | Path) -> None:
    """Refuse weights that are infinite or not a number.

    Args:
        tensors: by the names that a message gives; whole numbers are left alone.
        source: the file, for the message.

    Raises:
        DataError: names the first tensor.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        wrong = 0
        for part in torch.split(tensor.flatten(), _CHUNK):
            wrong += part.numel() - int(torch.isfinite(part).sum())
        if wrong:
            raise DataError(
                f"{source} holds weights that are infinite or not a number: {name} has {wrong} of "
                f"them in {tensor.numel()}; the training that wrote it diverged, or the file is "
                "damaged. Take an earlier checkpoint, or download it again"
            )


def _read_through(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Read a member to its end, where zipfile compares the sum."""
    with archive.open(member) as file:
        while file.read(_CHUNK):
            pass
