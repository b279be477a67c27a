"""Data sets of other settings or a newer format, which the encode stage leaves as they are."""

import json

import pytest

from cil.errors import ConfigError
from pipelines import encode
from pipelines.config import content_hash
from pipelines.shards import NewerFormatError
from pipelines.storage import read_json
from tests.unit.pipelines.encode.data_set_files import changed, contents


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": {"fps": 4.0}}, "clips.fps: 8.0 there, 4.0 asked"),
        ({"data": {"num_frames": 4}}, "clips.buckets: ['32x32x8'] there, ['32x32x4'] asked"),
        ({"data": {"clip_stride": 4}}, "clips.stride: None there, 4 asked"),
        ({"select": {"min_motion": 1.5}}, "select.min_motion: None there, 1.5 asked"),
        ({"select": {"shot_threshold": None}}, "select.shot_threshold: 27.0 there, None asked"),
        ({"encode": {"posterior": "mean"}}, "posterior: mean_std there, mean asked"),
        ({"encode": {"latents_dtype": "float32"}}, "latents_dtype: bfloat16 there, float32 asked"),
        ({"encode": {"videos_per_shard": 9}}, "videos_per_shard: 3 there, 9 asked"),
        ({"first_stage": {"latent_channels": 2}}, "first_stage.latent_channels: 4 there, 2 asked"),
        ({"model": {"cross_attention_dim": 64}}, "condition.image.zeros: [1, 32] there, [1, 64]"),
    ],
)
def test_other_settings_are_refused_with_both_values(same_videos, without_tasks, change, words):
    before = contents(same_videos.dataset)
    there = read_json(same_videos.dataset / "plan.json")["identity"]["settings"]
    other = changed(same_videos.config, **change)
    with pytest.raises(ConfigError) as caught:
        without_tasks(other)
    message = str(caught.value)
    assert f"  {words}" in message
    asked = content_hash(encode.settings_identity(other))[:16]
    fingerprints = f"{content_hash(there)[:16]} there, {asked} asked"
    assert fingerprints in message
    assert content_hash(there)[:16] != asked
    assert "choose another output.dir or output.dataset, or delete this data set" in message
    assert contents(same_videos.dataset) == before


@pytest.mark.parametrize("new_video", [False, True])
def test_a_newer_data_set_is_refused_and_not_written_over(
    same_videos, run_encode, noise, new_video
):
    path = same_videos.dataset / "manifest.json"
    path.write_text(json.dumps({**read_json(path), "format_version": 99}))
    if new_video:
        noise(same_videos.videos / "new.mp4", 80)
    before = contents(same_videos.dataset)
    with pytest.raises(NewerFormatError, match="format version 99"):
        run_encode(same_videos.config)
    assert contents(same_videos.dataset) == before
