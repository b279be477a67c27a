import json

import pytest

from cil.errors import StageError
from pipelines.batches import BatchReader
from pipelines.data_order import DataOrder
from pipelines.ledger import Ledger, LedgerCallback, RecordedBatches, joined
from pipelines.shard_reader import ShardReader

BATCH = 4


@pytest.fixture(scope="module")
def readers(small_shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ledger") / "dataset"
    small_shards.dataset(folder, (4, 3, 2, 2), shapes=((2, 3, 4, 4), (4, 3, 4, 4)))
    return {name: ShardReader(folder, bucket=name) for name in ("16x16x2", "16x16x4")}


def workers(readers, count):
    return [
        RecordedBatches(
            BatchReader(readers, global_batch_size=BATCH, seed=5, rank=rank, world_size=count)
        )
        for rank in range(count)
    ]


def noted(readers, count, steps):
    shares = []
    for worker in workers(readers, count):
        for step in steps:
            worker.batch(step)
        shares.append({"ledger": worker.take()})
        assert worker.take() == []
    return shares


def test_it_says_what_the_order_of_the_clips_says(readers):
    """The reader is asked for the keys of what it read; the order is asked for their numbers."""
    rows = joined([share["ledger"] for share in noted(readers, 2, range(12))])
    order = DataOrder({n: len(r) for n, r in readers.items()}, global_batch_size=BATCH, seed=5)
    for row in rows:
        chosen = order.clips(row["step"])
        assert row["bucket"] == chosen.bucket
        assert row["keys"] == [readers[chosen.bucket].key(index) for index in chosen.indices]
        assert row["epoch"] == order.epoch(row["step"])
    assert {row["bucket"] for row in rows} == set(readers)
    assert rows[-1]["epoch"] >= 2


@pytest.mark.parametrize("count", [1, 4])
def test_the_number_of_workers_changes_nothing(readers, count):
    expected = joined([share["ledger"] for share in noted(readers, 2, range(6))])
    assert joined([share["ledger"] for share in noted(readers, count, range(6))]) == expected


@pytest.mark.parametrize("wrong", ["another bucket", "another step", "a place twice"])
def test_workers_that_read_different_batches_are_found(readers, wrong):
    one, other = (share["ledger"] for share in noted(readers, 2, range(1)))
    changes = {"another bucket": {"bucket": "9x9x9"}, "another step": {"step": 3}}
    other[0] |= changes.get(wrong, {"slots": one[0]["slots"]})
    with pytest.raises(StageError, match="the workers did not read one batch"):
        joined([one, other])


def test_steps_that_are_taken_again_are_there_once(readers, tmp_path):
    path = tmp_path / "train" / "ledger.jsonl"
    first = LedgerCallback(path)
    for step in range(7):
        first.after_report(None, noted(readers, 2, [step]), None)
    first.after_report(None, [{"rows": []}, {}], object())  # the report of a checkpoint
    resumed = LedgerCallback(path)  # the command was killed, the checkpoint is of step 3
    resumed.after_report(None, noted(readers, 1, range(3, 6)), None)
    resumed.after_report(None, noted(readers, 1, range(6, 9)), None)
    rows = Ledger(path).rows()
    assert [row["step"] for row in rows] == list(range(9))
    assert rows == joined([share["ledger"] for share in noted(readers, 4, range(9))])
    assert len(path.read_text().splitlines()) == 9


def test_a_step_that_reads_other_clips_the_second_time_is_an_error(readers, tmp_path):
    path = tmp_path / "ledger.jsonl"
    LedgerCallback(path).after_report(None, noted(readers, 1, range(3)), None)
    before = path.read_bytes()
    (share,) = noted(readers, 1, [2])
    share["ledger"][0]["keys"][0] = "another clip"
    with pytest.raises(StageError, match="step 2 was taken again with other clips"):
        LedgerCallback(path).after_report(None, [share], None)
    assert path.read_bytes() == before


@pytest.mark.parametrize("left", [0, 1, -1, -2])
def test_a_line_that_was_torn_is_written_again(readers, tmp_path, left):
    path = tmp_path / "ledger.jsonl"
    LedgerCallback(path).after_report(None, noted(readers, 1, range(3)), None)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + (lines[2][:left] if left else b""))
    LedgerCallback(path).after_report(None, noted(readers, 1, range(1, 4)), None)
    assert [row["step"] for row in Ledger(path).rows()] == [0, 1, 2, 3]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]


def test_what_was_noted_of_a_step_that_was_not_taken_is_left_out(readers):
    (recorded,) = workers(readers, 1)
    for step in range(3):
        recorded.batch(step)
    assert [row["step"] for row in recorded.take(before=2)] == [0, 1]
    assert recorded.take() == []
