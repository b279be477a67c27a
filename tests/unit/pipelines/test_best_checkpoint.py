"""The best checkpoint: what replaces it, and that no crash leaves a mixture."""

import json
import os

import pytest

from cil.errors import DataError
from pipelines import best_checkpoint
from pipelines.best_checkpoint import best_record, copy_weights, keep_if_best
from pipelines.checkpoint_sums import check_sums, write_sums
from pipelines.storage import remove_temporaries

IDENTITY = "i" * 64


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "train"


@pytest.fixture
def offer(folder, tmp_path):
    """Offer a validated checkpoint; its weights are its step."""

    def make(step, value, *, metric="val_loss", identity=IDENTITY):
        checkpoint = tmp_path / f"checkpoint-{step}"
        if not checkpoint.exists():
            checkpoint.mkdir()
            (checkpoint / "ema.safetensors").write_text(f"weights of {step}")
            (checkpoint / "train_state.json").write_text(json.dumps({"num_steps": step}))
        record = {"identity": identity, "step": step, "metrics": {metric: value}}
        folder.mkdir(exist_ok=True)
        return keep_if_best(folder, checkpoint, record, metric=metric)

    return make


def kept(folder):
    best = folder / "best"
    record = json.loads((best / "metrics.json").read_text())
    state = json.loads((best / "train_state.json").read_text())
    assert (best / "ema.safetensors").read_text() == f"weights of {record['step']}"
    assert state["num_steps"] == record["step"]
    assert len(list(best.iterdir())) == 3
    return record["step"]


def test_the_smallest_loss_is_kept(folder, offer):
    assert best_record(folder, IDENTITY) is None
    assert [offer(step, value) for step, value in ((1, 3.0), (2, 2.0), (3, 2.5), (4, 1.0))] == [
        True,
        True,
        False,
        True,
    ]
    assert kept(folder) == 4
    assert best_record(folder, IDENTITY)["metrics"] == {"val_loss": 1.0}


def test_of_equals_the_first_stays(folder, offer):
    offer(1, 2.0)
    assert not offer(2, 2.0)
    assert kept(folder) == 1


def test_of_motion_transfer_the_largest_is_kept(folder, offer):
    for step, value in ((1, 0.2), (2, 0.5), (3, 0.4)):
        offer(step, value, metric="val_motion_transfer")
    assert kept(folder) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_never_best(folder, offer, value):
    assert not offer(1, value)
    assert offer(2, 5.0)
    assert not offer(3, value)
    assert kept(folder) == 2


def test_a_metric_that_is_missing_is_never_best(folder, tmp_path, offer):
    offer(1, 2.0)
    record = {"identity": IDENTITY, "step": 2, "metrics": {"val_loss": 1.0}}
    assert not keep_if_best(folder, tmp_path / "checkpoint-1", record, metric="val_motion_error")


def test_the_best_of_another_training_is_replaced(folder, offer):
    offer(1, 0.1, identity="other")
    assert best_record(folder, IDENTITY) is None
    assert offer(2, 9.0)
    assert kept(folder) == 2


def test_a_step_that_is_repeated_replaces_itself(folder, offer):
    offer(1, 2.0)
    assert offer(1, 2.0)
    assert kept(folder) == 1


def test_weights_outlive_the_checkpoint_they_came_from(folder, offer, tmp_path):
    import shutil

    offer(1, 2.0)
    shutil.rmtree(tmp_path / "checkpoint-1")
    assert kept(folder) == 1


@pytest.mark.parametrize("call", range(1, 8))
def test_a_crash_at_any_moment_is_made_good_by_the_next_try(folder, offer, monkeypatch, call):
    """The process dies at the n-th system call of a replacement; then the offer comes again."""
    offer(1, 2.0)
    calls = []

    class DiedError(Exception):
        pass

    def dying(real):
        def act(*arguments, **named):
            calls.append(real.__name__)
            if len(calls) == call:
                raise DiedError
            return real(*arguments, **named)

        return act

    with monkeypatch.context() as patch:
        for name in ("link", "replace"):
            patch.setattr(os, name, dying(getattr(os, name)))
        patch.setattr(best_checkpoint.shutil, "rmtree", dying(best_checkpoint.shutil.rmtree))
        try:
            offer(2, 1.0)
        except DiedError:
            if (folder / "best").exists():
                assert kept(folder) in (1, 2)
    remove_temporaries(folder)  # as the next command does before anything else
    assert offer(2, 1.0)
    assert kept(folder) == 2
    assert [path.name for path in folder.iterdir()] == ["best"]


def test_without_hard_links_files_are_copied(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("ema.safetensors", "train_state.json"):
        (source / name).write_text(name)

    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    copy_weights(source, tmp_path / "target")
    assert (tmp_path / "target" / "ema.safetensors").read_text() == "ema.safetensors"
    (source / "ema.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        copy_weights(source, tmp_path / "other")


@pytest.mark.parametrize("damage", [None, "ema.safetensors", "train_state.json"])
def test_the_hashes_stay_with_the_weights(tmp_path, folder, damage):
    """A hard link shares its bytes with the checkpoint, so also what happens to them."""
    checkpoint = tmp_path / "checkpoint_1"
    (checkpoint / "state").mkdir(parents=True)
    for name in ("ema.safetensors", "train_state.json", "state/weights.pt"):
        (checkpoint / name).write_bytes(bytes(100))
    write_sums(checkpoint, 0)
    folder.mkdir()
    record = {"identity": IDENTITY, "step": 1, "metrics": {"val_loss": 1.0}}
    assert keep_if_best(folder, checkpoint, record, metric="val_loss")
    best = folder / "best"
    check_sums(best)
    if damage is not None:
        with (checkpoint / damage).open("r+b") as file:
            file.seek(50)
            file.write(b"\1")
        with pytest.raises(DataError, match=rf"best is damaged: {damage} was written with"):
            check_sums(best)
    copy_weights(best, tmp_path / "again")
    sums = [(place / "sha256" / "rank0.json").read_bytes() for place in (best, tmp_path / "again")]
    assert sums[0] == sums[1]
