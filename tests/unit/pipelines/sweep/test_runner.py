from contextlib import ExitStack
from pathlib import Path

import pytest

from cil.errors import ConfigError, DataError, StageError
from pipelines.sweep import command, runner
from pipelines.sweep.command import SweepOptions, prepare, run_sweep, show_sweep
from pipelines.sweep.runner import run_arms
from pipelines.termination import Terminated

ARMS = {"naive": {"time_noise.preset": "none"}, "base": {}}
STAGES = ("train", "estimate", "register", "sample")


def go(sweep, noted, **options):
    with ExitStack() as session:
        return run_arms(sweep, noted.functions(), session=session, **options)


def test_data_and_statistics_are_made_once_then_arm_after_arm(make_sweep, noted):
    sweep = make_sweep(ARMS)
    _, outcomes = go(sweep, noted)
    assert noted.calls == [
        ("encode", "base"),
        ("estimate", "base"),
        *((stage, "naive/seed-0") for stage in STAGES),
        *((stage, "base/seed-0") for stage in STAGES),
    ]
    assert [outcome.state for outcome in outcomes] == ["finished", "finished"]
    sessions = {id(named["session"]) for _, _, named, _ in noted.named if "session" in named}
    assert len(sessions) == 1


def test_the_arms_get_the_statistics_of_the_base(make_sweep, noted):
    sweep = make_sweep(ARMS)
    go(sweep, noted)
    for run in sweep.runs:
        folder = run.folder / "estimate"
        assert (folder / "analytic_init.safetensors").read_bytes() == b"statistics"
        assert sorted(path.name for path in folder.iterdir()) == [
            "analytic_init.safetensors",
            "report.json",
        ]


def test_an_arm_with_other_data_encodes_and_estimates_itself(make_sweep, noted):
    sweep = make_sweep({"wide": {"data.width": 64}}, allow_different=True)
    go(sweep, noted)
    assert noted.calls == [
        ("encode", "base"),
        ("encode", "wide/seed-0"),
        *((stage, "wide/seed-0") for stage in STAGES),
    ]
    assert not (sweep.runs[0].folder / "estimate").exists()


@pytest.mark.parametrize("into_registry", [False, True])
def test_registration_is_by_option_and_tagged(make_sweep, noted, into_registry):
    go(make_sweep(ARMS), noted, into_registry=into_registry)
    named = [named for stage, _, named, _ in noted.named if stage == "register"]
    assert [each["into_registry"] for each in named] == [into_registry] * 2
    assert [each["alias"] for each in named] == [None, None]
    assert named[0]["tags"] == {"sweep": "compare", "sweep_arm": "naive", "sweep_seed": "0"}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("error", [StageError("no memory"), RuntimeError("odd"), OSError("disk")])
def test_the_others_go_on_when_an_arm_fails(make_sweep, noted, capsys, stage, error):
    noted.fail[(stage, "naive/seed-0")] = error
    _, outcomes = go(make_sweep(ARMS), noted)
    assert [outcome.state for outcome in outcomes] == ["failed", "finished"]
    assert outcomes[0].error == f"{type(error).__name__}: {error}"
    assert noted.calls[-1] == ("sample", "base/seed-0")
    assert "naive, seed 0 failed after" in capsys.readouterr().err.replace("\n", " ")


def test_fail_fast_leaves_the_others_out(make_sweep, noted):
    noted.fail[("train", "naive/seed-0")] = StageError("no memory")
    _, outcomes = go(make_sweep(ARMS), noted, fail_fast=True)
    assert [outcome.state for outcome in outcomes] == ["failed", "not run"]
    assert noted.calls[-1] == ("train", "naive/seed-0")


def test_an_interrupt_is_no_failure_of_an_arm(make_sweep, noted):
    noted.fail[("train", "naive/seed-0")] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        go(make_sweep(ARMS), noted)


def test_no_arm_is_begun_after_a_sigterm_that_came_as_another_error(make_sweep, noted, monkeypatch):
    noted.fail[("train", "naive/seed-0")] = SystemError("returned a result with an exception set")
    monkeypatch.setattr(runner, "was_terminated", lambda: True)
    with pytest.raises(Terminated):
        go(make_sweep(ARMS), noted)
    assert ("train", "base/seed-0") not in noted.calls


def test_without_the_shared_data_nothing_is_trained(make_sweep, noted):
    noted.fail[("encode", "base")] = DataError("no clip")
    with pytest.raises(DataError, match="no clip"):
        go(make_sweep(ARMS), noted)
    assert noted.calls == [("encode", "base")]


def test_secrets_in_errors_are_hidden(make_sweep, noted):
    noted.fail[("train", "naive/seed-0")] = StageError("MLflow at http://me:secret@host failed")
    _, outcomes = go(make_sweep(ARMS), noted)
    assert outcomes[0].error == "StageError: MLflow at http://me:***@host failed"


def test_only_runs_what_is_named(make_sweep, noted):
    _, outcomes = go(make_sweep(ARMS, seeds=[0, 1]), noted, only=("base",))
    assert {arm for stage, arm in noted.calls if stage == "train"} == {"base/seed-0", "base/seed-1"}
    assert [outcome.state for outcome in outcomes] == ["not run", "finished"] * 2


def test_a_second_call_finds_everything_done(make_sweep, noted):
    sweep = make_sweep(ARMS)
    _, first = go(sweep, noted)
    encoded, second = go(sweep, noted)
    assert not any(outcome.reused for outcome in first)
    assert all(outcome.reused for outcome in second)
    assert encoded.reused


def test_an_arm_that_is_not_there_is_refused(write_sweep):
    path = write_sweep(ARMS)
    with pytest.raises(ConfigError, match=r"has no arm 'naiv'; did you mean naive\?"):
        prepare(str(path), SweepOptions(only=("naiv",)), lambda base: base)


def test_a_dry_run_shows_the_arms_and_writes_nothing(write_sweep, tmp_path, capsys):
    options = SweepOptions(only=("naive",))
    sweep = prepare(str(write_sweep(ARMS)), options, lambda base: base)
    report = show_sweep(sweep, options)
    shown = capsys.readouterr().err
    assert "time_noise.preset: mild -> none" in shown
    assert "2 trainings of 4 steps of 4 clips" in shown
    assert report.outputs["arms"]["naive"]["differences"] == {
        "time_noise.preset": {"base": "mild", "arm": "none"}
    }
    assert not (tmp_path / "out").exists()


def test_what_cannot_start_is_said_before_anything_does(make_sweep, noted):
    sweep = make_sweep({"bad": {"model.block_out_channels": [32, 32]}, "base": {}})
    with pytest.raises(ConfigError) as caught:
        run_sweep(sweep, SweepOptions(), functions=noted.functions())
    assert "a level of at least 64 channels" in str(caught.value)
    assert "arm bad, seed 0: " in str(caught.value)
    assert noted.calls == []


def test_the_command_reports_failures(make_sweep, noted, monkeypatch, tmp_path):
    monkeypatch.setattr(command.stages, "check_before_start", lambda name, config: None)
    noted.fail[("train", "naive/seed-0")] = StageError("no memory")
    report = run_sweep(make_sweep(ARMS), SweepOptions(), functions=noted.functions())
    assert (report.metrics["failed"], report.metrics["trainings"]) == (1.0, 2.0)
    assert report.outputs["arms"]["naive, seed 0"] == "StageError: no memory"
    assert "no memory" in Path(report.outputs["report"]).read_text()
    assert not report.reused
