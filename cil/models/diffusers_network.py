"""Networks of diffusers in a pipeline folder: read strictly, built afresh, and their settings.

A family that has a network of diffusers names it by a `NetworkKind`. Everything here refuses to
guess: a number of heads or of groups shows in no weight, so with a wrong one a network loads and
computes something else. The settings of a network are those in its ``unet/config.json``, or those
in ``transformer/`` where a kind says so.
"""

import copy
import inspect
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cil.errors import ConfigError, DataError
from cil.models.base import FORMAT_VERSION
from cil.models.checkpoint_files import read_checkpoint
from cil.models.storage import read_json, write_json
from cil.models.strict_loading import load_strict

__all__ = [
    "NetworkKind",
    "check_divides",
    "check_known",
    "copy_part",
    "folder_with",
    "read_own_settings",
    "save_network",
    "write_own_settings",
]

NETWORK_FOLDER = "unet"


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkKind:
    """A class of diffusers and the family that has it."""

    family: str
    """Name of the family, for messages."""
    class_name: str
    """Name of the class in diffusers."""
    settings_name: str
    """Name of the family's settings class, for messages."""
    folder: str = NETWORK_FOLDER
    """Folder of the network in that of the pipeline."""
    unused: str | None = None
    """Part of the names of published weights that the class has no use for."""
    complete: Callable[[nn.Module], None] | None = None
    """Gives buffers that no file holds their values, on the CPU."""

    def config(self, folder: Path) -> dict[str, Any]:
        """Read the network's settings from its ``config.json`` in a pipeline folder.

        Raises:
            DataError: no such file, or another network's.
        """
        path = folder / self.folder / "config.json"
        config = read_json(path)
        if config.get("_class_name") != self.class_name:
            raise DataError(
                f"{path} describes a {config.get('_class_name')!r}, and the {self.family} family "
                f"has a {self.class_name}; choose the family of these weights"
            )
        return {name: value for name, value in config.items() if not name.startswith("_")}

    def new(self, settings: Mapping[str, Any]) -> nn.Module:
        """Make the network with fresh weights; an argument that diffusers does not know is refused.

        Args:
            settings: arguments of the class, as in its config.json.

        Raises:
            ConfigError: an unknown setting, or settings that do not fit each other.
        """
        network = self._class()
        known = set(inspect.signature(network.__init__).parameters) - {"self"}
        given = {name: value for name, value in settings.items() if not name.startswith("_")}
        unknown = sorted(set(given) - known)
        if unknown:
            raise ConfigError(
                f"unknown setting of {self.family} models: {', '.join(unknown)}; known are the "
                f"fields of {self.settings_name} and the network's: {', '.join(sorted(known))}"
            )
        try:
            return cast(nn.Module, network(**given))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the network cannot be built: {error}") from error

    def new_without_weights(self, settings: Mapping[str, Any]) -> nn.Module:
        """Make the network on the meta device, where it takes no memory; see ``new``."""
        with torch.device("meta"):
            network = self.new(settings)
        for module in network.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter.device.type != "meta":  # it was made from a Python number
                    setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="meta")))
        return network

    def read(self, folder: Path) -> nn.Module:
        """Read the network of a pipeline folder: on the CPU, float32, ready to be trained.

        Raises:
            DataError: weights are missing, pickled or damaged, or are not those of the network.
        """
        part = folder / self.folder
        network = self.new_without_weights(self.config(folder))
        if self.complete is not None:
            self.complete(network)
        state = read_checkpoint(part)
        if self.unused is not None:
            state = {name: value for name, value in state.items() if self.unused not in name}
        loaded = load_strict(network, state, source=part, dtype=torch.float32)
        return loaded.eval().requires_grad_(requires_grad=True)

    def _class(self) -> Any:
        try:
            import diffusers
        except ImportError as error:
            raise ConfigError(
                f"the {self.family} family needs diffusers; "
                "pip install 'conditional-image-leakage[models]'"
            ) from error
        return getattr(diffusers, self.class_name)


def check_divides(folder: Path, config: Mapping[str, Any], name: str) -> None:
    """Refuse a network whose heads or groups would be guessed, or do not divide its channels.

    Args:
        folder: of the pipeline, for messages.
        config: settings of the network.
        name: of the setting: a number, or one for each of ``block_out_channels``.

    Raises:
        DataError: it is not there, or does not divide.
    """
    path = folder / NETWORK_FOLDER / "config.json"
    given, channels = config.get(name), config.get("block_out_channels")
    if not isinstance(given, list | int) or not isinstance(channels, list):
        raise DataError(
            f"{path} must give {name} and block_out_channels, got {given} and {channels}; "
            f"{name} cannot be seen in the weights, take the config.json that they were published "
            "with"
        )
    each = given if isinstance(given, list) else [given] * len(channels)
    numbers = all(type(value) is int for value in (*each, *channels))
    wrong = not numbers or len(each) != len(channels) or any(d < 1 for d in each)
    if wrong or any(c % d for c, d in zip(channels, each, strict=True)):
        raise DataError(
            f"{path}: {name} {given} must divide block_out_channels {channels} level by level; "
            "take the config.json that the weights were published with"
        )


def check_known(changes: Mapping[str, Any], settings: type, family: str) -> None:
    """Refuse changes that are no setting of a family's own; those of its networks cannot change.

    Raises:
        ConfigError: unknown settings, with their names.
    """
    unknown = sorted(
        set(changes) - ({item.name for item in fields(settings)} - {"network", "projector"})
    )
    if unknown:
        raise ConfigError(f"unknown setting of {family} models: {', '.join(unknown)}")


def folder_with(part: str, given: Path | None, folder: Path) -> Path | None:
    """Return the folder that was given, else that of the model if it has the part."""
    return given if given is not None or not (folder / part).is_dir() else folder


def save_network(
    network: nn.Module, folder: Path, *, state_dict: Mapping[str, Tensor] | None
) -> None:
    """Write a network in the format of diffusers; ``state_dict`` replaces its weights, for EMA."""
    if state_dict is not None:
        network = copy.deepcopy(network)
        network.load_state_dict(dict(state_dict))
    folder.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(folder)  # type: ignore[operator]


def copy_part(source: Path, target: Path) -> None:
    """Copy the files of a frozen encoder: settings, words, safetensors, nothing that could run."""
    if not source.is_dir():
        return
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in (".json", ".safetensors", ".txt"):
            shutil.copyfile(path, target / path.name)


def read_own_settings(folder: Path, family: str) -> dict[str, Any]:
    """Read ``model.json``, where there is one, without the format and the family that it names.

    Raises:
        DataError: it is another family's, or of another format.
    """
    described = folder / "model.json"
    own = read_json(described) if described.is_file() else {}
    named = own.pop("format_version", FORMAT_VERSION), own.pop("family", family)
    if named != (FORMAT_VERSION, family):
        raise DataError(
            f"{folder} must hold an {family} model of format {FORMAT_VERSION}, got {named[1]!r} of "
            f"format {named[0]!r}; load it by its own family"
        )
    return own


def write_own_settings(folder: Path, family: str, settings: Mapping[str, Any]) -> None:
    """Write ``model.json``."""
    named = {"format_version": FORMAT_VERSION, "family": family}
    write_json(folder / "model.json", {**named, **settings})
