"""Videos of several sizes and lengths, with captions, in one data set."""

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load as load_tensors

from cil.errors import ConfigError
from cil.models import load_first_stage
from pipelines.dataset import open_dataset
from pipelines.shard_reader import ShardReader
from pipelines.shards import load_manifest, read_sidecar
from tests.unit.pipelines.encode.data_set_files import (
    BUCKETS,
    assert_counts_add_up,
    changed,
    records,
)


def test_each_shard_holds_clips_of_one_bucket(mixed):
    manifest = load_manifest(mixed.dataset)
    shapes = {"32": [4, 8, 8], "64": [4, 8, 16]}
    for name, bucket in manifest.buckets.items():
        _, width, length = name.split("x")
        assert bucket == {
            "latents_shape": [int(length), *shapes[width]],
            "clips": BUCKETS[name],
        }
    assert sorted(manifest.buckets) == sorted(BUCKETS)
    seen = 0
    for name, count in BUCKETS.items():
        reader = ShardReader(mixed.dataset, bucket=name)
        assert len(reader) == count
        for index in range(len(reader)):
            clip = reader.clip(index)
            assert clip.record.bucket == name
            assert clip.record.num_frames == len(clip.record.frames) == int(name.split("x")[2])
            assert list(clip.mean.shape) == manifest.buckets[name]["latents_shape"]
            seen += 1
    assert seen == manifest.totals["clips"] == 11
    for entry in manifest.entries():
        sidecar = read_sidecar(mixed.dataset, entry.name)
        assert sidecar.bucket == entry.bucket
        assert len(sidecar.inputs) <= 2
    totals = assert_counts_add_up(mixed.dataset)
    assert (totals["videos"], totals["videos_encoded"]) == (5, 5)


def test_training_must_say_which_bucket(mixed):
    with pytest.raises(ConfigError, match=r"train\.bucket must be one of the data set's buckets"):
        open_dataset(mixed.config)
    reader = open_dataset(changed(mixed.config, train={"bucket": "32x64x4"}))
    assert (reader.bucket, len(reader)) == ("32x64x4", 1)


@pytest.mark.parametrize(
    ("name", "fps_and_frames"), [("wide.mkv", (25, 38)), ("late.mp4", (10, 30))]
)
def test_frames_are_those_on_screen(mixed, drawn, by_hand, name, fps_and_frames):
    """Frame numbers in the record, against the clock; pictures, against the number they show."""
    fps, num_frames = fps_and_frames
    frames = by_hand(mixed.videos / name)
    assert [drawn.number(frame) for frame in frames] == list(range(num_frames))
    codec = load_first_stage(mixed.dataset / "first_stage")
    times = [number / fps for number in range(num_frames)]
    count = 0
    for bucket in ("32x64x8", "32x64x4"):
        reader = ShardReader(mixed.dataset, bucket=bucket)
        for index in range(len(reader)):
            clip = reader.clip(index)
            if clip.record.path != name:
                continue
            count += 1
            wanted = [clip.record.start_s + step / 8 for step in range(clip.record.num_frames)]
            assert clip.record.frames == [drawn.shown_at(time_s, times) for time_s in wanted]
            assert torch.equal(clip.mean, codec.encode(frames[clip.record.frames]).mean)
            with Image.open(io.BytesIO(reader.thumbnail(index))) as image:
                assert drawn.number(np.array(image)) == clip.record.frames[0]
    assert count == (2 if name == "wide.mkv" else 3)


def test_float32_latents_are_exact(mixed, by_hand):
    codec = load_first_stage(mixed.dataset / "first_stage")
    reader = ShardReader(mixed.dataset, bucket="32x32x8")
    for index in range(len(reader)):
        clip = reader.clip(index)
        name = (
            os.fsdecode(b"odd \xff [x] %s.mp4") if "odd" in clip.record.path else clip.record.path
        )
        posterior = codec.encode(by_hand(mixed.videos / name)[clip.record.frames])
        assert torch.equal(clip.mean, posterior.mean)
        assert torch.equal(clip.std, posterior.std)
    sidecar = read_sidecar(mixed.dataset, reader.entries[0].name)
    content = (mixed.dataset / "shards" / f"{sidecar.name}.tar").read_bytes()
    offset, size = sidecar.members[sidecar.keys[0]]["latents.safetensors"]
    stored = load_tensors(content[offset : offset + size])
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_captions_and_odd_names_reach_the_records(mixed):
    found = {r.path: r.caption for bucket in BUCKETS for r in records(mixed.dataset, bucket)}
    assert found == {
        "s.mp4": "a grey street",
        "t.mp4": None,
        "odd \\xff [x] %s.mp4": None,
        "wide.mkv": "numbers",
        "late.mp4": None,
    }
