"""The table and the figure of an experiment, and their place in a page of the documentation.

In: `Results` and the columns that are shown. Out: Markdown, and an SVG with one panel per column, a
row per arm, a dot per seed and a bar at their mean.
"""

import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cil.errors import ConfigError
from pipelines.experiments.plan import Column
from pipelines.experiments.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["figure", "placed", "table"]

_DOT, _MEAN, _RULE = "#33658a", "#f26419", "#d8dee4"
_COLUMNS = 3


def table(results: Results, columns: Mapping[str, Column]) -> str:
    """Return the table: mean (smallest to largest of the seeds); an arm without numbers is not run.

    Args:
        results: of the experiment.
        columns: by their heading; those that are not for the table are left out.
    """
    shown = {heading: column for heading, column in columns.items() if column.in_table}
    lines = ["| arm | " + " | ".join(shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for arm in results.arms:
        cells = [_cell(results, heading, arm, column) for heading, column in shown.items()]
        if not any(cells):
            cells[0] = "not run"
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(results: Results, heading: str, arm: str, column: Column) -> str:
    spread = results.spread(heading, arm)
    if spread is None:
        return ""
    text = f"{spread.mean:.{column.digits}f}"
    if spread.n > 1:
        text += f" ({spread.low:.{column.digits}f} to {spread.high:.{column.digits}f})"
    if spread.n < len(results.seeds):
        text += f", n = {spread.n}"
    return text


def placed(page: str, name: str, text: str) -> str:
    """Put a text into a page, between the comments ``results NAME`` and ``end of NAME``.

    Raises:
        ConfigError: the page has no such place.
    """
    place = re.compile(
        rf"(<!-- results {re.escape(name)} -->\n).*?(<!-- end of {re.escape(name)} -->)", re.DOTALL
    )
    if not place.search(page):
        raise ConfigError(
            f"the page has no place '<!-- results {name} -->' ... '<!-- end of ... -->'"
        )
    return place.sub(lambda found: f"{found[1]}\n{text.strip()}\n\n{found[2]}", page)


def figure(results: Results, columns: Mapping[str, Column]) -> bytes:
    """Draw the columns that are for the figure; returns an SVG with the same bytes each time."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    shown = [heading for heading, column in columns.items() if column.in_figure]
    rows = -(-len(shown) // _COLUMNS)
    across = min(len(shown), _COLUMNS)
    height = 0.9 + 0.24 * len(results.arms)
    drawing = Figure(figsize=(3.1 + 2.5 * across, height * rows + 0.2), layout="constrained")
    grid = drawing.subplots(rows, across, squeeze=False, sharey=True)
    for place, axes in enumerate(grid.flat):
        if place >= len(shown):
            axes.set_visible(False)
            continue
        _panel(axes, results, shown[place])
    content = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": results.title}):
        drawing.savefig(content, format="svg", metadata={"Date": None}, facecolor="white")
    return content.getvalue()


def _panel(axes: "Axes", results: Results, heading: str) -> None:
    for row, arm in enumerate(results.arms):
        values = [value for value in results.values[heading][arm] if value is not None]
        axes.axhline(row, color=_RULE, linewidth=0.7, zorder=0)
        axes.plot(values, [row] * len(values), "o", color=_DOT, markersize=4.5, alpha=0.75)
        if values:
            axes.plot(sum(values) / len(values), row, "|", color=_MEAN, markersize=13, mew=2.2)
    axes.set_yticks(range(len(results.arms)), results.arms)
    axes.set_ylim(len(results.arms) - 0.5, -0.5)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.set_title(heading, fontsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.tick_params(axis="x", labelsize=8)
