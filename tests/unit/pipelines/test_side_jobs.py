"""The driver's side of validations, with jobs that only pretend to run."""

import dataclasses
import json

import pytest

from pipelines import side_jobs, staged_checkpoints
from pipelines.side_jobs import SideJobs, start_side_jobs
from pipelines.side_launcher import JobFailedError
from pipelines.staged_checkpoints import (
    CheckpointKeeper,
    is_due,
    stage_checkpoint,
)
from pipelines.staged_checkpoints import staged_checkpoints as queue_of
from pipelines.validation import step_folder

IDENTITY = "i" * 64


class FakeLauncher:
    """Jobs end when they are told to."""

    def __init__(self):
        self.started, self.cancelled, self.error, self.is_done = [], [], None, False

    def start(self, settings):
        self.started.append(settings)
        return len(self.started)

    def done(self, handle):
        if self.error is not None:
            raise JobFailedError(self.error)
        return self.is_done

    def cancel(self, handle):
        self.cancelled.append(handle)

    @property
    def steps(self):
        return [settings.get("step") for settings in self.started]


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "run" / "train"
    made.mkdir(parents=True)
    (made / "first_batch.png").touch()
    return made


@pytest.fixture
def sent(monkeypatch):
    """What goes to MLflow."""
    sent = []
    for name in ("log_validation", "log_files", "set_tag"):

        def note(*arguments, name=name):
            sent.append((name, *arguments[2:]))
            return True

        monkeypatch.setattr(side_jobs.tracking, name, note)
    return sent


@pytest.fixture
def jobs(encoded_run, folder, sent):
    return SideJobs(
        encoded_run.config,
        train_folder=folder,
        identity=IDENTITY,
        run_id="run",
        launcher=FakeLauncher(),
        clock=lambda: clock[0],
    )


clock = [0.0]


@pytest.fixture
def stage(folder, tmp_path):
    """Commit a checkpoint."""

    def make(step):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / "ema.safetensors").write_text(f"weights of {step}")
        (checkpoint / "train_state.json").write_text(json.dumps({"num_steps": step}))
        stage_checkpoint(checkpoint, folder)
        return checkpoint

    return make


def finish(jobs, folder, *, loss=1.0, identity=IDENTITY, motion=0.8, transfer=0.7, settings="s"):
    """Let the running validation write its results and end."""
    step = jobs._launcher.started[-1]["step"]
    place = step_folder(folder, step)
    place.mkdir(parents=True)
    record = {
        "identity": identity,
        "settings": settings,
        "step": step,
        "metrics": {"val_loss": loss, "val_motion_ratio": motion, "val_motion_transfer": transfer},
        "videos": [{"motion_ratio": motion * (1 + 0.01 * k)} for k in range(6)],
        "motion_transfer_per_clip": [transfer * (1 + 0.01 * k) for k in range(6)],
    }
    (place / "metrics.json").write_text(json.dumps(record))
    jobs._launcher.is_done = True
    jobs.poll()
    jobs._launcher.is_done = False


def steps_waiting(folder):
    return [staged.step for staged in queue_of(folder)]


def test_one_runs_at_a_time_and_nothing_is_waited_for(jobs, stage, folder):
    assert not jobs.poll()
    stage(100)
    assert jobs.poll()
    stage(200)
    for _ in range(5):
        assert jobs.poll()
    assert jobs._launcher.steps == [100]
    settings = jobs._launcher.started[0]
    assert settings["checkpoint"] == str(folder / "validation" / "queue" / "step-000100")
    assert settings["identity"] == IDENTITY
    finish(jobs, folder)
    assert jobs._launcher.steps == [100, 200]
    finish(jobs, folder)
    assert not jobs.poll()
    assert steps_waiting(folder) == []
    assert jobs.num_failed == jobs.num_skipped == 0


def test_a_slow_validation_leaves_older_checkpoints_out_and_says_so_once(
    jobs, stage, folder, capsys
):
    stage(100)
    jobs.poll()
    for step in (200, 300, 400):
        stage(step)
    finish(jobs, folder)
    assert jobs._launcher.steps == [100, 400]
    for step in (500, 600):
        stage(step)
    finish(jobs, folder)
    assert jobs._launcher.steps == [100, 400, 600]
    assert jobs.num_skipped == 3
    assert capsys.readouterr().err.count("validations take longer than") == 1


def test_the_last_checkpoint_is_validated_before_the_end(jobs, stage, folder, monkeypatch):
    stage(100)
    jobs.poll()
    stage(200)
    monkeypatch.setattr(side_jobs.time, "sleep", lambda _: finish(jobs, folder))
    jobs.drain()
    assert jobs._launcher.steps == [100, 200]
    assert steps_waiting(folder) == []


def test_results_go_to_best_and_mlflow(jobs, stage, folder, sent):
    for step, loss in ((100, 3.0), (200, 1.0), (300, 2.0)):
        stage(step)
        jobs.poll()
        finish(jobs, folder, loss=loss)
    assert [item[0] for item in sent] == ["log_validation"] * 3
    assert (folder / "best" / "ema.safetensors").read_text() == "weights of 200"
    made = jobs.outputs()
    assert made["best_is"] == {"step": 200, "metric": "val_loss", "value": 1.0}
    assert "motion_collapse" not in made
    metrics = jobs.metrics()
    assert metrics["validations"] == 3
    assert metrics["val_loss"] == 2.0
    assert "step 300: val loss 2.0000, motion 0.80 of real, motion transfer 0.70" in jobs.note


def test_ray_may_delete_a_checkpoint_before_it_is_validated(jobs, stage, folder):
    import shutil

    shutil.rmtree(stage(100))
    jobs.poll()
    finish(jobs, folder)
    assert (folder / "best" / "ema.safetensors").read_text() == "weights of 100"


@pytest.mark.parametrize("how", ["error", "silent", "slow"])
def test_a_failing_validation_is_a_warning(jobs, stage, folder, capsys, how):
    clock[0] = 0.0
    stage(100)
    jobs.poll()
    if how == "error":
        jobs._launcher.error = "RuntimeError: broken"
    elif how == "silent":
        jobs._launcher.is_done = True
    else:
        clock[0] = jobs._config.validate.timeout_s + 1
    assert not jobs.poll()
    words = {
        "error": "RuntimeError: broken",
        "silent": "it left no metrics",
        "slow": "it took longer than validate.timeout_s = 3600 s",
    }
    text = " ".join(capsys.readouterr().err.split())
    assert f"the validation of step 100 failed: {words[how]}; training goes on" in text
    assert jobs.num_failed == 1
    assert jobs._launcher.cancelled == ([1] if how == "slow" else [])
    assert steps_waiting(folder) == []
    jobs._launcher.error, jobs._launcher.is_done = None, False
    stage(200)
    assert jobs.poll()
    assert jobs._launcher.steps == [100, 200]


def test_a_launch_that_fails_is_a_warning(jobs, stage, folder, monkeypatch):
    def refuse(settings):
        raise JobFailedError("no such resource")

    monkeypatch.setattr(jobs._launcher, "start", refuse)
    stage(100)
    assert not jobs.poll()
    assert jobs.num_failed == 1


def test_a_collapse_is_shown_tagged_and_reported(jobs, stage, folder, sent, capsys):
    for number, share in enumerate((0.8, 0.8, 0.3, 0.2)):
        stage(100 * (number + 1))
        jobs.poll()
        finish(jobs, folder, motion=share, transfer=share)
    text = " ".join(capsys.readouterr().err.split())
    assert "warning: motion collapse: by step 400" in text
    tags = [item for item in sent if item[0] == "set_tag"]
    assert [tag[1] for tag in tags] == ["motion_collapse"]
    assert jobs.outputs()["motion_collapse"] == [tags[0][2]]


def test_what_was_validated_before_a_crash_is_taken_in_without_another_job(
    jobs, stage, folder, sent
):
    """The command died between the end of the job and the choice of the best."""
    stage(100)
    jobs.poll()
    settings = jobs._launcher.started[-1]
    place = step_folder(folder, settings["step"])
    place.mkdir(parents=True)
    record = {
        "identity": IDENTITY,
        "step": 100,
        "metrics": {"val_loss": 1.0},
        "videos": [],
        "motion_transfer_per_clip": [],
    }
    (place / "metrics.json").write_text(json.dumps(record))
    config, launcher = jobs._config, FakeLauncher()
    resumed = SideJobs(
        config, train_folder=folder, identity=IDENTITY, run_id="run", launcher=launcher
    )
    assert not resumed.poll()
    assert launcher.started == []
    assert (folder / "best" / "ema.safetensors").exists()
    assert [item[0] for item in sent] == ["log_validation"]
    assert steps_waiting(folder) == []


@pytest.mark.parametrize("junk", ["", "{", "{}", "[]", '{"identity": "other"}'])
def test_a_damaged_or_foreign_result_is_made_again(jobs, stage, folder, junk):
    place = step_folder(folder, 100)
    place.mkdir(parents=True)
    (place / "metrics.json").write_text(junk)
    stage(100)
    assert jobs.poll()
    assert jobs._launcher.steps == [100]
    assert jobs.metrics()["validations"] == 0


def test_the_first_job_is_the_picture_of_the_first_batch(encoded_run, folder, sent, stage):
    (folder / "first_batch.png").unlink()
    jobs = SideJobs(
        encoded_run.config,
        train_folder=folder,
        identity=IDENTITY,
        run_id="run",
        launcher=FakeLauncher(),
    )
    stage(100)
    jobs.poll()
    assert jobs._launcher.started == [{"train_folder": str(folder.resolve())}]
    (folder / "first_batch.png").touch()
    jobs._launcher.is_done = True
    jobs.poll()
    assert sent == [("log_files", [folder.resolve() / "first_batch.png"])]
    assert jobs._launcher.steps == [None, 100]


def test_an_error_of_training_ends_the_job_and_keeps_the_checkpoint(jobs, stage, folder):
    stage(100)
    jobs.poll()
    with pytest.raises(RuntimeError, match="training"), jobs.cancelled_on_error():
        raise RuntimeError("training")
    assert jobs._launcher.cancelled == [1]
    assert steps_waiting(folder) == [100]


def test_another_training_sets_results_aside(encoded_run, folder, stage, monkeypatch):
    config = encoded_run.config
    monkeypatch.setattr(side_jobs, "RayLauncher", lambda config: FakeLauncher())
    start_side_jobs(config, folder, identity="a" * 64, run_id="run")
    (folder / "best").mkdir()
    (folder / "validation" / "step-000100").mkdir()
    stage(100)
    start_side_jobs(config, folder, identity="a" * 64, run_id="run")
    assert (folder / "best").exists()
    assert steps_waiting(folder) == [100]
    start_side_jobs(config, folder, identity="b" * 64, run_id="run")
    assert sorted(path.name for path in folder.iterdir()) == [
        "best-aaaaaaaaaaaa",
        "first_batch-aaaaaaaaaaaa.png",
        "validation",
        "validation-aaaaaaaaaaaa",
    ]
    assert steps_waiting(folder) == []


def test_what_was_set_aside_is_never_deleted(encoded_run, folder, monkeypatch):
    """Settings that go to and fro: each training's results stay, under a number of their own."""
    config = encoded_run.config
    monkeypatch.setattr(side_jobs, "RayLauncher", lambda config: FakeLauncher())
    for turn, letter in enumerate("abababa"):
        start_side_jobs(config, folder, identity=letter * 64, run_id="run")
        for name in ("best", "validation/step-000100"):
            (folder / name).mkdir()
            (folder / name / "turn").write_text(str(turn))
        (folder / "first_batch.png").write_text(str(turn))
    for letter, turns in (("a", (0, 2, 4)), ("b", (1, 3, 5))):
        for number, turn in enumerate(turns, 1):
            own = f"-{letter * 12}" + ("" if number == 1 else f"-{number}")
            for name in (f"best{own}/turn", f"validation{own}/step-000100/turn"):
                assert (folder / name).read_text() == str(turn)
            assert (folder / f"first_batch{own}.png").read_text() == str(turn)


def test_validations_of_other_settings_are_not_compared(jobs, stage, folder, capsys):
    for step, loss, settings in ((100, 1.0, "few"), (200, 2.0, "many"), (300, 1.5, "many")):
        stage(step)
        jobs.poll()
        finish(jobs, folder, loss=loss, settings=settings)
    assert jobs.outputs()["best_is"]["step"] == 300
    assert json.loads((folder / "best-step-000100" / "metrics.json").read_text())["step"] == 100
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("the search for the best begins anew") == 1
    assert "the settings of validation changed" in said


# -- the queue ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (None, [10, 20, 30, 40, 50, 55]),
        (10, [10, 20, 30, 40, 50, 55]),
        (20, [20, 40, 55]),
        (25, [30, 50, 55]),
        (1000, [55]),
    ],
)
def test_which_checkpoints_are_due(every, expected):
    steps = [10, 20, 30, 40, 50, 55]
    settings = {"every_steps": every, "checkpoint_every": 10, "num_steps": 55}
    assert [step for step in steps if is_due(step, **settings)] == expected


def test_the_keeper_takes_what_is_due(encoded_run, folder, stage, tmp_path):
    config = dataclasses.replace(
        encoded_run.config,
        train=dataclasses.replace(encoded_run.config.train, checkpoint_every=10, num_steps=40),
        validate=dataclasses.replace(encoded_run.config.validate, every_steps=20),
    )
    keeper = CheckpointKeeper.of(config, folder)
    for step in (10, 20, 30, 40):
        checkpoint = stage(step)
        for staged in queue_of(folder):
            if staged.step == step:
                staged.remove()
        keeper(checkpoint)
    assert steps_waiting(folder) == [20, 40]
    with pytest.raises(OSError, match=r"train_state\.json"):
        keeper(tmp_path / "nothing")


def test_a_copy_that_fails_leaves_nothing_in_the_queue(stage, folder, monkeypatch):
    def refuse(source, target):
        target.mkdir(parents=True)
        raise OSError("no room")

    monkeypatch.setattr(staged_checkpoints, "copy_weights", refuse)
    with pytest.raises(OSError, match="no room"):
        stage(100)
    assert steps_waiting(folder) == []
    assert list((folder / "validation" / "queue").iterdir()) == []
