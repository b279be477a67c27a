import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cil.errors import DataError, StageError
from pipelines import checkpoint_writer, resume
from pipelines.checkpoint_sums import write_sums
from pipelines.checkpoint_writer import CheckpointWriter
from pipelines.resume import KeepSnapshot, convert, last_checkpoint, prepare_resume
from pipelines.train_state import TrainState

STATE = TrainState(num_steps=7, seed=3, world_size=2, zero_stage=2, trainable="all")


def write_run(folder, *names, latest=None):
    """A run's folder as Ray leaves it, with some checkpoints."""
    folder.mkdir(parents=True)
    for name in names:
        (folder / name / "state").mkdir(parents=True)
        (folder / name / "state" / "weights.pt").write_bytes(b"0" * 100)
        (folder / name / "train_state.json").write_text(json.dumps(asdict(STATE)))
    committed = names if latest is None else names[: names.index(latest) + 1]
    results = [{"version": 0, "checkpoint_dir_name": name, "metrics": {}} for name in committed]
    snapshot = {
        "ray_version": "2",
        "checkpoint_results": results,
        "checkpoint_report_indices": list(range(1, 2 * len(results), 2)),
        "latest_checkpoint_result": results[-1] if results else None,
        "current_report_index": 2 * len(results),
    }
    (folder / "checkpoint_manager_snapshot.json").write_text(json.dumps(snapshot))
    return folder


# -- what Ray has committed -----------------------------------------------------------------------


def test_without_a_run_or_a_checkpoint_there_is_nothing_to_go_on_from(tmp_path):
    assert last_checkpoint(tmp_path / "nothing") is None
    assert last_checkpoint(write_run(tmp_path / "empty")) is None


def test_the_last_one_is_what_ray_committed_not_the_newest_folder(tmp_path):
    folder = write_run(tmp_path / "run", "checkpoint_1", "checkpoint_2", latest="checkpoint_1")
    assert last_checkpoint(folder) == folder / "checkpoint_1"


def test_a_list_that_a_full_disk_tore_is_taken_from_its_copy(tmp_path):
    folder = write_run(tmp_path / "run", "checkpoint_1")
    snapshot = folder / "checkpoint_manager_snapshot.json"
    whole = snapshot.read_bytes()
    KeepSnapshot(folder).after_report(None, [], None)
    assert not (folder / "last_snapshot.json").exists()
    KeepSnapshot(folder).after_report(None, [], object())
    snapshot.write_bytes(whole[:-9])
    assert last_checkpoint(folder) == folder / "checkpoint_1"
    assert snapshot.read_bytes() == whole
    snapshot.write_bytes(b"")
    (folder / "last_snapshot.json").unlink()
    with pytest.raises(DataError, match="nothing lists the checkpoints any more"):
        last_checkpoint(folder)


NOT_A_LIST = {
    "missing": None,
    "empty": {},
    "a number": 3,
    "latest is a number": {"latest_checkpoint_result": 5},
    "results are a number": {"checkpoint_results": 3},
    "results are no list": {"checkpoint_results": {}, "latest_checkpoint_result": None},
    "a result is a number": {"checkpoint_results": [1, 2]},
    "a result without a name": {"checkpoint_results": [{}, {}]},
    "a name is a path": {"checkpoint_results": [{"checkpoint_dir_name": ".."}] * 2},
    "too few indices": {"checkpoint_report_indices": [1]},
    "indices are a number": {"checkpoint_report_indices": 1},
    "the last one is not listed": {
        "latest_checkpoint_result": {"checkpoint_dir_name": "checkpoint_9"}
    },
    "no last one": {"latest_checkpoint_result": None},
}


def damage_list(folder, how):
    """Damage Ray's list; returns what it was."""
    snapshot = folder / "checkpoint_manager_snapshot.json"
    whole = snapshot.read_bytes()
    change = NOT_A_LIST[how]
    if change is None:
        snapshot.unlink()
    elif change == {} or not isinstance(change, dict):
        snapshot.write_text(json.dumps(change))
    else:
        snapshot.write_text(json.dumps({**json.loads(whole), **change}))
    return whole


@pytest.mark.parametrize("how", NOT_A_LIST)
def test_a_list_that_is_none_is_taken_from_its_copy_and_nothing_is_deleted(tmp_path, how):
    folder = write_run(tmp_path / "run", "checkpoint_1", "checkpoint_2", latest="checkpoint_2")
    KeepSnapshot(folder).after_report(None, [], object())
    (folder / "checkpoint_3").mkdir()  # committed, perhaps, after the copy was made
    whole = damage_list(folder, how)
    assert prepare_resume(tmp_path, folder, STATE) is None
    assert last_checkpoint(folder) == folder / "checkpoint_2"
    assert (folder / "checkpoint_manager_snapshot.json").read_bytes() == whole
    assert sorted(path.name for path in folder.glob("checkpoint_?")) == [
        "checkpoint_1",
        "checkpoint_2",
        "checkpoint_3",
    ]


@pytest.mark.parametrize("copy", ["missing", "damaged"])
@pytest.mark.parametrize("how", NOT_A_LIST)
def test_checkpoints_that_nothing_lists_are_not_deleted(tmp_path, how, copy):
    folder = write_run(tmp_path / "run", "checkpoint_1", "checkpoint_2")
    damage_list(folder, how)
    if copy == "damaged":
        (folder / "last_snapshot.json").write_text("{}")
    before = sorted(folder.rglob("*"))
    with pytest.raises(DataError) as caught:
        prepare_resume(tmp_path, folder, STATE)
    assert "nothing lists the checkpoints any more" in str(caught.value)
    assert "checkpoint_1, checkpoint_2 would be lost" in str(caught.value)
    assert str(caught.value).endswith(f"or move {folder} away to start this training again")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("torn", [None, b"", b'{"ray_ver'])
def test_a_first_start_that_was_killed_before_its_first_commit_starts_again(tmp_path, torn):
    """The files of the first checkpoint are in place, Ray was about to note it."""
    folder = tmp_path / "run"
    assert prepare_resume(tmp_path, folder, STATE) is None
    write_run(tmp_path / "other", "checkpoint_1")
    (tmp_path / "other" / "checkpoint_1").rename(folder / "checkpoint_1")
    if torn is not None:
        (folder / "checkpoint_manager_snapshot.json").write_bytes(torn)
    for _ in range(2):
        assert prepare_resume(tmp_path, folder, STATE) is None
        assert [path.name for path in folder.iterdir()] == ["last_snapshot.json"]
    assert last_checkpoint(folder) is None


def test_what_was_not_committed_is_deleted(tmp_path):
    """A process was killed after its files were in place."""
    folder = write_run(tmp_path / "run", "checkpoint_1", "checkpoint_2", latest="checkpoint_1")
    assert prepare_resume(tmp_path, folder, STATE) is None
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint_1",
        "checkpoint_manager_snapshot.json",
    ]
    (tmp_path / "never" / "checkpoint_1").mkdir(parents=True)
    assert prepare_resume(tmp_path, tmp_path / "never", STATE) is None
    assert list((tmp_path / "never").glob("checkpoint_*")) == []


def test_a_deleted_checkpoint_leads_to_the_one_before(tmp_path):
    folder = write_run(tmp_path / "run", "checkpoint_1", "checkpoint_2", "checkpoint_3")
    shutil.rmtree(folder / "checkpoint_3")
    shutil.rmtree(folder / "checkpoint_1")
    assert last_checkpoint(folder) == folder / "checkpoint_2"
    snapshot = json.loads((folder / "checkpoint_manager_snapshot.json").read_bytes())
    assert [each["checkpoint_dir_name"] for each in snapshot["checkpoint_results"]] == [
        "checkpoint_2"
    ]
    assert snapshot["checkpoint_report_indices"] == [3]
    assert snapshot["current_report_index"] == 6
    assert last_checkpoint(folder) == folder / "checkpoint_2", "the second time as well"
    shutil.rmtree(folder / "checkpoint_2")
    with pytest.raises(DataError, match=r"all checkpoints of .* were deleted; delete it as well"):
        last_checkpoint(folder)


@pytest.mark.parametrize("damage", ["state", "bit"])
def test_a_damaged_checkpoint_says_how_to_go_on_from_the_one_before(tmp_path, damage):
    folder = write_run(tmp_path / "run", "checkpoint_1", "checkpoint_2")
    write_sums(folder / "checkpoint_2", 0)
    name = "train_state.json" if damage == "state" else "state/weights.pt"
    (folder / "checkpoint_2" / name).write_bytes(b"{")
    with pytest.raises(DataError) as caught:
        prepare_resume(tmp_path, folder, STATE)
    assert f"the checkpoint in {folder / 'checkpoint_2'} is damaged" in str(caught.value)
    assert str(caught.value).endswith(
        f"To go on from checkpoint_1 instead, delete {folder / 'checkpoint_2'} and run the same "
        "command again"
    )
    assert "There are also checkpoint_1: cil export takes one as --checkpoint NAME" in str(
        caught.value
    )
    assert "train folder" not in str(caught.value)


# -- before anything is started -------------------------------------------------------------------


def test_the_same_number_of_workers_needs_no_conversion(tmp_path):
    folder = write_run(tmp_path / "run", "checkpoint_1")
    assert prepare_resume(tmp_path, folder, STATE) is None
    assert prepare_resume(tmp_path, tmp_path / "nothing", STATE) is None


def test_another_run_is_refused_with_both_values(tmp_path):
    folder = write_run(tmp_path / "run", "checkpoint_1")
    with pytest.raises(DataError, match="zero_stage is 2 there and 3 here"):
        prepare_resume(tmp_path, folder, replace(STATE, zero_stage=3))
    (folder / "checkpoint_1" / "train_state.json").unlink()
    with pytest.raises(DataError, match="checkpoint_1 is damaged"):
        prepare_resume(tmp_path, folder, STATE)


@pytest.mark.parametrize(("stage", "converts"), [(0, False), (1, True), (2, True), (3, True)])
def test_other_workers_are_announced_and_converted_for(
    tmp_path, monkeypatch, capsys, stage, converts
):
    folder = write_run(tmp_path / "run", "checkpoint_1")
    state = folder / "checkpoint_1" / "train_state.json"
    state.write_text(json.dumps(asdict(replace(STATE, zero_stage=stage))))
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(resume.subprocess, "run", run)
    expected = replace(STATE, world_size=4, zero_stage=stage, num_steps=0)
    made = prepare_resume(tmp_path, folder, expected)
    said = " ".join(capsys.readouterr().err.split())
    if not converts:
        assert (made, commands) == (None, [])
        return
    assert made == tmp_path / ".universal.tmp"
    assert "the checkpoint of step 7 was written by 2 workers; converting it for 4" in said
    (command,) = commands
    assert "deepspeed.checkpoint.ds_to_universal" in command
    assert str(folder / "checkpoint_1" / "state") in command
    assert ("--inject_missing_state" in command) is (stage < 3)


def test_a_conversion_that_fails_says_why_and_leaves_nothing(tmp_path):
    """DeepSpeed itself is run, on a folder that it cannot read."""
    folder = write_run(tmp_path / "run", "checkpoint_1")
    with pytest.raises(StageError, match=r"DeepSpeed could not convert .*; go on with the number"):
        convert(folder / "checkpoint_1", tmp_path / "universal", zero_stage=2)
    assert not (tmp_path / "universal").exists()


def test_a_conversion_dies_with_a_command_that_is_killed(tmp_path):
    folder = write_run(tmp_path / "run", "checkpoint_1")
    fake = tmp_path / "fakes" / "deepspeed" / "checkpoint" / "ds_to_universal.py"
    fake.parent.mkdir(parents=True)
    for package in fake.parents[:2]:
        (package / "__init__.py").touch()
    started = tmp_path / "started"
    fake.write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(started)!r} + '.tmp').write_text(str(os.getpid()))\n"
        f"os.rename({str(started)!r} + '.tmp', {str(started)!r})\n"
        "time.sleep(60)\n"
    )
    code = (
        "from pathlib import Path\n"
        "from pipelines.resume import convert\n"
        f"convert(Path({str(folder / 'checkpoint_1')!r}), Path({str(tmp_path / 'to')!r}), "
        "zero_stage=2)"
    )
    paths = [str(tmp_path / "fakes"), str(Path(__file__).parents[3])]
    command = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    )
    try:
        _wait_until(started.exists)
    finally:
        command.kill()
        command.wait()
    child = Path("/proc") / started.read_text()
    try:
        _wait_until(lambda: not child.exists() or "\nState:\tZ" in _status(child), seconds=10)
    finally:
        if child.exists():
            os.kill(int(child.name), signal.SIGKILL)


def _status(process):
    try:
        return (process / "status").read_text()
    except OSError:
        return "\nState:\tZ"


def _wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_a_conversion_needs_space(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run", "checkpoint_1")
    usage = shutil.disk_usage(tmp_path)._replace(free=199)
    monkeypatch.setattr(resume.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StageError, match=r"needs 0.0 MiB \(200 bytes\) .*\(199 bytes\) are free"):
        convert(folder / "checkpoint_1", tmp_path / "universal", zero_stage=2)


# -- writing --------------------------------------------------------------------------------------


@pytest.fixture
def writer(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_writer, "checkpoint_bytes", lambda *_: 1000)
    return CheckpointWriter(tmp_path, engine=None, ema=None, rank=0)


def test_too_little_space_is_seen_before_anything_is_written(writer, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=2**23 + 999)
    monkeypatch.setattr(checkpoint_writer.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", None)
    problem = writer.write(STATE)
    assert f"the checkpoint of step 7 cannot be written to {tmp_path}: there is too lit" in problem
    assert "needs 8.0 MiB (8389608 bytes), 8.0 MiB (8389607 bytes) are free" in problem
    assert "The last committed checkpoint is kept: make room there" in problem
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left(writer, tmp_path, monkeypatch):
    def save(folder, **_):
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device", "half")

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", save)
    (tmp_path / ".checkpoint-rank0.tmp").mkdir()  # of a process that was killed
    problem = writer.write(STATE)
    assert "worker 0: [Errno 28] No space left on device: 'half'; it needs 0.0 MiB" in problem
    assert list(tmp_path.iterdir()) == []


RANK = """
import sys
from pathlib import Path
import torch
from pipelines import checkpoint_writer
from pipelines.train_state import TrainState

folder, rank = Path(sys.argv[1]), int(sys.argv[2])
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
)

def save(folder, **_):
    torch.distributed.all_reduce(torch.ones(1))
    torch.distributed.barrier()

checkpoint_writer.checkpoint_bytes = lambda *_: 1000
checkpoint_writer.save_checkpoint = save
writer = checkpoint_writer.CheckpointWriter(folder / "train", engine=None, ema=None, rank=rank)
print(writer.write(TrainState(num_steps=7)), flush=True)
"""


def test_all_workers_stop_if_one_cannot_make_its_folder(tmp_path):
    """Two real ranks; a plain file is in the place of the folder of one."""
    (tmp_path / "train").mkdir()
    in_the_way = tmp_path / "train" / ".checkpoint-rank1.tmp"
    in_the_way.touch()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(tmp_path), str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=120)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert said[0] == said[1]
    assert "the checkpoint of step 7 cannot be written to" in said[0]
    assert f"worker 1: [Errno 20] Not a directory: '{in_the_way / 'state'}'" in said[0]
    assert [path.name for path in (tmp_path / "train").iterdir()] == [in_the_way.name]


def test_a_folder_that_a_worker_does_not_see_is_named(tmp_path):
    with pytest.raises(
        StageError, match=r"output\.dir must be on a file system that all nodes share"
    ):
        CheckpointWriter(Path(tmp_path / "elsewhere"), engine=None, ema=None, rank=1)
