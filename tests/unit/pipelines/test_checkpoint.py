import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file

from cil.errors import DataError
from pipelines.checkpoint import TrainState, load_checkpoint, save_checkpoint
from pipelines.weight_average import ShardedEma

STATE = TrainState(
    num_steps=7,
    num_clips_seen=56,
    seed=3,
    world_size=1,
    config_hash="c" * 64,
    manifest_fingerprint="m" * 64,
)


class FakeEngine:
    """What checkpoints use of a DeepSpeed engine, on one process."""

    def __init__(self, value=1.0, *, stage=2):
        self.module = torch.nn.Linear(2, 2)
        self.optimizer = self
        self.single_partition_of_fp32_groups = [torch.full((4,), value), torch.full((2,), -value)]
        self.fp32_partitioned_groups_flat = [torch.full((3,), value)]
        self.param_groups = [{"params": list(self.module.parameters())}]
        self.stage, self.loads = stage, True

    def zero_optimization_stage(self):
        return self.stage

    def save_checkpoint(self, folder, tag):
        (self._folder(folder) / tag).mkdir(parents=True)

    def load_checkpoint(self, folder, tag):
        return (str(folder) if self.loads else None), {}

    @staticmethod
    def _folder(folder):
        from pathlib import Path

        return Path(folder)


def saved(folder, engine, ema, state=STATE):
    folder.mkdir()
    save_checkpoint(folder, engine=engine, ema=ema, state=state, rank=0, last=False)
    return folder


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("format_version", 2),
        ("seed", 4),
        ("world_size", 2),
        ("config_hash", "d" * 64),
        ("manifest_fingerprint", "n" * 64),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_both_values(name, there):
    with pytest.raises(DataError) as caught:
        STATE.require_same_run(replace(STATE, **{name: there}))
    message = str(caught.value)
    assert f"{name} is {there} there and {getattr(STATE, name)} here" in message
    assert "use the settings it was made with, or another output.dir" in message


def test_progress_does_not_make_another_run():
    assert STATE.require_same_run(replace(STATE, num_steps=9000, num_clips_seen=1)) is None


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    engine = FakeEngine()
    ema = ShardedEma(engine, 0.9)
    engine.single_partition_of_fp32_groups[0].fill_(2.0)
    ema.update()
    before = [shard.clone() for shard in ema.shards]
    folder = saved(tmp_path / "checkpoint", engine, ema)
    assert sorted(path.name for path in folder.iterdir()) == [
        "ema_rank0.safetensors",
        "state",
        "train_state.json",
    ]
    fresh = ShardedEma(FakeEngine(5.0), 0.9)
    expected = replace(STATE, num_steps=0, num_clips_seen=0)
    state = load_checkpoint(folder, engine=engine, ema=fresh, expected=expected, rank=0)
    assert state == STATE
    assert all(torch.equal(a, b) for a, b in zip(fresh.shards, before, strict=True))


def test_another_runs_checkpoint_changes_nothing(tmp_path):
    engine = FakeEngine()
    folder = saved(tmp_path / "checkpoint", engine, ShardedEma(engine, 0.9))
    ema = ShardedEma(FakeEngine(5.0), 0.9)
    with pytest.raises(DataError, match="seed is 3 there and 4 here"):
        load_checkpoint(folder, engine=engine, ema=ema, expected=replace(STATE, seed=4), rank=0)
    assert ema.shards[0].tolist() == [5.0] * 4


def test_another_number_of_workers_is_named_before_a_missing_file(tmp_path):
    """The second worker has no file of its own there: that is no damage."""
    engine = FakeEngine()
    ema = ShardedEma(engine, 0.9)
    folder = saved(tmp_path / "checkpoint", engine, ema)
    with pytest.raises(DataError, match="world_size is 1 there and 2 here"):
        load_checkpoint(
            folder, engine=engine, ema=ema, expected=replace(STATE, world_size=2), rank=1
        )


def test_a_checkpoint_that_deepspeed_cannot_load_is_refused(tmp_path):
    engine = FakeEngine()
    ema = ShardedEma(engine, 0.9)
    folder = saved(tmp_path / "checkpoint", engine, ema)
    engine.loads = False
    with pytest.raises(DataError, match=r"DeepSpeed could not load .* is it complete\?"):
        load_checkpoint(folder, engine=engine, ema=ema, expected=STATE, rank=0)


@pytest.mark.parametrize(
    "damage", ["no state", "state cut off", "state of another version", "no average", "average cut"]
)
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, damage):
    engine = FakeEngine()
    ema = ShardedEma(engine, 0.9)
    folder = saved(tmp_path / "checkpoint", engine, ema)
    state, average = folder / "train_state.json", folder / "ema_rank0.safetensors"
    if damage == "no state":
        state.unlink()
    elif damage == "state cut off":
        state.write_bytes(state.read_bytes()[:20])
    elif damage == "state of another version":
        state.write_text(json.dumps({**asdict(STATE), "new": 1}))
    elif damage == "no average":
        average.unlink()
    else:
        average.write_bytes(average.read_bytes()[:-4])
    with pytest.raises(DataError, match=str(folder)):
        load_checkpoint(folder, engine=engine, ema=ema, expected=STATE, rank=0)


def test_the_average_follows_the_weights_by_its_decay():
    engine = FakeEngine(1.0)
    ema = ShardedEma(engine, 0.75)
    engine.single_partition_of_fp32_groups[0].fill_(2.0)
    ema.update()
    assert ema.shards[0].tolist() == [1.25] * 4
    ema.update()
    assert ema.shards[0].tolist() == [1.4375] * 4
    assert ema.shards[1].tolist() == [-1.0] * 2
    assert engine.single_partition_of_fp32_groups[0].tolist() == [2.0] * 4


def test_the_average_is_saved_in_float32(tmp_path):
    engine = FakeEngine(1.0)
    folder = saved(tmp_path / "checkpoint", engine, ShardedEma(engine, 0.9))
    tensors = load_file(folder / "ema_rank0.safetensors")
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "group0": torch.float32,
        "group1": torch.float32,
    }


def test_the_average_is_kept_where_each_stage_has_its_fp32_weights():
    shapes = {
        stage: [tuple(shard.shape) for shard in ShardedEma(FakeEngine(stage=stage), 0.9).shards]
        for stage in range(4)
    }
    assert shapes == {0: [(2, 2), (2,)], 1: [(4,), (2,)], 2: [(4,), (2,)], 3: [(3,)]}


def test_without_zero_one_file_serves_all_ranks(tmp_path):
    engine = FakeEngine(stage=0)
    ema = ShardedEma(engine, 0.5)
    with torch.no_grad():
        engine.module.weight.add_(1.0)
    ema.update()
    before = [shard.clone() for shard in ema.shards]
    for rank in (0, 1):
        folder = tmp_path / str(rank)
        folder.mkdir()
        save_checkpoint(folder, engine=engine, ema=ema, state=STATE, rank=rank, last=True)
    written = [sorted(path.name for path in (tmp_path / rank).iterdir()) for rank in "01"]
    files = ["ema.safetensors", "ema_rank0.safetensors", "state", "train_state.json"]
    assert written == [files, ["state"]]
    fresh = ShardedEma(FakeEngine(stage=0), 0.5)
    load_checkpoint(tmp_path / "0", engine=engine, ema=fresh, expected=STATE, rank=1)
    assert all(torch.equal(a, b) for a, b in zip(fresh.shards, before, strict=True))
    whole = load_file(tmp_path / "0" / "ema.safetensors")
    assert torch.equal(whole["weight"], engine.module.weight - 0.5)
    assert torch.equal(whole["bias"], engine.module.bias)


def test_what_is_frozen_is_not_in_the_average():
    engine = FakeEngine(stage=0)
    engine.module.bias.requires_grad_(False)
    engine.param_groups = [{"params": [engine.module.weight]}]
    assert list(ShardedEma(engine, 0.5).gather(engine.module)) == ["weight"]
