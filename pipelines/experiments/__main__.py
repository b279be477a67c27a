"""Run an experiment for its seeds, then write its table and figure.

    python -m pipelines.experiments configs/experiments/stillness.yaml
    python -m pipelines.experiments configs/experiments/stillness.yaml --seed 1 --dry-run

In: a file of configs/experiments. Out: FOLDER/results.json, table.md and figure.svg, of the seeds
that are finished; with ``--docs docs`` also the results and the figure in docs/experiments and the
table in docs/experiments.md. Run the same command again to go on after a stop.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cil.errors import CilError, ConfigError, StageError
from pipelines.experiments.page import figure, placed, table
from pipelines.experiments.plan import Experiment, read_experiment
from pipelines.experiments.results import Results, gather, read_results
from pipelines.storage import write_atomic

__all__ = ["main"]

PAGE_NAME = "experiments.md"
FOLDER_NAME = "experiments"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 failed, 2 wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.experiments",
        description="Run the commands of an experiment for its seeds, and write one table of all.",
        epilog="example: python -m pipelines.experiments configs/experiments/stillness.yaml",
    )
    parser.add_argument("files", type=Path, nargs="+", help="files of configs/experiments")
    parser.add_argument("--seed", type=int, action="append", help="run these only (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="show the commands and stop")
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    parser.add_argument("--docs", type=Path, help="folder of the documentation to renew")
    given = parser.parse_args(arguments)
    try:
        for file in given.files:
            experiment = read_experiment(file)
            seeds = _chosen(experiment, given.seed)
            if given.dry_run:
                _show(experiment, seeds)
                continue
            if not given.table_only:
                _run(experiment, seeds)
            _write(experiment, file.stem, given.docs)
    except CilError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def _chosen(experiment: Experiment, asked: Sequence[int] | None) -> list[int]:
    for seed in asked or ():
        if seed not in experiment.seeds:
            raise ConfigError(f"--seed must be one of {list(experiment.seeds)}, got {seed}")
    return list(asked or experiment.seeds)


def _show(experiment: Experiment, seeds: Sequence[int]) -> None:
    for seed in seeds:
        for command in experiment.commands:
            sys.stdout.write(experiment.filled(command, seed) + "\n")


def _run(experiment: Experiment, seeds: Sequence[int]) -> None:
    for seed in seeds:
        for arguments in experiment.arguments(seed):
            sys.stdout.write(f"$ {shlex.join(arguments)}\n")
            sys.stdout.flush()
            status = subprocess.run(arguments, check=False).returncode
            if status:
                raise StageError(
                    f"{shlex.join(arguments[1:])} ended with exit code {status}; what is finished "
                    "is kept, run the experiment again to go on"
                )


def _write(experiment: Experiment, name: str, docs: Path | None) -> None:
    folder = Path(experiment.folder)
    finished = [seed for seed in experiment.seeds if _is_finished(experiment, seed)]
    if not finished:
        raise StageError(f"no seed of {name} is finished; run the experiment first")
    write_atomic(folder / "results.json", gather(experiment, finished).as_json().encode())
    results = read_results(folder / "results.json")  # as rounded as the file
    write_atomic(folder / "table.md", table(results, experiment.columns).encode())
    write_atomic(folder / "figure.svg", figure(results, experiment.columns))
    sys.stdout.write(table(results, experiment.columns))
    if docs is not None:
        renew_page(docs, name, experiment, results)


def renew_page(docs: Path, name: str, experiment: Experiment, results: Results) -> None:
    """Put the results of an experiment into the documentation."""
    folder = docs / FOLDER_NAME
    write_atomic(folder / f"{name}.json", results.as_json().encode())
    write_atomic(folder / f"{name}.svg", figure(results, experiment.columns))
    page = (docs / PAGE_NAME).read_text(encoding="utf-8")
    page = placed(page, name, table(results, experiment.columns))
    write_atomic(docs / PAGE_NAME, page.encode())


def _is_finished(experiment: Experiment, seed: int) -> bool:
    reports = [text for source in experiment.sources for text in source.reports]
    return all(Path(experiment.filled(report, seed)).exists() for report in reports)


if __name__ == "__main__":
    sys.exit(main())
