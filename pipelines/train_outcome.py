"""How a training that did not reach its end is told to people: Ray's errors become ours.

In: what Ray Train raised, or what its workers returned. Out: one error that says what to do.
"""

import shlex
from pathlib import Path
from typing import Any

from cil.errors import CilError, DataError, StageError
from pipelines.runtime import root_cause
from pipelines.storage import write_json

__all__ = ["check_outcome", "failed_training"]

_KEPT = "the last committed checkpoint is kept, run the same command again to go on from it"


def failed_training(error: Exception) -> CilError:
    """Return the error of a worker as the driver raises it.

    Args:
        error: of Ray Train; of several workers that failed, the one that says what to do counts:
            the others often lost their connection to it.
    """
    failures = getattr(error, "worker_failures", None) or {}
    causes = {rank: root_cause(each) for rank, each in failures.items()}
    ours = [rank for rank, each in causes.items() if isinstance(each, CilError)]
    rank = next(iter([*ours, *causes]), None)
    cause = root_cause(error) if rank is None else causes[rank]
    if isinstance(cause, CilError):
        return _as_failed(type(cause).__name__, str(cause))
    where = f" on worker {rank}" if rank is not None else ""
    return StageError(f"training failed{where}: {type(cause).__name__}: {cause}; {_KEPT}")


def check_outcome(outcome: dict[str, Any], folder: Path, identity: str) -> None:
    """Raise what the workers agreed to stop for.

    Args:
        outcome: what they returned, see `train_worker`.
        folder: the training folder, for the record of a step that is not finite.
        identity: hash of the training.

    Raises:
        DataError: damaged data.
        StageError: anything else.
    """
    if "failed" in outcome:
        raise _as_failed(outcome["failed"]["kind"], outcome["failed"]["message"])
    if "unwritten" in outcome:
        raise StageError(outcome["unwritten"])
    if "stopped" in outcome:
        written = _write_nonfinite(folder, identity, outcome["nonfinite"])
        raise StageError(
            f"{outcome['stopped']}; written to {written}, with the command that looks at each clip"
        )


def _as_failed(kind: str, message: str) -> CilError:
    return DataError(message) if kind == DataError.__name__ else StageError(message)


def _write_nonfinite(folder: Path, identity: str, record: dict[str, Any]) -> Path:
    """Write down a step whose loss or gradient is not finite, and how to see it again."""
    path = folder / f"nonfinite-step-{record['step']}.json"
    config, output = (folder / "config.yaml").resolve(), folder.parent.resolve()
    # Not with another number of steps: that would be another learning rate, so another run.
    command = (
        f"cil train --config {shlex.quote(str(config))} --output.dir {shlex.quote(str(output))}"
    )
    replay = f"{command} --replay {shlex.quote(str(path.resolve()))}"
    write_json(path, {**record, "identity": identity, "replay": replay, "resume": command})
    return path
