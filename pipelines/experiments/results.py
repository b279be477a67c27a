"""The numbers of an experiment: one per arm, column and seed, and what all seeds say together.

In: the leak.json of each seed. Out: `Results`, which are a small JSON file.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cil.errors import DataError, StageError
from pipelines.experiments.plan import Column, Experiment

__all__ = ["Results", "Spread", "gather", "read_results", "spread_of"]

_VERSION = 1
_T_95 = {1: 12.70620, 2: 4.30265, 3: 3.18245, 4: 2.77645}
"""97.5 % quantile of Student's t by degrees of freedom."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """What the seeds say together."""

    n: int
    mean: float
    low: float
    """The smallest of the seeds."""
    high: float
    """The largest of the seeds."""
    t_low: float | None
    """Lower end of the 95 % interval of the mean by Student's t; None with one seed."""
    t_high: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """All numbers of an experiment."""

    title: str
    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    values: Mapping[str, Mapping[str, tuple[float | None, ...]]]
    """By column and arm, one per seed; None where a report has no such number."""
    clips: tuple[Mapping[str, int], ...]
    """Per seed, how many clips were probed and sampled from."""

    def spread(self, column: str, arm: str) -> Spread | None:
        """Return what the seeds say of a number; None where no seed has one."""
        return spread_of([value for value in self.values[column][arm] if value is not None])

    def as_json(self) -> str:
        """Write them."""
        plain = {
            "format_version": _VERSION,
            "title": self.title,
            "seeds": self.seeds,
            "arms": self.arms,
            "clips": [dict(each) for each in self.clips],
            "values": {
                column: {arm: _rounded(own) for arm, own in by_arm.items()}
                for column, by_arm in self.values.items()
            },
        }
        return json.dumps(plain, indent=1) + "\n"


def spread_of(values: Sequence[float]) -> Spread | None:
    """Return mean, extremes and interval of the values of some seeds; None without any."""
    if not values:
        return None
    mean, n = statistics.fmean(values), len(values)
    half = None
    if n - 1 in _T_95:
        half = _T_95[n - 1] * statistics.stdev(values) / n**0.5
    return Spread(
        n=n,
        mean=mean,
        low=min(values),
        high=max(values),
        t_low=None if half is None else mean - half,
        t_high=None if half is None else mean + half,
    )


def read_results(path: Path) -> Results:
    """Read what `Results.as_json` wrote.

    Raises:
        DataError: another format.
    """
    raw = json.loads(path.read_text(encoding="utf-8"))
    if raw.get("format_version") != _VERSION:
        raise DataError(f"{path} must be results of format {_VERSION}; run the experiment again")
    return Results(
        title=raw["title"],
        seeds=tuple(raw["seeds"]),
        arms=tuple(raw["arms"]),
        values={
            column: {arm: tuple(own) for arm, own in by_arm.items()}
            for column, by_arm in raw["values"].items()
        },
        clips=tuple(raw["clips"]),
    )


def gather(experiment: Experiment, seeds: Sequence[int]) -> Results:
    """Take the numbers of an experiment out of its leak reports.

    Args:
        experiment: what was run.
        seeds: those that are finished.

    Raises:
        StageError: a report is missing.
        DataError: a column is in none of the reports.
    """
    found = [_arms_of_seed(experiment, seed) for seed in seeds]
    arms = tuple(found[0][0])
    values: dict[str, dict[str, tuple[float | None, ...]]] = {}
    for heading, column in experiment.columns.items():
        own = {arm: tuple(_value(rows, arm, column) for rows, _ in found) for arm in arms}
        if all(value is None for each in own.values() for value in each):
            raise DataError(
                f"column {heading}: no arm has {column.measure} there; look at leak.t and "
                "leak.start_times in the arms' configuration"
            )
        values[heading] = own
    clips = tuple(counts for _, counts in found)
    return Results(
        title=experiment.title, seeds=tuple(seeds), arms=arms, values=values, clips=clips
    )


_COUNTED = {"probed", "sampled"}
_Rows = dict[str, list[dict[str, Any]]]


def _arms_of_seed(experiment: Experiment, seed: int) -> tuple[_Rows, dict[str, int]]:
    """Return the rows of each arm of the table, and the numbers of clips."""
    rows: _Rows = {}
    counts: dict[str, int] = {}
    for source in experiment.sources:
        for text in source.reports:
            path = Path(experiment.filled(text, seed))
            report = _read_report(path, seed)
            for name, shown in source.arms.items():
                own = [row for row in report["values"] if row["arm"] == name]
                rows[shown] = [*rows.get(shown, []), *own]
            counts |= {
                f"num_{key}": len(report["clips"][key]) for key in _COUNTED & set(report["clips"])
            }
    return rows, counts


def _read_report(path: Path, seed: int) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StageError(
            f"there is no report {path} of seed {seed} ({error}); run the experiment first"
        ) from error
    return report


def _value(rows: _Rows, arm: str, column: Column) -> float | None:
    own = _number(rows[arm], column)
    if column.relative_to is None or own is None:
        return own
    other = _number(rows[column.relative_to], column)
    return own / other if other else None


def _number(rows: Sequence[Mapping[str, Any]], column: Column) -> float | None:
    for row in rows:
        gaussian = bool(row["analytic_init"])
        place = (row["t"], row["start_time"], gaussian)
        if row["measure"] == column.measure and place == (
            column.t,
            column.start,
            column.analytic_init,
        ):
            value = row["value"]
            return None if value is None else float(value)
    return None


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    """Keep five significant digits, which are more than any of them is worth."""
    return [None if value is None else float(f"{value:.5g}") for value in values]
