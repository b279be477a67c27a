"""What the encode stage writes: counts, reasons, records and latents."""

import io

import numpy as np
import torch
from PIL import Image

from cil.models import load_first_stage
from pipelines.shard_reader import ShardReader
from pipelines.shards import load_manifest
from pipelines.storage import sha256_of_file
from tests.unit.pipelines.encode.data_set_files import (
    assert_counts_add_up,
    inventory,
    quarantined,
    records,
)


def test_good_videos_are_encoded_and_the_counts_add_up(encoded_run):
    manifest = load_manifest(encoded_run.dataset)
    assert manifest.totals == {
        "videos": 8,
        "videos_encoded": 5,
        "videos_quarantined": 3,
        "videos_without_clips": 0,
        "videos_gone": 0,
        "clips": 10,
        "clips_dropped": 0,
        "shards": 2,
        "bytes": sum(entry.num_bytes for entry in manifest.entries()),
    }
    assert manifest.buckets == {"32x32x8": {"latents_shape": [8, 4, 8, 8], "clips": 10}}
    reader = ShardReader(encoded_run.dataset)
    reader.check_all()
    assert len(reader) == 10
    paths = [record.path for record in records(encoded_run.dataset)]
    assert sorted(set(paths)) == ["-d e.mp4", "a.mp4", "b.mp4", "f\\nf.mp4", "sub/c.mp4"]
    # the clips of a video follow each other in one shard
    assert [paths[index] for index in range(0, 10, 2)] == paths[1::2]
    assert len({reader.key(index) for index in range(10)}) == 10
    assert_counts_add_up(encoded_run.dataset)
    assert not [path for path in encoded_run.output.rglob("*") if path.suffix == ".tmp"]
    assert not (encoded_run.dataset / "scan").exists() or not any(
        (encoded_run.dataset / "scan").iterdir()
    )


def test_refused_files_have_their_reason_once(encoded_run):
    found = [(item.path, item.stage, item.message) for item in quarantined(encoded_run.dataset)]
    assert found == [
        ("broken.mp4", "probe", "Invalid data found when processing input"),
        ("copy.mp4", "duplicate", "same content as a.mp4"),
        (
            "short.mp4",
            "select",
            "too short: 0.31 s in its longest shot, and one clip of 8 frames at 8 Hz needs 1.00 s",
        ),
    ]
    manifest = load_manifest(encoded_run.dataset)
    assert manifest.quarantined_by_stage == {"probe": 1, "duplicate": 1, "select": 1}
    assert manifest.dropped_by_reason == {}
    hashes = {item.path: item.sha256 for item in quarantined(encoded_run.dataset)}
    for path, sha256 in hashes.items():
        assert sha256 == sha256_of_file(encoded_run.videos / path)


def test_a_record_says_where_its_clip_comes_from(encoded_run):
    reader = ShardReader(encoded_run.dataset)
    for index in range(10):
        record = reader.clip(index).record
        assert record.key == reader.key(index)
        name = record.path.replace("\\n", "\n")
        assert record.content_sha256 == sha256_of_file(encoded_run.videos / name)
        assert (record.start_s, record.end_s) == ((0.0, 1.0), (1.0, 2.0))[index % 2]
        assert record.frames == list(range(16 * (index % 2), 16 * (index % 2) + 16, 2))
        assert (record.fps, record.source_fps, record.num_frames) == (8.0, 16.0, 8)
        assert (record.height, record.width, record.bucket) == (32, 32, "32x32x8")
        assert (record.shot, record.decoder, record.caption) == (0, "pyav", None)


def test_a_record_has_what_stable_video_diffusion_is_told(encoded_run):
    found = records(encoded_run.dataset)
    scores = [record.scores for record in found]
    for record in found:
        motion = record.scores["motion"]
        assert motion > 0
        assert record.fps_id == 7.0
        assert record.motion_bucket_id == round(254 * motion / (motion + 2))
    assert len({score["perceptual_hash"] for score in scores}) > 1
    by_key = {
        (record.sha256, clip["start_s"]): clip["scores"]
        for record in inventory(encoded_run.dataset)
        if record.scan
        for clip in record.scan["clips"]
    }
    expected = [by_key[record.content_sha256, record.start_s] for record in found]
    assert scores == expected


def test_latents_are_those_of_the_frames(encoded_run):
    """Decoded, encoded, stored, read: against the same done by hand."""
    codec = load_first_stage(encoded_run.dataset / "first_stage")
    reader = ShardReader(encoded_run.dataset)
    for index in range(10):
        clip = reader.clip(index)
        frames = encoded_run.frames(clip.record)
        posterior = codec.encode(frames)
        assert torch.equal(clip.mean, posterior.mean.to(torch.bfloat16).float())
        assert torch.equal(clip.std, posterior.std.to(torch.bfloat16).float())
        shown = codec.decode(clip.mean).numpy().astype(int)
        assert np.abs(shown - frames).mean() < 25
        with Image.open(io.BytesIO(reader.thumbnail(index))) as image:
            assert np.abs(np.array(image).astype(int) - frames[0]).mean() < 12
        assert clip.image_embeds.shape == (1, 32)
        assert clip.text_embeds is None
