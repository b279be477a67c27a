import dataclasses
import json

import pytest

from pipelines.report import RunReport
from pipelines.shards import load_manifest
from pipelines.storage import write_json
from pipelines.sweep.arms import ArmRun
from pipelines.sweep.results import collect
from pipelines.sweep.runner import Outcome
from pipelines.train import train_identity


@pytest.fixture
def arm(encoded_run, tmp_path):
    """A training that is done, with a validation of its last step."""
    config = dataclasses.replace(
        encoded_run.config,
        output=dataclasses.replace(
            encoded_run.config.output, dir=str(tmp_path / "arm"), dataset=str(encoded_run.dataset)
        ),
    )
    fingerprint = load_manifest(encoded_run.dataset).fingerprint
    identity = train_identity(config, fingerprint)
    folder = tmp_path / "arm" / "train"
    RunReport(
        stage="train",
        reused=False,
        inputs={"dataset": fingerprint, "identity": identity},
        outputs={},
        metrics={},
        seconds=3.0,
    ).save(folder / "report.json")
    rows = [{"step": step, "loss": 4.0 - step} for step in range(4)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"metrics-{identity[:12]}.jsonl").write_text(text)
    write_json(
        folder / "validation" / "step-000004" / "metrics.json",
        {
            "identity": identity,
            "step": 4,
            "metrics": {"val_loss": 0.5, "val_loss_clean": 0.25},
            "n": {"loss": 1, "leak": 0, "videos": 0},
            "videos": [],
        },
    )
    return ArmRun(arm="naive", config=config, shares_data=True)


def result(run, state="finished", error=None):
    (found,) = collect([Outcome(run=run, state=state, reused=False, error=error, seconds=0.0)])
    return found


def test_a_finished_training_is_read_from_its_folder(arm):
    found = result(arm)
    assert found.state == "finished"
    assert found.losses == [4.0, 3.0, 2.0, 1.0]
    assert found.measures["train_loss"].value == 1.0
    assert found.measures["val_loss_clean"].value == 0.25
    assert found.train_seconds == 3.0
    assert found.clips == (10, 0)


def test_one_that_an_earlier_command_finished_counts(arm):
    found = result(arm, "not run")
    assert (found.state, found.reused) == ("finished", True)


def test_a_failure_hides_what_was_there_before(arm):
    found = result(arm, "failed", "no memory")
    assert (found.state, found.error, dict(found.measures)) == ("failed", "no memory", {})


def test_a_training_of_other_settings_or_data_does_not_count(arm):
    other = dataclasses.replace(arm.config, seed=9)
    assert result(dataclasses.replace(arm, config=other), "not run").state == "not run"
    path = arm.folder / "train" / "report.json"
    saved = json.loads(path.read_text())
    saved["inputs"]["dataset"] = "0" * 64
    path.write_text(json.dumps(saved))
    assert result(arm, "not run").state == "not run"


def test_an_older_validation_is_not_taken_for_the_last_one(arm):
    folder = arm.folder / "train" / "validation"
    (folder / "step-000004").rename(folder / "step-000002")
    path = folder / "step-000002" / "metrics.json"
    path.write_text(path.read_text().replace('"step": 4', '"step": 2'))
    measure = result(arm).measures["val_loss_clean"]
    assert measure.value is None
    assert "no clips are held out" in measure.absent
