"""`cil status`: what the registry and the scheduled runs have come to. Writes nothing.

In: the registry, and what the nights of this output folder have left. Out: a report, and its text.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cil.errors import DataError
from pipelines import tracking
from pipelines.config import RunConfig
from pipelines.progress import console
from pipelines.promotion import CHAMPION, GATE_TAG
from pipelines.report import RunReport, Stopwatch
from pipelines.retrain.command import FINGERPRINT_TAG
from pipelines.retrain.night import RETRAIN_FOLDER
from pipelines.retrain.schedule import TIMER, next_start
from pipelines.storage import read_json
from pipelines.tracking.moves import history
from pipelines.tracking.registered_model import missing_database
from pipelines.tracking.versions import ModelVersion, versions_of

__all__ = ["run_status"]

_SHOWN_VERSIONS = 10
_SHOWN_MOVES = 10


def run_status(config: RunConfig) -> RunReport:
    """Say what the registry and the scheduled runs have come to; writes nothing.

    Raises:
        ConfigError: the store cannot be reached.
        StageError: MLflow failed.
    """
    watch = Stopwatch()
    tracking.check_tracking(config)
    missing = missing_database(config)
    versions = [] if missing else versions_of(config)
    moves = [] if missing else history(config)
    champion = next((each for each in versions if CHAMPION in each.aliases), None)
    nights, planned = _nights(config), next_start()
    console.print(f"{config.tracking.model_name} in {tracking.shown_uri(config)}", markup=False)
    _show_versions(versions)
    _show_moves(moves)
    _show_nights(nights)
    if planned is not None:
        console.print(f"next scheduled run: {planned:%Y-%m-%d %H:%M} UTC, by {TIMER} of this host")
    if missing is not None:
        console.print(
            f"nothing is there: {missing} does not exist; check output.dir and tracking.uri, or "
            "register a first version by `cil register` or `cil retrain`",
            markup=False,
        )
    elif not versions:
        console.print("no version is registered; `cil register` or `cil retrain` makes the first")
    return RunReport(
        stage="status",
        reused=True,
        inputs={"model": config.tracking.model_name, "store": tracking.shown_uri(config)},
        outputs={
            "champion": None if champion is None else champion.version,
            "champion_fingerprint": None if champion is None else _fingerprint(champion),
            "versions": [_plain(version) for version in versions],
            "history": moves,
            "last_fingerprint": _last_fingerprint(nights, versions),
            "scheduled_runs": nights,
            "next_schedule": None if planned is None else planned.isoformat(timespec="seconds"),
            "store_exists": missing is None,
        },
        metrics={"versions": float(len(versions)), "moves": float(len(moves))},
        seconds=watch.seconds(),
    )


def _nights(config: RunConfig) -> list[dict[str, Any]]:
    """Return what the nights of this output folder have left, the one that wrote last at the end.

    A night with nothing new leaves nothing, and one that has begun its training leaves its plan.
    """
    found = []
    for folder in (Path(config.output.dir) / RETRAIN_FOLDER).glob("*/"):
        report, plan = folder / "report.json", folder / "plan.json"
        path = report if report.exists() else plan
        try:
            wrote = path.stat().st_mtime
        except OSError:
            continue  # no night, or it was removed in the meantime
        night = _read_report(path) if path == report else _read_plan(path)
        time = datetime.fromtimestamp(wrote, UTC).isoformat(timespec="seconds")
        found.append((wrote, {"folder": str(folder), **night, "time": time}))
    return [night for _, night in sorted(found, key=lambda each: each[0])]


def _read_report(path: Path) -> dict[str, Any]:
    raw = _mapping(path)
    outputs = raw.get("outputs")
    needed = ("status", "reason", "fingerprint")
    if not isinstance(outputs, dict) or any(not isinstance(outputs.get(n), str) for n in needed):
        return {
            "status": "unreadable",
            "reason": f"{path} is damaged: it is no report of a night",
            "fingerprint": None,
        }
    return outputs


def _read_plan(path: Path) -> dict[str, Any]:
    fingerprint = _mapping(path).get("fingerprint")
    if not isinstance(fingerprint, str):
        return {
            "status": "unreadable",
            "reason": f"{path} is damaged: it is no plan of a night",
            "fingerprint": None,
        }
    reason = "it is at work, or it has failed: `cil retrain` goes on with it"
    return {"status": "unfinished", "reason": reason, "fingerprint": fingerprint}


def _mapping(path: Path) -> dict[str, Any]:
    try:
        raw = read_json(path)
    except (DataError, OSError):
        return {}
    return raw if isinstance(raw, dict) else {}


def _fingerprint(version: ModelVersion) -> str | None:
    return version.tags.get(FINGERPRINT_TAG)


def _last_fingerprint(
    nights: Sequence[dict[str, Any]], versions: Sequence[ModelVersion]
) -> str | None:
    """Return that of the last night of this folder; without one, of the newest version's night."""
    own = [night["fingerprint"] for night in reversed(nights)]
    return next((each for each in (*own, *map(_fingerprint, versions)) if each), None)


def _plain(version: ModelVersion) -> dict[str, Any]:
    return {
        "version": version.version,
        "created": version.created.isoformat(timespec="seconds"),
        "aliases": list(version.aliases),
        "gate": version.tags.get(GATE_TAG),
        "gate_reason": version.tags.get("gate_reason"),
        "fingerprint": _fingerprint(version),
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


def _show_nights(nights: Sequence[dict[str, Any]]) -> None:
    for night in nights:
        if night["status"] == "unreadable":
            console.print(f"unreadable night: {night['reason']}", style="yellow", markup=False)
    readable = [night for night in nights if night["status"] != "unreadable"]
    for night in readable[-1:]:
        console.print(
            f"last night that had something to do, {night['time']} in {night['folder']}: "
            f"{night['status']}, {night['reason']} (a night with nothing new leaves no report)",
            markup=False,
        )
