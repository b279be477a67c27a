"""What runs beside a training, one job at a time: the picture of the first batch, and validations.

The driver polls; each job is a Ray task in a process of its own, so that training never waits for
one. A job that fails or takes too long is a warning. If checkpoints come faster than they can be
validated, the newest is taken and those before it are left out; the last one is always validated.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cil.errors import CilError
from pipelines import tracking
from pipelines.best_checkpoint import (
    BEST_FOLDER,
    best_record,
    keep_if_best,
    set_aside_if_incomparable,
)
from pipelines.config import RunConfig
from pipelines.dataset import TrainingData
from pipelines.first_batch import FIRST_BATCH_FILE
from pipelines.held_out import none_held_out
from pipelines.motion_collapse import motion_collapse
from pipelines.progress import console
from pipelines.runtime import check_resources
from pipelines.side_launcher import JobFailedError, Launcher, RayLauncher
from pipelines.staged_checkpoints import QUEUE, Staged, staged_checkpoints
from pipelines.storage import read_json, remove_temporaries, set_aside, write_json
from pipelines.validation import (
    METRICS_FILE,
    VALIDATION_FOLDER,
    read_history,
    read_record,
    step_folder,
)

__all__ = ["SideJobs", "say_what_is_held_out", "start_side_jobs", "validation_note"]

_POLL_S = 0.5
_RUN_FILE = "run.json"


class SideJobs:
    """The driver's side: starts what is due, takes in what has ended, and remembers for people."""

    def __init__(
        self,
        config: RunConfig,
        *,
        train_folder: Path,
        identity: str,
        run_id: str,
        launcher: Launcher,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start nothing yet.

        Args:
            config: the run.
            train_folder: of the run.
            identity: hash of the training.
            run_id: MLflow run.
            launcher: where jobs run.
            clock: seconds.
        """
        self._config, self._identity = config, identity
        self._folder = train_folder.resolve()
        self._uri, self._run_id = tracking.tracking_uri(config), run_id
        self._launcher, self._clock = launcher, clock
        self._running: tuple[Staged | None, Any, float] | None = None
        self._wants_picture = not (train_folder / FIRST_BATCH_FILE).exists()
        self.num_failed = 0
        """Jobs that failed or were given up."""
        self.num_skipped = 0
        """Checkpoints that were not validated because a newer one was there."""
        self.collapses: list[str] = []
        """Warnings of `motion_collapse`."""
        self.note = ""
        """The last validation in a few words."""

    def poll(self) -> bool:
        """Take in a job that has ended and start the next one; returns at once.

        Returns:
            Whether anything is running or waiting.
        """
        if self._running is not None:
            staged, handle, started = self._running
            with self._warned(staged):
                if not self._ended(handle, started):
                    return True
                self._running = None
                self._finish(staged)
            self._running = None
        if self._running is None:
            self._start_next()
        return self._running is not None or bool(staged_checkpoints(self._folder))

    def drain(self) -> None:
        """Wait until nothing is left to do."""
        if self.poll():
            console.print("train: waiting for the validation of the last checkpoint")
        while self.poll():
            time.sleep(_POLL_S)

    def cancel(self) -> None:
        """End the running job; its checkpoint stays in the queue."""
        if self._running is not None:
            self._launcher.cancel(self._running[1])
            self._running = None

    def _ended(self, handle: Any, started: float) -> bool:
        if self._launcher.done(handle):
            return True
        limit = self._config.validate.timeout_s
        if self._clock() - started < limit:
            return False
        self._launcher.cancel(handle)
        raise JobFailedError(f"it took longer than validate.timeout_s = {limit:g} s")

    @contextmanager
    def _warned(self, staged: Staged | None) -> Iterator[None]:
        """Turn the failure of a job into a warning, and take its checkpoint out of the queue."""
        try:
            yield
        except (JobFailedError, CilError, OSError) as error:
            self.num_failed += 1
            what = "the picture of the first batch"
            if staged is not None:
                what = f"the validation of step {staged.step}"
                staged.remove()
            console.print(f"warning: {what} failed: {error}; training goes on", markup=False)

    def _start_next(self) -> None:
        settings: dict[str, Any] = {"train_folder": str(self._folder)}
        staged: Staged | None = None
        if self._wants_picture:
            self._wants_picture = False
        else:
            staged = self._newest()
            if staged is None:
                return
            if self._record_of(staged.step) is not None:  # validated before a crash
                with self._warned(staged):
                    self._finish(staged)
                return
            settings |= {
                "checkpoint": str(staged.folder),
                "step": staged.step,
                "identity": self._identity,
            }
        with self._warned(staged):
            self._running = (staged, self._launcher.start(settings), self._clock())

    def _newest(self) -> Staged | None:
        """Take the newest checkpoint of the queue; older ones go."""
        waiting = staged_checkpoints(self._folder)
        for old in waiting[:-1]:
            if not self.num_skipped:
                console.print(
                    "warning: validations take longer than the steps between them; those of older "
                    "checkpoints are left out (raise validate.every_steps, or make them shorter by "
                    "validate.num_videos and validate.num_clips)",
                    markup=False,
                )
            self.num_skipped += 1
            old.remove()
        return waiting[-1] if waiting else None

    def _record_of(self, step: int) -> dict[str, Any] | None:
        """Read a validation of this training; None if there is none, or a damaged one."""
        return read_record(step_folder(self._folder, step) / METRICS_FILE, self._identity)

    def _finish(self, staged: Staged | None) -> None:
        """Use what a job has made: best checkpoint, MLflow, warnings; then empty the queue."""
        uri, run_id = self._uri, self._run_id
        if staged is None:
            tracking.log_files(uri, run_id, [self._folder / FIRST_BATCH_FILE])
            return
        record = self._record_of(staged.step)
        if record is None:
            raise JobFailedError("it left no metrics")
        metric = self._config.train.best_metric
        aside = set_aside_if_incomparable(self._folder, record)
        if aside is not None:
            console.print(
                "validation: the settings of validation changed, so its numbers cannot be compared "
                f"with those of the best checkpoint so far; that is {aside} now, and the search "
                "for the best begins anew",
                markup=False,
            )
        best = keep_if_best(self._folder, staged.folder, record, metric=metric)
        staged.remove()
        self.note = validation_note(record) + (", best so far" if best else "")
        console.print(f"validation: {self.note}", markup=False)
        tracking.log_validation(uri, run_id, record, step_folder(self._folder, staged.step))
        history = read_history(self._folder, self._identity)
        settings = record.get("settings")
        history = [row for row in history if row["step"] <= record["step"]]
        history = [row for row in history if row.get("settings") == settings]
        collapse = motion_collapse(history, self._config.validate)
        if collapse is not None:
            self.collapses.append(collapse)
            console.print(f"warning: {collapse}", markup=False)
            tracking.set_tag(uri, run_id, "motion_collapse", collapse)

    @contextmanager
    def cancelled_on_error(self) -> Iterator[None]:
        """End the running job if the block fails."""
        try:
            yield
        except BaseException:
            self.cancel()
            raise

    def poll_and_note(self) -> str:
        """Poll; returns what to show beside the progress of training."""
        self.poll()
        return self.note

    def outputs(self) -> dict[str, Any]:
        """Return the paths and texts that belong into the report of the training."""
        made: dict[str, Any] = {}
        if (self._folder / FIRST_BATCH_FILE).exists():
            made["first_batch"] = str(self._folder / FIRST_BATCH_FILE)
        if read_history(self._folder, self._identity):
            made["validation"] = str(self._folder / VALIDATION_FOLDER)
        best = best_record(self._folder, self._identity)
        if best is not None:
            metric = self._config.train.best_metric
            made["best"] = str(self._folder / BEST_FOLDER)
            value = best["metrics"].get(metric)
            made["best_is"] = {"step": best["step"], "metric": metric, "value": value}
        if self.collapses:
            made["motion_collapse"] = self.collapses
        return made

    def metrics(self) -> dict[str, float]:
        """Return the numbers of the last validation, and how many there were."""
        history = read_history(self._folder, self._identity)
        last = history[-1]["metrics"] if history else {}
        counts = {
            "validations": float(len(history)),
            "validations_failed": float(self.num_failed),
            "validations_skipped": float(self.num_skipped),
        }
        shown = {name: value for name, value in last.items() if "_bin_" not in name}
        return {**counts, **shown}


def say_what_is_held_out(config: RunConfig, data: TrainingData) -> None:
    """Tell people how many clips are kept for validation, or that none are."""
    fraction = config.validate.held_out_fraction
    if data.held_out:
        text = f"{data.num_held_out} clips are held out for validation, {data.num_clips} trained on"
        console.print(f"train: {text}")
    elif fraction:
        console.print(f"warning: {none_held_out(fraction)}", markup=False)


def start_side_jobs(
    config: RunConfig, train_folder: Path, *, identity: str, run_id: str
) -> SideJobs:
    """Make the folders ready and return the driver's side of all jobs; Ray is running.

    Results of a training with another identity are set aside under its name.

    Raises:
        StageError: the cluster has too few GPUs or CPU cores for a validation.
    """
    own = config.validate
    needed = {"CPU": own.num_cpus, "GPU": own.num_gpus}
    for name, amount in needed.items():
        if amount:
            setting, wait_s = f"validate.num_{name.lower()}s", config.cluster.scale_up_s
            check_resources(1, {name: amount}, setting, scale_up_s=wait_s)
    folder = train_folder / VALIDATION_FOLDER
    _set_aside(train_folder, identity)
    remove_temporaries(folder)
    remove_temporaries(folder / QUEUE)
    write_json(folder / _RUN_FILE, {"identity": identity})
    return SideJobs(
        config,
        train_folder=train_folder,
        identity=identity,
        run_id=run_id,
        launcher=RayLauncher(config),
    )


def _set_aside(train_folder: Path, identity: str) -> None:
    """Move the results of another training out of the way; its queue is dropped."""
    folder = train_folder / VALIDATION_FOLDER
    if not (folder / _RUN_FILE).exists():
        return
    other = str(read_json(folder / _RUN_FILE)["identity"])
    if other == identity:
        return
    shutil.rmtree(folder / QUEUE, ignore_errors=True)
    # the folder that says whose they are goes last: a killed command is made good by the next
    set_aside([train_folder / BEST_FOLDER, train_folder / FIRST_BATCH_FILE, folder], other[:12])


def validation_note(record: dict[str, Any]) -> str:
    """Say what a validation found in a few words."""
    metrics = record["metrics"]
    parts = [f"step {record['step']}: val loss {metrics['val_loss']:.4f}"]
    if "val_motion_ratio" in metrics:
        parts.append(f"motion {metrics['val_motion_ratio']:.2f} of real")
    if "val_motion_transfer" in metrics:
        parts.append(f"motion transfer {metrics['val_motion_transfer']:.2f}")
    return ", ".join(parts)
