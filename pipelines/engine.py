"""DeepSpeed around a network: what is trained, the engine that trains it, and one update of it.

In: training settings and a model. Out: a DeepSpeed engine, whose optimiser holds the trained
parameters only. No Ray: whoever calls has a process per worker with RANK, WORLD_SIZE and
MASTER_ADDR set.
"""

import shutil
from pathlib import Path
from typing import Any

import torch

from cil.errors import ConfigError
from cil.models import ImageToVideoModel
from pipelines.allocator import keep_freed_memory
from pipelines.config import environment
from pipelines.extension_locks import remove_stale_locks
from pipelines.lora import lora_parameters
from pipelines.settings import TrainConfig
from pipelines.zero_config import clips_gradient, deepspeed_config

__all__ = ["choose_trainable", "start_engine", "update_weights"]


def choose_trainable(config: TrainConfig, model: ImageToVideoModel) -> frozenset[str]:
    """Let gradients reach what is trained, and nothing else.

    Args:
        config: training settings.
        model: its network's parameters are marked in place.

    Returns:
        Names of the trained parameters.

    Raises:
        ConfigError: the network has no parameter of that kind.
    """
    names = frozenset(name for name, _ in model.network.named_parameters())
    if config.trainable == "temporal":
        names = model.temporal_parameters()
    elif config.trainable == "lora":
        names = lora_parameters(model.network)
    if not names:
        raise ConfigError(
            f"train.trainable {config.trainable!r} leaves nothing to train in a network of the "
            f"family {model.family}; use all"
        )
    for name, parameter in model.network.named_parameters():
        parameter.requires_grad_(name in names)
    return names


def start_engine(config: TrainConfig, model: ImageToVideoModel) -> Any:
    """Start DeepSpeed around the model's network; a collective call.

    Args:
        config: training settings.
        model: the same on every worker, on the CPU.

    Returns:
        The DeepSpeed engine.

    Raises:
        ConfigError: nothing to train, or no compiler for an optimiser on the CPU.
    """
    if config.offload_optimizer:
        _check_compiler()
        remove_stale_locks(_extensions())
    import deepspeed

    if not config.use_gpu:
        keep_freed_memory(all_of_it=True)
    choose_trainable(config, model)
    model.network.train()  # a model that was read is in evaluation mode, without dropout
    if config.gradient_checkpointing:
        model.network.enable_gradient_checkpointing()  # type: ignore[operator]
    # Without a GPU, DeepSpeed would compile a shared-memory all-reduce on first use: that takes a
    # compiler and a minute, and waits for ever if an earlier build was killed. gloo is enough.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if config.use_gpu else "gloo")
    # Not deepspeed.zero.Init: diffusers' networks cannot be built inside it.
    engine, *_ = deepspeed.initialize(
        model=model.network,
        model_parameters=[p for p in model.network.parameters() if p.requires_grad],
        config=deepspeed_config(config),
    )
    if config.zero_stage == 0 and config.precision == "bf16":
        _undo_first_update(engine)
    return engine


@torch.no_grad()
def _undo_first_update(engine: Any) -> None:
    """Undo what DeepSpeed's optimiser of half precision without ZeRO does when it is made.

    It takes a step with a zero gradient to allocate its state. That decays the weights once, and
    the first real step would be corrected for bias as the second.
    """
    optimiser = engine.optimizer
    optimiser.optimizer.state.clear()
    for copies, parameters in zip(optimiser.fp32_groups, optimiser.fp16_groups, strict=True):
        for copy, parameter in zip(copies, parameters, strict=True):
            copy.copy_(parameter)


def _extensions() -> Path:
    from torch.utils.cpp_extension import get_default_build_root

    return Path(environment("TORCH_EXTENSIONS_DIR") or get_default_build_root())


def _check_compiler() -> None:
    from deepspeed.git_version_info import installed_ops

    if installed_ops.get("cpu_adam"):  # compiled when DeepSpeed was installed, as in our image
        return
    compiler = environment("CXX") or "c++"
    missing = [name for name in (compiler, "ninja") if shutil.which(name) is None]
    if missing:
        raise ConfigError(
            "train.offload_optimizer compiles DeepSpeed's Adam on first use; not found on the "
            f"worker: {', '.join(missing)}; install it or leave train.offload_optimizer out"
        )


def update_weights(engine: Any, config: TrainConfig) -> float:
    """Update the weights with the gradient that ``engine.backward`` has gathered.

    Before the last micro-batch of a step this only counts it.

    Args:
        engine: DeepSpeed engine.
        config: its settings.

    Returns:
        After the last micro-batch, the norm of the gradient before clipping. If it is not finite,
        the weights are as they were; in fp16 the next attempt has half the loss scale.
    """
    if not clips_gradient(config):
        if not engine.is_gradient_accumulation_boundary():
            engine.step()
            return 0.0
        # not those of the module: to walk its layers costs as much as to clip
        trained = [p for group in engine.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        if torch.isfinite(norm):
            torch.nn.utils.clip_grads_with_norm_(trained, config.max_grad_norm, norm)
            engine.step()
        return float(norm)
    engine.step()
    return float(engine.get_global_grad_norm() or 0.0)
