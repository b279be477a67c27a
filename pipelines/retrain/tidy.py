"""What is removed of old nights, so that a year of them fits on the disk.

In: OUTPUT/retrain/FINGERPRINT of every night. Out: the same, with all files of the newest ones,
and of those that stand behind the champion and the one before it; an older night keeps its
`report.json` and `gate/decision.json` if it was settled, and nothing if it was not.
"""

import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipelines.config import RunConfig
from pipelines.retrain.night import RETRAIN_FOLDER, folder_of_night
from pipelines.storage import remove_temporaries, temporary_beside

__all__ = ["remove_old_nights"]

_KEPT = ("report.json", "gate")
_KEPT_OF_GATE = "decision.json"
_NIGHT = re.compile(r"[0-9a-f]{12}")
_UNSENT = "unsent.json"

_log = logging.getLogger(__name__)


def remove_old_nights(config: RunConfig, fingerprints: list[str]) -> list[Path]:
    """Remove the files of all nights but the newest `retrain.keep_nights`.

    Nothing fails: what cannot be removed is named in the log. A night whose metrics wait for MLflow
    is left alone.

    Args:
        config: of the command, which holds the lock of OUTPUT/retrain.
        fingerprints: nights that keep all: the running one, and those of champions.

    Returns:
        The folders of which something was removed.
    """
    if config.retrain.keep_nights is None:
        return []
    root = Path(config.output.dir) / RETRAIN_FOLDER
    safe = {folder_of_night(config, each) for each in fingerprints}
    removed = []
    try:
        remove_temporaries(root)
        whole = [folder for folder in _nights(root) if any(_doomed(folder))]
        newest = sorted(whole, key=_time, reverse=True)
        for folder in newest[config.retrain.keep_nights :]:
            if folder in safe or any(folder.glob(f"*/{_UNSENT}")):
                continue
            _strip(folder)
            removed.append(folder)
    except OSError as error:
        _log.warning("old nights in %s stay, they cannot be removed: %s", root, error)
    return removed


def _nights(root: Path) -> list[Path]:
    return [
        folder
        for folder in root.iterdir()
        if _NIGHT.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink()
    ]


def _time(folder: Path) -> tuple[int, str]:
    """Return when a night began or ended, in ns; of two at once the name decides."""
    there = [path for path in (folder / "plan.json", folder / "report.json") if path.exists()]
    return max(path.stat().st_mtime_ns for path in there or [folder]), folder.name


def _doomed(folder: Path) -> Iterator[Path]:
    """List what an old night loses; the plan first, so that half a night is begun anew."""
    settled = (folder / "report.json").exists()
    for path in sorted(folder.iterdir(), key=lambda each: each.name != "plan.json"):
        if not settled or path.name not in _KEPT:
            yield path
        elif path.is_dir():
            yield from (each for each in sorted(path.iterdir()) if each.name != _KEPT_OF_GATE)


def _strip(folder: Path) -> None:
    """Move what goes out of the night, then remove it: a crash leaves a temporary folder."""
    away = temporary_beside(folder)
    away.mkdir()
    for number, path in enumerate(list(_doomed(folder))):
        path.replace(away / f"{number}-{path.name}")
    shutil.rmtree(away)
    if not any(folder.iterdir()):
        folder.rmdir()
