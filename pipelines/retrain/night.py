"""One scheduled run: its fingerprint, its folder, and what it began from.

    OUTPUT/retrain/FINGERPRINT/plan.json      written first: champion and settings it began from
    OUTPUT/retrain/FINGERPRINT/parent/        the champion's model folder
    OUTPUT/retrain/FINGERPRINT/train ...      the stages, as in a run of its own
    OUTPUT/retrain/FINGERPRINT/gate/          measures, report and decision.json
    OUTPUT/retrain/FINGERPRINT/report.json    written last: what became of it

The fingerprint is a hash of the data set and of all settings that decide the training but the
champion: the same night has it, however often it is tried and whoever is champion by then.
"""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cil.errors import ConfigError, DataError
from pipelines import tracking
from pipelines.config import RunConfig, content_hash, dataset_of
from pipelines.shown_text import shortened
from pipelines.storage import read_json, replace_folder, temporary_beside, write_json
from pipelines.tracking.versions import ModelVersion
from pipelines.train import train_identity

__all__ = [
    "RETRAIN_FOLDER",
    "Night",
    "check_family",
    "fetched",
    "fingerprint_of",
    "folder_of_night",
    "open_night",
    "try_lock",
]

RETRAIN_FOLDER = "retrain"
_SHORT = 12
_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Night:
    """A scheduled run that has begun."""

    fingerprint: str
    folder: Path
    config: RunConfig
    """Of its stages."""
    parent: str | None
    """Version that training begins with; None without one."""

    @property
    def run_name(self) -> str:
        """Name of its MLflow run."""
        return f"retrain-{self.fingerprint[:_SHORT]}"


def fingerprint_of(config: RunConfig, manifest_fingerprint: str) -> str:
    """Hash what decides a night: data set, training, statistics' use, and where training begins."""
    return content_hash(
        {
            "version": _VERSION,
            "training": train_identity(config, manifest_fingerprint),
            "sampling": [config.sample.start_time, config.sample.analytic_init],
            "start_from": config.retrain.start_from,
        }
    )


def folder_of_night(config: RunConfig, fingerprint: str) -> Path:
    """Name the folder of a night; it need not be there."""
    return Path(config.output.dir) / RETRAIN_FOLDER / fingerprint[:_SHORT]


@contextmanager
def try_lock(config: RunConfig) -> Iterator[bool]:
    """Hold the right to retrain in this output folder; yields False if another process has it."""
    folder = Path(config.output.dir) / RETRAIN_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def open_night(config: RunConfig, fingerprint: str, champion: ModelVersion | None) -> Night:
    """Begin a night, or go on with it from what it began from.

    Args:
        config: of the command.
        fingerprint: of the night.
        champion: what is champion now; a night that has begun keeps the one it has.

    Raises:
        DataError: its plan is damaged.
        StageError: MLflow failed.
    """
    folder = folder_of_night(config, fingerprint)
    plan = folder / "plan.json"
    if not plan.exists():
        warm = config.retrain.start_from == "champion" and champion is not None
        if warm:
            assert champion is not None
            _fetch(config, champion, folder / "parent")
        parent = champion.version if warm and champion is not None else None
        write_json(plan, {"fingerprint": fingerprint, "parent": parent, "format": _VERSION})
    parent = _parent_of(plan, fingerprint)
    return Night(
        fingerprint=fingerprint,
        folder=folder,
        config=_of_night(config, folder, warm=parent is not None),
        parent=parent,
    )


def _parent_of(plan: Path, fingerprint: str) -> str | None:
    """Return the version that a plan begins with.

    Raises:
        DataError: it is no plan, or that of another night.
    """
    begun = read_json(plan)
    if not isinstance(begun, dict) or begun.get("fingerprint") != fingerprint:
        found = begun.get("fingerprint") if isinstance(begun, dict) else type(begun).__name__
        problem = f"its fingerprint must be {fingerprint}, got {found}"
    elif begun.get("format") != _VERSION:
        problem = f"its format must be {_VERSION}, got {begun.get('format')!r}"
    elif not isinstance(begun.get("parent", 0), str | None):
        problem = f"parent must be a version or null, got {begun.get('parent')!r}"
    else:
        parent: str | None = begun["parent"]
        return parent
    raise DataError(
        f"{plan} is damaged: {shortened(problem)}; delete the folder {plan.parent} to begin this "
        "night anew"
    )


def check_family(config: RunConfig, champion: ModelVersion) -> None:
    """Refuse a champion that this configuration cannot follow.

    Raises:
        ConfigError: it is of another family.
    """
    family = champion.tags.get("family")
    if family is not None and family != config.model.family:
        raise ConfigError(
            f"the champion of {champion.name}, version {champion.version}, is of the family "
            f"{family}, this configuration trains {config.model.family}; give it a "
            "tracking.model_name of its own"
        )


@contextmanager
def fetched(config: RunConfig, version: ModelVersion, place: Path) -> Iterator[Path]:
    """Yield a copy of a version's model folder, below a folder that is removed at the end.

    Args:
        config: of the command.
        version: to fetch.
        place: the folder; what a killed command left there is removed first. The workers must see
            it, so it is on the storage of the run.

    Raises:
        StageError: MLflow failed.
    """
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        yield tracking.download_model(version.uri, tracking.tracking_uri(config), place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _fetch(config: RunConfig, champion: ModelVersion, place: Path) -> None:
    """Copy the champion's model folder, whole or not at all."""
    temporary = temporary_beside(place)
    with fetched(config, champion, place.with_name("download")) as found:
        shutil.rmtree(temporary, ignore_errors=True)
        found.replace(temporary)
        replace_folder(temporary, place)


def _of_night(config: RunConfig, folder: Path, *, warm: bool) -> RunConfig:
    """Return the settings of the stages: their own folder, the shared data set and store."""
    model: Any = config.model
    if warm:
        model = replace(model, pretrained=str(folder / "parent"))
    return replace(
        config,
        model=model,
        output=replace(config.output, dir=str(folder), dataset=dataset_of(config)),
        tracking=replace(config.tracking, uri=tracking.tracking_uri(config)),
    )
