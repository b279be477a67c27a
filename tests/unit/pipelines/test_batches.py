"""Batches of several buckets, read from real shards, against the clips that were written."""

import dataclasses
import itertools

import pytest
import torch

from cil.errors import ConfigError, DataError
from pipelines.batches import BatchReader
from pipelines.config import validate_config
from pipelines.data_order import DataOrder
from pipelines.dataset import located, open_dataset, open_training_data
from pipelines.prefetch import Prefetch, read_ahead
from pipelines.shard_reader import ShardReader

SHAPES = ((2, 3, 4, 4), (3, 3, 4, 4))
COUNTS = (5, 4, 3, 2, 6, 1)
BATCH = 12
NUM_STEPS = 14
"""About eight epochs of 14 and 7 clips."""


@pytest.fixture(scope="module")
def dataset(small_shards, tmp_path_factory):
    """A data set with two buckets: 14 clips of two frames, 7 of three."""
    folder = tmp_path_factory.mktemp("batches")
    small_shards.dataset(folder / "dataset", counts=COUNTS, shapes=SHAPES)
    return folder / "dataset"


@pytest.fixture(scope="module")
def source_of(dataset):
    """Make a batch reader."""

    def make(rank=0, world_size=1, names=("16x16x2", "16x16x3"), seed=0):
        readers = {name: ShardReader(dataset, bucket=name) for name in names}
        return BatchReader(
            readers, global_batch_size=BATCH, seed=seed, rank=rank, world_size=world_size
        )

    return make


@pytest.fixture(scope="module")
def config(dataset):
    return validate_config(
        {
            "data": {"buckets": ["16x16x2", "16x16x3"]},
            "train": {"global_batch_size": BATCH, "num_steps": NUM_STEPS, "warmup_steps": 0},
            "output": {"dir": str(dataset.parent)},
        },
        source="the tests",
    )


def assert_same(one, other):
    assert (one.bucket, one.slots, one.records) == (other.bucket, other.slots, other.records)
    for name in ("mean", "std", "image_embeds"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def seeds_of(batch):
    """The numbers that the clips were written with."""
    return [int(record.start_s) for record in batch.records]


def test_a_batch_holds_the_written_clips_of_one_bucket(source_of, small_shards):
    source = source_of()
    shapes = {"16x16x2": SHAPES[0], "16x16x3": SHAPES[1]}
    seen = set()
    for step in range(NUM_STEPS):
        batch = source.batch(step)
        assert len(batch) == BATCH
        assert batch.slots == tuple(range(BATCH))
        assert batch.mean.shape == batch.std.shape == (BATCH, *shapes[batch.bucket])
        assert batch.mean.dtype == batch.std.dtype == batch.image_embeds.dtype == torch.float32
        assert batch.text_embeds is None
        for place, seed in enumerate(seeds_of(batch)):
            written = small_shards.clip(seed, shape=shapes[batch.bucket])
            assert batch.records[place] == written.record
            assert batch.records[place].bucket == batch.bucket
            assert torch.equal(batch.mean[place], written.mean.to(torch.float32))
            assert torch.equal(batch.std[place], written.std.to(torch.float32))
        assert source.keys(step) == [record.key for record in batch.records]
        seen.add(batch.bucket)
    assert seen == set(shapes)


def test_every_clip_comes_as_often_as_the_others_of_its_bucket(source_of):
    """14 steps of 12 have 168 clips, as many as eight epochs of 14 + 7."""
    source = source_of()
    found = [seed for step in range(NUM_STEPS) for seed in seeds_of(source.batch(step))]
    counts = {seed: found.count(seed) for seed in range(21)}
    assert sum(counts.values()) == BATCH * NUM_STEPS
    small = [seed for seed in range(21) if seed in {5, 6, 7, 8, 12, 13, 20}]
    large = [seed for seed in range(21) if seed not in small]
    for bucket in (small, large):
        assert max(counts[seed] for seed in bucket) - min(counts[seed] for seed in bucket) <= 1
        assert min(counts[seed] for seed in bucket) >= 7


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_any_number_of_workers_reads_the_same_batches(source_of, world_size):
    whole, ranks = source_of(), [source_of(rank, world_size) for rank in range(world_size)]
    for step in range(NUM_STEPS):
        batch = whole.batch(step)
        parts = [source.batch(step) for source in ranks]
        assert {len(part) for part in parts} == {BATCH // world_size}
        assert {part.bucket for part in parts} == {batch.bucket}
        assert sum((part.slots for part in parts), ()) == batch.slots
        assert sum((part.records for part in parts), ()) == batch.records
        assert torch.equal(torch.cat([part.mean for part in parts]), batch.mean)
        assert all(source.keys(step) == whole.keys(step) for source in ranks)


def test_a_batch_that_does_not_divide_is_refused(source_of):
    with pytest.raises(ConfigError, match="12 clips does not divide over 5 workers"):
        source_of(0, 5)


def test_parts_are_the_batch_in_pieces(source_of):
    batch = source_of().batch(0)
    parts = [batch.part(start, start + 5) for start in range(0, BATCH, 5)]
    assert [len(part) for part in parts] == [5, 5, 2]
    assert sum((part.slots for part in parts), ()) == batch.slots
    assert sum((part.records for part in parts), ()) == batch.records
    assert torch.equal(torch.cat([part.std for part in parts]), batch.std)


def test_texts_come_with_the_clips(small_shards, tmp_path, monkeypatch):
    made = small_shards.clip

    def with_text(seed, **settings):
        clip = made(seed, **settings)
        text = torch.full((3, 5), float(seed), dtype=torch.bfloat16)
        return dataclasses.replace(clip, condition={**clip.condition, "text_embeds": text})

    monkeypatch.setattr(small_shards, "clip", with_text)
    small_shards.dataset(tmp_path, counts=(4,))
    batch = BatchReader({"b": ShardReader(tmp_path)}, global_batch_size=4, seed=0).batch(0)
    assert batch.text_embeds.shape == (4, 3, 5)
    assert batch.text_embeds.dtype == torch.float32
    assert batch.text_embeds[:, 0, 0].tolist() == seeds_of(batch)
    assert torch.equal(batch.part(1, 3).text_embeds, batch.text_embeds[1:3])


def test_clips_of_several_shapes_in_one_bucket_are_refused(small_shards, tmp_path):
    small_shards.dataset(tmp_path, counts=(2, 2), shapes=((2, 3, 4, 4), (2, 3, 4, 8)))
    source = BatchReader({"b": ShardReader(tmp_path)}, global_batch_size=4, seed=0)
    with pytest.raises(DataError, match=r"mean has the shape \(2, 3, 4, 8\)"):
        source.batch(0)


# -- going on anywhere ----------------------------------------------------------------------------


@pytest.mark.parametrize("num_batches", [0, 1, 3])
@pytest.mark.parametrize("first", range(NUM_STEPS))
def test_a_run_goes_on_at_any_step(source_of, first, num_batches):
    """With batches read ahead or not, to the end of the run: the same bytes."""
    whole = source_of(1, 2)
    with Prefetch(
        source_of(1, 2), first_step=first, num_steps=NUM_STEPS, num_batches=num_batches
    ) as resumed:
        for step in range(first, NUM_STEPS):
            assert_same(resumed.batch(step), whole.batch(step))


def test_a_worker_of_a_run_reads_its_share_of_all_buckets(config, source_of):
    data = open_training_data(config)
    assert sorted(data.readers) == ["16x16x2", "16x16x3"]
    assert data.num_clips == 21
    assert data.largest.bucket == "16x16x3"
    with read_ahead(config, data, first_step=2, rank=1, world_size=2) as batches:
        for step in range(2, NUM_STEPS):
            assert_same(batches.batch(step), source_of(1, 2).batch(step))


def test_one_bucket_of_several_is_as_if_there_were_no_other(config, source_of):
    named = dataclasses.replace(config, train=dataclasses.replace(config.train, bucket="16x16x2"))
    data = open_training_data(named)
    assert list(data.readers) == ["16x16x2"]
    assert data.num_clips == 14
    with read_ahead(named, data, first_step=0, rank=0, world_size=1) as batches:
        for step in range(NUM_STEPS):
            batch = batches.batch(step)
            assert batch.bucket == "16x16x2"
            assert_same(batch, source_of(names=("16x16x2",)).batch(step))


def test_what_works_on_one_bucket_asks_for_it(config):
    with pytest.raises(ConfigError, match=r"train.bucket must be one of .*, none was named"):
        open_dataset(config)


@pytest.mark.parametrize("cache", [None, "kept/here"])
def test_workers_in_another_folder_find_the_data_set(config, dataset, monkeypatch, tmp_path, cache):
    relative = dataclasses.replace(
        config,
        output=dataclasses.replace(config.output, dir=dataset.parent.name),
        read=dataclasses.replace(config.read, cache=cache),
    )
    monkeypatch.chdir(dataset.parent.parent)
    sent = located(relative)
    monkeypatch.chdir(tmp_path)
    assert open_training_data(sent).num_clips == 21
    assert sent.output.dir == str(dataset.parent)
    folder = dataset.parent.parent / cache if cache else dataset.parent / "cache"
    assert sent.read.cache == str(folder)
    url = dataclasses.replace(config.output, dataset="s3://bucket/clips")
    assert located(dataclasses.replace(config, output=url)).output.dataset == url.dataset


def test_the_reader_follows_the_order(source_of, dataset):
    readers = {name: ShardReader(dataset, bucket=name) for name in ("16x16x2", "16x16x3")}
    counts = {name: len(reader) for name, reader in readers.items()}
    order = DataOrder(counts, global_batch_size=BATCH, seed=5)
    source = source_of(seed=5)
    for step in itertools.islice(itertools.count(), NUM_STEPS):
        expected = order.clips(step)
        batch = source.batch(step)
        assert batch.bucket == expected.bucket
        keys = [readers[expected.bucket].clip(index).record.key for index in expected.indices]
        assert [record.key for record in batch.records] == keys
