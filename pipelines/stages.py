"""Which stages there are, in which order, and what must be right before the first one starts."""

from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

from cil.errors import ConfigError, DataError, StageError
from pipelines import tracking
from pipelines.config import RunConfig, clip_buckets, dataset_of
from pipelines.log_format import log_fields
from pipelines.model_settings import family_settings
from pipelines.progress import console
from pipelines.remote import is_url
from pipelines.report import RunReport
from pipelines.source_state import source_options
from pipelines.sources import check_source
from pipelines.storage import check_writable, lock_folder
from pipelines.store import LocalStore, open_store

__all__ = ["STAGES", "check_before_start", "hold_places", "run"]

STAGES = ("encode", "train", "estimate", "register", "evaluate", "sample")
"""In the order of `cil run`."""
_WHOLE = ("run", "retrain")


def check_before_start(command: str, config: RunConfig) -> None:
    """Check everything that can be checked without starting anything, and report all of it.

    Args:
        command: a stage, or ``run`` or ``retrain`` for all of them.
        config: the run.

    Raises:
        ConfigError: one line per problem; one of them is a mistake of the user's.
        StageError: the same, but only servers are away.
    """
    parts = STAGES if command in _WHOLE else (command,)
    checks: list[Callable[[], None]] = [
        lambda: check_writable(Path(config.output.dir), "output.dir")
    ]
    if "encode" in parts:
        checks.append(lambda: check_source(config.data.videos, source_options(config)))
        checks.append(lambda: _check_apart(config))
        checks.append(lambda: _check_first_stage(config))
        checks.append(lambda: _check_decoder(config))
        if config.output.dataset is not None:
            checks.append(lambda: open_store(dataset_of(config)).check_writable("output.dataset"))
    if {"train", "register"} & set(parts):
        checks.append(lambda: tracking.check_tracking(config))
    if "train" in parts:
        checks.append(lambda: _check_model(config))
        checks.append(lambda: _check_impl(config))
    if command in _WHOLE:
        checks.append(lambda: _check_one_bucket(config))
    mistakes, failures = [], []
    for check in checks:
        try:
            check()
        except ConfigError as error:
            mistakes.append(str(error))
        except StageError as error:
            failures.append(str(error))
    if mistakes or failures:
        kind = ConfigError if mistakes else StageError
        raise kind("\nerror: ".join([*mistakes, *failures]))


def run(command: str, config: RunConfig, *, debug: bool = False) -> list[RunReport]:
    """Run one stage, or all of them in one Ray session.

    Args:
        command: a stage, or ``run``.
        config: the run.
        debug: show the logs of workers.

    Returns:
        One report per stage.
    """
    check_before_start(command, config)
    reports = []
    with ExitStack() as session:
        hold_places(config, session, dataset=command in ("run", "encode"))
        for number, stage in enumerate(STAGES, 1):
            if command not in ("run", stage):
                continue
            with log_fields(stage=stage):
                if command == "run":
                    console.print(f"[bold]stage {number}/{len(STAGES)}: {stage}[/bold]")
                reports.append(_run_stage(stage, config, session, debug=debug))
    return reports


def hold_places(config: RunConfig, session: ExitStack, *, dataset: bool) -> None:
    """Hold the output folder, and on request a data set elsewhere, until the session ends.

    Raises:
        StageError: another command holds one of them.
    """
    session.enter_context(lock_folder(Path(config.output.dir), "output.dir"))
    if dataset and config.output.dataset is not None:
        store = open_store(config.output.dataset, setting="output.dataset")
        if isinstance(store, LocalStore):
            session.enter_context(lock_folder(Path(store.location), "output.dataset"))


def _run_stage(stage: str, config: RunConfig, session: ExitStack, *, debug: bool) -> RunReport:
    # Imported here: each brings its own heavy libraries.
    if stage == "encode":
        from pipelines import encode

        return encode.run(config, session=session, debug=debug)
    if stage == "train":
        from pipelines import train

        return train.run(config, session=session, debug=debug)
    if stage == "estimate":
        from pipelines import estimate

        return estimate.run(config, session=session, debug=debug)
    if stage == "register":
        from pipelines import register

        return register.run(config)
    if stage == "evaluate":
        from pipelines import evaluate

        return evaluate.run(config, session=session, debug=debug)
    from pipelines import sample

    return sample.run(config)


def _check_apart(config: RunConfig) -> None:
    """Refuse to write into the source folder, where sampled videos would become training data."""
    if not config.data.videos or is_url(config.data.videos):
        return
    source = Path(config.data.videos).resolve()
    for name, place in (("dir", config.output.dir), ("dataset", dataset_of(config))):
        if not is_url(place) and Path(place).resolve().is_relative_to(source):
            raise ConfigError(
                f"output.{name} must not be inside data.videos = {config.data.videos}, "
                f"got {place}; choose a folder elsewhere"
            )


def _check_decoder(config: RunConfig) -> None:
    backend = config.decode.backend
    if backend != "auto" and find_spec("av" if backend == "pyav" else backend) is None:
        raise ConfigError(
            f"decode.backend is {backend}, which is not installed; "
            "pip install -e '.[torchcodec]' -c constraints.txt, or use auto"
        )


def _check_one_bucket(config: RunConfig) -> None:
    """Refuse before training what estimation would refuse after it."""
    names = [bucket.name for bucket in clip_buckets(config.data)]
    if config.train.bucket is None and len(names) > 1:
        raise ConfigError(
            f"train.bucket must name one of data.buckets ({', '.join(names)}) in cil run, as "
            "estimate and register work on one bucket; to train on all of them run the stages "
            "one by one, and give estimate and register the largest bucket"
        )


def _check_first_stage(config: RunConfig) -> None:
    if config.first_stage.path is None:
        return
    from cil.models import load_first_stage
    from cil.models.first_stage import latent_frames

    try:
        stage = load_first_stage(config.first_stage.path)
    except (DataError, OSError) as error:
        raise ConfigError(f"first_stage.path: {error}") from error
    for bucket in clip_buckets(config.data):
        try:
            latent_frames(stage, bucket.num_frames)
        except DataError as error:
            raise ConfigError(f"data.num_frames or data.buckets: {error}") from error
        for name, size in (("height", bucket.height), ("width", bucket.width)):
            if size % stage.downsampling:
                raise ConfigError(
                    f"the {name} of a clip must be a multiple of {stage.downsampling}, which is "
                    f"what the first stage in {config.first_stage.path} divides by, got {size}"
                )


def _check_impl(config: RunConfig) -> None:
    from pipelines.fused_input import choose_impl

    choose_impl(config.time_noise.impl, use_gpu=config.train.use_gpu)


def _check_model(config: RunConfig) -> None:
    """Let the family check its own settings, and its folder's."""
    from cil.models import config_class, load

    model = config.model
    if model.pretrained is None:
        schedule = config_class(model.family)(**family_settings(model)).schedule
    else:
        frames = max(bucket.num_frames for bucket in clip_buckets(config.data))
        settings = {"num_frames": frames, **family_settings(model)}
        try:
            schedule = load(model.family, model.pretrained, weights=False, **settings).schedule
        except (ConfigError, DataError) as error:
            raise ConfigError(f"model.pretrained: {error}") from error
    config.time_noise.build(schedule)
