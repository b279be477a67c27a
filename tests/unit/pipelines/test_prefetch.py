"""The background thread, with sources that are slow, fail, or count."""

import threading
import time

import pytest
import torch

from cil.errors import DataError
from pipelines.batches import BatchReader
from pipelines.prefetch import Prefetch
from pipelines.shard_reader import ShardReader
from pipelines.shards import tar_name


class Numbers:
    """A source whose batches are the numbers of their steps."""

    def __init__(self, *, seconds=0.0, bad=None, error=None):
        self.read, self.threads = [], set()
        self._seconds, self._bad, self._error = seconds, bad, error

    def batch(self, step):
        self.read.append(step)
        self.threads.add(threading.current_thread().name)
        time.sleep(self._seconds)
        if step == self._bad:
            raise self._error
        return step

    def keys(self, step):
        return [f"key {step}"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def ahead(source, first=0, steps=20, num_batches=3):
    return Prefetch(source, first_step=first, num_steps=steps, num_batches=num_batches)


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("num_batches", [0, 1, 2, 50])
@pytest.mark.parametrize("first", [0, 7, 19])
def test_batches_come_in_order_each_once(first, num_batches):
    source = Numbers()
    with ahead(source, first, num_batches=num_batches) as batches:
        assert [batches.batch(step) for step in range(first, 20)] == list(range(first, 20))
        assert batches.keys(3) == ["key 3"]
    assert source.read == list(range(first, 20))
    expected = {"cil-prefetch"} if num_batches else {threading.current_thread().name}
    assert source.threads == expected


def test_no_more_is_read_than_was_asked_for():
    source = Numbers()
    with ahead(source, num_batches=3) as batches:
        until(lambda: len(source.read) == 4)  # three wait, the fourth has no place yet
        time.sleep(0.05)
        assert source.read == [0, 1, 2, 3]
        batches.batch(0)
        until(lambda: len(source.read) == 5)
        time.sleep(0.05)
        assert source.read == [0, 1, 2, 3, 4]


def test_nothing_is_read_beyond_the_end():
    source = Numbers()
    with ahead(source, first=18) as batches:
        assert [batches.batch(18), batches.batch(19)] == [18, 19]
    assert source.read == [18, 19]
    with ahead(source, first=20):
        pass
    assert source.read == [18, 19]


def test_reading_overlaps_the_step():
    source = Numbers(seconds=0.2)
    with ahead(source) as batches:
        for step in range(3):
            batches.batch(step)
            # the step goes on until the next batch is there and the one after has been begun
            until(lambda: len(source.read) > step + 2)  # noqa: B023
            if step:
                assert batches.last_wait_s < 0.1


@pytest.mark.parametrize("num_batches", [0, 2])
def test_the_time_that_is_waited_is_measured(num_batches):
    with ahead(Numbers(seconds=0.05), num_batches=num_batches) as batches:
        started = time.perf_counter()
        waited = 0.0
        for step in range(5):
            batches.batch(step)
            waited += batches.last_wait_s
        elapsed = time.perf_counter() - started
    assert 0.1 < waited <= elapsed


@pytest.mark.parametrize("num_batches", [0, 1, 4, 50])
@pytest.mark.parametrize(
    "error", [DataError("shard-000007 is damaged"), MemoryError(), KeyboardInterrupt()]
)
def test_an_error_is_raised_by_the_step_it_belongs_to(num_batches, error):
    source = Numbers(bad=5, error=error)
    with ahead(source, num_batches=num_batches) as batches:
        if num_batches > 5:
            until(lambda: 5 in source.read)
        assert [batches.batch(step) for step in range(5)] == [0, 1, 2, 3, 4]
        for _ in range(2):  # asked again it does not hang
            with pytest.raises(type(error)) as caught:
                batches.batch(5)
            assert caught.value is error
    assert 6 not in source.read


def test_closing_does_not_wait_for_a_place():
    batches = ahead(Numbers(), num_batches=1)
    until(lambda: len(batches._source.read) == 2)
    started = time.monotonic()
    batches.close()
    batches.close()
    assert time.monotonic() - started < 1
    with pytest.raises(AssertionError):
        batches.batch(0)


def test_an_error_of_the_step_ends_the_thread():
    def step(batches):
        with batches:
            batches.batch(0)
            raise ZeroDivisionError

    batches = ahead(Numbers(seconds=0.01))
    with pytest.raises(ZeroDivisionError):
        step(batches)


@pytest.mark.parametrize("step", [0, 2, 3])
def test_a_step_out_of_turn_is_a_bug(step):
    with ahead(Numbers()) as batches:
        batches.batch(0)
        with pytest.raises(AssertionError):
            batches.batch(step)


def test_a_damaged_shard_stops_the_step_that_needs_it(small_shards, tmp_path):
    small_shards.dataset(tmp_path, counts=(2, 2, 2))
    path = tmp_path / tar_name("shard-000001")
    path.write_bytes(path.read_bytes()[:-1] + b"x")

    def source():
        return BatchReader({"16x16x2": ShardReader(tmp_path)}, global_batch_size=1, seed=0)

    first_bad = None
    for step in range(6):
        try:
            source().batch(step)
        except DataError:
            first_bad = step
            break
    assert first_bad in range(5)
    with ahead(source(), steps=6, num_batches=6) as batches:
        for step in range(first_bad):
            assert torch.isfinite(batches.batch(step).mean).all()
        with pytest.raises(DataError, match=r"shard-000001\.tar is damaged"):
            batches.batch(first_bad)
