"""When the next scheduled retraining starts, where this host knows: the timer of infra/systemd.

In: nothing but what systemd says. Out: a time, or None on a host without systemd or the timer. What
Kubernetes or another scheduler plans is known to them alone.
"""

import json
import shutil
import subprocess
from datetime import UTC, datetime

__all__ = ["TIMER", "next_start"]

TIMER = "cil-retrain.timer"
_PATIENCE_S = 5.0


def next_start() -> datetime | None:
    """Ask systemd for the next time of the timer.

    Returns:
        The time in UTC; None if there is no such timer, it is stopped, or nobody can say.
    """
    program = shutil.which("systemctl")
    if program is None:
        return None
    command = [program, "list-timers", "--all", "--output=json", TIMER]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_PATIENCE_S, check=True, stdin=subprocess.DEVNULL
        )
        (timer,) = json.loads(done.stdout)
        since_1970_us = int(timer["next"])
        return datetime.fromtimestamp(since_1970_us / 1e6, UTC) if since_1970_us > 0 else None
    except (OSError, subprocess.SubprocessError, ValueError, TypeError, LookupError, OverflowError):
        return None  # no systemd at work here, no such timer, or another kind of answer
