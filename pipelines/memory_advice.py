"""What a worker that ran out of memory is told: the settings that would save most, in bytes.

The same estimates as `cil plan --stage train`, before and after each change.
"""

from collections.abc import Iterator
from dataclasses import replace

from pipelines.activations import MeasuredNetwork
from pipelines.config import RunConfig
from pipelines.plan_training import measure_run
from pipelines.plan_training_table import shown_bytes
from pipelines.settings import TrainConfig
from pipelines.train_memory import rank_bytes
from pipelines.zero_config import micro_batch_size

__all__ = ["memory_advice", "savings"]

_ADVICE = 3
_FEWEST_ELEMENTS = 5_000_000
"""Smaller buckets of communication cost time."""


def memory_advice(config: RunConfig) -> str:
    """Name the three changes that save most, each by itself.

    Args:
        config: the run.

    Returns:
        Text that follows a message.

    Raises:
        DataError: the data set cannot be read.
    """
    found = savings(config.train, measure_run(config))[:_ADVICE]
    if not found:
        return "no setting would save much; use more workers or a GPU with more memory"
    changes = "; ".join(
        f"{setting} saves about {shown_bytes(count)}{_price(setting)}" for setting, count in found
    )
    return f"estimated for one worker, each by itself: {changes} (cil plan --stage train has all)"


def _price(setting: str) -> str:
    """Say which changes cannot be made to a training that has begun."""
    return " (begins anew)" if setting.startswith(("train.zero_stage", "train.precision")) else ""


def savings(train: TrainConfig, measured: MeasuredNetwork) -> list[tuple[str, int]]:
    """Return changes of settings and the bytes that each saves on a device, the largest first."""
    now = _total(train, measured)
    found = [(text, now - _total(changed, measured)) for text, changed in _changes(train)]
    return sorted(((text, saved) for text, saved in found if saved > 0), key=lambda one: -one[1])


def _total(train: TrainConfig, measured: MeasuredNetwork) -> int:
    share = measured.activations(
        micro_batch_size(train), checkpointing=train.gradient_checkpointing
    )
    if train.precision != "fp32" and measured.precision == "fp32":
        share //= 2
    return rank_bytes(train, measured.size, activations=share).total


def _changes(train: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    micro = micro_batch_size(train)
    if not train.gradient_checkpointing:
        yield "train.gradient_checkpointing true", replace(train, gradient_checkpointing=True)
    if micro % 2 == 0:
        text = f"train.micro_batch_size {micro // 2}"
        yield text, replace(train, micro_batch_size=micro // 2)
    for stage in (1, 2, 3):
        if stage == train.zero_stage + 1:
            yield f"train.zero_stage {stage}", replace(train, zero_stage=stage)
    if train.use_gpu and train.zero_stage >= 1 and not train.offload_optimizer:
        yield "train.offload_optimizer true", replace(train, offload_optimizer=True)
    if train.precision == "fp32":
        yield "train.precision bf16", replace(train, precision="bf16")
    fewer = train.communication_elements // 4
    if train.zero_stage >= 1 and fewer >= _FEWEST_ELEMENTS:
        text = f"train.communication_elements {fewer}"
        yield text, replace(train, communication_elements=fewer)
