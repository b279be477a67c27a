"""Reading a sweep file: the settings that all arms share, and what each arm changes.

In: a YAML file with ``base`` (the path of a configuration, from the file's own folder, or the
configuration itself), ``common`` (overrides for all arms), ``arms`` (name -> overrides), ``seeds``
and ``allow_different``. Out: a `SweepFile` with a validated base; `with_overrides` makes the
configuration of an arm by the same strict code that reads a run's.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cil.errors import ConfigError
from pipelines.config import RunConfig, validate_config
from pipelines.yaml_file import read_mapping

__all__ = ["SweepFile", "read_sweep_file", "with_overrides"]

_KEYS = ("base", "common", "arms", "seeds", "allow_different")
_SAFE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_LARGEST_SEED = 2**63


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepFile:
    """What a sweep file says."""

    path: Path
    """The file."""
    base: RunConfig
    """Settings of all arms, ``common`` applied."""
    arms: Mapping[str, Mapping[str, Any]]
    """Nested overrides by the arm's name, in the order of the file."""
    seeds: tuple[int, ...] | None
    """Seeds that each arm is trained with; None takes the base's."""
    allow_different: bool
    """Whether arms may differ in what makes a comparison unfair."""

    @property
    def name(self) -> str:
        """Name of the sweep: that of its file."""
        return self.path.stem


def read_sweep_file(path: str | Path) -> SweepFile:
    """Read a sweep file.

    Raises:
        ConfigError: it cannot be read, or says something that a sweep cannot be made of.
    """
    path = Path(path)
    raw = read_mapping(path)
    for key in raw:
        if key not in _KEYS:
            close = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(_KEYS)}"
            raise ConfigError(f"{path}: unknown key {key!r} of a sweep; {hint}")
    allowed = raw.get("allow_different", False)
    if not isinstance(allowed, bool):
        raise ConfigError(f"{path}: allow_different must be true or false, got {allowed!r}")
    common = _nested(raw.get("common"), f"{path}: common")
    base = _merged(_base(path, raw.get("base")), common)
    return SweepFile(
        path=path,
        base=validate_config(base, source=f"{path} (base and common)"),
        arms=_arms(path, raw.get("arms")),
        seeds=_seeds(path, raw.get("seeds")),
        allow_different=allowed,
    )


def with_overrides(base: RunConfig, overrides: Mapping[str, Any], *, source: str) -> RunConfig:
    """Return a configuration with some settings changed, validated as a whole.

    Args:
        base: validated configuration.
        overrides: nested mapping; null takes a setting of the base back where null is its default.
        source: what the overrides belong to, for the message.

    Raises:
        ConfigError: one line per mistake.
    """
    return validate_config(_merged(asdict(base), overrides), source=source)


def _base(path: Path, base: Any) -> Mapping[str, Any]:
    if isinstance(base, str) and base:
        return read_mapping(path.parent / base)
    if isinstance(base, dict):
        return _nested(base, f"{path}: base")
    raise ConfigError(
        f"{path}: base must be the path of a configuration (from the folder of this file), or the "
        f"settings themselves, got {base!r}"
    )


def _arms(path: Path, arms: Any) -> dict[str, Mapping[str, Any]]:
    if not isinstance(arms, dict) or not arms:
        raise ConfigError(
            f"{path}: arms must map names to settings, as `naive: {{time_noise.preset: none}}`, "
            f"got {arms!r}"
        )
    seen: dict[str, str] = {}
    for name in arms:
        if not isinstance(name, str) or not _SAFE_NAME.fullmatch(name):
            raise ConfigError(
                f"{path}: the name of an arm becomes a folder: up to 64 letters, digits, dots, "
                "dashes and underscores, with a letter or digit at both ends, in quotes where YAML "
                f"reads it as something else, got {name!r}"
            )
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise ConfigError(
                f"{path}: the arms {other} and {name} differ in capitals only, which some file "
                "systems cannot tell apart; rename one"
            )
    return {name: _nested(value, f"{path}: arm {name}") for name, value in arms.items()}


def _seeds(path: Path, seeds: Any) -> tuple[int, ...] | None:
    if seeds is None:
        return None
    ok = (
        isinstance(seeds, list)
        and seeds
        and all(type(seed) is int and 0 <= seed < _LARGEST_SEED for seed in seeds)
        and len(set(seeds)) == len(seeds)
    )
    if not ok:
        raise ConfigError(
            f"{path}: seeds must be a list of different whole numbers in [0, 2**63), as [0, 1, 2], "
            f"got {seeds!r}"
        )
    return tuple(seeds)


def _nested(values: Any, where: str) -> dict[str, Any]:
    """Turn dotted names into nested ones; a setting that stands twice is a mistake."""
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must be a mapping of settings, got {values!r}")
    result: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(key, str):
            raise ConfigError(f"{where}: the name of a setting must be text, got {key!r}")
        *sections, last = key.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{where}: {key} stands beside a value of {section}")
        inner = _nested(value, f"{where}: {key}") if isinstance(value, dict) else value
        _put(place, last, inner, f"{where}: {key}")
    return result


def _put(place: dict[str, Any], name: str, value: Any, where: str) -> None:
    """Add a setting, or the settings of a section that has some already."""
    if name not in place:
        place[name] = value
    elif isinstance(place[name], dict) and isinstance(value, dict):
        for inner, deeper in value.items():
            _put(place[name], inner, deeper, f"{where}.{inner}")
    else:
        raise ConfigError(f"{where} stands twice, nested and dotted; keep one")


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
