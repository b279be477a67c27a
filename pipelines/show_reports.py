"""The end of a command: where everything is, for people on stderr and as JSON on stdout."""

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.report import RunReport

__all__ = ["finish", "print_json"]


def finish(reports: "list[RunReport]", common: argparse.Namespace) -> None:
    """Show where everything is; with --json also print one object on stdout."""
    from pipelines.progress import console

    for report in reports:
        state = "was complete" if report.reused else f"{report.seconds:.1f} s"
        counts = ", ".join(f"{key} {value:g}" for key, value in report.metrics.items())
        console.print(f"[bold]{report.stage}[/bold] ({state})  {counts}")
        for name, value in report.outputs.items():
            console.print(f"    {name}: {value}", markup=False)
        if report.stage == "register":
            console.print(_how_to_use(report), markup=False)
    print_json(reports, common)


def print_json(reports: "list[RunReport]", common: argparse.Namespace) -> None:
    """Print one object on stdout if ``--json`` was given."""
    if common.json:
        from pipelines.config import redact_uri

        result: dict[str, Any] = {report.stage: report.to_json() for report in reports}
        print(redact_uri(json.dumps(result, sort_keys=True)))


def _how_to_use(report: "RunReport") -> str:
    name, alias = report.outputs["name"], report.outputs["alias"]
    store = report.outputs["tracking_uri"]
    return (
        f"    try it: cil sample --model models:/{name}@{alias} --tracking-uri {store} "
        "--image FILE\n"
        f"    look at the run: mlflow ui --backend-store-uri {store}"
    )
