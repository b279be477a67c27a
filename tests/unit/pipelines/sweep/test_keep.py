"""Promotion: the files of an arm's training, copied; the stages after it, called for OUTPUT."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from cil.errors import ConfigError, StageError
from pipelines.report import RunReport
from pipelines.storage import read_json, write_json
from pipelines.sweep.command import SweepOptions, keep_arm, prepare
from pipelines.sweep.keep import check_keep, keep

ARMS = {"naive": {"time_noise.preset": "none"}, "base": {}}


def train_by_hand(sweep, arm, *, identity="abc", weights=b"weights"):
    """Write what a finished training leaves, as far as keeping looks at it."""
    run = next(run for run in sweep.runs if run.arm == arm)
    folder = run.folder / "train"
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "model" / "weights").write_bytes(weights)
    outputs = {
        "model": str(folder / "model"),
        "checkpoint": str(folder.resolve() / "ray" / "last"),
        "mlflow_run_id": "1234",
        "elsewhere": "/somewhere/train/model",
    }
    RunReport(
        stage="train",
        reused=False,
        inputs={"identity": identity},
        outputs=outputs,
        metrics={},
        seconds=1.0,
    ).save(folder / "report.json")
    return folder


@pytest.fixture
def trained(make_sweep, noted):
    sweep = make_sweep(ARMS)
    for arm in ARMS:
        train_by_hand(sweep, arm)
    noted.done.add(("train", "base"))
    return sweep


def go(sweep, arm, noted):
    with ExitStack() as session:
        return keep(sweep, arm, noted.functions(), session=session)


def test_the_training_is_copied_and_the_later_stages_run_for_the_output_folder(trained, noted):
    reports = go(trained, "naive", noted)
    output = Path(trained.base.output.dir)
    assert (output / "train" / "model" / "weights").read_bytes() == b"weights"
    told = RunReport.load(output / "train" / "report.json").outputs
    assert told == {
        "model": str(output / "train" / "model"),
        "checkpoint": str(output / "train" / "ray" / "last"),
        "mlflow_run_id": "1234",
        "elsewhere": "/somewhere/train/model",
    }
    assert noted.calls == [(s, "base") for s in ("train", "estimate", "register", "sample")]
    assert [report.stage for report in reports] == ["estimate", "register", "sample"]
    configs = [config for _, _, _, config in noted.named]
    assert {config.time_noise.preset for config in configs} == {"none"}  # the arm's, not the base's
    named = next(named for stage, _, named, _ in noted.named if stage == "register")
    assert (named["into_registry"], named["alias"]) == (True, "challenger")
    assert named["tags"] == {"sweep": "compare", "sweep_arm": "naive", "sweep_seed": "0"}


def test_a_second_call_copies_nothing_and_another_arm_replaces_it(trained, noted):
    go(trained, "naive", noted)
    folder = Path(trained.base.output.dir) / "train"
    before = (folder / "report.json").stat().st_mtime_ns
    go(trained, "naive", noted)
    assert (folder / "report.json").stat().st_mtime_ns == before
    train_by_hand(trained, "base", identity="def", weights=b"others")
    go(trained, "base", noted)
    assert (folder / "model" / "weights").read_bytes() == b"others"
    assert not list(folder.parent.glob(".train*"))


@pytest.mark.parametrize("how", ["by cil run", "anew after a keeping"])
def test_a_training_that_is_no_arm_is_not_overwritten(trained, noted, how):
    folder = Path(trained.base.output.dir) / "train"
    if how == "by cil run":
        folder.mkdir()
    else:
        go(trained, "naive", noted)
        report = read_json(folder / "report.json")
        write_json(folder / "report.json", {**report, "inputs": {"identity": "new"}})
    (folder / "precious").write_bytes(b"mine")
    noted.calls.clear()
    with pytest.raises(ConfigError, match="holds a training that is no arm of a sweep"):
        go(trained, "base", noted)
    assert (folder / "precious").read_bytes() == b"mine"
    assert noted.calls == []


def test_an_arm_with_its_own_data_is_refused(make_sweep):
    sweep = make_sweep({"wide": {"data.width": 64}}, allow_different=True)
    with pytest.raises(ConfigError, match="data set of its own"):
        check_keep(sweep, "wide")


def test_an_arm_whose_files_are_of_other_settings_is_not_registered(trained, noted):
    noted.done.clear()  # then the train stage does not find its training
    with pytest.raises(StageError, match="not a finished training of these settings"):
        go(trained, "naive", noted)
    assert [stage for stage, _ in noted.calls] == ["train"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SweepOptions(keep="naiv"), r"--keep: .* has no arm 'naiv'; did you mean naive\?"),
        (SweepOptions(keep="base", only=("naive",)), "--keep base: the arm is not run"),
    ],
)
def test_what_cannot_be_kept_is_said_first(write_sweep, options, message):
    with pytest.raises(ConfigError, match=message):
        prepare(str(write_sweep(ARMS)), options, lambda base: base)


@pytest.mark.parametrize(("state", "count"), [("finished", 3), ("StageError: no memory", 0)])
def test_only_a_finished_arm_is_kept(trained, noted, capsys, state, count):
    report = RunReport(
        stage="sweep",
        reused=False,
        inputs={},
        outputs={"arms": {"naive, seed 0": state}},
        metrics={},
        seconds=0.0,
    )
    options = SweepOptions(keep="naive")
    reports = keep_arm(trained, options, report, functions=noted.functions())
    assert len(reports) == count
    assert ("not kept" in capsys.readouterr().err) is (count == 0)
    assert keep_arm(trained, SweepOptions(), report, functions=noted.functions()) == []
