import dataclasses
import io
import json
import shutil
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from PIL import Image

from cil.errors import ConfigError, DataError
from cil.models import load_first_stage
from pipelines import encode, shard_encoder
from pipelines.decode import decode_clips
from pipelines.records import QuarantineRecord
from pipelines.shards import NewerFormatError, ShardReader, load_manifest, read_sidecar
from pipelines.storage import read_json, sha256_of_file


def changed(config, **sections):
    """Return the configuration with some settings changed: section={field: value}."""
    return dataclasses.replace(
        config,
        **{
            name: dataclasses.replace(getattr(config, name), **values)
            for name, values in sections.items()
        },
    )


@pytest.fixture
def copied(encoded_run, tmp_path):
    """A copy of the encoded run and of its videos that a test may damage."""
    shutil.copytree(encoded_run.output, tmp_path / "run")
    shutil.copytree(encoded_run.videos, tmp_path / "videos")
    config = changed(
        encoded_run.config,
        data={"videos": str(tmp_path / "videos")},
        output={"dir": str(tmp_path / "run")},
    )
    return dataclasses.replace(
        encoded_run, config=config, videos=tmp_path / "videos", output=tmp_path / "run"
    )


def encoder_of(run, **changes):
    """Make the encoder of a run, as a worker process would."""
    plan = read_json(run.dataset / "plan.json")
    settings = {
        "source": str(run.videos),
        "dataset": str(run.dataset),
        "transform": encode.transform_of(run.config),
        "identity_hash": encode.content_hash(plan["identity"]),
        "latents_dtype": run.config.encode.latents_dtype,
        "image_embeds_shape": (1, run.config.model.cross_attention_dim),
    }
    return shard_encoder.ShardEncoder(**{**settings, **changes})


def rows(run):
    """Each shard of the plan as the batch that Ray Data hands to a worker."""
    specs = read_json(run.dataset / "plan.json")["shards"]
    return [{"spec": np.array([json.dumps(spec)])} for spec in specs]


def shards(run):
    return {path.name: sha256_of_file(path) for path in sorted((run.dataset / "shards").iterdir())}


def quarantined(run):
    lines = (run.dataset / "quarantine.jsonl").read_text().splitlines()
    return [QuarantineRecord.from_json(json.loads(line)) for line in lines]


def run_without_ray(config):
    """Run the stage; it must not come to the point where it starts Ray."""
    with ExitStack() as session:
        return encode.run(config, session=session)


# -- what is in the data set ----------------------------------------------------------------------


def test_good_videos_are_encoded_and_the_counts_add_up(encoded_run):
    manifest = load_manifest(encoded_run.dataset)
    assert manifest.totals == {
        "videos": 8,
        "videos_encoded": 5,
        "videos_quarantined": 3,
        "clips": 10,
        "shards": len(manifest.shards),
        "bytes": sum(entry.num_bytes for entry in manifest.entries()),
    }
    assert manifest.latents_shape == [8, 4, 8, 8]
    reader = ShardReader(encoded_run.dataset)
    reader.check_all()
    assert len(reader) == 10
    paths = [reader.clip(index).record.path for index in range(10)]
    assert sorted(set(paths)) == ["-d e.mp4", "a.mp4", "b.mp4", "f\nf.mp4", "sub/c.mp4"]
    # the clips of a video follow each other in one shard
    assert [paths[index] for index in range(0, 10, 2)] == paths[1::2]
    assert len({reader.key(index) for index in range(10)}) == 10


def test_refused_files_have_their_reason(encoded_run):
    found = {(item.path, item.stage): item.message for item in quarantined(encoded_run)}
    assert found == {
        ("broken.mp4", "probe"): "Invalid data found when processing input",
        ("copy.mp4", "duplicate"): "same content as a.mp4",
        ("short.mp4", "select"): (
            "too short: 0.31 s, and one clip of 8 frames at 8 Hz needs 1.00 s"
        ),
    }
    manifest = load_manifest(encoded_run.dataset)
    assert manifest.quarantined_by_stage == {"probe": 1, "duplicate": 1, "select": 1}


def test_a_record_says_where_its_clip_comes_from(encoded_run):
    reader = ShardReader(encoded_run.dataset)
    for index in range(10):
        record = reader.clip(index).record
        assert record.key == reader.key(index)
        assert record.content_sha256 == sha256_of_file(encoded_run.videos / record.path)
        assert (record.start_s, record.end_s) in ((0.0, 1.0), (1.0, 2.0))
        assert (record.fps, record.source_fps, record.num_frames) == (8.0, 16.0, 8)
        assert (record.height, record.width) == (32, 32)
        assert (record.num_distinct_frames, record.decoder) == (8, "decord")


def test_latents_are_those_of_the_frames(encoded_run):
    """Decoded, encoded, stored, read: against the same done by hand."""
    codec = load_first_stage(encoded_run.dataset / "first_stage")
    reader = ShardReader(encoded_run.dataset)
    how = encode.transform_of(encoded_run.config)
    for index in range(10):
        clip = reader.clip(index)
        decoded = decode_clips(encoded_run.videos / clip.record.path, how).clips
        frames = decoded[int(clip.record.start_s)].frames
        posterior = codec.encode(frames)
        assert torch.equal(clip.mean, posterior.mean.to(torch.bfloat16).float())
        assert torch.equal(clip.std, posterior.std.to(torch.bfloat16).float())
        shown = codec.decode(clip.mean).numpy().astype(int)
        assert np.abs(shown - frames).mean() < 25
        with Image.open(io.BytesIO(reader.thumbnail(index))) as image:
            assert np.abs(np.array(image).astype(int) - frames[0]).mean() < 12


def test_the_bytes_do_not_depend_on_when_or_by_whom_a_shard_is_written(copied):
    before = shards(copied)
    shutil.rmtree(copied.dataset / "shards")
    for row in reversed(rows(copied)):
        encoder_of(copied)(row)
    assert shards(copied) == before
    encoder = encoder_of(copied)
    for row in rows(copied):
        result = encoder(row)
        assert json.loads(result["sidecar"][0])["count"] >= 0
    assert shards(copied) == before


def test_the_task_keeps_its_encoder_for_the_next_shard(copied):
    before = shards(copied)
    plan = read_json(copied.dataset / "plan.json")
    settings = {
        "source": str(copied.videos),
        "dataset": str(copied.dataset),
        "transform": encode.transform_of(copied.config),
        "identity_hash": encode.content_hash(plan["identity"]),
        "latents_dtype": "bfloat16",
        "image_embeds_shape": (1, copied.config.model.cross_attention_dim),
    }
    shard_encoder._encoder.cache_clear()
    for row in rows(copied):
        shard_encoder.encode_shard(row, **settings)
    assert shard_encoder._encoder.cache_info().misses == 1
    assert shards(copied) == before


def test_float32_latents_are_exact(copied):
    codec = load_first_stage(copied.dataset / "first_stage")
    encoder = encoder_of(copied, latents_dtype="float32")
    for row in rows(copied):
        encoder(row)
    sidecar = read_sidecar(copied.dataset / "shards" / "shard-000000.json")
    content = (copied.dataset / "shards" / "shard-000000.tar").read_bytes()
    offset, size = sidecar.members[sidecar.keys[0]]["latents.safetensors"]
    from safetensors.torch import load

    tensors = load(content[offset : offset + size])
    path = copied.videos / next(item["path"] for item in sidecar.inputs if item["clips"])
    clip = decode_clips(path, encode.transform_of(copied.config)).clips[0]
    assert torch.equal(tensors["mean"], codec.encode(clip.frames).mean)


# -- files that change under our hands ------------------------------------------------------------


@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_video_that_is_not_the_planned_one_is_refused(copied, how):
    path = copied.videos / "a.mp4"
    if how == "changed":
        path.write_bytes((copied.videos / "b.mp4").read_bytes())
    else:
        path.unlink()
    encoder = encoder_of(copied)
    found = [json.loads(encoder(row)["sidecar"][0]) for row in rows(copied)]
    refused = [
        item for sidecar in found for item in sidecar["quarantined"] if item["path"] == "a.mp4"
    ]
    assert [item["stage"] for item in refused] == ["read"]
    expected = "the file changed while" if how == "changed" else "cannot be read: No such file"
    assert refused[0]["message"].startswith(expected)
    assert sum(sidecar["count"] for sidecar in found) == 8


def test_an_odd_name_is_encoded_like_any_other(copied):
    odd = b"not utf-8 \xff [x] %s.mp4".decode("utf-8", "surrogateescape")
    (copied.videos / "a.mp4").rename(copied.videos / odd)
    (copied.videos / "copy.mp4").unlink()
    plan = read_json(copied.dataset / "plan.json")["shards"]
    for spec in plan:
        for item in spec["inputs"]:
            item["path"] = odd if item["path"] == "a.mp4" else item["path"]
    encoder = encoder_of(copied)
    clips = {}
    for spec in plan:
        sidecar = json.loads(encoder({"spec": np.array([json.dumps(spec)])})["sidecar"][0])
        clips.update({item["path"]: item["clips"] for item in sidecar["inputs"]})
    assert clips[odd] == 2


# -- running again --------------------------------------------------------------------------------


def test_a_complete_data_set_is_reused_without_ray(copied):
    assert encode.is_complete(copied.config)
    before = shards(copied)
    report = run_without_ray(copied.config)
    assert report.reused
    assert report.metrics["clips"] == 10
    assert report.inputs["other_files"] == 0
    assert shards(copied) == before


def test_touching_or_renaming_videos_changes_nothing(copied):
    (copied.videos / "a.mp4").rename(copied.videos / "renamed.mp4")
    (copied.videos / "copy.mp4").unlink()
    (copied.videos / "b.mp4").touch()
    assert run_without_ray(copied.config).reused


def test_videos_that_are_gone_stay_in_the_data_set_with_a_warning(copied, capsys):
    (copied.videos / "b.mp4").unlink()
    assert run_without_ray(copied.config).metrics["clips"] == 10
    assert "warning: 1 videos of the data set are no longer in" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["new video", "no manifest", "no sidecar", "cut tar"])
def test_what_is_missing_makes_it_incomplete(copied, damage):
    shard = copied.dataset / "shards" / "shard-000000"
    if damage == "new video":
        (copied.videos / "new.mp4").write_bytes(b"any new content")
    elif damage == "no manifest":
        (copied.dataset / "manifest.json").unlink()
    elif damage == "no sidecar":
        shard.with_suffix(".json").unlink()
    else:
        shard.with_suffix(".tar").write_bytes(b"")
    assert not encode.is_complete(copied.config)


@pytest.mark.parametrize("content", ["", "{", "[]", "5", '[{"path": "a.mp4"}]', '{"a": 1}'])
def test_a_damaged_inventory_only_costs_hashing_again(copied, content):
    (copied.dataset / "inventory.json").write_text(content)
    assert run_without_ray(copied.config).reused


def test_a_damaged_plan_is_named(copied):
    (copied.dataset / "plan.json").write_text('{"identity": ')
    with pytest.raises(DataError, match=r"plan\.json is damaged, it is not JSON"):
        run_without_ray(copied.config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": {"fps": 4.0}}, "transform.fps: 8.0 there, 4.0 asked"),
        ({"data": {"num_frames": 4}}, "transform.num_frames: 8 there, 4 asked"),
        ({"encode": {"latents_dtype": "float32"}}, "latents_dtype: bfloat16 there, float32 asked"),
        ({"encode": {"videos_per_shard": 9}}, "videos_per_shard: 3 there, 9 asked"),
        ({"first_stage": {"latent_channels": 2}}, "first_stage.latent_channels: 4 there, 2 asked"),
        (
            {"model": {"cross_attention_dim": 64}},
            "image_embeds_shape: [1, 32] there, [1, 64] asked",
        ),
    ],
)
def test_other_settings_are_refused_with_both_values(copied, change, words):
    before = shards(copied)
    with pytest.raises(ConfigError) as caught:
        run_without_ray(changed(copied.config, **change))
    assert words in str(caught.value)
    assert "choose another output.dir, or delete this data set" in str(caught.value)
    assert shards(copied) == before


@pytest.mark.parametrize(
    "change",
    [
        {"train": {"num_steps": 9}},
        {"encode": {"num_workers": 7}},
        {"sample": {"num_steps": 3}},
        {"model": {"sigma_max": 70.0}},
    ],
)
def test_settings_that_do_not_decide_the_bytes_change_nothing(copied, change):
    assert run_without_ray(changed(copied.config, **change)).reused


def test_a_newer_data_set_is_refused_and_not_written_over(copied):
    path = copied.dataset / "manifest.json"
    path.write_text(json.dumps({**read_json(path), "format_version": 99}))
    before = shards(copied)
    with pytest.raises(NewerFormatError, match="format version 99"):
        run_without_ray(copied.config)
    assert shards(copied) == before


def test_a_new_video_gets_a_shard_of_its_own(copied):
    """The plan is extended; what exists keeps its name and its bytes."""
    old_plan = read_json(copied.dataset / "plan.json")["shards"]
    before = shards(copied)
    shutil.copy(copied.videos / "a.mp4", copied.videos / "new.mp4")
    with (copied.videos / "new.mp4").open("ab") as file:
        file.write(b"\0\0\0\x08free")  # another content, the same frames
    inventory = encode._inventory(copied.config, copied.dataset)
    codec = load_first_stage(copied.dataset / "first_stage")
    plan = encode._make_plan(copied.config, copied.dataset, inventory, codec)
    assert [spec.to_json() for spec in plan.specs[: len(old_plan)]] == old_plan
    assert [len(spec.inputs) for spec in plan.specs[len(old_plan) :]] == [1]
    assert plan.specs[-1].generation == 1
    encoder_of(copied)(rows(copied)[-1])
    manifest = encode._finish(copied.dataset, plan, inventory)
    assert manifest.totals["clips"] == 12
    assert {name: shards(copied)[name] for name in before} == before
    assert encode.is_complete(copied.config)
