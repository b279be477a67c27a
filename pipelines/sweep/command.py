"""`cil sweep FILE`: its options, the table of a dry run, and what it does from start to end."""

import argparse
import difflib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cil.errors import ConfigError
from pipelines import stages
from pipelines.config import RunConfig
from pipelines.progress import console
from pipelines.report import RunReport, Stopwatch
from pipelines.sweep.arms import Sweep, plan_sweep
from pipelines.sweep.keep import check_keep, keep
from pipelines.sweep.runner import StageFunctions, real_stages, run_arms
from pipelines.sweep.sweep_file import read_sweep_file

__all__ = [
    "SweepOptions",
    "keep_arm",
    "parse_options",
    "prepare",
    "run_sweep",
    "show_sweep",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepOptions:
    """Options of the command that are no settings."""

    only: tuple[str, ...] = ()
    """Arms to run; empty runs all."""
    fail_fast: bool = False
    """End with the first arm that fails."""
    register: bool = False
    """Register each model in MLflow, too."""
    keep: str | None = None
    """Arm whose model becomes that of the output folder, registered with the alias."""


def parse_options(arguments: Sequence[str]) -> tuple[SweepOptions, list[str]]:
    """Read the options; returns them and the words that are left, which are settings."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog="cil sweep")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--fail-fast", action="store_true")
    parser.add_argument("--register", action="store_true")
    parser.add_argument("--keep")
    known, rest = parser.parse_known_args(arguments)
    options = SweepOptions(
        only=tuple(known.only),
        fail_fast=known.fail_fast,
        register=known.register,
        keep=known.keep,
    )
    return options, rest


def prepare(
    path: str,
    options: SweepOptions,
    override: Callable[[RunConfig], RunConfig],
    *,
    needs_parts: bool = True,
) -> Sweep:
    """Read the sweep file and make all arms.

    Args:
        path: the sweep file.
        options: of the command.
        override: applies the settings of the command line to the base.
        needs_parts: whether published weights must be there.

    Raises:
        ConfigError: anything in it is wrong, or an option names no arm that is run.
    """
    file = read_sweep_file(path)
    sweep = plan_sweep(file, override(file.base), needs_parts=needs_parts)
    names = [arm.name for arm in sweep.arms]
    kept = [] if options.keep is None else [options.keep]
    for option, name in [("--only", name) for name in options.only] + [
        ("--keep", name) for name in kept
    ]:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"
            raise ConfigError(f"{option}: {file.path} has no arm {name!r}; {hint}")
    for name in kept:
        if options.only and name not in options.only:
            raise ConfigError(f"--keep {name}: the arm is not run; add --only {name}")
        check_keep(sweep, name)
    return sweep


def run_sweep(
    sweep: Sweep,
    options: SweepOptions,
    *,
    debug: bool = False,
    functions: StageFunctions | None = None,
) -> RunReport:
    """Run the arms that are asked for and write the report of all.

    Args:
        sweep: the sweep.
        options: of the command.
        debug: show tracebacks and the logs of workers.
        functions: the stages; None takes the real ones.

    Returns:
        Paths of the report and the state of each training; ``metrics["failed"]`` counts failures.

    Raises:
        ConfigError: something cannot work, found before anything started.
        CilError: the shared data set could not be made.
    """
    watch = Stopwatch()
    _check(sweep, options)
    with ExitStack() as session:
        stages.hold_places(sweep.base, session, dataset=True)
        encoded, outcomes = run_arms(
            sweep,
            functions or real_stages(),
            session=session,
            only=options.only,
            fail_fast=options.fail_fast,
            into_registry=options.register,
            debug=debug,
        )
    # imported here, as they bring matplotlib and the network
    from pipelines.sweep import report
    from pipelines.sweep.results import collect

    results = collect(outcomes)
    report.write(sweep, results, encoded)
    states = [result.state for result in results]
    folder = sweep.folder
    return RunReport(
        stage="sweep",
        reused=encoded.reused and all(outcome.reused for outcome in outcomes),
        inputs={
            "sweep": sweep.name,
            "file": str(sweep.file),
            "dataset": encoded.outputs["fingerprint"],
            "only": list(options.only),
        },
        outputs={
            "report": str(folder / report.PAGE_NAME),
            "numbers": str(folder / report.DATA_NAME),
            "table": str(folder / report.TABLE_NAME),
            "arms": {result.run.label: result.error or result.state for result in results},
        },
        metrics={
            "trainings": float(len(states)),
            "finished": float(states.count("finished")),
            "failed": float(states.count("failed")),
            "reused": float(sum(outcome.reused for outcome in outcomes)),
        },
        seconds=watch.seconds(),
    )


def keep_arm(
    sweep: Sweep,
    options: SweepOptions,
    report: RunReport,
    *,
    debug: bool = False,
    functions: StageFunctions | None = None,
) -> list[RunReport]:
    """Make the arm of ``--keep`` the run of the output folder, if its training is finished.

    Args:
        sweep: the sweep.
        options: of the command.
        report: what `run_sweep` returned.
        debug: show the logs of workers.
        functions: the stages; None takes the real ones.

    Returns:
        The reports of the stages; none without the option, or if the arm failed.

    Raises:
        ConfigError: the output folder holds another training by now.
        StageError: MLflow failed.
    """
    arm = options.keep
    if arm is None:
        return []
    label = next(run.label for run in sweep.runs if run.arm == arm)
    if report.outputs["arms"][label] != "finished":
        console.print(f"not kept, as it is not finished: {label}", markup=False)
        return []
    with ExitStack() as session:
        stages.hold_places(sweep.base, session, dataset=True)
        return keep(sweep, arm, functions or real_stages(), session=session, debug=debug)


def _check(sweep: Sweep, options: SweepOptions) -> None:
    """Check everything that can be checked without starting anything, for the arms that run."""
    chosen = [run for run in sweep.runs if not options.only or run.arm in options.only]
    configs = [("", sweep.base, "run")]
    for run in chosen:
        command = "train" if run.shares_data else "run"
        configs.append((f"arm {run.label}: ", run.config, command))
    problems: dict[str, str] = {}
    for label, config, command in configs:
        try:
            stages.check_before_start(command, config)
        except ConfigError as error:
            for line in str(error).split("\nerror: "):
                problems.setdefault(line, label)
    if problems:
        raise ConfigError("\nerror: ".join(f"{label}{line}" for line, label in problems.items()))


def show_sweep(sweep: Sweep, options: SweepOptions) -> RunReport:
    """Print what a sweep would run, without running it; returns the same as a report."""
    from rich.markup import escape
    from rich.table import Table

    base = sweep.base
    console.print(
        f"sweep {sweep.name}: {len(sweep.runs)} trainings of {base.train.num_steps} steps of "
        f"{base.train.global_batch_size} clips, into {sweep.folder}",
        markup=False,
    )
    table = Table("arm", "seeds", "differs from the base in", "runs", title_justify="left")
    for arm in sweep.arms:
        differences = [
            f"{each.setting}: {each.base} -> {each.arm}{' (unfair)' if each.unfair else ''}"
            for each in arm.differences
        ]
        chosen = not options.only or arm.name in options.only
        table.add_row(
            arm.name,
            ", ".join(str(run.seed) for run in arm.runs),
            escape("\n".join(differences) or "nothing"),
            "yes" if chosen else "no",
        )
    console.print(table)
    arms = {
        arm.name: {
            "seeds": [run.seed for run in arm.runs],
            "folders": [str(run.folder) for run in arm.runs],
            "differences": {
                each.setting: {"base": each.base, "arm": each.arm} for each in arm.differences
            },
            "unfair": arm.unfair,
        }
        for arm in sweep.arms
    }
    return RunReport(
        stage="sweep",
        reused=False,
        inputs={"sweep": sweep.name, "file": str(Path(sweep.file)), "only": list(options.only)},
        outputs={"arms": arms},
        metrics={"trainings": float(len(sweep.runs))},
        seconds=0.0,
    )
