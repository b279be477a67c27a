"""`cil plan --stage train` for people: what a worker would hold, and what fits."""

from typing import Any

from rich.table import Table

from pipelines.progress import console
from pipelines.report import RunReport

__all__ = ["show_training_plan", "shown_bytes"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_UNIT_NAMES = {2**20: "MiB", 2**30: "GiB"}
_PARTS = (
    "weights",
    "masters",
    "gradients",
    "optimiser",
    "average",
    "buffers",
    "activations",
    "update",
    "total",
    "host",
)


def shown_bytes(count: float) -> str:
    """Write a number of bytes with a unit, three digits."""
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.3g} {_UNITS[unit]}"


def show_training_plan(report: RunReport) -> None:
    """Print a plan of training on stderr.

    Args:
        report: what `plan_training` returned.
    """
    inputs, outputs, metrics = report.inputs, report.outputs, report.metrics
    steps = outputs["steps"]
    _print(
        f"plan of training: {inputs['family']}, {metrics['parameters']:,.0f} parameters, "
        f"{metrics['parameters_trained']:,.0f} of them trained, {inputs['precision']}"
    )
    if inputs["sizes_from"] == "published model":
        _print(f"sizes of the published model; {inputs['pretrained']} is not there")
    known = steps["epochs"] is not None
    epochs = f", {steps['epochs']:g} epochs of {inputs['clips']:,} clips" if known else ""
    _print(
        f"{steps['steps']:,} steps of {steps['clips_per_step']:,} clips{epochs}; per worker and "
        f"step {steps['micro_batches_per_worker_and_step']} x {steps['micro_batch_size']} clips"
    )
    _print(
        f"a checkpoint takes {shown_bytes(metrics['checkpoint_bytes'])}, all that are kept "
        f"{shown_bytes(metrics['checkpoints_bytes'])}"
    )
    rows = outputs["memory"]
    unit = 2**20 if max(row["total"] for row in rows) < 1000 * 2**20 else 2**30
    console.print(_parts_table([r for r in rows if r["num_workers"] == inputs["workers"]], unit))
    console.print(_totals_table(rows, unit))
    if outputs["workers_left_out"]:
        left = ", ".join(str(count) for count in outputs["workers_left_out"])
        _print(f"the global batch does not divide over {left} workers")
    activations = outputs["activations"]
    _print(
        f"measured: parameters, and the activations of {activations['micro_batch_size']} clips of "
        f"{inputs['measured_bucket']}: {shown_bytes(activations['plain'])}, with "
        f"gradient_checkpointing {shown_bytes(activations['checkpointed'])}. All else is added up; "
        "buffers and update are upper bounds"
    )
    memory = (
        f"{inputs['device_memory_gib']:g} GiB ({inputs['device_memory_from']}; "
        f"{inputs['usable_share']:.0%} of it planned with)"
    )
    fits = outputs["fits"]
    if fits is None:
        _print(
            f"nothing fits into {memory}: more workers, a smaller micro_batch_size, bf16, or "
            "fewer communication_elements"
        )
        return
    _print(
        f"fits into {memory}: zero_stage {fits['zero_stage']}, gradient_checkpointing "
        f"{_yes(fits['gradient_checkpointing'])}, offload_optimizer "
        f"{_yes(fits['offload_optimizer'])}: {shown_bytes(fits['total'])}"
    )


def _parts_table(rows: list[dict[str, Any]], unit: int) -> Table:
    """Show what the configured workers hold, one column for each choice."""
    count = rows[0]["num_workers"] if rows else 0
    table = _table(f"of a worker of {count}, {_UNIT_NAMES[unit]}, by ZeRO stage", rows)
    for name in _PARTS:
        table.add_row(name, *(_number(row[name], unit) for row in rows))
    table.add_row("fits", *(_yes(row["fits"]) for row in rows))
    return table


def _totals_table(rows: list[dict[str, Any]], unit: int) -> Table:
    """Show the totals by number of workers; a star marks what does not fit."""
    workers = sorted({row["num_workers"] for row in rows})
    first = [row for row in rows if row["num_workers"] == workers[0]]
    table = _table(f"total on a device by workers, {_UNIT_NAMES[unit]}, * does not fit", first)
    for count in workers:
        of_count = [row for row in rows if row["num_workers"] == count]
        cells = (_number(r["total"], unit) + ("" if r["fits"] else "*") for r in of_count)
        table.add_row(str(count), *cells)
    return table


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    names = [f"{row['zero_stage']}{' cpu' if row['offload_optimizer'] else ''}" for row in rows]
    table = Table("", *names, title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _number(count: int, unit: int) -> str:
    return f"{count / unit:,.2f}"


def _print(text: str) -> None:
    console.print(text, markup=False)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
