"""Does plain data have the types that the fields of a record state? Files may hold anything.

In: a record class and the mapping that a JSON file holds. Out: what is wrong, or None. Nested
records are plain mappings here; they are looked at when they are built.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

__all__ = ["wrong_field"]

_Check = Callable[[Any], bool]
_SHOWN = 60
_SIMPLE: dict[Any, _Check] = {
    Any: lambda _: True,
    int: lambda value: type(value) is int,  # True is none
    float: lambda value: type(value) in (int, float),
    type(None): lambda value: value is None,
}


def wrong_field(kind: type, raw: Mapping[str, Any]) -> str | None:
    """Name the first field whose value has another type than the record states.

    Args:
        kind: a dataclass whose fields are plain: text, numbers, lists, mappings, or records.
        raw: values by name; what is missing is not looked at.

    Returns:
        What the field must be and what it is, or None.
    """
    for name, (fits, stated) in _checks(kind).items():
        if name in raw and not fits(raw[name]):
            return f"{name} must be {stated}, got {_shown(raw[name])}"
    return None


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{type(value).__name__} {text[:_SHOWN]}..."


@lru_cache
def _checks(kind: type) -> dict[str, tuple[_Check, str]]:
    hints = typing.get_type_hints(kind)
    names = [item.name for item in dataclasses.fields(kind)]
    return {name: (_check(hints[name]), _stated(hints[name])) for name in names}


def _stated(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _check(hint: Any) -> _Check:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    if origin in (types.UnionType, typing.Union):
        parts = [_check(part) for part in arguments]
        return lambda value: any(fits(value) for fits in parts)
    if origin is list:
        item = _check(arguments[0])
        return lambda value: isinstance(value, list) and all(map(item, value))
    if origin is dict:
        key, item = _check(arguments[0]), _check(arguments[1])
        return lambda value: (
            isinstance(value, dict) and all(map(key, value)) and all(map(item, value.values()))
        )
    if dataclasses.is_dataclass(hint):
        return lambda value: isinstance(value, dict)
    return lambda value: isinstance(value, hint)
