"""Which clip is trained on when: pure functions of integers, so a resumed run goes on exactly.

Clips form one endless sequence, epoch after epoch, each epoch its own permutation. Step s takes the
positions [s * B, (s + 1) * B) of it, B the global batch; a worker takes its contiguous share.
Nothing depends on the number of workers, and no clip is lost where one epoch ends.
"""

from functools import lru_cache

import torch

from cil.errors import ConfigError
from cil.rng import permutation

__all__ = ["clip_indices", "worker_slots"]


def clip_indices(
    *, num_clips: int, global_batch_size: int, step: int, seed: int
) -> tuple[int, ...]:
    """Return the clips of one step, in order.

    Args:
        num_clips: clips in the data set.
        global_batch_size: clips per step over all workers.
        step: optimiser step, from 0.
        seed: the run's seed.

    Returns:
        Clip numbers in [0, num_clips), ``global_batch_size`` of them.
    """
    first = step * global_batch_size
    return tuple(
        int(_epoch_order(num_clips, seed, position // num_clips)[position % num_clips])
        for position in range(first, first + global_batch_size)
    )


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


@lru_cache(maxsize=2)
def _epoch_order(num_clips: int, seed: int, epoch: int) -> torch.Tensor:
    return permutation(num_clips, seed=seed, epoch=epoch)
