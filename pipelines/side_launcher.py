"""Starting jobs beside a training, as Ray tasks in processes of their own; see `side_jobs`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from pipelines.config import RunConfig, validate_config
from pipelines.dataset import located
from pipelines.first_batch import FIRST_BATCH_FILE
from pipelines.runtime import root_cause, worker_environment
from pipelines.settings import ValidateConfig
from pipelines.validation import step_folder

__all__ = ["JobFailedError", "Launcher", "RayLauncher", "one_thread_per_core", "run_job"]

_NICENESS = 10


class JobFailedError(Exception):
    """A job ended with an error, which is its message."""


class Launcher(Protocol):
    """Starts jobs elsewhere."""

    def start(self, settings: dict[str, Any]) -> Any:
        """Start a job; returns its handle."""
        ...

    def done(self, handle: Any) -> bool:
        """Tell whether a job has ended.

        Raises:
            JobFailedError: it ended with an error.
        """
        ...

    def cancel(self, handle: Any) -> None:
        """End a job, however it is."""
        ...


class RayLauncher:
    """Starts jobs as Ray tasks, each in a fresh process."""

    def __init__(self, config: RunConfig) -> None:
        self._validate, self._config = config.validate, asdict(located(config))

    def start(self, settings: dict[str, Any]) -> Any:
        """Start a job; returns the reference to its end."""
        import ray

        validate = self._validate
        task = ray.remote(
            num_cpus=validate.num_cpus, num_gpus=validate.num_gpus, max_calls=1, max_retries=0
        )(run_job)
        environment = {"env_vars": worker_environment(use_gpu=validate.num_gpus > 0)}
        return task.options(runtime_env=environment).remote({"config": self._config, **settings})

    def done(self, handle: Any) -> bool:
        """Tell whether a job has ended.

        Raises:
            JobFailedError: it ended with an error.
        """
        import ray

        ready, _ = ray.wait([handle], timeout=0)
        if not ready:
            return False
        try:
            ray.get(handle)
        except Exception as error:  # anything: a job must not end a training
            cause = root_cause(error)
            line = str(cause).partition("\n")[0]
            raise JobFailedError(f"{type(cause).__name__}: {line}") from error
        return True

    def cancel(self, handle: Any) -> None:
        """End a job's process."""
        import ray

        ray.cancel(handle, force=True)


def run_job(settings: dict[str, Any]) -> None:
    """Do a job in this process: Ray's task.

    Args:
        settings: ``config``, ``train_folder``, and for a validation ``checkpoint``, ``step`` and
            ``identity``; without these, the picture of the first batch.
    """
    import os

    from pipelines.first_batch import first_batch_picture
    from pipelines.validation import validate

    config = validate_config(settings["config"], source="the driver's configuration")
    own = config.validate
    if not own.num_cpus and not own.num_gpus:
        os.nice(_NICENESS)
    one_thread_per_core(own)
    folder = Path(settings["train_folder"])
    if "checkpoint" not in settings:
        first_batch_picture(config, folder / FIRST_BATCH_FILE)
        return
    validate(
        config,
        checkpoint=Path(settings["checkpoint"]),
        identity=settings["identity"],
        folder=step_folder(folder, settings["step"]),
    )


def one_thread_per_core(settings: ValidateConfig) -> None:
    """Let torch and OpenCV use as many threads as a validation has cores, at least one.

    Sums of floating-point numbers depend on it in the last bits.
    """
    import cv2
    import torch

    count = max(1, int(settings.num_cpus))
    torch.set_num_threads(count)
    cv2.setNumThreads(count)
