"""Files of networks that the user supplies: their hash, and reading TorchScript.

A TorchScript file is a program. torch runs it without Python's pickle, but it is still code: use
files that you trust.
"""

import hashlib
import warnings
from pathlib import Path
from typing import Any

from cil.errors import ConfigError, DataError

__all__ = ["file_sha256", "reason_for_absence", "script_module"]


def file_sha256(path: str | Path) -> str:
    """Return the sha256 of a file, 64 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason_for_absence(path: str | Path | None, what: str) -> str | None:
    """Say why a metric is absent: no file was given, or it does not exist; None where it does.

    Args:
        path: file or folder, as the user gave it.
        what: that it holds, such as ``I3D file``.
    """
    if path is None or not str(path):
        return f"no {what} was given"
    return None if Path(path).exists() else f"the {what} {path} does not exist"


def script_module(path: str | Path, *, device: str = "cpu") -> Any:
    """Read a TorchScript file, in evaluation mode.

    Args:
        path: made by ``torch.jit.save``.
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: there is no such file or device.
        DataError: it is no TorchScript file.
    """
    import torch

    from cil.models.pretrained import check_device

    place = check_device(device)
    if not Path(path).is_file():
        raise ConfigError(f"there is no file {path}; give the path of a TorchScript file")
    try:
        with warnings.catch_warnings():
            # torch advises torch.export, which cannot read the files that are published.
            warnings.simplefilter("ignore", DeprecationWarning)
            load: Any = torch.jit.load
            module = load(str(path), map_location=place)
    except (RuntimeError, ValueError, EOFError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise DataError(
            f"{path} is no TorchScript file ({reason}); a file of weights alone does not do: load "
            "the network where you trust its code, trace it by torch.jit.trace, and save that"
        ) from error
    return module.eval()
