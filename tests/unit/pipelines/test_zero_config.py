import itertools
import math

import pytest

from cil.errors import ConfigError
from pipelines.config import validate_config
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


def test_the_line_falls_by_the_same_amount_each_step():
    rates = schedule(num_steps=111, warmup_steps=10, lr_schedule="linear")
    assert rates[10] == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(0.2)
    falls = [early - late for early, late in itertools.pairwise(rates[10:])]
    assert falls == pytest.approx([1.8 / 100] * 100)


def test_the_constant_stays_at_the_peak_after_the_warm_up():
    rates = schedule(num_steps=8, warmup_steps=3, lr_schedule="constant")
    assert rates == pytest.approx([2 / 3, 4 / 3, 2, 2, 2, 2, 2, 2])


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_every_schedule_starts_at_the_peak_without_warm_up(name):
    rates = schedule(num_steps=5, warmup_steps=0, lr_schedule=name)
    assert rates[0] == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(2.0 if name == "constant" else 0.2)


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
    plain = TrainConfig(max_grad_norm=0.5, precision="fp32", zero_stage=0)
    assert deepspeed_config(plain)["gradient_clipping"] == 0.0  # `update_weights` clips
    assert made["bf16"] == {"enabled": True}
    assert made["zero_optimization"]["stage"] == 1
    assert made["zero_optimization"]["overlap_comm"] is True
    optimiser = made["optimizer"]
    assert optimiser["type"] == "AdamW"
    assert optimiser["params"]["lr"] == 3e-4
    assert optimiser["params"]["betas"] == [0.8, 0.95]
    assert optimiser["params"]["weight_decay"] == 0.2
    assert deepspeed_config(TrainConfig())["bf16"] == {"enabled": False}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_sizes_of_communication_reach_every_stage_that_has_them(stage):
    config = TrainConfig(zero_stage=stage, communication_elements=7000, persistent_elements=50)
    zero = deepspeed_config(config)["zero_optimization"]
    sizes = {
        name: value
        for name, value in zero.items()
        if isinstance(value, int) and value in (7000, 50)
    }
    reduce, gather = {"reduce_bucket_size": 7000}, {"allgather_bucket_size": 7000}
    fetch = {"stage3_prefetch_bucket_size": 7000, "stage3_param_persistence_threshold": 50}
    assert sizes == [{}, reduce | gather, reduce | gather, reduce | fetch][stage]
    assert zero["stage"] == stage
    assert "offload_optimizer" not in zero


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_deepspeed_itself_accepts_the_dictionary(stage, precision):
    """It refuses unknown names, so a spelling that changes is noticed."""
    from deepspeed.runtime.precision_config import get_bfloat16_config, get_float16_config
    from deepspeed.runtime.zero.config import get_zero_config

    made = deepspeed_config(TrainConfig(zero_stage=stage, precision=precision, use_gpu=True))
    zero = get_zero_config(made)
    assert zero.stage == stage
    assert get_bfloat16_config(made).enabled == (precision == "bf16")
    half = get_float16_config(made)
    assert half.enabled == (precision == "fp16")
    if half.enabled:
        assert (half.loss_scale, half.min_loss_scale, half.hysteresis) == (0, 1, 1)


def test_an_optimiser_on_the_cpu_is_that_of_deepspeed():
    made = deepspeed_config(TrainConfig(use_gpu=True, offload_optimizer=True))
    assert made["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert made["optimizer"]["params"]["torch_adam"] is False
    assert deepspeed_config(TrainConfig())["optimizer"]["params"]["torch_adam"] is True


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"precision": "fp16"}, "train.precision fp16 needs train.use_gpu; on CPUs use bf16"),
        (
            {"precision": "fp16", "use_gpu": True, "zero_stage": 0},
            "train.precision fp16 needs train.zero_stage >= 1, got 0",
        ),
        ({"offload_optimizer": True}, "train.offload_optimizer needs train.use_gpu"),
        (
            {"offload_optimizer": True, "use_gpu": True, "zero_stage": 0},
            "train.offload_optimizer needs train.zero_stage >= 1, got 0",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_settings(train, words):
    with pytest.raises(ConfigError, match=words):
        validate_config({"train": train}, source="test")


def test_what_can_work_is_not_refused():
    for stage in (1, 2, 3):
        train = {"offload_optimizer": True, "use_gpu": True, "zero_stage": stage}
        assert validate_config({"train": train}, source="test").train.zero_stage == stage
