"""The ledger of a training: which clips each step was taken on, as the workers read them.

Each worker notes the keys of its share of every batch (`RecordedBatches`) and reports them with its
metrics. In Ray's controller `LedgerCallback` joins the shares and appends one line per step to
``train/ledger-IDENTITY.jsonl``: step, epoch, bucket, and the keys in the order of the batch. A step
that a resumed run takes again is there once, and must have read the same clips.
"""

import json
import os
from pathlib import Path
from typing import Any

from ray.train import UserCallback

from cil.errors import StageError
from pipelines.batches import Batch, BatchSource

__all__ = ["Ledger", "LedgerCallback", "RecordedBatches", "joined"]

Row = dict[str, Any]


class RecordedBatches:
    """A batch source that notes which clips it has given."""

    def __init__(self, source: BatchSource) -> None:
        self._source = source
        self._rows: list[Row] = []

    def batch(self, step: int) -> Batch:
        """Return this worker's share of a step, and note its clips."""
        batch = self._source.batch(step)
        self._rows.append(
            {
                "step": step,
                "epoch": batch.epoch,
                "bucket": batch.bucket,
                "slots": list(batch.slots),
                "keys": [record.key for record in batch.records],
            }
        )
        return batch

    def keys(self, step: int) -> list[str]:
        """Return the sample keys of all clips of a step, over all workers."""
        return self._source.keys(step)

    def take(self, *, before: int | None = None) -> list[Row]:
        """Return what was noted since the last call, of the steps before one if it is given."""
        rows, self._rows = self._rows, []
        return [row for row in rows if before is None or row["step"] < before]


def joined(shares: list[list[Row]]) -> list[Row]:
    """Join what all workers noted of the same steps.

    Args:
        shares: of each worker, its rows in the order of the steps.

    Returns:
        A row per step with the keys of the whole batch, in its order.

    Raises:
        StageError: the workers did not read one batch.
    """
    rows = []
    for parts in zip(*shares, strict=True):
        heads = {(part["step"], part["epoch"], part["bucket"]) for part in parts}
        keys = {
            slot: key
            for part in parts
            for slot, key in zip(part["slots"], part["keys"], strict=True)
        }
        num_read = sum(len(part["keys"]) for part in parts)
        if len(heads) != 1 or sorted(keys) != list(range(num_read)):
            raise StageError(
                f"the workers did not read one batch: {sorted(heads)} with the places "
                f"{sorted(slot for part in parts for slot in part['slots'])}; this is a bug, "
                "please report it"
            )
        step, epoch, bucket = heads.pop()
        rows.append(
            {
                "step": step,
                "epoch": epoch,
                "bucket": bucket,
                "keys": [keys[slot] for slot in range(num_read)],
            }
        )
    return rows


class Ledger:
    """Rows of a ledger in a JSON-lines file, one per step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[Row]:
        """Return all rows in the order of the file; a torn last line is left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def append(self, rows: list[Row]) -> None:
        """Add rows and flush them to the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.truncate(self._whole_bytes())
            file.writelines(json.dumps(row, sort_keys=True).encode() + b"\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def _whole_bytes(self) -> int:
        """Return where the last whole line ends; a killed process may have left a part of one."""
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            file.seek(max(size - 1, 0))
            if file.read() in (b"", b"\n"):
                return size
            file.seek(0)
            return file.read().rfind(b"\n") + 1


class LedgerCallback(UserCallback):  # type: ignore[misc]
    """Writes the ledger in Ray's controller process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last_step: int | None = None

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Add the steps that are new, and compare those that were taken before.

        Raises:
            StageError: a step that was taken again has read other clips than the first time.
        """
        rows = joined([share.get("ledger", []) for share in metrics])
        if not rows:
            return
        ledger = Ledger(self._path)
        if self._last_step is None:
            self._last_step = max((row["step"] for row in ledger.rows()), default=-1)
        again = {row["step"]: row for row in rows if row["step"] <= self._last_step}
        if again:
            for before in ledger.rows():
                now = again.get(before["step"], before)
                if now != before:
                    raise StageError(
                        f"step {now['step']} was taken again with other clips than are in "
                        f"{self._path}: the bucket {now['bucket']} and {now['keys']} instead of "
                        f"{before['bucket']} and {before['keys']}; this is a bug, please report it"
                    )
        new = [row for row in rows if row["step"] > self._last_step]
        if new:
            ledger.append(new)
            self._last_step = new[-1]["step"]
