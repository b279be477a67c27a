"""One Ray session for a command: started quietly, shared by its stages, closed at the end."""

import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from cil.errors import StageError
from pipelines.config import environment
from pipelines.environment_variables import variables_for
from pipelines.log_format import logs_as_json, only_our_handlers
from pipelines.progress import console
from pipelines.settings import ClusterConfig
from pipelines.termination import sigterm_raises
from pipelines.worker_logs import logging_options, quiet_start

__all__ = ["check_resources", "ray_session", "root_cause"]

_SCALE_UP_POLL_S = 2.0


@contextmanager
def ray_session(config: ClusterConfig, *, debug: bool = False) -> Iterator[None]:
    """Connect to Ray, or start a local cluster, unless this process is connected already.

    Stages enter it into the command's `ExitStack` when they first need it, so one cluster serves
    all stages of a run, and a run that is complete starts none.

    Args:
        config: cluster settings.
        debug: show the logs of workers and of Ray itself.

    Raises:
        StageError: the cluster cannot be reached.
    """
    # Ray reads these when it is imported
    for name, value in variables_for("driver").items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    address = config.address or environment("RAY_ADDRESS")
    level = logging.INFO if debug else logging.ERROR
    try:
        with quiet_start(debug=debug):
            ray.init(
                address=address or "local",  # None would join what `ray start` left on this machine
                num_cpus=None if address else config.num_cpus,
                dashboard_host=None if address else "127.0.0.1",
                log_to_driver=debug,
                logging_level=level,
                configure_logging=True,
                **logging_options(),
            )
    except Exception as error:  # a start that takes too long comes as a bare Exception
        raise StageError(
            f"cannot reach Ray at {address or 'a new local cluster'}: {error}; "
            "check cluster.address and RAY_ADDRESS"
        ) from error
    if logs_as_json():
        only_our_handlers()
    _quieten(level)
    with sigterm_raises():
        try:
            yield
        finally:
            ray.shutdown()


def _quieten(level: int) -> None:
    """Keep Ray's own progress and log lines out of ours; errors still come through."""
    from ray.data import DataContext

    DataContext.get_current().enable_progress_bars = False
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(level)
    # One shard is one block on purpose, also where there are fewer shards than cores.
    warnings.filterwarnings("ignore", message="(?s).*override_num_blocks", category=UserWarning)
    # Ray 2.60 announces a new spelling of task options that it does not accept yet.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")


def check_resources(
    num_workers: int, per_worker: dict[str, float], setting: str, *, scale_up_s: float = 0.0
) -> None:
    """Check that the cluster can hold the workers at all, so that nothing waits for ever.

    Args:
        num_workers: how many.
        per_worker: what each needs, by Ray's name of the resource.
        setting: the setting that asks for them, for the message.
        scale_up_s: seconds to wait for an autoscaling cluster, which is told what is needed.

    Raises:
        StageError: the cluster has too little of a resource, also after the wait.
    """
    lacking = _lacking(num_workers, per_worker)
    if lacking and scale_up_s > 0:
        lacking = _scale_up(num_workers, per_worker, scale_up_s)
    if lacking:
        name, needed, has = lacking
        waited = f", after a wait of {scale_up_s:g} s for more nodes" if scale_up_s > 0 else ""
        raise StageError(
            f"{setting} = {num_workers} needs {needed:g} {name}, the cluster has {has:g}{waited}; "
            f"lower {setting} or use a larger cluster"
        )


def _lacking(num_workers: int, per_worker: dict[str, float]) -> tuple[str, float, float] | None:
    """Return the first resource of which there is too little, with what is needed and there."""
    import ray

    available = ray.cluster_resources()
    for name, amount in per_worker.items():
        needed, has = num_workers * amount, available.get(name, 0.0)
        if needed > has:
            return name, needed, has
    return None


def _scale_up(
    num_workers: int, per_worker: dict[str, float], wait_s: float
) -> tuple[str, float, float] | None:
    """Ask the autoscaler for nodes and wait for them; returns what is lacking still."""
    from ray.autoscaler.sdk import request_resources

    console.print(f"waiting for nodes with {num_workers} x {per_worker}, up to {wait_s:g} s")
    deadline = time.monotonic() + wait_s
    request_resources(bundles=[dict(per_worker)] * num_workers)
    try:
        while (lacking := _lacking(num_workers, per_worker)) and time.monotonic() < deadline:
            time.sleep(_SCALE_UP_POLL_S)
    finally:
        # from here on the workers themselves keep the nodes; what nobody uses goes again
        request_resources(bundles=[])
    return lacking


def worker_environment(*, use_gpu: bool) -> dict[str, str]:
    """Environment variables that worker processes need before they import anything.

    On GPUs what is set here, in the driver's environment, comes first.
    """
    if not use_gpu:
        return variables_for("cpu_worker")
    return {name: environment(name) or value for name, value in variables_for("gpu_worker").items()}


def root_cause(error: BaseException) -> BaseException:
    """Follow Ray's wrapping errors to the one that user code raised."""
    seen = set()
    while id(error) not in seen:
        seen.add(id(error))
        causes = (getattr(error, "cause", None), error.__cause__)
        error = next((inner for inner in causes if isinstance(inner, BaseException)), error)
    return error
