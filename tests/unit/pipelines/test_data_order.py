import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cil.errors import ConfigError
from pipelines.data_order import clip_indices, worker_slots


def sequence(num_clips, batch, steps, seed=0):
    """All clips of some steps, one after the other."""
    parts = [
        clip_indices(num_clips=num_clips, global_batch_size=batch, step=step, seed=seed)
        for step in range(steps)
    ]
    assert all(len(part) == batch for part in parts)
    return [index for part in parts for index in part]


sizes = st.integers(1, 40)


@settings(max_examples=100, deadline=None)
@given(num_clips=sizes, batch=st.integers(1, 24), epochs=st.integers(1, 4), seed=sizes)
def test_every_epoch_is_a_permutation_and_no_clip_is_lost_between(num_clips, batch, epochs, seed):
    steps = -(-num_clips * epochs // batch)
    order = sequence(num_clips, batch, steps, seed)
    for epoch in range(epochs):
        part = order[epoch * num_clips : (epoch + 1) * num_clips]
        assert sorted(part) == list(range(num_clips))


@settings(max_examples=50, deadline=None)
@given(num_clips=sizes, first=st.integers(1, 12), second=st.integers(1, 12))
def test_the_batch_size_cuts_one_and_the_same_sequence(num_clips, first, second):
    total = first * second
    assert sequence(num_clips, first, second) == sequence(num_clips, second, first)
    assert sequence(num_clips, total, 1) == sequence(num_clips, 1, total)


@settings(max_examples=50, deadline=None)
@given(num_clips=sizes, share=st.integers(1, 6), step=st.integers(0, 1000), seed=sizes)
def test_workers_share_a_batch_without_gap_or_overlap(num_clips, share, step, seed):
    """For 1, 2, 3, 4, 6 and 12 workers, in order of their ranks, it is the same batch."""
    batch = 12 * share
    whole = clip_indices(num_clips=num_clips, global_batch_size=batch, step=step, seed=seed)
    for world_size in (1, 2, 3, 4, 6, 12):
        slots = [
            worker_slots(global_batch_size=batch, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        assert {len(part) for part in slots} == {batch // world_size}
        joined = [whole[slot] for part in slots for slot in part]
        assert joined == list(whole)


@pytest.mark.parametrize("world_size", [3, 5, 16])
def test_a_batch_that_does_not_divide_is_refused(world_size):
    with pytest.raises(ConfigError, match=f"8 clips does not divide over {world_size} workers"):
        worker_slots(global_batch_size=8, rank=0, world_size=world_size)


def test_a_step_does_not_depend_on_the_steps_before():
    """A resumed run asks for step 1000 first; a cache must not show."""
    fresh = clip_indices(num_clips=7, global_batch_size=4, step=1000, seed=5)
    sequence(7, 4, 20, seed=5)
    sequence(9, 4, 20, seed=5)
    assert clip_indices(num_clips=7, global_batch_size=4, step=1000, seed=5) == fresh


def test_epochs_and_seeds_have_their_own_orders():
    orders = {tuple(sequence(50, 50, 1, seed)) for seed in range(5)}
    assert len(orders) == 5
    two = sequence(50, 50, 2)
    assert two[:50] != two[50:]


def test_a_batch_may_be_larger_than_the_data_set():
    indices = clip_indices(num_clips=3, global_batch_size=8, step=0, seed=0)
    assert [sorted(indices[:3]), sorted(indices[3:6])] == [[0, 1, 2], [0, 1, 2]]
    assert clip_indices(num_clips=1, global_batch_size=4, step=9, seed=0) == (0, 0, 0, 0)


def test_the_order_is_the_one_that_checkpoints_rely_on():
    """A run that was started by an earlier version must go on with the same clips."""
    assert sequence(8, 4, 3, seed=1) == [5, 3, 7, 1, 2, 4, 0, 6, 3, 6, 2, 5]
