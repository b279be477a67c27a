"""What MLflow is owed of a training that is done."""

import json

import pytest

from cil.errors import StageError
from pipelines import delivery
from pipelines.config import RunConfig
from pipelines.delivery import deliver, deliver_unsent, load_log, owe, training_log
from pipelines.report import RunReport
from pipelines.settings import OutputConfig, TrackingConfig

IDENTITY = "i" * 64


@pytest.fixture
def config(tmp_path):
    return RunConfig(
        tracking=TrackingConfig(uri="http://me:s3cret@host"),
        output=OutputConfig(dir=str(tmp_path)),
    )


@pytest.fixture
def folder(tmp_path, config):
    """A training that is done, with a picture, a collapse, warnings and two validations."""
    made = tmp_path / "train"
    made.mkdir()
    (made / "first_batch.png").touch()
    (made / "warnings.jsonl").write_text("a spike")
    owe(config, made, identity=IDENTITY, run_id="run")
    RunReport(
        stage="train",
        reused=False,
        inputs={"identity": IDENTITY},
        outputs={
            "mlflow_run_id": "run",
            "model": "the/model",
            "first_batch": str(made / "first_batch.png"),
            "motion_collapse": ["first", "last"],
            "warnings": str(made / "warnings.jsonl"),
        },
        metrics={},
        seconds=1.0,
    ).save(made / "report.json")
    for step in (10, 20):
        place = delivery.step_folder(made, step)
        place.mkdir(parents=True)
        record = {"identity": IDENTITY, "step": step, "metrics": {"val_loss": 0.5}}
        (place / "metrics.json").write_text(json.dumps(record))
    return made


class Tracking:
    """Takes notes in place of MLflow."""

    def __init__(self, monkeypatch):
        self.sent, self.fails, self.runs, self.validated = [], None, {"run"}, {10}
        for name in ("sync_metrics", "log_validation", "log_files", "tag_run", "finish_run"):
            monkeypatch.setattr(delivery.tracking, name, self._note(name))
        monkeypatch.setattr(delivery.tracking, "has_run", lambda _, run: run in self.runs)
        monkeypatch.setattr(delivery.tracking, "logged_validations", lambda *_: set(self.validated))

    def _note(self, name):
        def note(*words):
            if name == self.fails:
                if name.startswith("log_"):
                    return False
                raise StageError(f"{name} failed")
            self.sent.append((name, *words[1:]))
            return True

        return note

    def names(self):
        return [each[0] for each in self.sent]


@pytest.fixture
def store(monkeypatch):
    return Tracking(monkeypatch)


def test_all_of_it_is_sent(config, folder, store):
    deliver(config, folder)
    assert store.names() == [
        *("sync_metrics", "log_validation", "log_files", "tag_run", "tag_run", "finish_run"),
    ]
    sync, validation, files, collapse, warnings, _ = store.sent
    assert sync[1] == "run"
    paths = [log.path for log in sync[2:]]
    assert paths == [training_log(folder, IDENTITY).path, load_log(folder, IDENTITY).path]
    assert validation[2]["step"] == 20, "10 is there already"
    assert files[2] == [folder / "first_batch.png"]
    assert collapse == ("tag_run", "run", "motion_collapse", "last")
    assert warnings == ("tag_run", "run", "warnings", "a spike")
    assert not (folder / "unsent.json").exists()
    deliver_unsent(config, folder)
    assert len(store.sent) == 6, "nothing is owed any more"


@pytest.mark.parametrize(
    "part", ["sync_metrics", "log_validation", "log_files", "tag_run", "finish_run"]
)
def test_what_fails_is_sent_by_the_next_command(config, folder, store, part):
    store.fails = part
    with pytest.raises(StageError, match="training is done and its model is in the/model") as error:
        deliver(config, folder)
    assert str(training_log(folder, IDENTITY).path) in str(error.value)
    assert "s3cret" not in str(error.value) + (folder / "unsent.json").read_text()
    store.fails = None
    store.sent.clear()
    deliver_unsent(config, folder)
    assert store.names()[-1] == "finish_run"
    assert not (folder / "unsent.json").exists()


def test_another_store_gets_nothing(config, folder, store):
    other = RunConfig(tracking=TrackingConfig(uri="http://other"), output=config.output)
    deliver_unsent(other, folder)
    assert store.sent == []
    assert (folder / "unsent.json").exists()


def test_a_report_of_another_training_is_left_alone(config, folder, store):
    """A command was killed between the note and its report."""
    owe(config, folder, identity="o" * 64, run_id="other")
    deliver_unsent(config, folder)
    assert store.sent == []


def test_a_run_that_was_deleted_is_no_obstacle(config, folder, store, capsys):
    store.runs.clear()
    deliver_unsent(config, folder)
    assert store.sent == []
    assert "has no run run any more" in capsys.readouterr().err
    assert not (folder / "unsent.json").exists()


def test_nothing_is_owed_of_no_training(config, tmp_path, store):
    deliver_unsent(config, tmp_path / "train")
    assert store.sent == []
