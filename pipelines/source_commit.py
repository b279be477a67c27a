"""Which commit of this project is at work, for the lineage of what it trains.

In: the folder that this package lies in, and git. Out: tags; none where the code is no checkout, as
in an image or the working directory of a Ray job, or where git cannot say.
"""

import shutil
import subprocess
from pathlib import Path

from pipelines.config import child_environment

__all__ = ["COMMIT_TAG", "DIRTY_TAG", "source_commit"]

COMMIT_TAG = "git_commit"
DIRTY_TAG = "git_dirty"
"""true if files that git knows had been changed since that commit, else false."""
_PATIENCE_S = 10.0


def source_commit(root: Path | None = None) -> dict[str, str]:
    """Return the commit and whether the code has been changed since.

    Args:
        root: the checkout; None takes the folder that holds this package.

    Returns:
        `COMMIT_TAG` and `DIRTY_TAG`; empty without a commit. The folder must be the top of the
        checkout: that of a project which merely contains an installed copy says nothing of ours.
    """
    program = shutil.which("git")
    root = (root or Path(__file__).parents[1]).resolve()
    if program is None or not (root / ".git").exists():
        return {}
    try:
        commit = _answer(program, root, "rev-parse", "--verify", "HEAD").strip()
        changed = _answer(program, root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
    return {COMMIT_TAG: commit, DIRTY_TAG: "true" if changed.strip() else "false"}


def _answer(program: str, root: Path, *words: str) -> str:
    """Ask git about this checkout, whatever the environment of a hook says of another."""
    environment = {k: v for k, v in child_environment().items() if not k.startswith("GIT_")}
    done = subprocess.run(
        [program, "--no-optional-locks", "-C", str(root), *words],
        capture_output=True,
        timeout=_PATIENCE_S,
        check=True,
        stdin=subprocess.DEVNULL,
        env=environment,
    )
    return done.stdout.decode(errors="replace")
