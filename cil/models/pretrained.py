"""Folders that diffusers and transformers write: what they must hold, and where networks run.

Nothing here downloads and nothing unpickles: a folder is local and its weights are safetensors.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cil.errors import ConfigError, DataError
from cil.models.storage import read_json

__all__ = [
    "architecture_of",
    "check_device",
    "check_dtype",
    "exact_arithmetic",
    "import_transformers",
    "load_strictly",
    "part_of",
    "settings_of",
    "transformers_network",
]

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def part_of(folder: Path, name: str) -> Path:
    """Return ``folder`` if it holds config.json, otherwise its sub-folder of that name.

    Args:
        folder: of one network, or of a whole diffusers pipeline.
        name: what the pipeline calls the network, such as ``vae``.

    Raises:
        DataError: there is no config.json in either.
    """
    for candidate in (folder, folder / name):
        if (candidate / "config.json").is_file():
            return candidate
    raise DataError(
        f"{folder} holds neither config.json nor {name}/config.json; give the folder of the "
        "network, or that of a diffusers pipeline"
    )


def load_strictly(network: Callable[..., Any], folder: Path, *, stem: str) -> Any:
    """Make a network from its folder, float32, on the CPU, frozen and in evaluation mode.

    Args:
        network: ``from_pretrained`` of a class of diffusers or transformers.
        folder: holds config.json and the safetensors, whole or in shards.
        stem: file name of the weights without ``.safetensors``.

    Returns:
        The network, with every weight from the folder and every tensor of the folder in it.

    Raises:
        DataError: weights are missing, pickled or damaged, or are not those of the network.
    """
    from safetensors import SafetensorError

    _check_weights(folder, stem)
    try:
        loaded, report = network(
            folder,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        raise DataError(f"cannot load {folder} ({error}); download or save it again") from error
    wrong = {
        kind.removesuffix("_keys").removesuffix("_msgs"): sorted(map(str, report[kind]))[:3]
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
        if report.get(kind)
    }
    if wrong:
        raise DataError(
            f"the weights in {folder} are not those of its config.json: {wrong}; download or "
            "save the folder again"
        )
    return loaded.eval().requires_grad_(requires_grad=False)


def transformers_network(name: str, part: Path) -> Any:
    """Read a network of transformers by the name of its class; see ``load_strictly``."""
    return load_strictly(getattr(import_transformers(), name).from_pretrained, part, stem="model")


def import_transformers() -> Any:
    """Import transformers, which takes seconds."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "image and text encoders need transformers; "
            "pip install 'conditional-image-leakage[models]'"
        ) from error
    return transformers


def architecture_of(part: Path, known: tuple[str, ...]) -> str:
    """Return the class that a folder names; a ``DataError`` if it is none of ``known``."""
    named = read_json(part / "config.json").get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    if name not in known:
        raise DataError(f"{part} holds a {name!r}; this encoder reads {', '.join(known)}")
    return str(name)


def settings_of(network: Any) -> dict[str, Any]:
    """Return the network's settings without those that do not say what it computes."""
    left_out = ("architectures", "dtype", "transformers_version", "_name_or_path", "model_type")
    values = network.config.to_diff_dict()
    return {name: value for name, value in values.items() if name not in left_out}


def check_device(device: str) -> torch.device:
    """Return the device of that name, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: another name, or the machine has no such device.
    """
    try:
        found = torch.device(device)
        if found.type not in ("cpu", "cuda"):
            raise RuntimeError("only the CPU and CUDA are known here")
        torch.empty(0, device=found)
        return found
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"cannot use the device {device!r} ({reason}); use 'cpu', or 'cuda' on a machine "
            "with a GPU"
        ) from error


def check_dtype(dtype: str) -> torch.dtype:
    """Return the dtype of that name, ``float32`` or ``bfloat16``.

    Raises:
        ConfigError: another name.
    """
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    return _DTYPES[dtype]


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Compute without gradients, and on a GPU repeatably and without TF32.

    cuDNN would otherwise round the inputs of float32 convolutions to 10 bits, and choose
    algorithms by timing them.
    """
    if device.type != "cuda":
        with torch.no_grad():
            yield
        return
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        with (
            torch.no_grad(),
            torch.cuda.device(device),
            torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=False
            ),
        ):
            yield
    finally:
        matmul.allow_tf32 = before


def _check_weights(folder: Path, stem: str) -> None:
    """Refuse a folder without safetensors, and shards that lie elsewhere."""
    whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if whole.is_file():
        return
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, Mapping):
            raise DataError(f"{index} has no weight_map; download the folder again")
        for name in {json.dumps(shard): shard for shard in shards.values()}.values():
            if not isinstance(name, str) or Path(name).name != name or "\\" in name:
                raise DataError(f"{index} names {name!r}, which is no file beside it")
            if not name.endswith(".safetensors") or not (folder / name).is_file():
                raise DataError(f"{index} names {name}, which is missing or no safetensors file")
        return
    others = sorted(path.name for path in folder.iterdir() if path.is_file())
    pickled = [name for name in others if name.endswith(_PICKLES)]
    variants = [name for name in others if name.startswith(stem) and name.endswith(".safetensors")]
    if variants:
        raise DataError(
            f"{folder} holds {', '.join(variants)} but not {whole.name}; download the full "
            f"weights, or copy the folder with that file renamed to {whole.name}"
        )
    if pickled:
        raise DataError(
            f"{folder} holds pickled weights only ({', '.join(pickled)}), which can run code when "
            "read; load them once where you trust them and write safetensors: "
            "from_pretrained(...).save_pretrained(folder, safe_serialization=True)"
        )
    raise DataError(f"{folder} holds no {whole.name}; download the folder again")
