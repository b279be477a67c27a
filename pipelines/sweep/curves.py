"""The training curves of all arms as one SVG: loss, held-out loss and motion of samples by step."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.sweep.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLOURS", "draw_curves"]

COLOURS = (
    "#33658a",
    "#f26419",
    "#2a9d5c",
    "#9d4edd",
    "#c1121f",
    "#8a6d3b",
    "#d6489a",
    "#1f2a30",
    "#86a873",
    "#6c757d",
)
"""One per arm; from the eleventh on they repeat with broken lines."""
_STYLES = ("-", "--", ":")
_SMOOTHED_PARTS = 40


def draw_curves(results: Sequence[Result], arms: Sequence[str]) -> str:
    """Draw the curves of the finished trainings.

    Args:
        results: of all trainings; each seed is a thin line of its own.
        arms: names in the order of their colours.

    Returns:
        SVG text; the same bytes on every run of one version of matplotlib.
    """
    import io

    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    loss, held_out, motion = figure.subplots(1, 3)
    for result in results:
        if result.state != "finished":
            continue
        number = arms.index(result.run.arm)
        style: dict[str, Any] = {
            "color": COLOURS[number % len(COLOURS)],
            "linestyle": _STYLES[number // len(COLOURS) % len(_STYLES)],
            "linewidth": 1.4,
        }
        smooth = _smoothed(result.losses)
        loss.plot(
            range(len(result.losses) - len(smooth) + 1, len(result.losses) + 1), smooth, **style
        )
        _by_step(held_out, result, "val_loss_clean", style)
        _by_step(motion, result, "val_motion_ratio", style)
        loss.plot([], [], **style, label=result.run.arm)
    titles = (
        (loss, "training loss (own noise, moving mean)"),
        (held_out, "held-out loss, clean condition (± standard error)"),
        (motion, "motion of samples / real"),
    )
    for axes, title in titles:
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.grid(color="#d8dee4", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    motion.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    motion.set_ylim(bottom=0)
    handles, labels = loss.get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))
    if named:
        figure.legend(
            named.values(),
            named.keys(),
            loc="outside lower center",
            ncols=min(len(named), 7),
            frameon=False,
        )
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "sweep", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _smoothed(losses: Sequence[float]) -> list[float]:
    """Return moving means over a fortieth of the steps, one from the first full window on."""
    window = max(1, len(losses) // _SMOOTHED_PARTS)
    if not losses:
        return []
    return list(np.convolve(losses, np.full(window, 1 / window), mode="valid"))


def _by_step(axes: "Axes", result: Result, name: str, style: dict[str, Any]) -> None:
    rows = [record for record in result.validations if name in record["metrics"]]
    if not rows:
        return
    steps = [record["step"] for record in rows]
    values = [record["metrics"][name] for record in rows]
    errors = [record["metrics"].get(f"{name}_error") for record in rows]
    if any(error is None for error in errors):
        axes.plot(steps, values, marker="o", markersize=3.5, **style)
    else:
        axes.errorbar(steps, values, yerr=errors, marker="o", markersize=3.5, capsize=2, **style)
