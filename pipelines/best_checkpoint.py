"""The best validated checkpoint, kept apart from those that Ray keeps and deletes.

``train/best`` holds the averaged weights, ``train_state.json``, the hashes of both and the
validation's ``metrics.json``. It is replaced as a whole. The checkpoint that replaces it is deleted
from the queue only afterwards, so a command that is killed in between is made good by the next one.
Only validations of the same settings are compared; the best by others is set aside, not deleted.
"""

import math
import os
import shutil
from pathlib import Path
from typing import Any

from pipelines.checkpoint import EMA_FILE
from pipelines.checkpoint_sums import copy_sums
from pipelines.storage import replace_folder, set_aside, temporary_beside, write_json
from pipelines.train_state import STATE_FILE
from pipelines.validation import METRICS_FILE, read_record

__all__ = [
    "BEST_FOLDER",
    "KEPT_FILES",
    "best_record",
    "copy_weights",
    "keep_if_best",
    "set_aside_if_incomparable",
]

BEST_FOLDER = "best"
KEPT_FILES = (EMA_FILE, STATE_FILE)

_LARGER_IS_BETTER = frozenset({"val_motion_transfer"})


def best_record(train_folder: Path, identity: str) -> dict[str, Any] | None:
    """Read the validation of the best checkpoint so far; None if there is none of this run."""
    return read_record(train_folder / BEST_FOLDER / METRICS_FILE, identity)


def set_aside_if_incomparable(train_folder: Path, record: dict[str, Any]) -> Path | None:
    """Set the best checkpoint aside if it was validated with other settings.

    Args:
        train_folder: holds ``best``.
        record: a validation.

    Returns:
        Where the best checkpoint so far is now; None if it was left where it is.
    """
    before = best_record(train_folder, record["identity"])
    if before is None or before.get("settings") == record.get("settings"):
        return None
    return set_aside([train_folder / BEST_FOLDER], f"step-{before['step']:06d}")[0]


def keep_if_best(
    train_folder: Path, checkpoint: Path, record: dict[str, Any], *, metric: str
) -> bool:
    """Make a validated checkpoint the best one if its metric is better than the best so far.

    Args:
        train_folder: holds ``best``.
        checkpoint: folder with `KEPT_FILES`; left as it is.
        record: its validation.
        metric: ``train.best_metric``.

    Returns:
        Whether it is the best now; the first of equals stays, and so does anything against a
        number that is missing or not finite.
    """
    value = record["metrics"].get(metric, math.nan)
    before = best_record(train_folder, record["identity"])
    if not math.isfinite(value):
        return False
    if before is not None and before["step"] != record["step"]:
        best = before["metrics"].get(metric, math.nan)
        better = value > best if metric in _LARGER_IS_BETTER else value < best
        if math.isfinite(best) and not better:
            return False
    best_folder = train_folder / BEST_FOLDER
    temporary = temporary_beside(best_folder)
    if temporary.exists():
        shutil.rmtree(temporary)
    copy_weights(checkpoint, temporary)
    write_json(temporary / METRICS_FILE, record)
    replace_folder(temporary, best_folder)
    return True


def copy_weights(source: Path, target: Path) -> None:
    """Copy `KEPT_FILES` into a new folder: by hard links if that is possible, which takes no room.

    Their hashes go with them: linked files share their damage.

    Raises:
        DataError: the hashes are damaged.
        OSError: a file is missing, or there is no room.
    """
    target.mkdir(parents=True)
    for name in KEPT_FILES:
        try:
            os.link(source / name, target / name)
        except FileNotFoundError:
            raise
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source / name, target / name)
    copy_sums(source, target, KEPT_FILES)
