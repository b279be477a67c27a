"""DeepSpeed's dictionary and the learning rate, from our settings."""

import pytest

from pipelines.config import TrainConfig
from pipelines.zero_config import deepspeed_config, learning_rate, micro_batch_size


def test_batch_sizes_multiply_to_the_global_batch():
    config = TrainConfig(global_batch_size=24, num_workers=2, micro_batch_size=3)
    found = deepspeed_config(config)
    assert found["train_batch_size"] == 24
    assert found["train_micro_batch_size_per_gpu"] == 3
    assert found["gradient_accumulation_steps"] == 4


def test_without_a_micro_batch_a_worker_takes_its_share_at_once():
    config = TrainConfig(global_batch_size=8, num_workers=2)
    assert micro_batch_size(config) == 4
    assert deepspeed_config(config)["gradient_accumulation_steps"] == 1


def test_settings_reach_deepspeed():
    config = TrainConfig(
        zero_stage=1, precision="bf16", max_grad_norm=0.5, adam_beta2=0.95, weight_decay=0.1
    )
    found = deepspeed_config(config)
    assert found["zero_optimization"]["stage"] == 1
    assert found["bf16"] == {"enabled": True}
    assert found["gradient_clipping"] == 0.5
    assert found["optimizer"]["params"]["betas"] == [0.9, 0.95]
    assert found["optimizer"]["params"]["weight_decay"] == 0.1


def test_warm_up_then_cosine():
    config = TrainConfig(
        num_steps=110, warmup_steps=10, learning_rate=1.0, final_learning_rate_fraction=0.2
    )
    assert learning_rate(config, 0) == pytest.approx(0.1)
    assert learning_rate(config, 9) == pytest.approx(1.0)
    assert learning_rate(config, 10) == pytest.approx(1.0)
    assert learning_rate(config, 60) == pytest.approx(0.6)
    assert learning_rate(config, 110) == pytest.approx(0.2)


@pytest.mark.parametrize(("steps", "warm_up"), [(1, 0), (1, 50), (5, 5), (100, 0)])
def test_extreme_schedules_stay_in_range(steps, warm_up):
    config = TrainConfig(num_steps=steps, warmup_steps=warm_up, learning_rate=1.0)
    rates = [learning_rate(config, step) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[0] == pytest.approx(1 / warm_up if warm_up else 1.0)
