"""The report of a sweep: report.json and report.csv with all numbers, report.html for people."""

import base64
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any

from pipelines.config import redact_uri
from pipelines.pages import page_environment
from pipelines.report import RunReport, versions
from pipelines.storage import write_atomic, write_json
from pipelines.sweep.arms import Sweep
from pipelines.sweep.curves import draw_curves
from pipelines.sweep.gallery import gallery
from pipelines.sweep.measures import MEASURES, Measure, over_seeds
from pipelines.sweep.results import Result

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["DATA_NAME", "PAGE_NAME", "TABLE_NAME", "write"]

DATA_NAME, TABLE_NAME, PAGE_NAME = "report.json", "report.csv", "report.html"
_VERSION = 1
_TEMPLATE = "page.html"
_COLUMNS = ("arm", "seed", "state", "measure", "value", "standard_error", "n", "over", "absent")


def write(sweep: Sweep, results: Sequence[Result], encoded: RunReport) -> None:
    """Write the report into the folder of the sweep.

    Args:
        sweep: the sweep.
        results: of all its trainings.
        encoded: report of the shared data set.
    """
    folder = sweep.folder
    details = _details(sweep, results, encoded)
    write_json(folder / DATA_NAME, details)
    write_atomic(folder / TABLE_NAME, _table(results).encode())
    write_atomic(folder / PAGE_NAME, _page(sweep, results, details).encode())


def _details(sweep: Sweep, results: Sequence[Result], encoded: RunReport) -> dict[str, Any]:
    """Put everything that the report says into plain data."""
    arms = []
    for arm in sweep.arms:
        own = [result for result in results if result.run.arm == arm.name]
        finished = [result for result in own if result.state == "finished"]
        summary: dict[str, Any] = {}
        if finished:
            for name in MEASURES:
                values = [result.measures[name] for result in finished]
                summary[name] = asdict(over_seeds(values))
        arms.append(
            {
                "name": arm.name,
                "differences": [asdict(each) for each in arm.differences],
                "unfair": arm.unfair,
                "measures": summary,
                "runs": [_run(result) for result in own],
            }
        )
    clips = next((result.clips for result in results if result.clips), None)
    base = sweep.base
    return {
        "format_version": _VERSION,
        "sweep": sweep.name,
        "file": str(sweep.file),
        "dataset": {
            "place": redact_uri(str(encoded.outputs["dataset"])),
            "fingerprint": encoded.outputs["fingerprint"],
            "clips_trained": clips[0] if clips else None,
            "clips_held_out": clips[1] if clips else None,
        },
        "training": {
            "num_steps": base.train.num_steps,
            "global_batch_size": base.train.global_batch_size,
            "seeds": sorted({run.seed for run in sweep.runs}),
        },
        "measures": {name: asdict(info) for name, info in MEASURES.items()},
        "arms": arms,
        "versions": versions(),
    }


def _run(result: Result) -> dict[str, Any]:
    return {
        "seed": result.run.seed,
        "state": result.state,
        "error": result.error,
        "folder": str(result.run.folder),
        "train_seconds": result.train_seconds,
        "measures": {name: asdict(measure) for name, measure in result.measures.items()},
    }


def _table(results: Sequence[Result]) -> str:
    """Write one line per training and measure."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(_COLUMNS)
    for result in results:
        about = (result.run.arm, result.run.seed, result.state)
        for name in MEASURES:
            missing = Measure(value=None, absent=result.error or "not trained yet")
            one = result.measures.get(name, missing)
            row = (one.value, one.error, one.n, one.over, one.absent)
            lines.writerow((*about, name, *("" if cell is None else cell for cell in row)))
    return text.getvalue()


def _page(sweep: Sweep, results: Sequence[Result], details: dict[str, Any]) -> str:
    names = [arm.name for arm in sweep.arms]
    rows, left_out = gallery(results, names)
    svg = base64.b64encode(draw_curves(results, names).encode()).decode()
    groups: dict[str, dict[str, Any]] = {}
    for name, info in MEASURES.items():
        groups.setdefault(info.group, {})[name] = info
    states = [result.state for result in results]
    return _template().render(
        d=details,
        groups=groups,
        reasons={group: _reasons(details["arms"], list(own)) for group, own in groups.items()},
        curves=f"data:image/svg+xml;base64,{svg}" if "finished" in states else None,
        rows=rows,
        left_out=left_out,
        names=names,
        num_finished=states.count("finished"),
        num_runs=len(states),
        several_seeds=len(details["training"]["seeds"]) > 1,
        files={
            "Numbers of this page": str(sweep.folder / DATA_NAME),
            "The same as a table": str(sweep.folder / TABLE_NAME),
            "Sweep file": str(sweep.file),
            "Data set": details["dataset"]["place"],
        },
    )


def _reasons(arms: Sequence[dict[str, Any]], names: Sequence[str]) -> list[tuple[str, str]]:
    """Say once why values or standard errors are absent: what is absent, and where and why."""
    about: dict[tuple[str, str, str], list[str]] = {}
    for arm in arms:
        for name in names:
            one = arm["measures"].get(name, {})
            if one.get("absent"):
                what = "absent" if one["value"] is None else "no standard error"
                about.setdefault((name, what, one["absent"]), []).append(arm["name"])
    lines: dict[tuple[str, str, str], list[str]] = {}
    finished = [arm["name"] for arm in arms if arm["measures"]]
    for (name, what, why), who in about.items():
        whom = "" if who == finished else f" ({', '.join(who)})"
        lines.setdefault((what, why, whom), []).append(MEASURES[name].title)
    return [(what, f"{', '.join(own)}{whom}: {why}") for (what, why, whom), own in lines.items()]


@cache
def _template() -> "Template":
    environment = page_environment("pipelines.sweep")
    environment.filters["text"] = _text
    return environment.get_template(_TEMPLATE)


def _text(value: Any) -> str:
    """Write a setting as it stands in a file."""
    return json.dumps(value)
