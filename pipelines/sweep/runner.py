"""Taking all arms of a sweep through the stages of `cil run`, in one Ray session.

The data set is encoded once and its statistics are estimated once; every stage finds by itself
what is done, so a sweep that was stopped goes on where it was. An arm that fails is reported and
the others go on.
"""

import shutil
import sys
import traceback
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pipelines.config import RunConfig, redact_uri
from pipelines.log_format import log_fields
from pipelines.progress import console
from pipelines.report import RunReport, Stopwatch
from pipelines.storage import commit, temporary_beside
from pipelines.sweep.arms import ArmRun, Sweep
from pipelines.termination import Terminated, was_terminated

__all__ = ["Outcome", "StageFunctions", "real_stages", "run_arms"]

State = Literal["finished", "failed", "not run"]


class _InSession(Protocol):
    def __call__(self, config: RunConfig, *, session: ExitStack, debug: bool) -> RunReport: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class StageFunctions:
    """The stages that a sweep calls."""

    encode: _InSession
    train: _InSession
    estimate: _InSession
    register: Callable[..., RunReport]
    sample: Callable[[RunConfig], RunReport]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one training of an arm."""

    run: ArmRun
    state: State
    reused: bool
    """True if all stages found everything done."""
    error: str | None
    """Why it failed, without secrets."""
    seconds: float


def real_stages() -> StageFunctions:
    """Import the stages; each brings its own heavy libraries."""
    from pipelines import encode, estimate, register, sample, train

    return StageFunctions(
        encode=encode.run,
        train=train.run,
        estimate=estimate.run,
        register=register.run,
        sample=sample.run,
    )


def run_arms(
    sweep: Sweep,
    stages: StageFunctions,
    *,
    session: ExitStack,
    only: Collection[str] = (),
    fail_fast: bool = False,
    into_registry: bool = False,
    debug: bool = False,
) -> tuple[RunReport, list[Outcome]]:
    """Encode once, then train, estimate, register and sample each arm.

    Args:
        sweep: what to run.
        stages: the stages.
        session: where the Ray session is entered when the first stage needs one.
        only: names of the arms to run; empty runs all.
        fail_fast: end with the first arm that fails.
        into_registry: register each model in MLflow, too.
        debug: show tracebacks and the logs of workers.

    Returns:
        The report of the encoding, and an outcome for each training of the sweep in its order.

    Raises:
        CilError: the shared data set or its statistics could not be made.
    """
    console.print("[bold]data set of all arms[/bold]")
    with log_fields(stage="encode"):
        encoded = stages.encode(sweep.base, session=session, debug=debug)
    if any(run.shares_data for run in sweep.runs):
        with log_fields(stage="estimate"):
            stages.estimate(sweep.base, session=session, debug=debug)
    outcomes: list[Outcome] = []
    chosen = [run for run in sweep.runs if not only or run.arm in only]
    stopped = False
    for run in sweep.runs:
        if run not in chosen or stopped:
            outcomes.append(_outcome(run, "not run"))
            continue
        number = chosen.index(run) + 1
        console.print(f"[bold]arm {number}/{len(chosen)}: {run.label}[/bold]")
        outcome = _run_arm(
            sweep, run, stages, session=session, into_registry=into_registry, debug=debug
        )
        outcomes.append(outcome)
        _say(outcome)
        stopped = fail_fast and outcome.state == "failed"
    return encoded, outcomes


def _run_arm(
    sweep: Sweep,
    run: ArmRun,
    stages: StageFunctions,
    *,
    session: ExitStack,
    into_registry: bool,
    debug: bool,
) -> Outcome:
    watch, config = Stopwatch(), run.config
    reports: list[RunReport] = []

    def do(stage: str, run_stage: Callable[[], RunReport]) -> None:
        with log_fields(stage=stage):
            report = run_stage()
        reports.append(report)
        state = "was complete" if report.reused else f"{report.seconds:.1f} s"
        console.print(f"{run.label}: {report.stage} ({state})", markup=False)

    tags = {"sweep": sweep.name, "sweep_arm": run.arm, "sweep_seed": str(run.seed)}
    try:
        with log_fields(run_id=None):
            if run.shares_data:
                _share_statistics(sweep.base, config)
            else:
                do("encode", lambda: stages.encode(config, session=session, debug=debug))
            do("train", lambda: stages.train(config, session=session, debug=debug))
            do("estimate", lambda: stages.estimate(config, session=session, debug=debug))
            do(
                "register",
                lambda: stages.register(config, into_registry=into_registry, alias=None, tags=tags),
            )
            do("sample", lambda: stages.sample(config))
    except Exception as error:  # whatever it is, the other arms can still be compared
        if was_terminated():  # Ray may have made another error of it; no arm is to be begun
            raise Terminated from error
        if debug:
            sys.stderr.write(redact_uri(traceback.format_exc()))
        message = redact_uri(f"{type(error).__name__}: {error}")
        return _outcome(run, "failed", error=message, seconds=watch.seconds())
    reused = all(report.reused for report in reports)
    return _outcome(run, "finished", reused=reused, seconds=watch.seconds())


def _outcome(
    run: ArmRun,
    state: State,
    *,
    reused: bool = False,
    error: str | None = None,
    seconds: float = 0.0,
) -> Outcome:
    return Outcome(run=run, state=state, reused=reused, error=error, seconds=seconds)


def _share_statistics(base: RunConfig, config: RunConfig) -> None:
    """Put the statistics where the arm looks for them; its own estimation checks whether they fit.

    They depend on the data set alone.
    """
    from pipelines.estimate import ESTIMATE_FOLDER, STATISTICS_FILE

    there = Path(base.output.dir) / ESTIMATE_FOLDER
    here = Path(config.output.dir) / ESTIMATE_FOLDER
    here.mkdir(parents=True, exist_ok=True)
    for name in (STATISTICS_FILE, "report.json"):  # the report last: it says that all is there
        temporary = temporary_beside(here / name)
        shutil.copy2(there / name, temporary)
        commit(temporary, here / name)


def _say(outcome: Outcome) -> None:
    if outcome.state == "failed":
        console.print(
            f"error: {outcome.run.label} failed after {outcome.seconds:.1f} s: {outcome.error}",
            style="red",
            markup=False,
        )
    else:
        how = "was complete" if outcome.reused else f"finished in {outcome.seconds:.1f} s"
        console.print(f"{outcome.run.label}: {how}", markup=False)
