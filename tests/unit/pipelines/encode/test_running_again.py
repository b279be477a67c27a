"""The encode stage on a data set that is there: reused, completed, extended or damaged."""

import json

import pytest

from cil.errors import DataError, StageError
from pipelines.shards import load_manifest
from pipelines.storage import read_json, sha256_of_file
from tests.unit.pipelines.encode.data_set_files import (
    DAMAGE,
    assert_counts_add_up,
    changed,
    contents,
    records,
    shards,
)


def test_a_complete_data_set_is_reused_without_ray(same_videos, without_tasks):
    everything = {p: p.stat().st_mtime_ns for p in same_videos.dataset.rglob("*") if p.is_file()}
    report = without_tasks(same_videos.config)
    assert report.reused
    assert report.metrics["clips"] == 10
    assert report.inputs["other_files"] == 0
    assert report.outputs["fingerprint"] == load_manifest(same_videos.dataset).fingerprint
    after = {p: p.stat().st_mtime_ns for p in same_videos.dataset.rglob("*") if p.is_file()}
    assert after == everything


@pytest.mark.parametrize(
    "change",
    [
        {"train": {"num_steps": 9}},
        {"encode": {"num_workers": 7, "max_retries": 0, "decoders_per_worker": 2}},
        {"decode": {"timeout_s": 5.0, "backend": "pyav"}},
        {"sample": {"num_steps": 3}},
        {"model": {"sigma_max": 70.0}},
    ],
)
def test_settings_that_do_not_decide_the_bytes_change_nothing(same_videos, without_tasks, change):
    assert without_tasks(changed(same_videos.config, **change)).reused


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_missing_is_written_again(same_videos, without_tasks, run_encode, damage):
    before = contents(same_videos.dataset)
    DAMAGE[damage](same_videos.dataset)
    with pytest.raises(AssertionError, match="Ray was started"):
        without_tasks(same_videos.config)
    log = []
    run_encode(same_videos.config, log)
    assert contents(same_videos.dataset) == before
    assert [doing for doing, _ in log] == ([] if damage == "no manifest" else ["encoding"])


def test_touching_or_renaming_videos_changes_no_bytes(same_videos, run_encode, without_tasks):
    (same_videos.videos / "b.mp4").rename(same_videos.videos / "renamed.mp4")
    (same_videos.videos / "a.mp4").touch()
    before, manifest = shards(same_videos.dataset), load_manifest(same_videos.dataset)
    log = []
    report = run_encode(same_videos.config, log)
    assert {doing for doing, _ in log} == {"scanning"}
    scanned = [video["name"] for _, row in log for video in json.loads(row["videos"])]
    assert sorted(scanned) == ["a.mp4", "renamed.mp4"]
    assert shards(same_videos.dataset) == before
    assert load_manifest(same_videos.dataset) == manifest
    assert report.inputs["warnings"] == []
    assert without_tasks(same_videos.config).reused


def test_a_new_video_gets_a_shard_of_its_own(same_videos, run_encode, noise):
    """The plan is extended; what exists keeps its name and its bytes, even its time."""
    old_plan = read_json(same_videos.dataset / "plan.json")["shards"]
    before, manifest = shards(same_videos.dataset), load_manifest(same_videos.dataset)
    noise(same_videos.videos / "0 new.mp4", 77)
    log = []
    run_encode(same_videos.config, log)
    scanned = [v["name"] for d, row in log if d == "scanning" for v in json.loads(row["videos"])]
    assert scanned == ["0 new.mp4"]
    assert [doing for doing, _ in log] == ["scanning", "encoding"]  # nothing is fitted again
    plan = read_json(same_videos.dataset / "plan.json")["shards"]
    assert plan[: len(old_plan)] == old_plan
    (new,) = plan[len(old_plan) :]
    assert (new["generation"], new["name"]) == (1, f"shard-{len(old_plan):06d}")
    assert [item["path"] for item in new["inputs"]] == ["0 new.mp4"]
    after = shards(same_videos.dataset)
    assert {name: after[name] for name in before} == before
    found = load_manifest(same_videos.dataset)
    assert found.totals["clips"] == 12
    assert found.shards[: len(manifest.shards)] == manifest.shards
    assert found.fingerprint != manifest.fingerprint
    assert_counts_add_up(same_videos.dataset)
    assert [r.path for r in records(same_videos.dataset)][-2:] == ["0 new.mp4"] * 2


def test_videos_that_are_gone_or_changed_stay_in_the_data_set(same_videos, run_encode, noise):
    before = shards(same_videos.dataset)
    old = {r.content_sha256 for r in records(same_videos.dataset) if r.path == "a.mp4"}
    (same_videos.videos / "b.mp4").unlink()
    (same_videos.videos / "copy.mp4").unlink()
    noise(same_videos.videos / "a.mp4", 78)
    refusing = changed(same_videos.config, encode={"source_changes": "refuse"})
    words = "no longer has b.mp4, holds another content for a.mp4 and another caption for nothing"
    with pytest.raises(StageError, match=words):
        run_encode(refusing)
    assert shards(same_videos.dataset) == before
    report = run_encode(same_videos.config)
    totals = assert_counts_add_up(same_videos.dataset)
    assert totals["clips"] == report.metrics["clips"] == 12
    assert (totals["videos"], totals["videos_encoded"], totals["videos_gone"]) == (6, 4, 2)
    after = shards(same_videos.dataset)
    assert {name: after[name] for name in before} == before
    contents_of_a = {r.content_sha256 for r in records(same_videos.dataset) if r.path == "a.mp4"}
    assert contents_of_a == old | {sha256_of_file(same_videos.videos / "a.mp4")}


def test_refusing_changes_does_not_refuse_new_videos(same_videos, run_encode, noise):
    noise(same_videos.videos / "new.mp4", 79)
    refusing = changed(same_videos.config, encode={"source_changes": "refuse"})
    assert run_encode(refusing).metrics["clips"] == 12


def test_new_captions_do_not_touch_what_is_encoded(same_videos, run_encode):
    before = shards(same_videos.dataset)
    (same_videos.videos / "a.txt").write_text("too late")
    run_encode(same_videos.config)
    assert shards(same_videos.dataset) == before


@pytest.mark.parametrize("content", ["", "[]", '{"scan_version": 1}\n{"a": 1}'])
def test_a_damaged_inventory_only_costs_scanning_again(same_videos, run_encode, content):
    before = contents(same_videos.dataset)
    (same_videos.dataset / "inventory.jsonl").write_text(content)
    log = []
    run_encode(same_videos.config, log)
    assert {doing for doing, _ in log} == {"scanning"}
    assert contents(same_videos.dataset) == before


def test_a_damaged_line_of_the_inventory_is_not_believed(same_videos, run_encode):
    path = same_videos.dataset / "inventory.jsonl"
    before = path.read_bytes()
    path.write_bytes(before[:-30])
    run_encode(same_videos.config)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"identity": ', r"plan\.json is damaged, it is not JSON"),
        ("[]", r"plan\.json was written by another version"),
        ("{}", r"plan\.json was written by another version"),
    ],
)
def test_a_damaged_plan_is_named(same_videos, without_tasks, content, words):
    before = shards(same_videos.dataset)
    (same_videos.dataset / "plan.json").write_text(content)
    with pytest.raises(DataError, match=words):
        without_tasks(same_videos.config)
    assert shards(same_videos.dataset) == before


@pytest.mark.parametrize("damage", [{}, {"shards": 5}, {"shards": [5]}, {"shards": [{}]}])
def test_a_plan_with_damaged_shards_is_named(same_videos, without_tasks, damage):
    path = same_videos.dataset / "plan.json"
    path.write_text(json.dumps({"identity": read_json(path)["identity"], **damage}))
    with pytest.raises(DataError, match=r"plan\.json is damaged|not a ShardSpec"):
        without_tasks(same_videos.config)
