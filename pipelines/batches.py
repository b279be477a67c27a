"""Batches of this worker's clips, by the number of the step.

In: the readers of the buckets and the order of the clips. Out: tensors in float32 on the CPU. A
batch depends on the step alone, so batches can be read ahead (`pipelines.prefetch`) and again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cil.errors import DataError
from pipelines.data_order import DataOrder, worker_slots
from pipelines.records import ClipRecord
from pipelines.shard_reader import LatentClip, ShardReader

__all__ = ["Batch", "BatchReader", "BatchSource"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Clips of one bucket, this worker's share of a step; posterior of the latents, unscaled."""

    bucket: str
    slots: tuple[int, ...]
    """Places of the clips in the global batch."""
    records: tuple[ClipRecord, ...]
    mean: Tensor
    """(B, F, C, h, w) float32."""
    std: Tensor
    """(B, F, C, h, w) float32."""
    image_embeds: Tensor
    """(B, L, D) float32."""
    text_embeds: Tensor | None
    """(B, L, D) float32, if the data set has texts."""
    conditioning_latents: Tensor | None = None
    """(B, F, C, h, w) float32, unscaled, if the data set has them."""
    epoch: int = 0
    """Epoch of the data set that the step belongs to."""

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.slots)

    def part(self, start: int, stop: int) -> "Batch":
        """Return some of the clips."""
        return Batch(
            bucket=self.bucket,
            slots=self.slots[start:stop],
            records=self.records[start:stop],
            mean=self.mean[start:stop],
            std=self.std[start:stop],
            image_embeds=self.image_embeds[start:stop],
            text_embeds=None if self.text_embeds is None else self.text_embeds[start:stop],
            conditioning_latents=(
                None if self.conditioning_latents is None else self.conditioning_latents[start:stop]
            ),
            epoch=self.epoch,
        )


class BatchSource(Protocol):
    """What gives a training worker its batches."""

    def batch(self, step: int) -> Batch:
        """Return this worker's share of a step, from 0.

        Raises:
            DataError: a clip cannot be read.
        """
        ...

    def keys(self, step: int) -> list[str]:
        """Return the sample keys of all clips of a step, over all workers."""
        ...


class BatchReader:
    """Reads batches from shards."""

    def __init__(
        self,
        readers: Mapping[str, ShardReader],
        *,
        global_batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        """Read for one worker.

        Args:
            readers: of each bucket that is trained on.
            global_batch_size: clips per step over all workers.
            seed: the run's seed, for the order.
            rank: number of this worker.
            world_size: workers.
            pin_memory: put tensors where a GPU can copy them from while it computes.

        Raises:
            ConfigError: the batch does not divide over the workers.
        """
        self._readers = readers
        self._order = DataOrder(
            {bucket: len(reader) for bucket, reader in readers.items()},
            global_batch_size=global_batch_size,
            seed=seed,
        )
        self._slots = tuple(
            worker_slots(global_batch_size=global_batch_size, rank=rank, world_size=world_size)
        )
        self._pin_memory = pin_memory

    def batch(self, step: int) -> Batch:
        """Read this worker's share of a step, from 0.

        Raises:
            ConfigError: the cache is too small.
            DataError: a shard is missing or damaged, or clips of a bucket differ in shape.
        """
        chosen = self._order.clips(step)
        reader = self._readers[chosen.bucket]
        records: list[ClipRecord] = []
        parts: dict[str, Tensor] = {}
        for place, slot in enumerate(self._slots):
            # One clip at a time, so that no more than its shard is held.
            clip = reader.stored_clip(chosen.indices[slot])
            records.append(clip.record)
            found = _tensors(clip)
            if not parts:
                parts = {name: self._room_for(tensor) for name, tensor in found.items()}
            shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
            expected = {name: tuple(part.shape[1:]) for name, part in parts.items()}
            if shapes != expected:
                raise DataError(
                    f"the clips {records[0].key} and {clip.record.key} of {chosen.bucket} differ "
                    f"in shape: {expected} and {shapes}; encode the videos again"
                )
            for name, tensor in found.items():
                parts[name][place].copy_(tensor)
        return Batch(
            bucket=chosen.bucket,
            slots=self._slots,
            records=tuple(records),
            mean=parts["mean"],
            std=parts["std"],
            image_embeds=parts["image_embeds"],
            text_embeds=parts.get("text_embeds"),
            conditioning_latents=parts.get("conditioning_latents"),
            epoch=self._order.epoch(step),
        )

    def keys(self, step: int) -> list[str]:
        """Return the sample keys of all clips of a step, over all workers."""
        chosen = self._order.clips(step)
        reader = self._readers[chosen.bucket]
        return [reader.key(index) for index in chosen.indices]

    def _room_for(self, tensor: Tensor) -> Tensor:
        """Allocate what this tensor of every clip takes; it is converted right into its place."""
        shape = (len(self._slots), *tensor.shape)
        return torch.empty(shape, dtype=torch.float32, pin_memory=self._pin_memory)


def _tensors(clip: LatentClip) -> dict[str, Tensor]:
    found = {
        "mean": clip.mean,
        "std": clip.std,
        "image_embeds": clip.image_embeds,
        "text_embeds": clip.text_embeds,
        "conditioning_latents": clip.conditioning_latents,
    }
    return {name: tensor for name, tensor in found.items() if tensor is not None}
