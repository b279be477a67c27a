"""Which clips are held out: by video, whatever else is in the data set; and never trained on."""

import dataclasses
import hashlib

import pytest

from pipelines.batches import BatchReader
from pipelines.config import validate_config
from pipelines.dataset import open_training_data
from pipelines.held_out import is_held_out, none_held_out, split
from pipelines.shard_reader import ShardReader
from pipelines.train import train_identity

NUM_VIDEOS = 24


def video(number):
    return hashlib.sha256(f"video {number}".encode()).hexdigest()


@pytest.fixture(scope="module")
def write(small_shards):
    """Write a data set of some videos with two clips each; one video has clips in two buckets."""
    from pipelines.config import content_hash
    from pipelines.shards import entry_of, load_manifest
    from pipelines.storage import write_json

    def make(folder, numbers, shapes=((2, 3, 4, 4),)):
        small_shards.dataset(folder, counts=(1,))
        manifest = load_manifest(folder)
        sidecars, buckets, shard = [], {}, 0
        for shape in shapes:
            name = f"16x16x{shape[0]}"
            for start in range(0, len(numbers), 5):
                part = numbers[start : start + 5]
                clips = [
                    small_shards.clip(10 * n + k, shape=shape, sha=video(n))
                    for n in part
                    for k in range(2)
                ]
                shas = tuple(video(n) for n in part)
                sidecars.append(small_shards.write(folder, clips, shard, shas=shas, bucket=name))
                shard += 1
            buckets[name] = {"latents_shape": list(shape), "clips": 2 * len(numbers)}
        raw = manifest.to_json()
        raw["shards"] = [entry_of(sidecar) for sidecar in sidecars]
        raw["buckets"] = buckets
        sealed = {"identity": raw["identity"], "shards": raw["shards"]}
        raw["fingerprint"] = content_hash(sealed)
        write_json(folder / "manifest.json", raw)
        return ShardReader(folder, bucket=f"16x16x{shapes[0][0]}")

    return make


def numbers_of(reader):
    """The numbers of the videos of each clip, read from the clips themselves."""
    names = {video(number): number for number in range(1000)}
    return [names[reader.clip(i).record.content_sha256] for i in range(len(reader))]


def test_all_clips_of_a_video_are_on_one_side(write, tmp_path):
    reader = write(tmp_path, range(NUM_VIDEOS))
    trained, kept = split({"b": reader}, 0.3)
    left, right = numbers_of(trained["b"]), numbers_of(kept["b"])
    assert not set(left) & set(right)
    assert sorted(left + right) == sorted(2 * list(range(NUM_VIDEOS)))
    assert right == [n for n in range(NUM_VIDEOS) for _ in range(2) if is_held_out(video(n), 0.3)]


def test_new_videos_move_none(write, tmp_path):
    few = write(tmp_path / "few", range(0, NUM_VIDEOS, 2))
    many = write(tmp_path / "many", range(NUM_VIDEOS))
    kept_few, kept_many = split({"b": few}, 0.3)[1]["b"], split({"b": many}, 0.3)[1]["b"]
    even = [number for number in numbers_of(kept_many) if number % 2 == 0]
    assert numbers_of(kept_few) == even


def test_a_video_is_on_the_same_side_in_every_bucket(write, tmp_path):
    write(tmp_path, range(NUM_VIDEOS), shapes=((2, 3, 4, 4), (3, 3, 4, 4)))
    readers = {name: ShardReader(tmp_path, bucket=name) for name in ("16x16x2", "16x16x3")}
    trained, kept = split(readers, 0.3)
    assert numbers_of(kept["16x16x2"]) == numbers_of(kept["16x16x3"])
    assert numbers_of(trained["16x16x2"]) == numbers_of(trained["16x16x3"])


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.5, 0.9])
def test_the_share_is_about_what_was_asked_for(fraction):
    count = sum(is_held_out(video(number), fraction) for number in range(10_000))
    assert count == pytest.approx(10_000 * fraction, abs=4 * (10_000 * fraction) ** 0.5)


def test_a_larger_share_keeps_what_a_smaller_one_keeps():
    kept = [{n for n in range(500) if is_held_out(video(n), f)} for f in (0.05, 0.2, 0.6)]
    assert kept[0] < kept[1] < kept[2]


def test_the_choice_never_changes():
    """Numbers of an independent computation, so that data sets stay divided as they are."""
    chosen = [number for number in range(40) if is_held_out(video(number), 0.2)]
    expected = [
        number
        for number in range(40)
        if int(hashlib.sha256(f"held out: {video(number)}".encode()).hexdigest()[:16], 16)
        < 0.2 * 2**64
    ]
    assert chosen == expected
    assert len(chosen) > 2


@pytest.mark.parametrize("fraction", [0.0, 1e-9, 0.999999999])
def test_nothing_or_all_would_be_held_out(write, tmp_path, fraction):
    """Then everything is trained on, in the order in which it was without held-out clips."""
    reader = write(tmp_path, range(5))
    trained, kept = split({"b": reader}, fraction)
    assert kept == {}
    assert trained["b"] is reader
    assert "keeps none of these videos" in none_held_out(0.05)


def test_a_subset_reads_the_clips_of_the_whole(write, tmp_path):
    reader = write(tmp_path, range(6))
    part = reader.subset([7, 2, 11])
    assert len(part) == 3
    for place, index in enumerate((7, 2, 11)):
        assert part.clip(place).record == reader.clip(index).record
        assert part.key(place) == reader.key(index)
        assert part.thumbnail(place) == reader.thumbnail(index)
    assert part.sample_keys() == [reader.key(index) for index in (7, 2, 11)]
    assert part.videos() == [reader.videos()[index] for index in (7, 2, 11)]
    assert len(reader) == 12


def test_a_damaged_sidecar_is_named(write, tmp_path):
    import json

    from cil.errors import DataError

    reader = write(tmp_path, range(6))
    path = tmp_path / "shards" / "shard-000001.json"
    sidecar = json.loads(path.read_text())
    sidecar["inputs"][0]["clips"] += 1
    path.write_text(json.dumps(sidecar))
    with pytest.raises(DataError, match=r"shard-000001\.json is damaged: it does not say which"):
        reader.videos()


# -- training -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(write, tmp_path_factory):
    folder = tmp_path_factory.mktemp("held out")
    write(folder / "dataset", range(NUM_VIDEOS))
    return validate_config(
        {
            "train": {"global_batch_size": 6},
            "validate": {"held_out_fraction": 0.3},
            "output": {"dir": str(folder)},
        },
        source="the tests",
    )


def test_no_step_trains_on_a_held_out_clip(config):
    data = open_training_data(config)
    kept = {key for reader in data.held_out.values() for key in reader.sample_keys()}
    left = {key for reader in data.readers.values() for key in reader.sample_keys()}
    assert data.num_clips + data.num_held_out == 2 * NUM_VIDEOS
    source = BatchReader(data.readers, global_batch_size=6, seed=0)
    seen = [key for step in range(30) for key in source.keys(step)]
    assert not set(seen) & kept
    assert set(seen) == left
    counts = [seen.count(key) for key in left]
    assert max(counts) - min(counts) <= 1


def test_any_worker_opens_the_same_division(config):
    one, other = (open_training_data(config, num_sharers=n) for n in (1, 4))
    assert one.held_out["16x16x2"].sample_keys() == other.held_out["16x16x2"].sample_keys()


def test_the_share_decides_the_identity(config):
    base = train_identity(config, "f" * 64)
    for name, value in (("held_out_fraction", 0.31), ("held_out_fraction", 0.0)):
        changed = dataclasses.replace(config.validate, **{name: value})
        assert train_identity(dataclasses.replace(config, validate=changed), "f" * 64) != base


def test_how_validation_is_done_does_not(config):
    base = train_identity(config, "f" * 64)
    own = dataclasses.replace(config.validate, num_clips=3, num_videos=1, every_steps=7)
    assert train_identity(dataclasses.replace(config, validate=own), "f" * 64) == base
    best = dataclasses.replace(config.train, best_metric="val_loss_clean")
    assert train_identity(dataclasses.replace(config, train=best), "f" * 64) == base
