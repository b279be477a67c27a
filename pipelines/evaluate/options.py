"""The options of `cil evaluate` and `cil leak` that are no settings.

In: the words of the command line. Out: `EvaluateOptions`, and the base of a sweep if one is named.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from cil.errors import ConfigError
from pipelines.config import RunConfig

__all__ = ["EvaluateOptions", "parse_options", "sweep_base"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateOptions:
    """Options of the command that are no settings."""

    arms: tuple[str, ...] = ()
    """NAME=PLACE each."""
    sweep: str | None = None
    """Sweep file; its finished trainings are arms, and its base is the configuration."""
    out: str | None = None
    """Folder of the results; None takes one named as the command in OUTPUT, or in that of the
    sweep."""


def parse_options(
    arguments: Sequence[str], *, command: str = "evaluate"
) -> tuple[EvaluateOptions, list[str]]:
    """Read the options; returns them and the words that are left, which are settings."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog=f"cil {command}")
    parser.add_argument("--arm", action="append", default=[])
    parser.add_argument("--sweep")
    parser.add_argument("--out")
    known, rest = parser.parse_known_args(arguments)
    return EvaluateOptions(arms=tuple(known.arm), sweep=known.sweep, out=known.out), rest


def sweep_base(options: EvaluateOptions, config_path: str | None) -> RunConfig | None:
    """Return the base of the sweep that is asked for; None without one.

    Raises:
        ConfigError: a configuration was given as well, or the file is wrong.
    """
    if options.sweep is None:
        return None
    if config_path is not None:
        raise ConfigError("give --config or --sweep, not both: the sweep file names its base")
    from pipelines.sweep.sweep_file import read_sweep_file

    return read_sweep_file(options.sweep).base
