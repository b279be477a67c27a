"""What the folders of a sweep hold: for each training its state, measures and curves.

In: a sweep and what this command did. Out: `Result`s, read from the files that the stages left. A
training that an earlier command finished counts as finished, if it is of these settings and data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config import RunConfig
from pipelines.dataset import open_training_data
from pipelines.metrics_log import MetricsLog
from pipelines.report import RunReport
from pipelines.sweep.arms import ArmRun
from pipelines.sweep.measures import Measure, measures_of
from pipelines.sweep.runner import Outcome, State
from pipelines.train import TRAIN_FOLDER, train_identity
from pipelines.validation import read_history

__all__ = ["Result", "collect", "finished_training"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One training of an arm."""

    run: ArmRun
    state: State
    error: str | None
    reused: bool
    measures: Mapping[str, Measure]
    """By name; empty unless finished."""
    losses: Sequence[float]
    """Of each step."""
    validations: Sequence[Mapping[str, Any]]
    """What each validation wrote, by step."""
    train_seconds: float | None
    """Wall time of the command that finished the training."""
    clips: tuple[int, int] | None
    """Clips that are trained on, and held out."""


def collect(outcomes: Sequence[Outcome]) -> list[Result]:
    """Read the results of all trainings of a sweep.

    Args:
        outcomes: what this command did with each.

    Raises:
        DataError: a file of a finished training is damaged.
    """
    return [_result(outcome) for outcome in outcomes]


def finished_training(config: RunConfig) -> RunReport | None:
    """Return the report of a run's training, if it is of these settings and this data set.

    Raises:
        DataError: there is no data set, or a file of the training is damaged.
    """
    return _training(config, Path(config.output.dir) / TRAIN_FOLDER)


def _result(outcome: Outcome) -> Result:
    run = outcome.run
    folder = run.folder / TRAIN_FOLDER
    trained = finished_training(run.config)
    state = outcome.state
    if state == "not run" and trained is not None:
        state = "finished"
    if trained is None or state != "finished":
        return Result(
            run=run,
            state="not run" if state == "finished" else state,
            error=outcome.error,
            reused=False,
            measures={},
            losses=(),
            validations=(),
            train_seconds=None,
            clips=None,
        )
    identity = str(trained.inputs["identity"])
    losses = MetricsLog(folder / f"metrics-{identity[:12]}.jsonl").losses()
    history = read_history(folder, identity)
    num_steps = run.config.train.num_steps
    last = next((record for record in history if record["step"] == num_steps), None)
    data = open_training_data(run.config)
    why = "no clips are held out" if not data.held_out else "it failed or was given up"
    return Result(
        run=run,
        state="finished",
        error=None,
        reused=outcome.reused or outcome.state == "not run",
        measures=measures_of(run.config, losses, last, why),
        losses=losses,
        validations=history,
        train_seconds=trained.seconds,
        clips=(data.num_clips, data.num_held_out),
    )


def _training(config: RunConfig, folder: Path) -> RunReport | None:
    """Return the report of a training of just these settings and this data set."""
    path = folder / "report.json"
    if not path.exists():
        return None
    report = RunReport.load(path)
    if report.inputs["identity"] != train_identity(config, str(report.inputs["dataset"])):
        return None
    if report.inputs["dataset"] != open_training_data(config).manifest.fingerprint:
        return None
    return report
