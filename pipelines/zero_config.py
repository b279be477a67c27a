"""From our training settings to DeepSpeed's dictionary; no other DeepSpeed configuration exists."""

import math
from typing import Any

from pipelines.settings import TrainConfig

__all__ = [
    "SMALLEST_LOSS_SCALE",
    "clips_gradient",
    "deepspeed_config",
    "learning_rate",
    "micro_batch_size",
]

SMALLEST_LOSS_SCALE = 1
"""Smallest loss scale of fp16; a step that would need it is an error, it would be no scale."""


def micro_batch_size(config: TrainConfig) -> int:
    """Clips per worker and forward pass."""
    return config.micro_batch_size or config.global_batch_size // config.num_workers


def clips_gradient(config: TrainConfig) -> bool:
    """Return whether DeepSpeed looks at the gradient and clips it.

    With torch's optimiser (fp32 without ZeRO) it would clip, but update with a NaN; `engine` does
    both then, with one norm.
    """
    return config.zero_stage > 0 or config.precision != "fp32"


def deepspeed_config(config: TrainConfig) -> dict[str, Any]:
    """Build the dictionary that ``deepspeed.initialize`` takes.

    Args:
        config: training settings.

    Returns:
        Batch sizes, optimiser, precision and ZeRO settings.
    """
    micro = micro_batch_size(config)
    made: dict[str, Any] = {
        "train_batch_size": config.global_batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": config.global_batch_size // (micro * config.num_workers),
        "gradient_clipping": config.max_grad_norm if clips_gradient(config) else 0.0,
        "steps_per_print": 10**9,
        "bf16": {"enabled": config.precision == "bf16"},
        "zero_optimization": _zero(config),
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": config.learning_rate,
                "betas": [config.adam_beta1, config.adam_beta2],
                "weight_decay": config.weight_decay,
                # torch's AdamW: the fused one of DeepSpeed would be compiled on first use. The one
                # for an optimiser on the CPU is compiled too, but torch's takes many times longer.
                "torch_adam": not config.offload_optimizer,
            },
        },
    }
    if config.precision == "fp16":
        made["fp16"] = {
            "enabled": True,
            "loss_scale": 0,  # adapts
            "hysteresis": 1,  # each overflow halves it
            "min_loss_scale": SMALLEST_LOSS_SCALE,
        }
    return made


def _zero(config: TrainConfig) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.zero_stage == 0:
        return zero
    zero |= {
        "overlap_comm": config.use_gpu,
        "contiguous_gradients": True,
        "reduce_bucket_size": config.communication_elements,
    }
    if config.zero_stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": config.communication_elements,
            "stage3_param_persistence_threshold": config.persistent_elements,
        }
    else:
        zero["allgather_bucket_size"] = config.communication_elements
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return zero


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of a step: linear warm-up, then ``lr_schedule`` to the final fraction.

    Args:
        config: training settings.
        step: optimiser step, from 0.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.learning_rate
    length = max(config.num_steps - 1 - config.warmup_steps, 1)  # the last step ends the schedule
    progress = min((step - config.warmup_steps) / length, 1.0)
    falling = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress}
    floor = config.final_learning_rate_fraction
    return config.learning_rate * (floor + (1 - floor) * falling[config.lr_schedule])
