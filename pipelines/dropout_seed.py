"""Dropout inside of a network as a function of seed, step and clips, like all other randomness.

Networks draw it from torch's global generator. Here that one is seeded for a forward pass and then
left as it was. Activation checkpointing keeps the state and draws the same mask again. The clips of
a forward pass share one stream, so with dropout losses depend on the size of the micro-batch and on
the number of workers; without dropout they do not.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cil.rng import Stream, bits

__all__ = ["seeded_dropout"]


@contextmanager
def seeded_dropout(
    *, seed: int, sample_id: int, step: int, device: torch.device | str
) -> Iterator[None]:
    """Seed torch's global generators inside of the context.

    Args:
        seed: the run's.
        sample_id: of the first clip of the forward pass.
        step: of training.
        device: where the network computes.
    """
    low, high = bits(
        2, seed=seed, sample_ids=[sample_id], stream=Stream.NETWORK_DROPOUT, step=step
    )[0].tolist()
    where = torch.device(device)
    on_gpu = where.type == "cuda"
    with torch.random.fork_rng(devices=[where] if on_gpu else []):
        torch.default_generator.manual_seed(low | (high >> 1) << 32)
        if on_gpu:
            with torch.cuda.device(where):
                torch.cuda.manual_seed(low | (high >> 1) << 32)
        yield
