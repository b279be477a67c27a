"""The settings of a command: file, then overrides, then everything validated together."""

import argparse
import sys
from typing import TYPE_CHECKING

from pipelines.command_texts import COMMANDS, EXAMPLES

if TYPE_CHECKING:
    from pipelines.config import RunConfig

__all__ = ["description_of", "note_missing", "overridden", "resolve"]


def resolve(
    command: str, common: argparse.Namespace, rest: list[str], *, needs_parts: bool = True
) -> "RunConfig":
    """Read the file, apply the overrides, and validate everything together.

    Args:
        command: its name.
        common: options of every command, of which ``config`` is the file.
        rest: the overrides.
        needs_parts: False for what only looks at settings, and goes on without published weights.

    Raises:
        ConfigError: with all mistakes.
    """
    from pipelines.config import load_config
    from pipelines.pretrained_parts import with_parts_if_there, with_pretrained_parts

    config = overridden(command, load_config(common.config), rest)
    if needs_parts:
        return with_pretrained_parts(config)
    note_missing(config)
    return with_parts_if_there(config)


def note_missing(config: "RunConfig") -> None:
    """Say on stderr if the published weights are not there."""
    from pipelines.pretrained_parts import is_missing

    if is_missing(config):
        print(
            f"note: model.pretrained {config.model.pretrained} is not there, so the first stage "
            "and the encoders that a run would take from it are not named here",
            file=sys.stderr,
        )


def overridden(command: str, config: "RunConfig", rest: list[str]) -> "RunConfig":
    """Apply the overrides of a command line to a configuration.

    Raises:
        ConfigError: with all mistakes.
    """
    if not rest:
        return config
    from dataclasses import asdict

    from pipelines.config import RunConfig, validate_config
    from pipelines.option_parser import parse_with_tyro

    changed = parse_with_tyro(
        RunConfig,
        rest,
        default=config,
        prog=f"cil {command}",
        description=description_of(command),
    )
    return validate_config(asdict(changed), source="the command line")


def description_of(command: str) -> str:
    """Return what ``--help`` says above the settings."""
    common = " Also: --config FILE, --dry-run, --json, --debug, --log-format json."
    common = "" if command == "sample" else common
    return f"{COMMANDS[command]}. Example: {EXAMPLES[command]}.{common}"
