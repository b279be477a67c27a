import dataclasses
import sys
import types

import pytest

from cil.errors import ConfigError, StageError
from pipelines import stages
from pipelines.config import validate_config
from pipelines.report import RunReport
from pipelines.storage import lock_folder


@pytest.fixture
def config(encoded_run, tmp_path):
    """A configuration with which everything may start."""
    return dataclasses.replace(
        encoded_run.config,
        output=dataclasses.replace(encoded_run.config.output, dir=str(tmp_path / "out")),
    )


@pytest.fixture
def ran(monkeypatch):
    """Replace the modules of the stages by ones that only take notes."""
    notes = []

    def fake(stage):
        def run(config, **named):
            notes.append((stage, sorted(named)))
            if "session" in named:
                named["session"].callback(notes.append, (f"{stage} closed", []))
            return RunReport(
                stage=stage, reused=False, inputs={}, outputs={}, metrics={}, seconds=0.0
            )

        return types.SimpleNamespace(run=run)

    import pipelines

    for stage in stages.STAGES:
        monkeypatch.setitem(sys.modules, f"pipelines.{stage}", fake(stage))
        monkeypatch.setattr(pipelines, stage, fake(stage), raising=False)
    return notes


def test_run_takes_all_stages_in_order_and_closes_the_session_at_the_end(config, ran, capsys):
    reports = stages.run("run", config)
    assert [report.stage for report in reports] == list(stages.STAGES)
    assert [stage for stage, _ in ran[: len(stages.STAGES)]] == list(stages.STAGES)
    assert all(stage.endswith(" closed") for stage, _ in ran[len(stages.STAGES) :])
    shown = capsys.readouterr().err
    assert "stage 1/6: encode" in shown
    assert "stage 6/6: sample" in shown


@pytest.mark.parametrize("stage", stages.STAGES)
def test_one_stage_runs_alone(config, ran, stage):
    (report,) = stages.run(stage, config)
    assert report.stage == stage
    assert [name for name, _ in ran if not name.endswith("closed")] == [stage]


def test_a_folder_that_is_in_use_is_refused(config, ran, tmp_path):
    with (
        lock_folder(tmp_path / "out", "output.dir"),
        pytest.raises(StageError, match=r"output\.dir: another command is working in"),
    ):
        stages.run("run", config)
    assert ran == []
    stages.run("run", config)
    assert ran


def test_a_failed_stage_ends_the_run_and_frees_the_folder(config, ran, monkeypatch, tmp_path):
    import pipelines

    def fail(config, **_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(pipelines.train, "run", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        stages.run("run", config)
    assert [name for name, _ in ran] == ["encode", "encode closed"]
    with lock_folder(tmp_path / "out", "output.dir"):
        pass


def change(config, **sections):
    return dataclasses.replace(
        config,
        **{
            name: dataclasses.replace(getattr(config, name), **values)
            for name, values in sections.items()
        },
    )


def refused(command, config):
    with pytest.raises(ConfigError) as caught:
        stages.check_before_start(command, config)
    return str(caught.value)


def test_all_problems_are_reported_together(config):
    broken = change(
        config,
        data={"videos": ""},
        tracking={"uri": "ftp://x"},
        model={"block_out_channels": (32, 32)},
        output={"dir": "/dev/null/x"},
    )
    message = refused("run", broken)
    assert message.count("\nerror: ") == 3
    for words in (
        "output.dir: cannot write",
        "data.videos is not set",
        "tracking.uri must be",
        "a level of at least 64 channels",
    ):
        assert words in message


def test_a_data_set_elsewhere_is_checked_too(config, tmp_path):
    (tmp_path / "file").write_text("x")
    wrong = change(config, output={"dataset": str(tmp_path / "file" / "clips")})
    assert refused("encode", wrong).startswith("output.dataset: cannot write to")
    assert stages.check_before_start("train", wrong) is None


@pytest.mark.parametrize("setting", ["dir", "dataset"])
def test_a_data_set_may_not_go_among_the_videos(config, encoded_run, setting):
    wrong = change(config, output={setting: str(encoded_run.videos / "sub")})
    assert f"output.{setting} must not be inside data.videos" in refused("encode", wrong)


@pytest.mark.parametrize(
    ("command", "matters"),
    [
        ("run", {"data", "tracking", "model"}),
        ("encode", {"data"}),
        ("train", {"tracking", "model"}),
        ("estimate", set()),
        ("register", {"tracking"}),
        ("sample", set()),
    ],
)
def test_a_stage_checks_only_what_it_uses(config, command, matters):
    broken = {
        "data": change(config, data={"videos": "missing"}),
        "tracking": change(config, tracking={"uri": "ftp://x"}),
        "model": change(config, model={"block_out_channels": (32, 32)}),
    }
    for name, wrong in broken.items():
        if name in matters:
            assert refused(command, wrong)
        else:
            assert stages.check_before_start(command, wrong) is None


@pytest.mark.parametrize("inside", [".", "sub", "sub/deeper"])
def test_results_may_not_go_among_the_videos(config, encoded_run, inside):
    wrong = change(config, output={"dir": str(encoded_run.videos / inside)})
    assert "output.dir must not be inside data.videos" in refused("encode", wrong)


def test_a_link_into_the_videos_is_seen_through(config, encoded_run, tmp_path):
    (tmp_path / "link").symlink_to(encoded_run.videos)
    wrong = change(config, output={"dir": str(tmp_path / "link" / "out")})
    assert "output.dir must not be inside data.videos" in refused("encode", wrong)


def test_videos_beside_or_inside_the_output_are_fine(config, encoded_run):
    beside = str(encoded_run.videos) + "-out"
    assert stages.check_before_start("encode", change(config, output={"dir": beside})) is None


@pytest.mark.parametrize("path", ["missing", "file"])
def test_a_first_stage_that_is_none_is_refused(config, tmp_path, path):
    (tmp_path / "file").write_text("x")
    wrong = change(config, first_stage={"path": str(tmp_path / path)})
    assert refused("encode", wrong).startswith("first_stage.path: ")


def test_a_given_first_stage_must_divide_the_frames(config, encoded_run):
    given = {"path": str(encoded_run.dataset / "first_stage")}
    assert stages.check_before_start("encode", change(config, first_stage=given)) is None
    wrong = change(config, first_stage=given, data={"width": 34})
    message = refused("encode", wrong)
    assert "the width of a clip must be a multiple of 4" in message
    assert f"which is what the first stage in {given['path']} divides by, got 34" in message


def test_noise_that_the_schedule_does_not_know_is_refused():
    config = validate_config({"time_noise": {"time_map": "index"}}, source="test")
    assert refused("train", config)


def test_a_run_that_would_stop_at_estimation_is_refused_before_training(config, ran):
    several = dataclasses.replace(
        config, data=dataclasses.replace(config.data, buckets=("32x32x8", "32x32x4"))
    )
    with pytest.raises(
        ConfigError, match=r"train.bucket must name one of data.buckets \(32x32x8, "
    ):
        stages.run("run", several)
    assert ran == []
    stages.run("train", several)
    named = dataclasses.replace(several, train=dataclasses.replace(config.train, bucket="32x32x4"))
    stages.run("run", named)
