"""A checkpoint taken up by another number of workers, without Ray: 2 to 1, 1 to 2 and 2 to 3."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines.resume import convert

STAGES = (0, 1, 2, 3)
STEPS, BREAK = 6, 3
# ten clips: steps of six cross an epoch within a batch, before the break and after it
BASE = {"num_steps": STEPS, "global_batch_size": 6, "micro_batch_size": None, "warmup_steps": 1}


@pytest.fixture(scope="module")
def run_workers():
    spec = importlib.util.spec_from_file_location(
        "zero_stages_for_resharding", Path(__file__).with_name("test_zero_stages.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.run_workers


def case(name, stage, workers, **changes):
    train = {**BASE, "zero_stage": stage, "num_workers": workers, **changes.pop("train", {})}
    return {"name": name, "train": train, **changes}


def losses(result):
    return [row["loss"] for row in result["rows"]]


@pytest.fixture(scope="module", params=STAGES)
def stage(request):
    return request.param


@pytest.fixture(scope="module", params=[(2, 1), (1, 2), (2, 3)], ids=["2to1", "1to2", "2to3"])
def taken_up(request, encoded_run, run_workers, tmp_path_factory, stage):
    """The same run undisturbed, broken off, and taken up by other workers."""
    before, after = request.param
    if stage not in (2, 3) and after == 3:
        pytest.skip("three workers are about the padding of shards, which stages 2 and 3 show")
    folder = tmp_path_factory.mktemp("resharding")
    whole = case("whole", stage, before)
    broken = case("broken", stage, before, stop_after=BREAK)
    found = run_workers(encoded_run, folder / "one", [whole, broken], world_size=before)
    checkpoint = folder / "one" / "broken" / "last"
    on = case("on", stage, after, **{"from": str(checkpoint), "from_step": BREAK})
    if stage:
        on["universal"] = str(convert(checkpoint, folder / "universal", zero_stage=stage))
    resumed = run_workers(encoded_run, folder / "two", [on], world_size=after)["on"]
    return folder, found, resumed


@pytest.mark.slow
def test_losses_go_on_as_if_nothing_had_happened(taken_up):
    _, found, resumed = taken_up
    expected = losses(found["whole"])
    assert losses(found["broken"]) == expected[:BREAK]
    apart = max(abs(a - b) for a, b in zip(losses(resumed), expected[BREAK:], strict=True))
    print(apart)
    assert apart < 1e-6
    norms = [row["grad_norm"] for row in resumed["rows"]]
    expected_norms = [row["grad_norm"] for row in found["whole"]["rows"][BREAK:]]
    assert norms == pytest.approx(expected_norms, abs=1e-5)


@pytest.mark.slow
def test_the_average_is_scattered_and_gathered_bit_for_bit(taken_up):
    folder, _, _ = taken_up
    before = load_file(folder / "one" / "broken" / "last" / "ema.safetensors")
    again = load_file(folder / "two" / "on" / "again" / "ema.safetensors")
    assert sorted(again) == sorted(before)
    assert [name for name, value in before.items() if not value.equal(again[name])] == []


@pytest.mark.slow
def test_the_final_average_agrees(taken_up):
    folder, _, _ = taken_up
    expected = load_file(folder / "one" / "whole" / "last" / "ema.safetensors")
    found = load_file(folder / "two" / "on" / "last" / "ema.safetensors")
    start = load_file(folder / "one" / "broken" / "last" / "ema.safetensors")
    apart = sum((found[n] - v).double().square().sum() for n, v in expected.items()).sqrt()
    went = sum((start[n] - v).double().square().sum() for n, v in expected.items()).sqrt()
    print((apart / went).item())
    assert torch.isfinite(apart)
    assert apart < 2e-3 * went
