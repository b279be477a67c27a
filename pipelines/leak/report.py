"""The files of a leak report: leak.json and leak.csv with all numbers, PNGs, and report.html.

In: a `Study`, all that was measured and decided. Nothing is computed here but pictures.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.leak.arms import LeakArm
from pipelines.leak.density import NoiseDensity
from pipelines.leak.drawing import png_of
from pipelines.leak.evidence import Evidence
from pipelines.leak.gallery import VideoRow
from pipelines.leak.look import looks_of
from pipelines.leak.page import render_page
from pipelines.leak.plots import Plot, plots_of
from pipelines.leak.resamples import Estimate
from pipelines.leak.sample_table import SampleTable, Start
from pipelines.leak.series import Point
from pipelines.leak.verdict import Verdict
from pipelines.leak.words import MEANINGS, UNITS
from pipelines.report import versions
from pipelines.storage import write_atomic, write_json

__all__ = ["DATA_NAME", "PAGE_NAME", "PLOTS_FOLDER", "TABLE_NAME", "Study", "write"]

DATA_NAME, TABLE_NAME, PAGE_NAME = "leak.json", "leak.csv", "report.html"
PLOTS_FOLDER = "plots"
_VERSION = 1
_COLUMNS = (
    *("arm", "measure", "unit", "t", "level", "start_time", "analytic_init"),
    *("value", "low", "high", "n", "reference"),
    *("difference", "difference_low", "difference_high", "p"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """All that a report says."""

    arms: Sequence[LeakArm]
    probed: Sequence[str]
    """Keys of the clips of the probe."""
    probe: Sequence[Point]
    sampled: Sequence[Point]
    samples: SampleTable | None
    start: Start | None
    """Where arms are compared; None without videos."""
    evidence: Sequence[Evidence]
    verdicts: Sequence[Verdict]
    headline: str
    limits: Sequence[str]
    warnings: Sequence[str]
    densities: Mapping[str, NoiseDensity | None]
    videos: Sequence[VideoRow]
    videos_left_out: int
    settings: Mapping[str, Any]
    """Of the report: seed, level, resamples, times and others."""
    dataset: Mapping[str, Any]
    """Place and fingerprint."""


def write(study: Study, folder: Path) -> list[Plot]:
    """Write all files of a report; returns its plots."""
    names = [arm.name for arm in study.arms]
    plots = plots_of(
        probe=study.probe,
        sampled=study.sampled,
        samples=study.samples,
        start=study.start,
        densities=study.densities,
        looks=looks_of(names),
    )
    for plot in plots:
        write_atomic(folder / PLOTS_FOLDER / f"{plot.name}.png", png_of(plot))
    write_json(folder / DATA_NAME, details(study))
    write_atomic(folder / TABLE_NAME, _table(study).encode())
    files = {
        "Numbers of this page": folder / DATA_NAME,
        "The same as a table": folder / TABLE_NAME,
        "Plots as pictures": folder / PLOTS_FOLDER,
    }
    shown = {what: str(where) for what, where in files.items()}
    write_atomic(folder / PAGE_NAME, render_page(study, plots, files=shown).encode())
    return plots


def details(study: Study) -> dict[str, Any]:
    """Put all numbers and words of a report into plain data."""
    return {
        "format_version": _VERSION,
        "headline": study.headline,
        "verdicts": [asdict(verdict) for verdict in study.verdicts],
        "evidence": [asdict(each) for each in study.evidence],
        "limits": list(study.limits),
        "warnings": list(study.warnings),
        "settings": dict(study.settings),
        "dataset": dict(study.dataset),
        "arms": [
            {
                "name": arm.name,
                "folder": str(arm.arm.folder),
                "model_sha256": arm.arm.identity,
                "time_noise": None if arm.noise is None else asdict(arm.noise),
                "reference": arm.reference,
                "controls": list(arm.controls),
            }
            for arm in study.arms
        ],
        "clips": {
            "probed": list(study.probed),
            "sampled": list(study.samples.keys) if study.samples else [],
            "left_out": list(study.samples.left_out) if study.samples else [],
        },
        "measures": {
            name: {"meaning": text, "unit": UNITS[name]} for name, text in MEANINGS.items()
        },
        "values": [_row(point, study.arms) for point in (*study.probe, *study.sampled)],
        "flags": [
            {"arm": arm, "start": str(start), **counts}
            for (arm, start), counts in sorted(
                (study.samples.flags if study.samples else {}).items()
            )
        ],
        "versions": versions(),
    }


def _row(point: Point, arms: Sequence[LeakArm]) -> dict[str, Any]:
    difference = point.difference or Estimate(value=None, low=None, high=None, n=0)
    reference = next(arm.reference for arm in arms if arm.name == point.arm)
    start = point.start
    return {
        "arm": point.arm,
        "measure": point.measure,
        "unit": UNITS[point.measure],
        "t": point.time,
        "level": point.level,
        "start_time": start.time if start else None,
        "analytic_init": start.analytic_init if start else None,
        "value": point.estimate.value,
        "low": point.estimate.low,
        "high": point.estimate.high,
        "n": point.estimate.n,
        "reference": reference,
        "difference": difference.value,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "p": point.p,
    }


def _table(study: Study) -> str:
    """Write one line per arm, measure and place."""
    text = io.StringIO()
    lines = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    lines.writeheader()
    for point in (*study.probe, *study.sampled):
        lines.writerow(_row(point, study.arms))
    return text.getvalue()
