"""Published weights, read without running code and without a second copy in memory.

    state = read_checkpoint("model.ckpt")       # name -> tensor, in the order of the file
    write_checkpoint("out.ckpt", state)

Comes in: a file of torch.save (``.ckpt``, ``.pt``, ``.pth``, ``.bin``), a safetensors file, or a
folder of diffusers or transformers with whole or sharded weights. Goes out: tensors on the CPU that
are private maps of the file. What nobody touches takes no memory; writing to a tensor does not
change the file; the file must not be overwritten in place while they live (replacing it is fine).
"""

import os
import re
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from cil.errors import ConfigError, DataError
from cil.models.storage import read_json

__all__ = ["read_checkpoint", "write_checkpoint"]

_PICKLED = (".ckpt", ".pt", ".pth", ".bin")
_INDEX = ".index.json"
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model", "adapter_model")
_WRAPPERS = ("state_dict", "module", "model_state_dict", "model")
_PREFIXES = ("_forward_module.", "module.", "_orig_mod.")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WHOLE_NUMBERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8, torch.bool)
_SAFETENSORS = b"\0\0\0\0{"  # upper half of the header's length, then the header
_PAGE = re.compile(rb"<(!doctype|html|head|body|\?xml)", re.IGNORECASE)
_GLOBAL = re.compile(r"GLOBAL (\S+)")
_SHOWN = 3


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read tensors by name.

    Of a file of torch.save, what lies under ``state_dict`` (Lightning), ``module`` (DeepSpeed),
    ``model_state_dict`` or ``model`` is taken; prefixes that wrappers of training put before every
    name (``_forward_module.``, ``module.``, ``_orig_mod.``) are removed. The kind of a file is told
    by its first bytes, not by its name.

    Args:
        path: a file, the ``.index.json`` of shards, or a folder with one set of weights.

    Returns:
        Tensors on the CPU in the order of the file, backed by it; see the module's docstring. A
        file of torch before 1.6 cannot be mapped and is read into memory.

    Raises:
        DataError: missing, cut short, a web page or a pointer in place of weights, objects other
            than tensors inside, 8-bit floats, shards that are missing or lie elsewhere.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise DataError(f"cannot read {path}: there is no such file; check the path")
    if path.name.endswith(_INDEX):
        return _read_shards(path)
    start = _first_bytes(path)
    if start[4:9] == _SAFETENSORS:
        state = _read_safetensors(path)
    elif start.startswith(b"PK\x03\x04"):
        state = _read_zip(path)
    elif start.startswith(b"\x80"):
        state = _unwrap(_load(path, mmap=False), path)
    else:
        state = _read_safetensors(path)
    _check_types(state, path)
    return _without_prefix(state)


def write_checkpoint(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors by name; a file that is there is replaced when all is written.

    Args:
        path: ``.ckpt`` or ``.pt`` for ``{"state_dict": state}`` as Lightning names it, in the given
            order; or ``.safetensors``, a format whose readers see names without an order.
        state: name to tensor; a tensor under two names is written twice.

    Raises:
        ConfigError: another suffix.
    """
    path = Path(path)
    if path.suffix not in (".ckpt", ".pt", ".safetensors"):
        raise ConfigError(f"write weights to .ckpt, .pt or .safetensors, got {path.name}")
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in state.items():
        tensors[key] = _alone(value.detach(), seen)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(tensors, name, metadata={"format": "pt"})
        else:
            torch.save({"state_dict": tensors}, name)
        Path(name).chmod(0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _alone(tensor: Tensor, seen: set[int]) -> Tensor:
    """Return a contiguous tensor with a storage of its own, which is what files keep."""
    storage = tensor.untyped_storage()
    is_whole = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes
    if is_whole and storage.data_ptr() not in seen:
        seen.add(storage.data_ptr())
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _first_bytes(path: Path) -> bytes:
    """Return the start of a file; a ``DataError`` if it says that the file holds no weights."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise DataError(f"{path} is empty; download it again")
    if b"\0" in start[:8]:
        return start
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"version https://git-lfs"):
        raise DataError(
            f"{path} is a git-lfs pointer, not the weights; run 'git lfs pull' in its repository, "
            "or download the file itself"
        )
    if _PAGE.match(text):
        raise DataError(
            f"{path} is a web page, not weights; open it to see what the server said (often that "
            "one must log in or accept a licence), then download the file again"
        )
    if text[:2] in (b'{"', b"{'", b"{\n"):
        raise DataError(
            f"{path} is JSON text, not weights; it may be a server's answer or an index"
        )
    return start


def _read_zip(path: Path) -> dict[str, Tensor]:
    """Read what torch.save writes since 1.6."""
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path} is cut short: it begins as a file of torch.save and its end is missing "
            f"({path.stat().st_size} bytes are there); download it again"
        )
    try:
        foreign = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception as error:  # whatever the reader of a foreign archive stumbles over
        raise DataError(
            f"{path} is a zip archive but not one that torch.save wrote, or a damaged one "
            f"({_first_line(error)}); download it again"
        ) from None
    if foreign:
        _refuse_objects(path, foreign)
    return _unwrap(_load(path, mmap=True), path)


def _load(path: Path, *, mmap: bool) -> Any:
    """Load by torch, tensors and plain containers only."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # unpickling errors have no name that can be imported safely
        if type(error).__name__ == "UnpicklingError":
            _refuse_objects(path, sorted(set(_GLOBAL.findall(str(error)))))
        raise DataError(
            f"cannot read {path} ({_first_line(error)}); it is damaged or cut short, download it "
            "again"
        ) from None


def _refuse_objects(path: Path, names: list[str]) -> NoReturn:
    """Refuse what torch's safe reader refuses, without its advice on how to run it all the same."""
    raise DataError(
        f"{path} is refused: besides tensors it holds pickled objects "
        f"({_some(names) or 'of a kind that is not named'}), and making them can run any code that "
        "the file's author put there. Look for a safetensors file of the same weights; or have "
        "whoever wrote the file save its state_dict alone"
    ) from None


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict inside of what a file held."""
    for _ in range(2):
        if not isinstance(loaded, Mapping):
            break
        inner = next((loaded[n] for n in _WRAPPERS if isinstance(loaded.get(n), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping) or not loaded:
        raise DataError(
            f"{path} holds {type(loaded).__name__} and no tensors by name; give the weights, not "
            "another file of the training"
        )
    unnamed = [repr(name) for name in loaded if not isinstance(name, str)]
    if unnamed:
        raise DataError(
            f"{path} holds {len(unnamed)} entries whose names are no text ({_some(unnamed)}); give "
            "the weights, not another file of the training"
        )
    foreign = [name for name, value in loaded.items() if not isinstance(value, Tensor)]
    if foreign:
        raise DataError(
            f"{path} holds entries that are no tensors ({_some(foreign)}) and none of "
            f"{', '.join(_WRAPPERS)}; give the weights, not another file of the training"
        )
    return dict(loaded)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file in the order of its bytes."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.offset_keys()}
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        reason = _first_line(error)
        if "ncomplete" in reason or "not fully covered" in reason:
            raise DataError(
                f"{path} is cut short ({reason}; {path.stat().st_size} bytes are there); download "
                "it again"
            ) from error
        raise DataError(
            f"{path} is neither safetensors nor a file of torch.save ({reason}); download it again"
        ) from error


def _read_folder(folder: Path) -> dict[str, Tensor]:
    """Read the one set of weights of a folder."""
    for suffix in (".safetensors", *_PICKLED):
        for name in (f"{stem}{suffix}{index}" for index in ("", _INDEX) for stem in _STEMS):
            if (folder / name).is_file():
                return read_checkpoint(folder / name)
    others = [p for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", *_PICKLED)]
    if len(others) == 1:
        return read_checkpoint(others[0])
    if others:
        names = _some([p.name for p in others])
        raise DataError(f"{folder} holds several files of weights ({names}); name one of them")
    parts = sorted(p.parent.name for p in folder.glob("*/config.json"))
    hint = f"give one of its folders: {', '.join(parts)}" if parts else "check the path"
    raise DataError(f"{folder} holds no weights (.safetensors or {', '.join(_PICKLED)}); {hint}")


def _read_shards(index: Path) -> dict[str, Tensor]:
    """Read the shards that an index names; they are files beside it, whatever it says."""
    named = read_json(index).get("weight_map")
    if not isinstance(named, Mapping) or not named:
        raise DataError(f"{index} has no weight_map; download the folder again")
    shards: dict[str, dict[str, Tensor]] = {}
    for shard in named.values():
        if not isinstance(shard, str) or not _is_plain(shard):
            raise DataError(f"{index} names {shard!r}, which is no file beside it")
        if shard not in shards:
            if not (index.parent / shard).is_file():
                raise DataError(f"{index} names {shard}, which is missing; download it as well")
            shards[shard] = read_checkpoint(index.parent / shard)
    missing = [name for name, shard in named.items() if name not in shards[shard]]
    if missing:
        raise DataError(
            f"{index} names {len(missing)} tensors that are not in their shards "
            f"({_some(missing)}); the shards are of another version, download the folder again"
        )
    return {name: shards[shard][name] for name, shard in named.items()}


def _is_plain(name: str) -> bool:
    """Tell whether a name is that of a file in the same folder, on any system."""
    return Path(name).name == name and name != ".." and "\\" not in name


def _check_types(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse numbers that no network here computes with."""
    sparse = [name for name, value in state.items() if value.layout != torch.strided]
    if sparse:
        raise DataError(
            f"{path} holds {len(sparse)} sparse tensors ({_some(sparse)}), which are not "
            "read here; have whoever wrote the file save them dense (tensor.to_dense())"
        )
    wrong = {
        name: str(value.dtype).removeprefix("torch.")
        for name, value in state.items()
        if value.dtype not in (*_DTYPES, *_WHOLE_NUMBERS)
    }
    if wrong:
        shown = _some([f"{name}: {dtype}" for name, dtype in wrong.items()])
        raise DataError(
            f"{path} holds {len(wrong)} tensors of a type that is not read here ({shown}); 8-bit "
            "and other quantised weights have lost too much to train from, use the float16, "
            "bfloat16 or float32 file"
        )


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove what wrappers of training put before every name."""
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _some(names: list[str]) -> str:
    """List the first names."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _first_line(error: Exception) -> str:
    """Return the first line of what a library said, cut before advice."""
    text = str(error).partition("\n")[0].strip()
    return text.partition(" In PyTorch")[0][:200] or type(error).__name__
