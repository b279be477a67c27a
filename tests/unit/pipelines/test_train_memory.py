"""What the plan adds up against engines that are built and counted, and against DeepSpeed's own."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

from pipelines.config import child_environment
from pipelines.settings import TrainConfig
from pipelines.train_memory import NetworkSize, checkpoint_bytes, clips_per_worker, rank_bytes

WORKER = Path(__file__).with_name("memory_worker.py")
PARTS = ("weights", "masters", "optimiser", "average")
BASE = {
    "num_workers": 1,
    "global_batch_size": 1,
    "micro_batch_size": 1,
    "communication_elements": 10_000,
}
CASES = {
    "0-fp32": {"zero_stage": 0},
    "0-bf16": {"zero_stage": 0, "precision": "bf16"},
    "1-fp32": {"zero_stage": 1},
    "2-bf16": {"zero_stage": 2, "precision": "bf16"},
    "2-temporal": {"zero_stage": 2, "trainable": "temporal"},
    "3-bf16": {"zero_stage": 3, "precision": "bf16"},
}
SIZE = NetworkSize(total=1_600_000_000, trained=1_600_000_000)


def count(folder, cases, *, world_size):
    rendezvous = folder / "rendezvous"
    rendezvous.unlink(missing_ok=True)
    output = folder / "found.json"
    spec = {
        "world_size": world_size,
        "rendezvous": str(rendezvous),
        "output": str(output),
        "cases": cases,
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    logs = [folder / f"rank{rank}.log" for rank in range(world_size)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder / "spec.json"), str(rank)],
            env=child_environment(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1"),
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * world_size, logs[0].read_text()[-3000:]
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    cases = {name: {**BASE, **case} for name, case in CASES.items()}
    return count(tmp_path_factory.mktemp("memory"), cases, world_size=1)


def planned(case, found, **settings):
    config = TrainConfig(**{**BASE, **case, **settings})
    size = NetworkSize(total=found["parameters"], trained=found["trained"])
    return config, size, rank_bytes(config, size, activations=0)


def close(found, expected, share=0.005):
    """Within padding and a few small tensors."""
    return found == pytest.approx(expected, rel=share, abs=8192)


@pytest.mark.parametrize("name", CASES)
def test_the_plan_has_the_bytes_that_an_engine_holds(counted, name):
    found = counted[name]
    config, _, plan = planned(CASES[name], found)
    assert found["trained"] < found["parameters"] or name != "2-temporal"
    for part in PARTS:
        assert close(found[part], getattr(plan, part)), part
    held = plan.weights + plan.masters + plan.optimiser + plan.average
    if config.zero_stage == 3:  # there the gradients and their bucket stay
        held += plan.gradients + 10_000 * (2 if config.precision == "bf16" else 4)
    assert close(found["between_steps"], held)
    if config.zero_stage < 3:
        assert close(found["before_update"] - found["between_steps"], plan.gradients)


@pytest.mark.parametrize("name", CASES)
def test_the_plan_has_the_bytes_that_a_checkpoint_takes(counted, name):
    """Two small files describe the rest; the average is written by ourselves."""
    found = counted[name]
    config, size, _ = planned(CASES[name], found)
    expected = checkpoint_bytes(config, size) - 4 * size.trained
    assert found["checkpoint"] == pytest.approx(expected, rel=0.02, abs=700_000)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_workers_hold_what_the_plan_divides(tmp_path, stage):
    case = {
        "zero_stage": stage,
        "num_workers": 2,
        "global_batch_size": 2,
        "persistent_elements": 0,
    }
    found = count(tmp_path, {"case": {**BASE, **case}}, world_size=2)["case"]
    _, _, plan = planned(case, found)
    for part in PARTS:
        assert close(found[part], getattr(plan, part), 0.02), part


# -- DeepSpeed's own estimates --------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 4, 16])
def test_stage_2_agrees_with_deepspeed(workers):
    config = TrainConfig(num_workers=workers, zero_stage=2, precision="bf16")
    ours = rank_bytes(config, SIZE, activations=0)
    _, theirs = estimate_zero2_model_states_mem_needs(
        SIZE.total, num_gpus_per_node=workers, cpu_offload=False
    )
    copied = 4 * SIZE.total // workers
    assert ours.states - ours.average + copied == pytest.approx(theirs, rel=1e-6)
    assert ours.average == 4 * SIZE.total // workers  # which DeepSpeed does not know of


@pytest.mark.parametrize("workers", [1, 4, 16])
def test_stage_2_with_the_optimiser_on_the_cpu_agrees_with_deepspeed(workers):
    config = TrainConfig(
        num_workers=workers, zero_stage=2, precision="bf16", offload_optimizer=True
    )
    ours = rank_bytes(config, SIZE, activations=0)
    cpu, gpu = estimate_zero2_model_states_mem_needs(
        SIZE.total, num_gpus_per_node=workers, additional_buffer_factor=1.0
    )
    assert ours.states - ours.gradients == gpu
    host = workers * (ours.host - 4 * SIZE.total // workers)  # without our average
    assert host == pytest.approx(16 * SIZE.total, rel=1e-6)
    assert cpu == max(4 * workers, 16) * SIZE.total  # theirs counts the start on all workers too


@pytest.mark.parametrize("workers", [4, 16])
def test_stage_3_agrees_with_deepspeed(workers):
    config = TrainConfig(num_workers=workers, zero_stage=3, precision="bf16")
    ours = rank_bytes(config, SIZE, activations=0)
    _, theirs, largest = estimate_zero3_model_states_mem_needs(
        SIZE.total, 0, num_gpus_per_node=workers, cpu_offload=False
    )
    assert largest == 0
    copied = 4 * SIZE.total // workers
    # theirs is the sum of stage 2 divided, without the 16-bit weights
    expected = ours.states - ours.weights - ours.average + copied
    assert expected == pytest.approx(theirs, rel=1e-6)


# -- what settings change -------------------------------------------------------------------------


def total(**settings):
    return rank_bytes(TrainConfig(**settings), SIZE, activations=10**9).total


def test_each_stage_needs_less_than_the_one_before():
    # without buckets and gathered weights, which are upper bounds
    states = [
        rank_bytes(
            TrainConfig(num_workers=8, zero_stage=stage, precision="bf16"), SIZE, activations=0
        ).states
        for stage in range(4)
    ]
    assert states == sorted(states, reverse=True)
    assert len(set(states)) == 4


def test_what_is_not_trained_needs_only_its_weights():
    frozen = NetworkSize(total=1000, trained=0)
    config = TrainConfig(num_workers=2, zero_stage=2, precision="bf16", communication_elements=1)
    needed = rank_bytes(config, frozen, activations=0)
    assert needed.states == needed.weights == 2000


def test_a_pass_and_an_update_are_not_added():
    config = TrainConfig(zero_stage=2, communication_elements=1)
    size = NetworkSize(total=1000, trained=1000)
    small, large = (rank_bytes(config, size, activations=count) for count in (1, 10**6))
    assert small.total == small.states + small.buffers + small.update
    assert large.total == large.states + large.buffers + 10**6


def test_clips_of_a_worker():
    config = TrainConfig(global_batch_size=8, num_workers=2, micro_batch_size=2)
    assert clips_per_worker(config) == (2, 2)
    assert clips_per_worker(dataclasses.replace(config, num_workers=3)) is None
    assert clips_per_worker(dataclasses.replace(config, micro_batch_size=3)) is None
    assert clips_per_worker(dataclasses.replace(config, micro_batch_size=None)) == (4, 1)
