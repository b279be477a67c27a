import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cil.errors import DataError
from pipelines.checkpoint import TrainState, checkpoint_bytes, load_checkpoint, save_checkpoint
from pipelines.checkpoint_sums import check_sums, write_sums
from pipelines.train_state import read_state
from pipelines.weight_average import ShardedEma

STATE = TrainState(
    num_steps=7,
    num_clips_seen=56,
    seed=3,
    world_size=1,
    epoch=2,
    zero_stage=0,
    trainable="all",
    model_hash="o" * 64,
    encoder_hash="e" * 64,
    config_hash="c" * 64,
    manifest_fingerprint="m" * 64,
)


class FakeEngine:
    """What checkpoints use of a DeepSpeed engine, on one process."""

    def __init__(self, value=1.0, *, stage=0):
        self.module = torch.nn.Linear(2, 2)
        torch.nn.init.constant_(self.module.weight, value)
        torch.nn.init.constant_(self.module.bias, -value)
        self.checkpoint_engine, self._config = self, self
        self.load_universal_checkpoint, self.universal_while_loading = False, None
        self.loaded_from = None
        self.optimizer = self
        self.single_partition_of_fp32_groups = [torch.full((4,), value), torch.full((2,), -value)]
        self.fp32_partitioned_groups_flat = [torch.full((3,), value)]
        self.param_groups = [{"params": list(self.module.parameters())}]
        self.stage, self.loads = stage, True

    def zero_optimization_stage(self):
        return self.stage

    def save_checkpoint(self, folder, tag, save_latest):
        assert not save_latest, "it is written between two collective calls"
        (self._folder(folder) / tag).mkdir(parents=True)
        self.checkpoint_engine.save(
            {"weight": self.module.weight}, str(self._folder(folder) / tag / "weights.pt")
        )

    def _copy_recovery_script(self, folder):
        """DeepSpeed's rank 0 does between two collective calls."""

    def save(self, state_dict, path):
        torch.save(state_dict, path)

    def load_checkpoint(self, folder, tag):
        self.universal_while_loading, self.loaded_from = self.load_universal_checkpoint, folder
        return (str(folder) if self.loads else None), {}

    @staticmethod
    def _folder(folder):
        return Path(folder)


def saved(folder, engine, ema, state=STATE):
    folder.mkdir()
    save_checkpoint(folder, engine=engine, ema=ema, state=state, rank=0)
    return folder


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("seed", 4),
        ("zero_stage", 3),
        ("trainable", "temporal"),
        ("model_hash", "d" * 64),
        ("encoder_hash", "d" * 64),
        ("config_hash", "d" * 64),
        ("manifest_fingerprint", "n" * 64),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_both_values(name, there):
    with pytest.raises(DataError) as caught:
        STATE.require_same_run(replace(STATE, **{name: there}))
    message = str(caught.value)
    assert f"is of another run: {name}" in message
    assert f" is {there} there and {getattr(STATE, name)} here" in message
    assert "use the settings it was made with, or another output.dir" in message


@pytest.mark.parametrize("there", [0, 3])
def test_another_format_is_refused_with_both_values(there):
    with pytest.raises(DataError, match=f"format_version is {there} there and 2 here"):
        STATE.require_same_run(replace(STATE, format_version=there))


@pytest.mark.parametrize(
    "progress", [{"num_steps": 9000, "num_clips_seen": 1}, {"epoch": 3}, {"world_size": 8}]
)
def test_progress_and_workers_do_not_make_another_run(progress):
    assert STATE.require_same_run(replace(STATE, **progress)) is None


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    engine = FakeEngine()
    ema = ShardedEma(engine, 0.9)
    torch.nn.init.constant_(engine.module.weight, 2.0)
    ema.update()
    before = [shard.clone() for shard in ema.shards]
    folder = saved(tmp_path / "checkpoint", engine, ema)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["ema.safetensors", "latest", "sha256", "state", "train_state.json"]
    fresh = ShardedEma(FakeEngine(5.0), 0.9)
    expected = replace(STATE, num_steps=0, num_clips_seen=0, epoch=None)
    state = load_checkpoint(folder, engine=engine, ema=fresh, expected=expected, rank=0)
    assert state == STATE
    assert all(torch.equal(a, b) for a, b in zip(fresh.shards, before, strict=True))
    assert engine.universal_while_loading is False


def test_the_average_is_saved_whole_by_name_in_float32(tmp_path):
    engine = FakeEngine(1.0)
    ema = ShardedEma(engine, 0.75)
    torch.nn.init.constant_(engine.module.weight, 2.0)
    ema.update()
    found = load_file(saved(tmp_path / "checkpoint", engine, ema) / "ema.safetensors")
    assert {name: value.tolist() for name, value in found.items()} == {
        "weight": [[1.25, 1.25]] * 2,
        "bias": [-1.0, -1.0],
    }
    assert {value.dtype for value in found.values()} == {torch.float32}


def write_version_1(folder, tensors):
    """Write a checkpoint as version 1 had it, by hand."""
    (folder / "state").mkdir(parents=True)
    save_file(tensors, folder / "ema_rank0.safetensors")
    state = {
        "format_version": 1,
        "num_steps": 7,
        "num_clips_seen": 56,
        "seed": 3,
        "world_size": 1,
        "config_hash": "c" * 64,
        "manifest_fingerprint": "m" * 64,
    }
    (folder / "train_state.json").write_text(json.dumps(state))
    return folder


@pytest.mark.parametrize("stage", [0, 2])
def test_version_1_is_loaded(tmp_path, stage):
    shapes = {0: [(2, 2), (2,)], 2: [(4,), (2,)]}[stage]
    tensors = {f"group{number}": torch.rand(shape) for number, shape in enumerate(shapes)}
    folder = write_version_1(tmp_path / "old", tensors)
    engine = FakeEngine(stage=stage)
    ema = ShardedEma(engine, 0.9)
    expected = replace(STATE, zero_stage=stage, num_steps=0)
    state = load_checkpoint(folder, engine=engine, ema=ema, expected=expected, rank=0)
    assert state == replace(STATE, zero_stage=stage, epoch=None)  # saved again as version 2
    assert [shard.tolist() for shard in ema.shards] == [t.tolist() for t in tensors.values()]


def test_version_1_belongs_to_its_number_of_workers(tmp_path):
    folder = write_version_1(tmp_path / "old", {"group0": torch.zeros(4)})
    engine = FakeEngine(stage=2)
    with pytest.raises(DataError, match="world_size is 1 there and 2 here"):
        load_checkpoint(
            folder,
            engine=engine,
            ema=ShardedEma(engine, 0.9),
            expected=replace(STATE, world_size=2),
            rank=1,
        )
    assert engine.loaded_from is None


def test_another_runs_checkpoint_changes_nothing(tmp_path):
    engine = FakeEngine()
    folder = saved(tmp_path / "checkpoint", engine, ShardedEma(engine, 0.9))
    ema = ShardedEma(FakeEngine(5.0), 0.9)
    with pytest.raises(DataError, match="seed is 3 there and 4 here"):
        load_checkpoint(folder, engine=engine, ema=ema, expected=replace(STATE, seed=4), rank=0)
    assert ema.shards[0].tolist() == [[5.0, 5.0]] * 2
    assert engine.loaded_from is None


@pytest.mark.parametrize("difference", ["another parameter", "another shape"])
def test_a_checkpoint_of_another_model_is_refused(tmp_path, difference):
    engine = FakeEngine()
    ema = ShardedEma(engine, 0.9)
    folder = saved(tmp_path / "checkpoint", engine, ema)
    average = load_file(folder / "ema.safetensors")
    if difference == "another parameter":
        average["other"] = average.pop("bias")
        words = "of another model: 2 trained parameters are only there or only here, the first is "
        words += "bias"
    else:
        average["bias"] = torch.zeros(3)
        words = r"bias has the shape \(3,\) there and \(2,\) here"
    save_file(average, folder / "ema.safetensors")
    write_sums(folder, 0)
    with pytest.raises(DataError, match=words):
        load_checkpoint(folder, engine=engine, ema=ema, expected=STATE, rank=0)


def test_other_workers_need_the_converted_checkpoint(tmp_path):
    engine = FakeEngine(stage=0)
    folder = saved(tmp_path / "checkpoint", engine, ShardedEma(engine, 0.9))
    state = json.loads((folder / "train_state.json").read_text())
    (folder / "train_state.json").write_text(json.dumps({**state, "zero_stage": 2}))
    write_sums(folder, 0)
    divided = FakeEngine(stage=2)
    ema = ShardedEma(divided, 0.9)
    expected = replace(STATE, zero_stage=2, world_size=3)
    with pytest.raises(DataError, match="written by 1 workers, there are 3, and it was not conv"):
        load_checkpoint(folder, engine=divided, ema=ema, expected=expected, rank=0)
    assert divided.loaded_from is None
    ema.scatter = lambda network, read: None
    state = load_checkpoint(
        folder, engine=divided, ema=ema, expected=expected, rank=0, universal=tmp_path / "converted"
    )
    assert divided.loaded_from == str(tmp_path / "converted")
    assert divided.universal_while_loading is True
    assert divided.load_universal_checkpoint is False
    assert state.world_size == 3


def test_a_checkpoint_that_deepspeed_cannot_load_is_refused(tmp_path):
    engine = FakeEngine()
    ema = ShardedEma(engine, 0.9)
    folder = saved(tmp_path / "checkpoint", engine, ema)
    engine.loads = False
    with pytest.raises(DataError, match=r"DeepSpeed could not load .* is it complete\?"):
        load_checkpoint(folder, engine=engine, ema=ema, expected=STATE, rank=0)


@pytest.mark.parametrize("name", ["ema.safetensors", "state/weights.pt", "train_state.json"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_one_flipped_bit_is_found_by_one_of_the_workers(tmp_path, name, world_size):
    folder = saved(tmp_path / "checkpoint", FakeEngine(), ShardedEma(FakeEngine(), 0.9))
    for rank in range(world_size):
        check_sums(folder, part=rank, num_parts=world_size)
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found = []
    for rank in range(world_size):
        try:
            check_sums(folder, part=rank, num_parts=world_size)
        except DataError as error:
            found.append(str(error))
    assert len(found) == 1
    assert f"{folder} is damaged: {name} was written with" in found[0]


@pytest.mark.parametrize("damage", ["bit", "state", "hashes"])
@pytest.mark.parametrize("others", [(), ("checkpoint_1",), ("checkpoint_1", "checkpoint_3")])
def test_damage_costs_no_other_checkpoint(tmp_path, damage, others):
    """A message that was followed once deleted all of them."""
    engine = FakeEngine()
    ema = ShardedEma(engine, 0.9)
    folder = saved(tmp_path / "checkpoint_2", engine, ema)
    for name in others:
        saved(tmp_path / name, engine, ema)
    (tmp_path / "checkpoint_9").mkdir()  # no checkpoint
    name = {"bit": "ema.safetensors", "state": "train_state.json", "hashes": "sha256/rank0.json"}
    (folder / name[damage]).write_bytes(b"[]")
    with pytest.raises(DataError, match="is damaged") as caught:
        load_checkpoint(folder, engine=engine, ema=ema, expected=STATE, rank=0)
    said = str(caught.value)
    assert "train folder" not in said
    if not others:
        assert "restore it from a backup, or give another one as --checkpoint" in said
    else:
        assert f"There are also {', '.join(others)}: cil export takes one as --checkpoint" in said
    newest = others == ("checkpoint_1",)
    assert (f"To go on from checkpoint_1 instead, delete {folder} and run" in said) == newest


def test_hashes_that_name_other_places_are_refused(tmp_path):
    folder = saved(tmp_path / "checkpoint", FakeEngine(), ShardedEma(FakeEngine(), 0.9))
    sums = folder / "sha256" / "rank0.json"
    sums.write_text(json.dumps({"files": {"../other": "0" * 64}}))
    with pytest.raises(DataError, match=r"names '\.\./other', which is not in the checkpoint"):
        check_sums(folder)


@pytest.mark.parametrize(
    "damage",
    ["no state", "state cut off", "state of another program", "no average", "average cut", "zip"],
)
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, damage):
    engine = FakeEngine()
    ema = ShardedEma(engine, 0.9)
    folder = saved(tmp_path / "checkpoint", engine, ema)
    state, average = folder / "train_state.json", folder / "ema.safetensors"
    if damage == "no state":
        state.unlink()
    elif damage == "state cut off":
        state.write_bytes(state.read_bytes()[:20])
    elif damage == "state of another program":
        state.write_text(json.dumps({**asdict(STATE), "new": 1}))
    elif damage == "no average":
        average.unlink()
    elif damage == "average cut":
        average.write_bytes(average.read_bytes()[:-4])
    else:
        weights = folder / "state" / "weights.pt"
        weights.write_bytes(weights.read_bytes()[:-40])
        engine.load_checkpoint = lambda *_, **__: torch.load(weights, weights_only=True)
    with pytest.raises(DataError, match=str(folder)):
        load_checkpoint(folder, engine=engine, ema=ema, expected=STATE, rank=0)


@pytest.mark.parametrize("here", ["torch", "on the CPU"])
def test_steps_are_counted_as_the_optimiser_does_that_goes_on(tmp_path, here):
    """DeepSpeed's Adam for the CPU counts in a number, torch's in a tensor."""
    engine = FakeEngine()
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    engine.optimizer = torch.optim.AdamW([parameter], lr=0.1)
    engine.param_groups = engine.optimizer.param_groups
    ema = ShardedEma(FakeEngine(), 0.9)
    folder = saved(tmp_path / "checkpoint", engine, ema)
    engine.optimizer.step()
    state = engine.optimizer.state[parameter]
    if here == "torch":
        state["step"] = 5
    else:
        state["step"] += 4
        engine.optimizer.__class__ = type("DeepSpeedCPUAdam", (torch.optim.Optimizer,), {})
    load_checkpoint(folder, engine=engine, ema=ema, expected=STATE, rank=0)
    assert state["step"] == 5
    assert isinstance(state["step"], torch.Tensor if here == "torch" else int)
    if here == "torch":
        engine.optimizer.step()
        assert state["step"].item() == 6


def test_a_failure_that_is_no_damage_is_left_as_it_is(tmp_path):
    engine = FakeEngine()
    ema = ShardedEma(engine, 0.9)
    folder = saved(tmp_path / "checkpoint", engine, ema)

    def lose_a_worker(*_, **__):
        raise RuntimeError("Connection closed by peer")

    engine.load_checkpoint = lose_a_worker
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        load_checkpoint(folder, engine=engine, ema=ema, expected=STATE, rank=0)


def test_a_later_format_is_named_whatever_is_in_it(tmp_path):
    (tmp_path / "train_state.json").write_text(json.dumps({"format_version": 3, "new": 1}))
    with pytest.raises(DataError, match="format_version is 3 there and 2 here"):
        STATE.require_same_run(read_state(tmp_path))


# -- a disk that is full --------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["weights", "script"])
def test_a_full_disk_is_an_error_of_the_system_after_the_collective_call(tmp_path, what):
    """The kernel itself says that there is no space: the file is a link to /dev/full."""
    engine = FakeEngine()

    def copy_script(folder):
        Path("/dev/full").write_text("No space left")

    engine._copy_recovery_script = copy_script
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "weights.pt").symlink_to("/dev/full")
    came_to_the_end = []

    def save_checkpoint_and_wait(folder, tag, save_latest):
        if what == "weights":
            path = f"{folder}/{tag}/weights.pt"
            engine.checkpoint_engine.save({"weight": torch.rand(10000)}, path)
        else:
            engine._copy_recovery_script(folder)
        came_to_the_end.append(True)

    engine.save_checkpoint = save_checkpoint_and_wait
    ema = ShardedEma(engine, 0.9)
    with pytest.raises(OSError, match=r"No space left|file write failed|unexpected pos"):
        save_checkpoint(tmp_path, engine=engine, ema=ema, state=STATE, rank=0)
    assert came_to_the_end == [True]
    assert engine.checkpoint_engine.save == engine.save
    assert engine._copy_recovery_script is copy_script


def test_an_average_that_cannot_be_written_is_an_error_of_the_system(tmp_path):
    engine = FakeEngine()
    (tmp_path / "ema.safetensors").mkdir()
    ema = ShardedEma(engine, 0.9)
    with pytest.raises(OSError, match=r"ema\.safetensors: Error while serializing"):
        save_checkpoint(tmp_path, engine=engine, ema=ema, state=STATE, rank=0)


@pytest.mark.parametrize("stage", [0, 2])
def test_the_size_of_a_checkpoint_is_known_before(tmp_path, stage):
    """Weights, two moments, master weights and the average, all of 6 numbers in float32."""
    engine = FakeEngine(stage=stage)
    ema = ShardedEma(engine, 0.9)
    assert checkpoint_bytes(engine, ema, 0) == (1 + 3 + 1) * 6 * 4
    assert checkpoint_bytes(engine, ema, 1) == (0 if stage == 0 else 3 * 6 * 4)


# -- the average ----------------------------------------------------------------------------------


def test_the_average_follows_the_weights_by_its_decay():
    engine = FakeEngine(1.0, stage=2)
    ema = ShardedEma(engine, 0.75)
    engine.single_partition_of_fp32_groups[0].fill_(2.0)
    ema.update()
    assert ema.shards[0].tolist() == [1.25] * 4
    ema.update()
    assert ema.shards[0].tolist() == [1.4375] * 4
    assert ema.shards[1].tolist() == [-1.0] * 2
    assert engine.single_partition_of_fp32_groups[0].tolist() == [2.0] * 4


def test_the_average_is_kept_where_each_stage_has_its_fp32_weights():
    shapes = {
        stage: [tuple(shard.shape) for shard in ShardedEma(FakeEngine(stage=stage), 0.9).shards]
        for stage in range(4)
    }
    assert shapes == {0: [(2, 2), (2,)], 1: [(4,), (2,)], 2: [(4,), (2,)], 3: [(3,)]}


def test_without_zero_rank_0_writes_for_all(tmp_path):
    engine = FakeEngine(stage=0)
    ema = ShardedEma(engine, 0.5)
    with torch.no_grad():
        engine.module.weight.add_(1.0)
    ema.update()
    before = [shard.clone() for shard in ema.shards]
    for rank in (0, 1):
        folder = tmp_path / str(rank)
        folder.mkdir()
        save_checkpoint(folder, engine=engine, ema=ema, state=STATE, rank=rank)
    written = [sorted(path.name for path in (tmp_path / rank).iterdir()) for rank in "01"]
    assert written == [
        ["ema.safetensors", "latest", "sha256", "state", "train_state.json"],
        ["sha256", "state"],
    ]
    for rank in (0, 1):
        fresh = ShardedEma(FakeEngine(7.0), 0.5)
        load_checkpoint(tmp_path / "0", engine=engine, ema=fresh, expected=STATE, rank=rank)
        assert all(torch.equal(a, b) for a, b in zip(fresh.shards, before, strict=True))


def test_what_is_frozen_is_not_in_the_average():
    engine = FakeEngine(stage=0)
    engine.module.bias.requires_grad_(False)
    engine.param_groups = [{"params": [engine.module.weight]}]
    assert list(ShardedEma(engine, 0.5).gather(engine.module)) == ["weight"]
