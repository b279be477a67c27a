import json
import shutil
from contextlib import ExitStack

import pytest
import yaml

from cil.errors import ConfigError
from pipelines import evaluate
from pipelines.__main__ import _main
from pipelines.config import config_to_yaml
from pipelines.evaluate import command, evaluation
from pipelines.evaluate.arms import own_arm, parse_arms, sampling_settings


@pytest.fixture
def file(held_out_config, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(config_to_yaml(held_out_config))
    return path


@pytest.fixture
def logged(monkeypatch):
    """What would go to MLflow."""
    notes = []
    monkeypatch.setattr(
        command.tracking, "log_evaluation", lambda *given: notes.append(given) or True
    )
    return notes


@pytest.fixture
def here(evaluate_here, monkeypatch):
    """Let the command work in this process."""

    def run(config, arms, *, folder, session, debug=False):
        return evaluate_here(config, arms, folder)

    monkeypatch.setattr(command, "evaluate_arms", run)


def test_arms_of_the_command_line_become_a_table_and_json(
    file, here, model_folder, tmp_path, capsys
):
    out = tmp_path / "results"
    arguments = ["evaluate", "--config", str(file), "--out", str(out), "--json"]
    arms = ["--arm", f"one={model_folder}", "--arm", f"two={model_folder}"]
    assert _main([*arguments, *arms, "--evaluate.num-clips", "2"]) == 0
    shown = capsys.readouterr()
    report = json.loads(shown.out.splitlines()[-1])["evaluate"]
    assert report["metrics"]["videos"] == 4
    assert report["outputs"]["metrics"] == str(out / "metrics.json")
    assert "motion_consistent" in shown.err
    assert yaml.safe_load((out / "config.yaml").read_text())["evaluate"]["num_clips"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arm", "model"], "--arm must be NAME=PLACE"),
        (["--arm", "a/b/c=x"], "model must be models:/NAME@ALIAS or a model folder, got x"),
        (["--arm", "a=videos:/nothing/there"], "is not a folder of videos"),
        (["--sweep", "x.yaml"], "give --config or --sweep, not both"),
        (["--evaluate.start-times", "2"], "start_times"),
        (["--evaluate.num-clips", "0"], "num_clips"),
        ([], "there is no model in"),
        (["--validate.held-out-fraction", "0"], "no held-out clips to evaluate on"),
    ],
)
def test_wrong_input_is_refused_before_anything_starts(file, tmp_path, arguments, message, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert _main(["evaluate", "--config", str(file), *out, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_names_of_arms_are_checked(held_out_config, model_folder):
    for names, message in (
        (["a", "a"], "the arm a stands twice"),
        (["../a"], "the name of an arm must be"),
        (["a/b/c"], "at most one slash"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_arms([f"{name}={model_folder}" for name in names], held_out_config)


def test_settings_of_sampling_are_the_models_own(model_folder):
    assert sampling_settings(model_folder) == {
        "start_time": 0.94,
        "analytic_init": True,
        "num_steps": 2,
    }


def test_the_stage_says_why_it_does_nothing_without_held_out_clips(encoded_run, capsys):
    for again in (False, True):
        with ExitStack() as session:
            report = evaluate.run(encoded_run.config, session=session)
        assert report.reused is again
        assert "no held-out clips" in report.outputs["skipped"]
        assert "nothing is evaluated" in capsys.readouterr().err


def test_the_stage_evaluates_the_runs_own_model_once(
    held_out_config, here, logged, change, model_folder
):
    output = model_folder.parent / "run"
    config = change(
        held_out_config,
        output={"dir": str(output), "dataset": str(held_out_config.output.dir) + "/dataset"},
    )
    shutil.copytree(model_folder, output / "register" / "model")
    (output / "register" / "report.json").write_text(json.dumps({"outputs": {"run_id": "r"}}))
    for reused in (False, True):
        with ExitStack() as session:
            report = evaluate.run(config, session=session)
        assert report.reused is reused
    assert report.metrics["clips"] == 4
    ((_, run_id, measures, files),) = logged
    assert run_id == "r"
    assert measures["motion"] == report.metrics["motion"]
    assert all(path.exists() for path in files)
    assert own_arm(config).name == "model"
    assert (output / evaluation.EVALUATE_FOLDER / "per_clip.parquet").exists()
