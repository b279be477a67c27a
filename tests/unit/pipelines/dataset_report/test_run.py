"""The report as a step of a run: repeatable, with throughput, versions and warnings."""

import dataclasses
import json

import pytest

from pipelines import dataset_report
from pipelines.report import RunReport, versions
from tests.unit.pipelines.dataset_report.drawn_data_sets import (
    LONG,
    SMALL,
    data_set,
    rich,
    video,
    write,
)


def test_the_same_data_set_gives_the_same_report(tmp_path):
    made = rich(tmp_path / "dataset")
    first = write(made)
    made = rich(tmp_path / "dataset")
    assert write(made) == first
    made.report = dataclasses.replace(made.report, seconds=40.0)
    slower, _ = write(made)
    assert slower["details"].pop("throughput") != first[0]["details"].pop("throughput")
    assert {**slower, "seconds": 20.0} == first[0]


def test_throughput_is_of_the_whole_stage(reported):
    videos, clips = reported.details["videos"], reported.details["clips"]
    assert reported.details["throughput"] == {
        "seconds": 20.0,
        "videos_per_s": videos["total"] / 20,
        "clips_per_s": clips["total"] / 20,
        "video_hours_per_hour": pytest.approx(videos["hours"] * 180),
    }


def test_a_run_that_did_nothing_states_no_throughput(tmp_path):
    raw, page = write(data_set(tmp_path, [video("a.mp4", [(SMALL, 1.0, 90.0)])], reused=True))
    assert raw["details"]["throughput"] is None
    assert "everything was there" in page


def test_the_numbers_are_a_run_report_with_versions(reported, tmp_path):
    path = "report.json"
    assert reported.raw["versions"] == versions()
    assert RunReport.load(reported.made.store.local(path, tmp_path)) == reported.made.report
    settings = reported.details["settings"]
    assert settings["select"]["min_motion"] == 0.3
    assert set(settings) == {
        "seed",
        "data",
        "select",
        "decode",
        "first_stage",
        "condition",
        "encode",
    }


def test_secrets_of_urls_are_not_shown(tmp_path):
    settings = {"data": {"videos": "https://me:hunter2@host/v?token=hunter2", "buckets": [SMALL]}}
    made = data_set(tmp_path, [video("a.mp4", [(SMALL, 1.0, 90.0)])], settings=settings)
    raw, page = write(made)
    assert "hunter2" not in page
    assert "hunter2" not in json.dumps(raw["details"])


def test_warnings_name_what_the_source_no_longer_has(reported):
    made = reported.made
    lines = dataset_report.warnings_of(made.store, made.config, made.source)
    assert "no longer has gone.mp4" in lines[0]
    assert "another content now for changed.mp4" in lines[1]
    assert all(line in reported.page for line in lines)


def test_warnings_are_about_the_clips_that_are_kept(tmp_path):
    records = [video("a.mp4", [(SMALL, 0.01, 90.0), (SMALL, 0.02, 91.0), (SMALL, 2.0, 92.0)])]
    everything = data_set(tmp_path / "all", records)
    assert "teaches a still video" in everything.report.inputs["warnings"][0]
    moving = data_set(tmp_path / "moving", records, settings={"select": {"min_motion": 0.1}})
    assert moving.report.inputs["warnings"] == []


@pytest.mark.parametrize(
    ("frames", "line"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], None),
        ([0, 1, 2, 3, 4, 5, 6, 6], "12% of the frames of the clips repeat the one before"),
        ([0, 0, 1, 1, 2, 2, 3, 3], "teaches jerky motion"),
    ],
)
def test_repeated_frames_are_worth_one_warning(tmp_path, frames, line):
    made = data_set(tmp_path, [video("a.mp4", [(LONG, 2.0, 90.0, frames)])])
    warnings = made.report.inputs["warnings"]
    assert len(warnings) == (line is not None)
    assert line is None or line in warnings[0]
