import dataclasses
import json

import pytest

from cil.errors import ConfigError
from pipelines import plan
from pipelines.__main__ import _main
from pipelines.plan import plan_encoding
from pipelines.shards import load_manifest


def changed(config, **sections):
    return dataclasses.replace(
        config,
        **{
            name: dataclasses.replace(getattr(config, name), **values)
            for name, values in sections.items()
        },
    )


@pytest.fixture
def config(encoded_run, tmp_path):
    """The settings of the encoded run, with an output that does not exist yet."""
    return changed(encoded_run.config, output={"dir": str(tmp_path / "new")})


def assert_is_what_encode_gives(report, dataset):
    manifest = load_manifest(dataset)
    lines = (dataset / "quarantine.jsonl").read_text().splitlines()
    stages = [json.loads(line)["stage"] for line in lines]
    assert report.metrics["clips"] == manifest.totals["clips"]
    assert report.metrics["clips_dropped"] == manifest.totals["clips_dropped"]
    assert report.metrics["shards"] == manifest.totals["shards"]
    assert report.metrics["copies"] == stages.count("duplicate")
    assert report.metrics["videos_too_short"] == stages.count("select")
    assert report.metrics["videos_refused"] == len(stages) - sum(
        stages.count(name) for name in ("duplicate", "select")
    )
    assert report.outputs["kept_by_bucket"] == {
        name: bucket["clips"] for name, bucket in manifest.buckets.items()
    }
    dropped = report.outputs["dropped_by_bucket_and_reason"]
    by_reason = {}
    for name, count in dropped.items():
        reason = name.partition(": ")[2]
        by_reason[reason] = by_reason.get(reason, 0) + count
    assert by_reason == manifest.dropped_by_reason
    gigabytes = manifest.totals["bytes"] / 1e9
    assert report.metrics["gigabytes"] == pytest.approx(gigabytes, rel=0.5, abs=1e-4)


def test_the_numbers_are_those_of_encoding_if_all_videos_are_looked_at(
    config, encoded_run, tmp_path
):
    report = plan_encoding(config)
    assert_is_what_encode_gives(report, encoded_run.dataset)
    assert report.inputs["files"] == report.inputs["probed"] == 8
    assert not report.inputs["estimated"]
    assert report.outputs["refused_by_reason"] == {"probe: InvalidDataError": 1}
    assert report.outputs["hours"] > 0
    assert report.outputs["seconds_per_video_scanned"] > 0
    assert report.outputs["seconds_per_clip_encoded"] > 0
    assert list(tmp_path.iterdir()) == []  # nothing was written, not even the folder


def test_the_numbers_follow_the_thresholds(config, encoded_run, run_encode, tmp_path):
    chosen = changed(
        config,
        select={"max_clips_per_video": 1},
        encode={"videos_per_shard": 2},
        first_stage={"path": str(encoded_run.dataset / "first_stage")},
    )
    report = plan_encoding(chosen)
    assert list(tmp_path.iterdir()) == []
    assert report.outputs["dropped_by_bucket_and_reason"] == {"32x32x8: max_clips_per_video": 5}
    run_encode(chosen)
    assert_is_what_encode_gives(report, tmp_path / "new" / "dataset")


def test_a_complete_inventory_is_taken_instead_of_scanning(encoded_run, monkeypatch):
    def scanned(*_):
        raise AssertionError("a video was scanned")

    monkeypatch.setattr(plan, "scan_one", scanned)
    before = {p: p.stat().st_mtime_ns for p in encoded_run.output.rglob("*")}
    report = plan_encoding(encoded_run.config, num_probed=2)
    assert_is_what_encode_gives(report, encoded_run.dataset)
    assert report.inputs["probed"] == 8  # what is known costs nothing
    assert not report.inputs["estimated"]
    assert report.outputs["seconds_per_video_scanned"] == 0
    assert {p: p.stat().st_mtime_ns for p in encoded_run.output.rglob("*")} == before


def test_a_few_videos_stand_for_all(config, tmp_path):
    report = plan_encoding(config, num_probed=4)
    assert (report.inputs["files"], report.inputs["probed"]) == (8, 4)
    assert report.inputs["estimated"]
    assert report.metrics["clips"] % 4 == 0  # two of a video, times two
    assert list(tmp_path.iterdir()) == []


def test_which_videos_are_looked_at_does_not_depend_on_their_names_order(encoded_run):
    from pipelines.source_state import source_options
    from pipelines.sources import list_videos

    options = source_options(encoded_run.config)
    videos = list_videos(encoded_run.config.data.videos, options=options).videos
    some = plan._spread(videos, 3)
    assert len(some) == 3
    assert plan._spread(videos[::-1], 3) == some
    assert plan._spread(videos, 99) == plan._spread(videos, 8)
    assert [video.name for video in some] != sorted(video.name for video in videos)[:3]


def test_a_source_without_clips_gives_zeros(config, tmp_path, noise):
    (tmp_path / "videos").mkdir()
    noise(tmp_path / "videos" / "short.mp4", 1, num_frames=5)
    report = plan_encoding(changed(config, data={"videos": str(tmp_path / "videos")}))
    assert (report.metrics["clips"], report.metrics["shards"]) == (0, 0)
    assert report.metrics["videos_too_short"] == 1
    assert report.outputs["hours"] is None


@pytest.mark.parametrize("number", [0, -3])
def test_at_least_one_video_must_be_looked_at(config, number):
    with pytest.raises(ConfigError, match="--probe must be >= 1 video, got"):
        plan_encoding(config, num_probed=number)


def test_a_source_that_is_not_there_is_a_mistake(config, tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        plan_encoding(changed(config, data={"videos": str(tmp_path / "missing")}))


@pytest.mark.parametrize(("arguments", "number"), [([], None), (["--probe", "3"], 3)])
def test_the_command_takes_the_number_of_videos(monkeypatch, encoded_run, arguments, number):
    asked = []

    def plan_it(config, *, num_probed):
        asked.append((config.data.videos, num_probed))
        raise ConfigError("enough")

    monkeypatch.setattr(plan, "plan_encoding", plan_it)
    assert _main(["plan", "--data.videos", "clips", *arguments]) == 2
    assert asked == [("clips", number)]
