"""Locks that a killed build of a torch extension left, which every later build waits for, for ever.

DeepSpeed compiles an operator on first use, below TORCH_EXTENSIONS_DIR. torch holds a file `lock`
in the folder of the extension meanwhile and does not say that it waits for one.
"""

import logging
import time
from pathlib import Path

__all__ = ["remove_stale_locks"]

_LOCK = "lock"
_STALE_S = 900.0
"""A build changes a file of its folder more often than that."""

_log = logging.getLogger(__name__)


def remove_stale_locks(root: Path, *, now: float | None = None) -> list[Path]:
    """Remove the locks of builds that ended without removing them, and warn of each.

    Args:
        root: TORCH_EXTENSIONS_DIR.
        now: time in seconds since 1970; None takes the clock's.

    Returns:
        What was removed.
    """
    now = time.time() if now is None else now
    removed = []
    for lock in sorted([*root.glob(f"*/{_LOCK}"), *root.glob(f"*/*/{_LOCK}")]):
        try:
            newest = max(path.stat().st_mtime for path in lock.parent.iterdir())
            if now - newest < _STALE_S:
                continue
            lock.unlink()
        except FileNotFoundError:
            continue  # another worker of this host removed it
        _log.warning(
            "removed %s: a build that was killed %.0f minutes ago left it, and DeepSpeed would "
            "have waited for it for ever",
            lock,
            (now - newest) / 60,
        )
        removed.append(lock)
    return removed
