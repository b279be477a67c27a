"""`cil promote`, `cil rollback`, `cil status`, and the entry of `cil retrain`.

cil promote --config configs/demo.yaml --version 3 --reason "looked at the videos"
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from cil.errors import ConfigError
from pipelines import tracking
from pipelines.config import RunConfig
from pipelines.promotion import (
    CHAMPION,
    Move,
    check_promotion,
    next_rollback,
    promote,
    roll_back,
)
from pipelines.registry_status import run_status
from pipelines.report import RunReport, Stopwatch
from pipelines.retrain.command import exit_code, run_retrain
from pipelines.tracking.registered_model import missing_database
from pipelines.tracking.versions import aliased

__all__ = [
    "RegistryOptions",
    "parse_options",
    "run_command",
    "run_promote",
    "run_rollback",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistryOptions:
    """Options of these commands that are no settings."""

    version: str | None = None
    """Version to promote; None takes the challenger."""
    reason: str = "by hand"
    """For the history."""
    force: bool = False
    """Promote what no gate has passed."""
    yes: bool = False
    """Do not ask."""


def parse_options(arguments: Sequence[str], command: str) -> tuple[RegistryOptions, list[str]]:
    """Read the options; returns them and the words that are left, which are settings."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog=f"cil {command}")
    if command == "promote":
        parser.add_argument("--version")
        parser.add_argument("--force", action="store_true")
    if command in ("promote", "rollback"):
        parser.add_argument("--reason", default="by hand")
        parser.add_argument("--yes", action="store_true")
    known, rest = parser.parse_known_args(arguments)
    return RegistryOptions(**vars(known)), rest


def run_command(
    command: str, config: RunConfig, options: RegistryOptions, *, debug: bool = False
) -> tuple[RunReport, int]:
    """Run one of the commands; returns its report and the exit code."""
    if command == "retrain":
        report = run_retrain(config, debug=debug)
        return report, exit_code(report)
    if command == "promote":
        return run_promote(config, options), 0
    if command == "rollback":
        return run_rollback(config, options), 0
    return run_status(config), 0


def run_promote(config: RunConfig, options: RegistryOptions) -> RunReport:
    """Make a version the champion, after a question.

    Raises:
        ConfigError: there is no such version to promote, or nobody has confirmed it.
        StageError: MLflow failed.
    """
    watch = Stopwatch()
    _check_store(config)
    version = options.version
    if version is None:
        challenger = aliased(config, tracking.ALIAS)
        if challenger is None:
            raise ConfigError(
                f"{config.tracking.model_name} has no {tracking.ALIAS} in "
                f"{tracking.shown_uri(config)}; name a version by --version, cil status lists them"
            )
        version = challenger.version
    check_promotion(config, version, force=options.force)
    current = aliased(config, CHAMPION)
    now = "none" if current is None else current.version
    _ask(
        f"make version {version} of {config.tracking.model_name} the champion (now: {now})", options
    )
    move = promote(config, version, reason=options.reason, force=options.force)
    return _moved(config, "promote", move, watch)


def run_rollback(config: RunConfig, options: RegistryOptions) -> RunReport:
    """Return to the champion before, after a question.

    Raises:
        ConfigError: there is nothing to return to, or nobody has confirmed it.
        StageError: MLflow failed.
    """
    watch = Stopwatch()
    _check_store(config)
    version, name = next_rollback(config), config.tracking.model_name
    _ask(f"make version {version} of {name} the champion again", options)
    return _moved(config, "rollback", roll_back(config, reason=options.reason), watch)


def _check_store(config: RunConfig) -> None:
    tracking.check_tracking(config)
    missing = missing_database(config)
    if missing is not None:
        raise ConfigError(
            f"nothing is registered: there is no {missing}; check output.dir and tracking.uri"
        )


def _ask(what: str, options: RegistryOptions) -> None:
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"nobody is there to confirm: {what}; add --yes")
    try:
        answer = input(f"{what}? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise ConfigError("not confirmed, nothing was changed")


def _moved(config: RunConfig, stage: str, move: Move, watch: Stopwatch) -> RunReport:
    return RunReport(
        stage=stage,
        reused=move.done_before,
        inputs={"model": config.tracking.model_name, "store": tracking.shown_uri(config)},
        outputs=asdict(move),
        metrics={},
        seconds=watch.seconds(),
    )
