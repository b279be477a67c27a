"""A real training that validates beside its steps: files, MLflow, best checkpoint, by hand."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

SETTINGS = (
    *("--train.num-steps", "6", "--train.checkpoint-every", "2", "--train.log-every", "1"),
    *("--train.num-checkpoints-kept", "1"),
    *("--validate.held-out-fraction", "0.4", "--validate.num-clips", "4"),
    *("--validate.num-videos", "2", "--validate.num-steps", "2"),
    *("--tracking.system-metrics-s", "1"),
)


@dataclasses.dataclass(frozen=True)
class Trained:
    output: Path
    report: dict
    stderr: str


@pytest.fixture(scope="module")
def trained(cil, tmp_path_factory):
    output = tmp_path_factory.mktemp("validated") / "out"
    cil.run("encode", output)
    done = cil(*cil.stage("train", output, "--json", *SETTINGS))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])["train"]
    return Trained(output, report, done.stderr)


def steps_of(trained):
    folder = trained.output / "train" / "validation"
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def test_the_last_checkpoint_is_validated_and_the_queue_is_empty(trained):
    steps = steps_of(trained)
    assert steps[-1] == 6
    assert set(steps) <= {2, 4, 6}
    metrics = trained.report["metrics"]
    assert metrics["validations"] == len(steps)
    assert metrics["validations_failed"] == 0
    assert metrics["validations"] + metrics["validations_skipped"] == 3
    assert list((trained.output / "train" / "validation" / "queue").iterdir()) == []


def test_files_of_a_validation(trained):
    folder = trained.output / "train" / "validation" / "step-000006"
    names = {"metrics.json", "grid.png"}
    names |= {f"video-{n:02d}{suffix}" for n in range(2) for suffix in (".gif", ".mp4")}
    assert {path.name for path in folder.iterdir()} == names
    record = json.loads((folder / "metrics.json").read_text())
    assert record["n"] == {"loss": 4, "leak": 4, "videos": 2}
    assert record["metrics"]["val_loss"] == pytest.approx(
        np.mean([row["loss"] for row in record["loss_by_bin"]])
    )
    with Image.open(trained.output / "train" / "first_batch.png") as image:
        assert len(set(np.asarray(image.convert("L")).ravel().tolist())) > 50


def test_mlflow_has_metrics_artifacts_and_the_machine(trained):
    import mlflow

    report, output = trained.report, trained.output
    client = mlflow.MlflowClient(f"sqlite:///{output}/mlflow/mlflow.db")
    run_id = report["outputs"]["mlflow_run_id"]
    steps = steps_of(trained)
    for name in ("val_loss", "val_motion_ratio", "val_motion_transfer", "val_loss_bin_4"):
        history = client.get_metric_history(run_id, name)
        assert sorted(metric.step for metric in history) == steps, name
    last = json.loads((output / "train/validation/step-000006/metrics.json").read_text())
    (value,) = [m.value for m in client.get_metric_history(run_id, "val_loss") if m.step == 6]
    assert value == last["metrics"]["val_loss"]
    top = {item.path for item in client.list_artifacts(run_id)}
    assert "first_batch.png" in top
    files = {item.path for item in client.list_artifacts(run_id, "validation/step-000006")}
    assert {f"validation/step-000006/{name}" for name in ("video-00.gif", "grid.png")} <= files
    system = [name for name in client.get_run(run_id).data.metrics if name.startswith("system/")]
    assert "system/cpu_utilization_percentage" in system


def test_the_best_checkpoint_is_kept_whatever_ray_deletes(trained):
    train = trained.output / "train"
    records = [
        json.loads((train / f"validation/step-{step:06d}/metrics.json").read_text())
        for step in steps_of(trained)
    ]
    best = min(records, key=lambda record: record["metrics"]["val_loss"])
    kept = json.loads((train / "best" / "metrics.json").read_text())
    assert kept == best
    assert trained.report["outputs"]["best_is"] == {
        "step": best["step"],
        "metric": "val_loss",
        "value": best["metrics"]["val_loss"],
    }
    state = json.loads((train / "best" / "train_state.json").read_text())
    assert state["num_steps"] == best["step"]
    assert load_file(train / "best" / "ema.safetensors")
    assert len(list((train / "ray").glob("*/checkpoint_2*"))) == 1


def test_by_hand_the_numbers_are_the_same(trained, cil):
    """The exported weights are those of the last step: validate its checkpoint once more."""
    done = cil(
        *cil.command("validate", "--output.dir", str(trained.output), "--json"),
        *("--checkpoint", trained.report["outputs"]["checkpoint"]),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])["validate"]
    folder = trained.output / "train" / "validation" / "step-000006"
    expected = json.loads((folder / "metrics.json").read_text())
    found = json.loads((Path(report["outputs"]["validation"]) / "metrics.json").read_text())
    for record in (expected, found):
        record.pop("seconds")
    assert found == expected
    again = Path(report["outputs"]["validation"]) / "video-00.gif"
    assert again.read_bytes() == (folder / "video-00.gif").read_bytes()


def test_the_terminal_says_how_it_goes(trained):
    text = trained.stderr
    assert re.search(r"train: \d+ clips are held out for validation, \d+ trained on", text)
    assert re.search(r"validation: step 6: val loss \d", text)
    assert "Traceback" not in text


def test_a_validation_that_fails_or_hangs_stops_no_training(cil, trained, tmp_path):
    import shutil

    output = tmp_path / "out"
    shutil.copytree(trained.output / "dataset", output / "dataset")
    settings = (*SETTINGS, "--validate.timeout-s", "0.001")
    done = cil(*cil.stage("train", output, "--json", *settings))
    assert done.returncode == 0, done.stderr
    assert "the validation of step 6 failed: it took longer than" in done.stderr
    report = json.loads(done.stdout.splitlines()[-1])["train"]
    assert report["metrics"]["validations"] == 0
    assert report["metrics"]["loss_last_tenth"] == trained.report["metrics"]["loss_last_tenth"]
