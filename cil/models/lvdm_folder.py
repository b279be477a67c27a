"""Model folders of the families ``dynamicrafter`` and ``videocrafter1``.

    model.json                       format_version, family and the settings of the model
    unet/ image_projector/           config.json and safetensors, under the published names
    vae/ first_stage.json            the first stage, as its ``save`` writes it
    image_encoder/                   CLIP's image half, as transformers writes it
    text_encoder/ tokenizer/         CLIP's text half, for prompts; may be missing
    null_condition.safetensors       what is told without caption and image
    original/                        names and tables of the checkpoint that it came from

In: a folder or settings. Out: a model, or a folder. Encoders are copied as files and not loaded.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cil.errors import ConfigError, DataError
from cil.models.base import FORMAT_VERSION, FirstStage
from cil.models.diffusers_network import check_known
from cil.models.first_stage import load_first_stage
from cil.models.lvdm import LVDMUNet, Resampler
from cil.models.lvdm_config import LVDMSettings
from cil.models.null_condition import NullCondition
from cil.models.pretrained import part_of
from cil.models.storage import read_json, read_tensors, write_json, write_tensors
from cil.models.strict_loading import load_strict

__all__ = [
    "LVDM_WEIGHTS",
    "ORIGINAL_FOLDER",
    "LVDMFolders",
    "build_lvdm",
    "load_lvdm",
    "save_lvdm",
    "text_part",
]

ORIGINAL_FOLDER = "original"
LVDM_WEIGHTS = "diffusion_pytorch_model.safetensors"
_COPIED = (".json", ".safetensors", ".txt")  # merges.txt of a tokenizer

Model = TypeVar("Model")


@dataclass(frozen=True, kw_only=True, slots=True)
class LVDMFolders:
    """Where the frozen parts lie that a model copies when it is saved.

    Attributes:
        image_encoder: folder of the image encoder, or one with ``image_encoder/``.
        text_encoder: folder of the text encoder, or one with ``text_encoder/``.
        original: ``original/`` of the model folder that was read.
    """

    image_encoder: Path | None = None
    text_encoder: Path | None = None
    original: Path | None = None


def build_lvdm(
    model: type[Model],
    settings: type[LVDMSettings],
    *,
    seed: int = 0,
    first_stage: FirstStage | None = None,
    encoders: Path | None = None,
    text_encoder: Path | None = None,
    null_condition: NullCondition | None = None,
    **config: Any,
) -> Model:
    """Make a model with fresh weights; see `cil.models.dynamicrafter.build`."""
    chosen = settings.of(config)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network, projector = _modules(chosen)
    network.eval()
    return model(  # type: ignore[call-arg]
        config=chosen,
        network=network,
        image_projector=projector,
        first_stage=first_stage,
        null_condition=null_condition,
        folders=LVDMFolders(image_encoder=encoders, text_encoder=text_encoder),
    )


def load_lvdm(
    model: type[Model],
    settings: type[LVDMSettings],
    folder: Path,
    *,
    first_stage: FirstStage | None = None,
    encoders: Path | None = None,
    text_encoder: Path | None = None,
    null_condition: NullCondition | None = None,
    weights: bool = True,
    **changes: Any,
) -> Model:
    """Read a model folder, or a published file; see `cil.models.dynamicrafter.load`."""
    if folder.is_file():
        from cil.models.lvdm_file import load_lvdm_file

        return load_lvdm_file(
            model,
            settings,
            folder,
            first_stage=first_stage,
            null_condition=null_condition,
            folders=LVDMFolders(image_encoder=encoders, text_encoder=text_encoder),
            weights=weights,
            changes=changes,
        )
    chosen = _settings(settings, folder, changes)
    with torch.device("meta"):
        network, projector = _modules(chosen)
    if weights:
        for module, name in ((network, "unet"), (projector, "image_projector")):
            path = folder / name / LVDM_WEIGHTS
            load_strict(module, read_tensors(path), source=path, dtype=torch.float32)
        first_stage = load_first_stage(folder) if first_stage is None else first_stage
    network.eval()
    original = folder / ORIGINAL_FOLDER
    return model(  # type: ignore[call-arg]
        config=chosen,
        network=network,
        image_projector=projector,
        first_stage=first_stage,
        null_condition=NullCondition.load(folder) if null_condition is None else null_condition,
        folders=LVDMFolders(
            image_encoder=_given(encoders, folder, "image_encoder"),
            text_encoder=_given(text_encoder, folder, "text_encoder"),
            original=original if original.is_dir() else None,
        ),
    )


def save_lvdm(
    folder: Path,
    *,
    config: LVDMSettings,
    network: Mapping[str, Tensor],
    projector: Mapping[str, Tensor],
    null_condition: NullCondition | None,
    folders: LVDMFolders,
) -> None:
    """Write all of a model folder but the first stage.

    Args:
        folder: made if missing.
        config: settings of the model.
        network: weights of the network by the published names.
        projector: weights of the image projector.
        null_condition: what is told without caption and image.
        folders: parts that are copied.
    """
    parts = {
        "unet": (config.published_network, network),
        "image_projector": (config.projector, projector),
    }
    for name, (described, tensors) in parts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_json(folder / name / "config.json", described)
        write_tensors(folder / name / LVDM_WEIGHTS, tensors)
    if folders.image_encoder is not None:
        _copy(part_of(folders.image_encoder, "image_encoder"), folder / "image_encoder")
        _copy(folders.image_encoder / "feature_extractor", folder / "feature_extractor")
    if folders.text_encoder is not None:
        text = text_part(folders.text_encoder)
        _copy(part_of(text, "text_encoder"), folder / "text_encoder")
        _copy(text / "tokenizer", folder / "tokenizer")
    if folders.original is not None:
        _copy(folders.original, folder / ORIGINAL_FOLDER)
    if null_condition is not None:
        null_condition.save(folder)
    settings = asdict(config)
    for name in ("network", "projector"):  # they stand beside their weights
        settings.pop(name)
    named = {"format_version": FORMAT_VERSION, "family": config.family}
    write_json(folder / "model.json", {**named, **settings})


def text_part(folder: Path) -> Path:
    """Return what ``TextEncoder.from_folder`` opens: tokenizer/ may be missing in a model folder.

    Args:
        folder: of a text encoder, or one with text_encoder/.
    """
    if (folder / "tokenizer").is_dir() or not (folder / "text_encoder").is_dir():
        return folder
    return folder / "text_encoder"


def _modules(config: LVDMSettings) -> tuple[nn.Module, nn.Module]:
    try:
        return LVDMUNet(config.unet), Resampler(**config.projector)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"the network cannot be built: {error}") from error


def _settings(
    settings: type[LVDMSettings], folder: Path, changes: Mapping[str, Any]
) -> LVDMSettings:
    """Read the settings of a folder and change some."""
    described = folder / "model.json"
    own = read_json(described)
    named = own.pop("format_version", None), own.pop("family", None)
    if named != (FORMAT_VERSION, settings.family):
        raise DataError(
            f"{folder} must hold a {settings.family} model of format {FORMAT_VERSION}, got "
            f"{named[1]!r} of format {named[0]!r}; load it by its own family"
        )
    check_known(changes, settings, settings.family)
    try:
        read = settings.of(
            own,
            network=read_json(folder / "unet" / "config.json"),
            projector=read_json(folder / "image_projector" / "config.json"),
        )
    except (TypeError, ConfigError) as error:
        raise DataError(f"{folder} is not of a {settings.family} model: {error}") from error
    return replace(read, **changes)


def _given(asked: Path | None, folder: Path, name: str) -> Path | None:
    if asked is None and (folder / name).is_dir():
        return folder
    return asked


def _copy(source: Path, target: Path) -> None:
    """Copy the files of a frozen part: settings, words and safetensors, nothing that could run."""
    if not source.is_dir():
        return
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in _COPIED:
            shutil.copyfile(path, target / path.name)
