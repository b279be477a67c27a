import collections
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cil.errors import ConfigError
from pipelines.data_order import DataOrder, worker_slots


def clip_indices(*, num_clips, global_batch_size, step, seed):
    """Clips of a step of a data set with one bucket."""
    order = DataOrder({"b": num_clips}, global_batch_size=global_batch_size, seed=seed)
    return order.clips(step).indices


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


# -- several buckets ------------------------------------------------------------------------------


class Epochs:
    """The steps of some epochs of a data set, found by asking for one step after the other."""

    def __init__(self, counts, batch, seed, epochs):
        self.order = DataOrder(counts, global_batch_size=batch, seed=seed)
        self.of = [[] for _ in range(epochs)]
        for step in itertools.count():
            epoch = self.order.epoch(step)
            if epoch >= epochs:
                break
            self.of[epoch].append(self.order.clips(step))


bucket_counts = st.dictionaries(
    st.sampled_from(["16x16x2", "16x16x4", "32x16x2", "16x32x2", "8x8x8"]),
    st.integers(1, 40),
    min_size=2,
)
COUNTS = {"small": 5, "large": 40, "middle": 17}


@settings(max_examples=60, deadline=None)
@given(counts=bucket_counts, batch=st.integers(1, 12), seed=sizes, epochs=st.integers(1, 4))
def test_each_bucket_has_its_own_endless_sequence(counts, batch, seed, epochs):
    """Whatever the other buckets are, its clips come as if it were alone: nothing lost, nothing
    doubled, and each epoch of the whole has the batches that begin in it."""
    walked = Epochs(counts, batch, seed, epochs)
    for bucket, count in counts.items():
        taken = [[item for item in epoch if item.bucket == bucket] for epoch in walked.of]
        found = [index for epoch in taken for item in epoch for index in item.indices]
        assert all(len(item.indices) == batch for epoch in taken for item in epoch)
        assert found == sequence(count, batch, len(found) // batch, seed)
        done = 0
        for epoch, items in enumerate(taken):
            begins = [position * batch for position in range(done, done + len(items))]
            assert all(epoch * count <= begin < (epoch + 1) * count for begin in begins)
            done += len(items)
        assert done * batch >= epochs * count > (done - 1) * batch


@settings(max_examples=60, deadline=None)
@given(counts=bucket_counts, batch=st.integers(1, 12), seed=sizes)
def test_the_first_epoch_has_every_clip_once_but_for_what_fills_the_ends(counts, batch, seed):
    (epoch,) = Epochs(counts, batch, seed, 1).of
    for bucket, count in counts.items():
        found = [index for item in epoch if item.bucket == bucket for index in item.indices]
        assert sorted(found[:count]) == list(range(count))
        assert 0 <= len(found) - count < batch


@settings(max_examples=60, deadline=None)
@given(counts=bucket_counts, batch=st.integers(1, 12), seed=sizes, step=st.integers(0, 10_000))
def test_any_step_may_be_asked_for_first(counts, batch, seed, step):
    """Resuming replays nothing: a fresh order knows step 10000 as well as one that came there."""
    order = DataOrder(counts, global_batch_size=batch, seed=seed)
    for before in range(max(0, step - 3), step):
        order.clips(before)
    fresh = DataOrder(dict(reversed(counts.items())), global_batch_size=batch, seed=seed)
    assert fresh.clips(step) == order.clips(step)
    assert fresh.epoch(step) == order.epoch(step)
    assert order.epoch(step + 1) >= order.epoch(step)


def test_the_position_of_a_run_is_found_at_every_step():
    whole = [DataOrder(COUNTS, global_batch_size=4, seed=3).clips(step) for step in range(60)]
    for first in range(60):
        resumed = DataOrder(COUNTS, global_batch_size=4, seed=3)
        assert [resumed.clips(step) for step in range(first, 60)] == whole[first:]


def test_buckets_take_turns_at_random_and_by_their_share():
    epochs = Epochs(COUNTS, 1, 0, 3).of
    names = [[item.bucket for item in epoch] for epoch in epochs]
    assert [collections.Counter(epoch) for epoch in names] == [COUNTS] * 3
    assert names[0] != names[1] != names[2]
    assert names[0] != sorted(names[0])
    other = Epochs(COUNTS, 1, 1, 1).of[0]
    assert [item.bucket for item in other] != names[0]
    # a random order of 5, 40 and 17 turns changes bucket 33.6 times on average
    changes = sum(one != two for one, two in itertools.pairwise(names[0]))
    assert 20 < changes < 45


def test_a_bucket_with_fewer_clips_than_a_batch_comes_as_seldom_as_its_clips():
    epochs = Epochs({"rare": 1, "usual": 64}, 8, 0, 16).of
    rare = [sum(item.bucket == "rare" for item in epoch) for epoch in epochs]
    assert rare == [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_workers_share_the_batches_of_several_buckets(world_size):
    order = DataOrder(COUNTS, global_batch_size=12, seed=0)
    for step in range(12):
        whole = order.clips(step).indices
        parts = [
            [
                whole[slot]
                for slot in worker_slots(global_batch_size=12, rank=r, world_size=world_size)
            ]
            for r in range(world_size)
        ]
        assert {len(part) for part in parts} == {12 // world_size}
        assert [index for part in parts for index in part] == list(whole)


def test_the_order_of_several_buckets_stays_what_it_is():
    """Checkpoints rely on it."""
    order = DataOrder({"b": 4, "a": 2}, global_batch_size=2, seed=1)
    found = [(item.bucket, *item.indices) for item in map(order.clips, range(6))]
    epochs = [("b", 3, 1), ("b", 2, 0), ("a", 1, 0)], [("b", 3, 2), ("b", 1, 0), ("a", 1, 0)]
    assert found == [*epochs[0], *epochs[1]]
