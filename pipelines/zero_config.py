"""From our training settings to DeepSpeed's dictionary; no other DeepSpeed configuration exists."""

import math
from typing import Any

from pipelines.settings import TrainConfig

__all__ = ["deepspeed_config", "learning_rate", "micro_batch_size"]


def micro_batch_size(config: TrainConfig) -> int:
    """Clips per worker and forward pass."""
    return config.micro_batch_size or config.global_batch_size // config.num_workers


def deepspeed_config(config: TrainConfig) -> dict[str, Any]:
    """Build the dictionary that ``deepspeed.initialize`` takes.

    Args:
        config: training settings.

    Returns:
        Batch sizes, optimiser, precision and ZeRO settings.
    """
    micro = micro_batch_size(config)
    return {
        "train_batch_size": config.global_batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": config.global_batch_size // (micro * config.num_workers),
        "gradient_clipping": config.max_grad_norm,
        "steps_per_print": 10**9,
        "bf16": {"enabled": config.precision == "bf16"},
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": config.use_gpu,
            "contiguous_gradients": True,
        },
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": config.learning_rate,
                "betas": [config.adam_beta1, config.adam_beta2],
                "weight_decay": config.weight_decay,
                # torch's AdamW: the fused one of DeepSpeed would be compiled on first use
                "torch_adam": True,
            },
        },
    }


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of a step: linear warm-up, then a cosine to the final fraction.

    Args:
        config: training settings.
        step: optimiser step, from 0.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    length = max(config.num_steps - 1 - config.warmup_steps, 1)  # the last step ends the cosine
    progress = min((step - config.warmup_steps) / length, 1.0)
    floor = config.final_learning_rate_fraction
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * (floor + (1 - floor) * cosine)
