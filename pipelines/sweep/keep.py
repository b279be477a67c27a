"""Make an arm of a sweep the run of the sweep's output folder, as if `cil run` had trained it.

In: a sweep whose arm is trained. Out: OUTPUT/train with the same files, and what `estimate`,
`register` and `sample` leave there; the model is registered with the alias. Nothing is trained.
"""

import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from cil.errors import ConfigError, StageError
from pipelines import tracking
from pipelines.progress import console
from pipelines.report import RunReport
from pipelines.storage import read_json, replace_folder, temporary_beside, write_json
from pipelines.sweep.arms import ArmRun, Sweep
from pipelines.sweep.runner import StageFunctions

__all__ = ["check_keep", "keep"]

_TRAIN_FOLDER = "train"  # not imported: that brings Ray
_MARK = "kept.json"
"""In OUTPUT/train: whose training it is."""


def keep(
    sweep: Sweep, arm: str, stages: StageFunctions, *, session: ExitStack, debug: bool = False
) -> list[RunReport]:
    """Take over the arm's training with the first seed, then estimate, register and sample.

    Args:
        sweep: the sweep; its lock is held.
        arm: name of an arm that is finished.
        stages: the stages.
        session: where the Ray session is entered if a stage needs one.
        debug: show the logs of workers.

    Returns:
        The reports of the stages.

    Raises:
        ConfigError: the arm has a data set of its own, or OUTPUT/train holds another training.
        StageError: the training there is not the arm's, or MLflow failed.
    """
    run = _first_run(sweep, arm)
    check_keep(sweep, arm)
    config = replace(run.config, output=sweep.base.output)
    console.print(f"[bold]keep: {run.label}[/bold]")
    _copy_training(run, Path(config.output.dir))
    trained = stages.train(config, session=session, debug=debug)
    if not trained.reused:
        raise StageError(
            f"{run.folder / _TRAIN_FOLDER} is not a finished training of these settings; it was "
            "trained anew. Run the same command again"
        )
    tags = {"sweep": sweep.name, "sweep_arm": arm, "sweep_seed": str(run.seed)}
    return [
        stages.estimate(config, session=session, debug=debug),
        stages.register(config, into_registry=True, alias=tracking.ALIAS, tags=tags),
        stages.sample(config),
    ]


def check_keep(sweep: Sweep, arm: str) -> None:
    """Refuse, before anything starts, what could not be kept.

    Raises:
        ConfigError: the arm has a data set of its own, or OUTPUT/train holds another training.
    """
    run = _first_run(sweep, arm)
    if not run.shares_data:
        raise ConfigError(
            f"--keep {arm}: the arm has a data set of its own, which is not that of "
            f"{sweep.base.output.dir}; keep an arm that shares the base's data"
        )
    there = Path(sweep.base.output.dir) / _TRAIN_FOLDER
    if there.exists() and not _is_kept(there):
        raise ConfigError(
            f"--keep {arm}: {there} holds a training that is no arm of a sweep; move it "
            "away or delete it, or give the sweep another output.dir"
        )


def _first_run(sweep: Sweep, arm: str) -> ArmRun:
    return next(each for each in sweep.arms if each.name == arm).runs[0]


def _is_kept(folder: Path) -> bool:
    """Tell whether a training folder is still the copy of an arm's, and not trained anew since."""
    try:
        mark, report = read_json(folder / _MARK), read_json(folder / "report.json")
    except FileNotFoundError:
        return False
    return bool(mark["identity"] == report["inputs"]["identity"])


def _copy_training(run: ArmRun, output: Path) -> None:
    """Copy the arm's training, whole or not at all, unless it is there already."""
    source, target = run.folder / _TRAIN_FOLDER, output / _TRAIN_FOLDER
    report = RunReport.load(source / "report.json")
    mark = {"arm": run.arm, "seed": run.seed, "identity": report.inputs["identity"]}
    if (target / _MARK).exists() and read_json(target / _MARK) == mark:
        return
    temporary = temporary_beside(target)
    if temporary.exists():
        shutil.rmtree(temporary)
    try:
        shutil.copytree(source, temporary)
        outputs = {name: _moved(each, source, target) for name, each in report.outputs.items()}
        (temporary / "report.json").unlink()
        replace(report, outputs=outputs).save(temporary / "report.json")
        write_json(temporary / _MARK, mark)
        replace_folder(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _moved(value: Any, source: Path, target: Path) -> Any:
    """Return an output of the training; if it is a path in its folder, that in the copy."""
    if not isinstance(value, str):
        return value
    for old, new in ((source, target), (source.resolve(), target.resolve())):
        if Path(value).is_relative_to(old):
            return str(new / Path(value).relative_to(old))
    return value
