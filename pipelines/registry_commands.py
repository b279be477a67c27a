"""`cil promote`, `cil rollback`, `cil status`, and the entry of `cil retrain`.

cil promote --config configs/demo.yaml --version 3 --reason "looked at the videos"
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cil.errors import ConfigError
from pipelines import tracking
from pipelines.config import RunConfig
from pipelines.progress import console
from pipelines.promotion import CHAMPION, GATE_TAG, PREVIOUS, Move, promote, roll_back
from pipelines.report import RunReport, Stopwatch
from pipelines.retrain.command import FINGERPRINT_TAG, exit_code, run_retrain
from pipelines.retrain.night import RETRAIN_FOLDER
from pipelines.retrain.schedule import TIMER, next_start
from pipelines.storage import read_json
from pipelines.tracking.versions import ModelVersion, aliased, history, versions_of

__all__ = [
    "RegistryOptions",
    "parse_options",
    "run_command",
    "run_promote",
    "run_rollback",
    "run_status",
]

_SHOWN_VERSIONS = 10
_SHOWN_MOVES = 10


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
        ConfigError: there is no such version to promote, or nobody could be asked.
        StageError: MLflow failed.
    """
    watch = Stopwatch()
    tracking.check_tracking(config)
    version = options.version
    if version is None:
        challenger = aliased(config, tracking.ALIAS)
        if challenger is None:
            raise ConfigError(
                f"{config.tracking.model_name} has no {tracking.ALIAS} in "
                f"{tracking.shown_uri(config)}; name a version by --version, cil status lists them"
            )
        version = challenger.version
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
        ConfigError: there is nothing to return to, or nobody could be asked.
        StageError: MLflow failed.
    """
    watch = Stopwatch()
    tracking.check_tracking(config)
    previous = aliased(config, PREVIOUS)
    if previous is not None:
        name = config.tracking.model_name
        _ask(f"make version {previous.version} of {name} the champion again", options)
    return _moved(config, "rollback", roll_back(config, reason=options.reason), watch)


def run_status(config: RunConfig) -> RunReport:
    """Say what the registry and the scheduled runs have come to; writes nothing.

    Raises:
        ConfigError: the store cannot be reached.
        StageError: MLflow failed.
    """
    watch = Stopwatch()
    tracking.check_tracking(config)
    versions, moves = versions_of(config), history(config)
    champion = aliased(config, CHAMPION)
    nights, planned = _nights(config), next_start()
    console.print(f"{config.tracking.model_name} in {tracking.shown_uri(config)}", markup=False)
    _show_versions(versions)
    _show_moves(moves)
    for night in nights[-1:]:
        console.print(f"last scheduled run: {night['status']}, {night['reason']}", markup=False)
    if planned is not None:
        console.print(f"next scheduled run: {planned:%Y-%m-%d %H:%M} UTC, by {TIMER} of this host")
    if not versions:
        console.print("no version is registered; `cil register` or `cil retrain` makes the first")
    return RunReport(
        stage="status",
        reused=True,
        inputs={"model": config.tracking.model_name, "store": tracking.shown_uri(config)},
        outputs={
            "champion": None if champion is None else champion.version,
            "versions": [_plain(version) for version in versions],
            "history": moves,
            "last_fingerprint": None if champion is None else champion.tags.get(FINGERPRINT_TAG),
            "scheduled_runs": nights,
            "next_schedule": None if planned is None else planned.isoformat(timespec="seconds"),
        },
        metrics={"versions": float(len(versions)), "moves": float(len(moves))},
        seconds=watch.seconds(),
    )


def _ask(what: str, options: RegistryOptions) -> None:
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"nobody is there to confirm: {what}; add --yes")
    if input(f"{what}? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing was changed")


def _moved(config: RunConfig, stage: str, move: Move, watch: Stopwatch) -> RunReport:
    return RunReport(
        stage=stage,
        reused=move.done_before,
        inputs={"model": config.tracking.model_name, "store": tracking.shown_uri(config)},
        outputs=asdict(move),
        metrics={},
        seconds=watch.seconds(),
    )


def _nights(config: RunConfig) -> list[dict[str, Any]]:
    """Return what the scheduled runs of this output folder have left, the oldest first."""
    folder = Path(config.output.dir) / RETRAIN_FOLDER
    paths = sorted(folder.glob("*/report.json"), key=lambda path: path.stat().st_mtime)
    return [read_json(path)["outputs"] for path in paths]


def _plain(version: ModelVersion) -> dict[str, Any]:
    return {
        "version": version.version,
        "created": version.created.isoformat(timespec="seconds"),
        "aliases": list(version.aliases),
        "gate": version.tags.get(GATE_TAG),
        "gate_reason": version.tags.get("gate_reason"),
        "fingerprint": version.tags.get(FINGERPRINT_TAG),
        "run_id": version.run_id,
    }


def _show_versions(versions: Sequence[ModelVersion]) -> None:
    from rich.table import Table

    if not versions:
        return
    table = Table("version", "registered (UTC)", "aliases", "gate", "MLflow run")
    for version in versions[:_SHOWN_VERSIONS]:
        table.add_row(
            version.version,
            f"{version.created:%Y-%m-%d %H:%M}",
            ", ".join(version.aliases),
            version.tags.get(GATE_TAG, ""),
            version.run_id,
        )
    console.print(table)
    if len(versions) > _SHOWN_VERSIONS:
        console.print(f"and {len(versions) - _SHOWN_VERSIONS} older versions")


def _show_moves(moves: Sequence[dict[str, Any]]) -> None:
    for move in moves[-_SHOWN_MOVES:]:
        before = move["previous"] or "none"
        console.print(
            f"{move['time']}  {move['action']}: version {move['version']} (before: {before})  "
            f"{move['reason']}",
            markup=False,
        )
