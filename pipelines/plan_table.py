"""`cil plan` for people: what is kept and dropped by bucket, and what it would cost."""

from rich.table import Table

from pipelines.progress import console
from pipelines.report import RunReport

__all__ = ["show_plan"]


def show_plan(report: RunReport) -> None:
    """Print a plan as tables on stderr.

    Args:
        report: what `plan_encoding` returned.
    """
    inputs, outputs, metrics = report.inputs, report.outputs, report.metrics
    about = "about " if inputs["estimated"] else ""
    probed = f", estimated from {inputs['probed']} of them" if inputs["estimated"] else ""
    console.print(f"[bold]plan[/bold]  {inputs['files']:,} videos{probed}")
    table = Table("bucket", "what", "clips", title=None, show_lines=False)
    table.columns[2].justify = "right"
    for bucket, count in outputs["kept_by_bucket"].items():
        table.add_row(bucket, "kept", f"{count:,}")
    for name, count in outputs["dropped_by_bucket_and_reason"].items():
        bucket, _, reason = name.partition(": ")
        table.add_row(bucket, f"dropped: {reason}", f"{count:,}")
    console.print(table)
    refused = {
        **outputs["refused_by_reason"],
        "too short for a clip": int(metrics["videos_too_short"]),
        "copies of another video": int(metrics["copies"]),
        "not usable as listed": outputs["listing_refused"],
    }
    if any(refused.values()):
        videos = Table("videos that give nothing", "videos")
        videos.columns[1].justify = "right"
        for reason, count in refused.items():
            if count:
                videos.add_row(reason, f"{count:,}")
        console.print(videos)
    hours = outputs["hours"]
    took = "unknown here (no GPU)" if hours is None else _duration(hours)
    console.print(
        f"{about}{metrics['clips']:,.0f} clips in {metrics['shards']:,.0f} shards, "
        f"{metrics['gigabytes']:,.3g} GB; time on these workers: {took}",
        markup=False,
    )


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.1f} h"
