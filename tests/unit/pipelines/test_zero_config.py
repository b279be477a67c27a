import itertools
import math

import pytest

from pipelines.settings import TrainConfig
from pipelines.zero_config import deepspeed_config, learning_rate, micro_batch_size


def schedule(**settings):
    config = TrainConfig(learning_rate=2.0, **settings)
    return [learning_rate(config, step) for step in range(config.num_steps)]


def test_warm_up_is_linear_and_reaches_the_peak():
    rates = schedule(num_steps=100, warmup_steps=10)
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert max(rates) == pytest.approx(2.0)
    assert rates[0] > 0


@pytest.mark.parametrize("num_steps", [2, 3, 10, 400])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 1.0])
def test_the_last_step_has_the_stated_fraction_of_the_peak(num_steps, fraction):
    rates = schedule(num_steps=num_steps, warmup_steps=0, final_learning_rate_fraction=fraction)
    assert rates[0] == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(2.0 * fraction, abs=1e-12)


def test_the_cosine_falls_all_the_way_and_is_half_way_in_the_middle():
    rates = schedule(num_steps=111, warmup_steps=10, final_learning_rate_fraction=0.1)
    falling = rates[10:]
    assert all(late < early for early, late in itertools.pairwise(falling))
    assert falling[50] == pytest.approx(2.0 * 0.55)
    assert falling[25] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))))


@pytest.mark.parametrize(("num_steps", "warmup_steps"), [(1, 0), (1, 1), (1, 50), (5, 50), (5, 5)])
def test_short_runs_have_a_rate_for_every_step(num_steps, warmup_steps):
    rates = schedule(num_steps=num_steps, warmup_steps=warmup_steps)
    expected = [2.0 * (step + 1) / max(warmup_steps, 1) for step in range(num_steps)]
    assert rates == pytest.approx(expected)


def test_steps_after_the_end_keep_the_final_rate():
    config = TrainConfig(num_steps=10, warmup_steps=2, learning_rate=2.0)
    assert learning_rate(config, 10_000) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("settings", "micro", "accumulation"),
    [
        ({"global_batch_size": 8, "num_workers": 2}, 4, 1),
        ({"global_batch_size": 8, "num_workers": 2, "micro_batch_size": 1}, 1, 4),
        ({"global_batch_size": 8, "num_workers": 1, "micro_batch_size": 2}, 2, 4),
        ({"global_batch_size": 8, "num_workers": 8}, 1, 1),
    ],
)
def test_the_batch_is_micro_batches_times_accumulation_times_workers(settings, micro, accumulation):
    config = TrainConfig(**settings)
    made = deepspeed_config(config)
    assert micro_batch_size(config) == micro
    assert made["train_micro_batch_size_per_gpu"] == micro
    assert made["gradient_accumulation_steps"] == accumulation
    assert micro * accumulation * config.num_workers == made["train_batch_size"] == 8


def test_every_setting_that_deepspeed_needs_reaches_it():
    config = TrainConfig(
        max_grad_norm=0.5,
        precision="bf16",
        zero_stage=1,
        learning_rate=3e-4,
        adam_beta1=0.8,
        adam_beta2=0.95,
        weight_decay=0.2,
        use_gpu=True,
    )
    made = deepspeed_config(config)
    assert made["gradient_clipping"] == 0.5
    assert made["bf16"] == {"enabled": True}
    assert made["zero_optimization"]["stage"] == 1
    assert made["zero_optimization"]["overlap_comm"] is True
    optimiser = made["optimizer"]
    assert optimiser["type"] == "AdamW"
    assert optimiser["params"]["lr"] == 3e-4
    assert optimiser["params"]["betas"] == [0.8, 0.95]
    assert optimiser["params"]["weight_decay"] == 0.2
    assert deepspeed_config(TrainConfig())["bf16"] == {"enabled": False}
