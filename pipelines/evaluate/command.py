"""`cil evaluate`, and the stage of `cil run` that evaluates the run's own model.

cil evaluate --config configs/demo.yaml --arm base=build/base/model --arm tuned=build/run/model
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cil.errors import ConfigError
from pipelines import tracking
from pipelines.config import RunConfig, config_to_yaml
from pipelines.evaluate.arms import Arm, own_arm, parse_arms, sweep_arms
from pipelines.evaluate.clip_set import clip_places
from pipelines.evaluate.evaluation import (
    EVALUATE_FOLDER,
    ROWS_FILE,
    TABLE_FILE,
    Evaluation,
    evaluate_arms,
)
from pipelines.evaluate.options import EvaluateOptions
from pipelines.evaluate.summary import METRICS_FILE
from pipelines.progress import console
from pipelines.register import REGISTER_FOLDER
from pipelines.report import RunReport, Stopwatch
from pipelines.storage import check_writable, lock_folder, read_json, write_atomic

__all__ = ["find_arms", "main_measures", "results_folder", "run_command", "run_stage", "show"]

_REPORT_FILE = "report.json"
_SHOWN = (
    "motion_real_consistent",
    "motion_consistent",
    "motion_ratio",
    "motion_error_consistent",
    "dynamic_degree_dis",
    "consistent_share",
    "ssim",
    "histogram",
    "alignment_mse",
    "fvd",
    "inception_score",
)
"""Measures of the table that is printed."""


def find_arms(config: RunConfig, options: EvaluateOptions) -> list[Arm]:
    """Find what is evaluated: the trainings of the sweep, then each --arm; else the run's model.

    Raises:
        ConfigError: there is no such arm.
        StageError: MLflow failed.
    """
    arms: list[Arm] = []
    if options.sweep is not None:
        from pipelines.sweep.arms import plan_sweep
        from pipelines.sweep.sweep_file import read_sweep_file

        arms, missing = sweep_arms(plan_sweep(read_sweep_file(options.sweep), config))
        for label in missing:
            console.print(f"not finished, left out: {label}", style="yellow", markup=False)
    if options.arms:
        arms += parse_arms(options.arms, config)
    return arms or [own_arm(config)]


def results_folder(
    config: RunConfig, options: EvaluateOptions, *, name: str = EVALUATE_FOLDER
) -> Path:
    """Return where the results go."""
    if options.out is not None:
        return Path(options.out)
    output = Path(config.output.dir)
    return (output / "sweep" if options.sweep else output) / name


def run_command(config: RunConfig, options: EvaluateOptions, *, debug: bool = False) -> RunReport:
    """Evaluate the arms that are asked for.

    Args:
        config: the run, or the base of the sweep.
        options: of the command.
        debug: show the logs of workers.

    Returns:
        Paths and the main measures of each arm.

    Raises:
        CilError: something is wrong with an arm, the data set or a worker.
    """
    watch = Stopwatch()
    folder = results_folder(config, options)
    check_writable(folder, "--out")
    clip_places(config)  # no held-out clips: say so before any model is downloaded or hashed
    arms = find_arms(config, options)
    with ExitStack() as session:
        session.enter_context(lock_folder(folder, "--out"))
        write_atomic(folder / "config.yaml", config_to_yaml(config).encode())
        found = evaluate_arms(config, arms, folder=folder, session=session, debug=debug)
    show(found)
    return _report(found, arms, watch)


def run_stage(config: RunConfig, *, session: ExitStack, debug: bool = False) -> RunReport:
    """Evaluate the run's own model, and log its numbers to the MLflow run of its training.

    A run without held-out clips says so and goes on.

    Args:
        config: the run.
        session: where the Ray session is entered if one is needed.
        debug: show the logs of workers.
    """
    watch = Stopwatch()
    folder = Path(config.output.dir) / EVALUATE_FOLDER
    try:
        clip_places(config)
    except ConfigError as error:
        return _skipped(folder, str(error), watch)
    arm = own_arm(config)
    with lock_folder(folder, "output.dir"):  # that `cil evaluate` may hold by itself
        found = evaluate_arms(config, [arm], folder=folder, session=session, debug=debug)
    report = _report(found, [arm], watch)
    if not found.reused:
        write_atomic(folder / "config.yaml", config_to_yaml(config).encode())
        report.save(folder / _REPORT_FILE)
        _log(config, found)
    return report


def _skipped(folder: Path, reason: str, watch: Stopwatch) -> RunReport:
    """Say why nothing is evaluated, and write it down; a second time it counts as done."""
    console.print(f"nothing is evaluated: {reason}", style="yellow", markup=False)
    path, outputs = folder / _REPORT_FILE, {"skipped": reason}
    known = path.exists() and read_json(path).get("outputs") == outputs
    report = RunReport(
        stage="evaluate",
        reused=known,
        inputs={},
        outputs=outputs,
        metrics={},
        seconds=watch.seconds(),
    )
    report.save(path)
    return report


def show(found: Evaluation) -> None:
    """Print a table of the main measures: value and interval, arm by arm."""
    from rich.table import Table

    results = found.metrics["results"]
    table = Table(title=f"{len(found.chosen.clips)} clips, {found.chosen.bucket}")
    table.add_column("measure")
    for result in results:
        table.add_column(_title(result), justify="right")
    for name in _SHOWN:
        cells = [result["measures"].get(name) for result in results]
        if any(cell and cell["value"] is not None for cell in cells):
            table.add_row(name, *(_cell(cell) for cell in cells))
    table.add_row("flags", *(_flags(result["flags"]) for result in results))
    console.print(table)


def main_measures(found: Evaluation) -> dict[str, float]:
    """Return the measures of the first arm's first setting that have a value."""
    measures = found.metrics["results"][0]["measures"]
    return {
        name: measure["value"]
        for name, measure in sorted(measures.items())
        if measure["value"] is not None
    }


def _report(found: Evaluation, arms: Sequence[Arm], watch: Stopwatch) -> RunReport:
    folder = found.folder
    return RunReport(
        stage="evaluate",
        reused=found.reused,
        inputs={
            "set": found.chosen.sha256,
            "arms": {arm.name: arm.identity for arm in arms},
            "reference": found.chosen.reference,
        },
        outputs={
            "metrics": str(folder / METRICS_FILE),
            "table": str(folder / TABLE_FILE),
            "rows": str(folder / ROWS_FILE),
        },
        metrics={
            "clips": float(len(found.chosen.clips)),
            "videos": float(len(found.rows)),
            "units": float(found.num_units),
            "units_done": float(found.num_done),
            **(main_measures(found) if len(arms) == 1 else {}),
        },
        seconds=watch.seconds(),
    )


def _log(config: RunConfig, found: Evaluation) -> None:
    """Send the numbers to the run of the training; what fails there does not end the command."""
    registered = Path(config.output.dir) / REGISTER_FOLDER / "report.json"
    run_id = read_json(registered)["outputs"].get("run_id") if registered.exists() else None
    if run_id:
        files = [found.folder / name for name in (METRICS_FILE, TABLE_FILE)]
        uri = tracking.tracking_uri(config)
        tracking.log_evaluation(uri, str(run_id), main_measures(found), files)


def _title(result: dict[str, Any]) -> str:
    if result["start_time"] is None:
        return str(result["arm"])
    start = "Analytic-Init" if result["analytic_init"] else "N(0, sigma^2)"
    return f"{result['arm']}\nM {result['start_time']:g}\n{start}"


def _cell(measure: dict[str, Any] | None) -> str:
    if measure is None or measure["value"] is None:
        return "-"
    value = f"{measure['value']:.4g}"
    if measure["low"] is None:
        return value
    return f"{value} ({measure['low']:.4g} to {measure['high']:.4g})"


def _flags(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
