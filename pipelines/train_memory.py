"""How many bytes a training worker needs: sums over what DeepSpeed and the weight average hold.

In: the numbers of a network (`NetworkSize`), training settings, the activations of one micro-batch
(`activations.py` measures them). Out: `RankBytes`. Nothing is built and nothing is imported here.

b is the bytes of a number in the arithmetic of the forward pass, T of P numbers are trained, W is
the number of workers, D is W where ZeRO divides and else 1. DeepSpeed's own estimates for stage 2
and 3 are the sum of weights, masters, gradients, optimiser and the copy of the gradients below.
"""

import math
from dataclasses import dataclass, fields

from pipelines.settings import TrainConfig
from pipelines.zero_config import micro_batch_size

__all__ = ["NetworkSize", "RankBytes", "checkpoint_bytes", "clips_per_worker", "rank_bytes"]

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_MAX_LIVE_ELEMENTS = 1_000_000_000
"""Numbers that stage 3 keeps gathered at most: DeepSpeed's default, which we do not change."""
_ALLREDUCE_ELEMENTS = 500_000_000
"""Numbers that stage 0 copies together for one all-reduce: DeepSpeed's default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkSize:
    """Numbers of a network's parameters."""

    total: int
    """All parameters, P."""
    trained: int
    """Those that are trained, T."""
    small: int = 0
    """Those in parameters below ``train.persistent_elements``, whole on every worker in stage 3."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankBytes:
    """Bytes on one worker's device, and on its host if the optimiser is there."""

    weights: int
    """What the forward pass reads."""
    masters: int
    """Trained weights in fp32, where the weights themselves are not these."""
    gradients: int
    """What is kept after a backward pass."""
    optimiser: int
    """Two fp32 moments per trained number."""
    average: int
    """Weight average (EMA) in fp32."""
    buffers: int
    """Buckets of communication, and the weights that stage 3 has gathered; an estimate."""
    activations: int
    """Peak of a forward and backward pass of one micro-batch."""
    update: int
    """Copy of the gradients in fp32 and what AdamW makes in passing; an estimate."""
    host: int
    """What is in the host's memory in place of the device's."""

    @property
    def states(self) -> int:
        """Bytes that stay for the whole run, and the gradients."""
        return self.weights + self.masters + self.gradients + self.optimiser + self.average

    @property
    def total(self) -> int:
        """Peak on the device: a pass and an update do not happen at the same time."""
        return self.states + self.buffers + max(self.activations, self.update)

    def to_json(self) -> dict[str, int]:
        """Return plain data for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "total": self.total
        }


def rank_bytes(config: TrainConfig, size: NetworkSize, *, activations: int) -> RankBytes:
    """Add up what one worker needs.

    Args:
        config: training settings; they need not fit together as a run's must.
        size: of the network.
        activations: bytes of one micro-batch, see `activations.py`.

    Returns:
        Bytes; padding, the device's own context and fragmentation are left out.
    """
    stage, workers, b = config.zero_stage, config.num_workers, _BYTES[config.precision]
    own = _divided(size.trained, workers if stage >= 1 else 1)
    weights = size.total * b
    if stage == 3:
        whole = size.small if workers > 1 else 0
        weights = _divided(size.total, workers) * b + whole * b
    masters = 0 if stage == 0 and config.precision == "fp32" else 4 * own
    gradients = (own if stage >= 2 else size.trained) * b
    copied = 0 if stage == 0 and config.precision == "fp32" else 4 * own
    offload = config.offload_optimizer
    moments, average = 8 * own, 4 * own
    return RankBytes(
        weights=weights,
        masters=0 if offload else masters,
        gradients=gradients,
        optimiser=0 if offload else moments,
        average=0 if offload else average,
        buffers=_buffers(config, size, b),
        activations=activations,
        update=0 if offload else copied + 4 * own,
        host=masters + moments + average + copied if offload else 0,
    )


def _divided(count: int, workers: int) -> int:
    return math.ceil(count / workers)


def _buffers(config: TrainConfig, size: NetworkSize, b: int) -> int:
    if config.zero_stage == 0:
        return min(size.trained, _ALLREDUCE_ELEMENTS) * b if config.num_workers > 1 else 0
    bucket = config.communication_elements * b
    if config.zero_stage == 3:
        apart = size.total - size.small if config.num_workers > 1 else 0
        return bucket + min(apart, _MAX_LIVE_ELEMENTS) * b
    return bucket * (2 if config.use_gpu else 1)  # two where communication overlaps


def checkpoint_bytes(config: TrainConfig, size: NetworkSize) -> int:
    """Estimate what one checkpoint takes on disk, over all workers.

    Weights as the forward pass reads them (in stage 3 those that are not trained), two moments,
    masters where there are any, and the whole weight average; what describes them is left out.
    """
    b = _BYTES[config.precision]
    masters = 0 if config.zero_stage == 0 and config.precision == "fp32" else 4
    weights = size.total if config.zero_stage < 3 else size.total - size.trained
    return weights * b + size.trained * (masters + 8 + 4)


def clips_per_worker(config: TrainConfig) -> tuple[int, int] | None:
    """Return clips per forward pass and passes per step; None if the batch does not divide."""
    if config.global_batch_size % config.num_workers:
        return None
    micro = micro_batch_size(config)
    share = config.global_batch_size // config.num_workers
    return None if share % micro else (micro, share // micro)
