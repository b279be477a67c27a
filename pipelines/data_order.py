"""Which clips are trained on when: pure functions of integers, so a resumed run goes on exactly.

The clips of a bucket form one endless sequence, epoch after epoch, each epoch its own permutation.
Its batch k takes the positions [k * B, (k + 1) * B) of it, B the global batch; so a bucket's clips
come equally often, none is lost, and none comes again before all others of the bucket have come.

A batch has clips of one bucket. Of a bucket with n clips, epoch e of the whole data set has the
batches that begin in [e * n, (e + 1) * n), in their order; which bucket has its turn is a random
order of all batches of the epoch. So the buckets' shares are those of their clips, over any number
of epochs to within one batch. Where an epoch of the data set ends, the last batch of each bucket is
filled with the first clips of that bucket's next permutation, fewer than B, and the next epoch
leaves these out. So an epoch has each clip once, except those that filled the epoch before (none)
and those that fill its own end (once more); of a bucket with n < B, some epochs have no batch and
the others several rounds. With one bucket, step s is its batch s.

A worker takes its contiguous share of a batch. Nothing depends on the number of workers, and the
position is the number of the step alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch

from cil.errors import ConfigError
from cil.rng import Stream, permutation

__all__ = ["DataOrder", "StepClips", "worker_slots"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepClips:
    """The clips of one step, over all workers."""

    bucket: str
    indices: tuple[int, ...]
    """Numbers of the clips among those of the bucket."""


class DataOrder:
    """The order of the clips of one or several buckets."""

    def __init__(self, num_clips: Mapping[str, int], *, global_batch_size: int, seed: int) -> None:
        """Fix the order.

        Args:
            num_clips: clips of each bucket, at least one each; the order of the mapping does not
                matter.
            global_batch_size: clips per step over all workers.
            seed: the run's seed.
        """
        self._buckets = tuple(sorted(num_clips))
        self._counts = tuple(num_clips[bucket] for bucket in self._buckets)
        assert self._counts
        assert min(self._counts) > 0
        self._batch, self._seed = global_batch_size, seed
        # all that is kept: the permutations of this epoch and of the next, 8 bytes per clip each
        self._epoch_order = lru_cache(maxsize=2 * len(self._counts))(_epoch_order)

    def clips(self, step: int) -> StepClips:
        """Return the clips of one step, from 0, in their places in the global batch."""
        number, batch = self._turn(step)
        count, first = self._counts[number], batch * self._batch
        indices = tuple(
            int(self._epoch_order(count, self._seed, position // count)[position % count])
            for position in range(first, first + self._batch)
        )
        return StepClips(bucket=self._buckets[number], indices=indices)

    def epoch(self, step: int) -> int:
        """Return the epoch of the data set that a step belongs to, from 0."""
        # Each bucket rounds up its batches by less than one: the epoch is at most this, and as
        # far below as that takes.
        epoch = step * self._batch // sum(self._counts)
        while self._steps_before(epoch) > step:
            epoch -= 1
        return epoch

    def _batches_before(self, epoch: int) -> tuple[int, ...]:
        """Return how many batches of each bucket begin before an epoch."""
        return tuple(-(-epoch * count // self._batch) for count in self._counts)

    def _steps_before(self, epoch: int) -> int:
        return sum(self._batches_before(epoch))

    def _turn(self, step: int) -> tuple[int, int]:
        """Return whose turn it is, by the bucket's place in the sorted names, and which batch."""
        if len(self._counts) == 1:
            return 0, step
        epoch = self.epoch(step)
        before, after = self._batches_before(epoch), self._batches_before(epoch + 1)
        counts = tuple(stop - start for start, stop in zip(before, after, strict=True))
        number, nth = _turns(counts, self._seed, epoch)[:, step - sum(before)].tolist()
        return number, before[number] + nth


def worker_slots(*, global_batch_size: int, rank: int, world_size: int) -> range:
    """Return the places in the global batch that a worker computes.

    Raises:
        ConfigError: the batch does not divide evenly.
    """
    if global_batch_size % world_size:
        raise ConfigError(
            f"a global batch of {global_batch_size} clips does not divide over {world_size} workers"
        )
    share = global_batch_size // world_size
    return range(rank * share, (rank + 1) * share)


def _epoch_order(num_clips: int, seed: int, epoch: int) -> torch.Tensor:
    return permutation(num_clips, seed=seed, epoch=epoch)


@lru_cache(maxsize=2)
def _turns(counts: tuple[int, ...], seed: int, epoch: int) -> torch.Tensor:
    """Return for each batch of an epoch its bucket, and how many of that bucket came before.

    Returns:
        (2, batches) int64.
    """
    buckets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    nth = torch.cat([torch.arange(count) for count in counts])
    order = permutation(len(buckets), seed=seed, epoch=epoch, stream=Stream.BATCH_ORDER)
    turns = buckets[order]
    # A stable sort by bucket finds the places of each bucket's turns, in their order.
    return torch.stack([turns, nth[torch.argsort(torch.argsort(turns, stable=True), stable=True)]])
