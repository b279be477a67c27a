"""The types of `cil import --settings`, checked before the checkpoint is read.

In: the mapping of the file. Out: the same settings, converted to their types. What fits together is
checked by the settings' own classes.
"""

import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from cil.errors import ConfigError
from cil.models import config_class
from cil.models.lvdm.config import PUBLISHED_NAMES, LVDMConfig
from pipelines.model_settings import Count

__all__ = ["typed_settings"]

_PARTS = ("network", "projector")


def typed_settings(family: str, given: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Check every setting against its type.

    Args:
        family: of the checkpoint; its class decides the settings of the model.
        given: settings of the model and, flat, of its network by published names; ``network`` and
            ``projector`` are mappings.
        source: where it came from, for the message.

    Raises:
        ConfigError: one line for each mistake: the setting, what it must be, what was given.
    """
    settings = config_class(family)
    own = {item.name: item.type for item in fields(settings) if item.name not in _PARTS}
    network = _network_types()
    mistakes: list[str] = []
    taken: dict[str, Any] = {}
    for name, value in given.items():
        if not isinstance(name, str):
            mistakes.append(f"{name!r}: must be the name of a setting, a text")
        elif name in _PARTS and not isinstance(value, Mapping):
            mistakes.append(f"{name}: must be a mapping of settings, got {value!r}")
        elif name == "network":
            taken[name] = _typed(value, network, mistakes, prefix="network.")
        elif name == "projector":
            taken[name] = _typed(value, _projector_types(), mistakes, prefix="projector.")
        else:
            taken.update(_typed({name: value}, {**network, **own}, mistakes))
    if mistakes:
        lines = "\n".join(f"  {line}" for line in mistakes)
        noun = "mistake" if len(mistakes) == 1 else "mistakes"
        raise ConfigError(f"{source} has {len(mistakes)} {noun}:\n{lines}")
    return taken


def _network_types() -> dict[str, Any]:
    types = {item.name: item.type for item in fields(LVDMConfig)}
    return types | {theirs: types[ours] for theirs, ours in PUBLISHED_NAMES.items()}


def _projector_types() -> dict[str, Any]:
    from cil.models.lvdm.resampler import Resampler

    parameters = inspect.signature(Resampler).parameters.values()
    return {each.name: Count | None if each.default is None else Count for each in parameters}


def _typed(
    given: Mapping[str, Any], types: Mapping[str, Any], mistakes: list[str], *, prefix: str = ""
) -> dict[str, Any]:
    """Convert values; names without a type are left to the class, which knows them or refuses."""
    import pydantic

    taken = {}
    for name, value in given.items():
        kind = types.get(name)
        taken[name] = value
        if kind is None:
            continue
        if isinstance(value, bool) and kind is not bool:
            mistakes.append(f"{prefix}{name}: must not be true or false, got {value}")
            continue
        try:
            adapter = pydantic.TypeAdapter(kind, config={"allow_inf_nan": False})
            taken[name] = adapter.validate_python(value)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = "".join(f"[{part}]" for part in first["loc"])
            message = first["msg"].replace("Input should", "must", 1)
            mistakes.append(f"{prefix}{name}{place}: {message}, got {first['input']!r}")
    return taken
