import json
import shutil

import pytest

from cil.errors import ConfigError, DataError
from pipelines.config import content_hash, validate_config
from pipelines.dataset_identity import (
    clip_hash,
    refuse_other_identity,
    settings_identity,
    write_plan,
)
from pipelines.store import open_store


def identity_of(**raw):
    return settings_identity(validate_config(raw, source="test"))


@pytest.fixture
def store(tmp_path):
    """A data set that was made with the usual settings."""
    store = open_store(str(tmp_path / "dataset"))
    write_plan(store, {"settings": identity_of()}, [])
    return store


DECIDE = [
    {"data": {"fps": 4}},
    {"data": {"height": 64}},
    {"data": {"width": 64}},
    {"data": {"num_frames": 4}},
    {"data": {"buckets": ["32x32x8", "32x32x4"]}},
    {"data": {"clip_stride": 3}},
    {"select": {"shot_threshold": 20.0}},
    {"select": {"min_motion": 0.5}},
    {"select": {"score_only": True}},
    {"select": {"max_clips_per_video": 2}},
    {"select": {"sampling_seed": 2}},
    {"encode": {"posterior": "mean"}},
    {"encode": {"posterior": "sample"}},
    {"encode": {"latents_dtype": "float32"}},
    {"encode": {"videos_per_shard": 3}},
    {"first_stage": {"patch_size": 8}},
    {"first_stage": {"latent_channels": 3}},
    {"first_stage": {"fit_videos": 3}},
    {"model": {"cross_attention_dim": 64}},
]
DO_NOT = [
    {"seed": 3},
    {"data": {"videos": "elsewhere", "caption_column": "text"}},
    {"decode": {"backend": "torchcodec"}},
    {"decode": {"backend": "decord", "timeout_s": 3, "max_attempts": 1}},
    {"encode": {"num_workers": 9, "use_gpu": True, "decoders_per_worker": 4, "max_retries": 0}},
    {"encode": {"max_bad_fraction": 0.1, "source_changes": "refuse"}},
    {"encode": {"compute_dtype": "bfloat16", "frames_per_chunk": 3, "tile_size": 64}},
    {"train": {"num_steps": 3}},
    {"output": {"dir": "elsewhere", "dataset": "s3://bucket/x"}},
]


@pytest.mark.parametrize("raw", DECIDE)
def test_what_decides_the_bytes_is_in_the_identity(raw):
    assert identity_of(**raw) != identity_of()


@pytest.mark.parametrize("raw", DO_NOT)
def test_what_does_not_decide_the_bytes_is_not(raw):
    assert identity_of(**raw) == identity_of()


def test_a_seed_counts_where_it_is_drawn_from():
    sample = {"encode": {"posterior": "sample"}}
    assert identity_of(**sample, seed=1) != identity_of(**sample, seed=2)


@pytest.mark.parametrize("name", ["compute_dtype", "frames_per_chunk", "tile_size"])
def test_the_arithmetic_of_a_given_first_stage_counts(encoded_run, name):
    other = {"compute_dtype": "bfloat16", "frames_per_chunk": 3, "tile_size": 64}[name]
    given = {"first_stage": {"path": str(encoded_run.dataset / "first_stage")}}
    one, two = identity_of(**given), identity_of(**given, encode={name: other})
    assert one != two
    assert clip_hash({"settings": one, "first_stage": "f"}) != clip_hash(
        {"settings": two, "first_stage": "f"}
    )


def test_the_identity_of_a_first_stage_is_its_content_and_not_its_place(encoded_run, tmp_path):
    shutil.copytree(encoded_run.dataset / "first_stage", tmp_path / "moved")
    there = {"path": str(encoded_run.dataset / "first_stage")}
    moved = {"path": str(tmp_path / "moved")}
    assert identity_of(first_stage=there) == identity_of(first_stage=moved)
    assert identity_of(first_stage=there) != identity_of()


def test_the_identity_survives_json():
    found = identity_of(data={"buckets": ["32x32x8"]}, model={"block_out_channels": [64, 64]})
    assert json.loads(json.dumps(found)) == found


# -- refusing -------------------------------------------------------------------------------------


def test_the_same_settings_and_a_new_place_are_fine(store, tmp_path):
    assert refuse_other_identity(store, identity_of()) is None
    assert refuse_other_identity(open_store(str(tmp_path / "new")), identity_of()) is None


def test_others_are_refused_with_all_values_and_both_fingerprints(store):
    asked = identity_of(data={"fps": 4}, select={"min_motion": 0.5})
    with pytest.raises(ConfigError) as caught:
        refuse_other_identity(store, asked)
    assert str(caught.value).splitlines() == [
        f"{store.url()} was made with other settings:",
        "  clips.fps: 8.0 there, 4.0 asked",
        "  select.min_motion: None there, 0.5 asked",
        f"  fingerprints of the settings: {content_hash(identity_of())[:16]} there, "
        f"{content_hash(asked)[:16]} asked",
        "choose another output.dir or output.dataset, or delete this data set",
    ]


@pytest.mark.parametrize(
    "content", ["[]", "{}", "5", '{"identity": {}, "shards": []}', '{"identity": 3}']
)
def test_a_plan_of_another_kind_is_named(store, content):
    store.write("plan.json", content.encode())
    with pytest.raises(DataError, match=r"plan\.json was written by another version"):
        refuse_other_identity(store, identity_of())


# -- names of clips -------------------------------------------------------------------------------


def hash_of(first_stage="f", **raw):
    return clip_hash({"settings": identity_of(**raw), "first_stage": first_stage})


def test_a_clip_has_another_name_where_its_bytes_differ():
    names = [
        hash_of(),
        hash_of(first_stage="g"),
        hash_of(data={"fps": 4}),
        hash_of(encode={"posterior": "mean"}),
        hash_of(encode={"posterior": "sample"}),
        hash_of(encode={"posterior": "sample"}, seed=1),
        hash_of(encode={"latents_dtype": "float32"}),
        hash_of(model={"cross_attention_dim": 64}),
    ]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "raw",
    [
        {"encode": {"videos_per_shard": 3}},
        {"select": {"min_motion": 0.5}},
        {"data": {"clip_stride": 3}},
        {"data": {"buckets": ["32x32x8", "32x32x4"]}},
    ],
)
def test_it_keeps_its_name_where_only_the_choice_of_clips_differs(raw):
    assert hash_of(**raw) == hash_of()
