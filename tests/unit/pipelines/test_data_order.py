"""The order of clips: complete epochs, no dependence on workers, a pure function of integers."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cil.errors import ConfigError
from pipelines.data_order import clip_indices, worker_slots


def sequence(num_clips: int, batch: int, steps: int, seed: int = 0) -> list[int]:
    return [
        index
        for step in range(steps)
        for index in clip_indices(
            num_clips=num_clips, global_batch_size=batch, step=step, seed=seed
        )
    ]


@settings(max_examples=25, deadline=None)
@given(num_clips=st.integers(1, 40), batch=st.integers(1, 17), seed=st.integers(0, 2**63 - 1))
def test_every_epoch_holds_every_clip_once(num_clips, batch, seed):
    steps = -(-3 * num_clips // batch)
    seen = sequence(num_clips, batch, steps, seed)
    for epoch in range(3):
        part = seen[epoch * num_clips : (epoch + 1) * num_clips]
        assert sorted(part) == list(range(num_clips))


def test_epochs_and_seeds_have_different_orders():
    first = sequence(50, 10, 5)
    assert first != sequence(50, 10, 10)[50:]
    assert first != sequence(50, 10, 5, seed=1)
    assert first == sequence(50, 10, 5)


def test_a_step_can_be_computed_alone():
    whole = sequence(13, 4, 30)
    alone = clip_indices(num_clips=13, global_batch_size=4, step=29, seed=0)
    assert list(alone) == whole[29 * 4 :]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_workers_share_a_batch_without_overlap(world_size):
    shares = [
        list(worker_slots(global_batch_size=8, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert Counter(slot for share in shares for slot in share) == Counter(range(8))
    assert {len(share) for share in shares} == {8 // world_size}


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match="8 clips does not divide over 3 workers"):
        worker_slots(global_batch_size=8, rank=0, world_size=3)
