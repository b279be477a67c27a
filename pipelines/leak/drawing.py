"""Drawing a `Plot`: SVG for light and dark pages, PNG for all else; the same bytes each time."""

import base64
import io
from typing import TYPE_CHECKING, Any

from pipelines.leak.look import DARK, LIGHT, Theme
from pipelines.leak.plots import Plot

if TYPE_CHECKING:
    pass

__all__ = ["png_of", "svg_of", "svg_uris"]

_SIZE = (5.2, 4.0)
_DOTS_PER_INCH = 170


def svg_uris(plot: Plot) -> tuple[str, str]:
    """Return a plot as two data URIs, for light and for dark paper."""
    return _uri(svg_of(plot, LIGHT)), _uri(svg_of(plot, DARK))


def svg_of(plot: Plot, theme: Theme) -> str:
    """Return a plot as SVG text."""
    return _saved(plot, theme, "svg", metadata={"Date": None}).decode()


def png_of(plot: Plot) -> bytes:
    """Return a plot as a PNG on light paper, with its title and number of clips."""
    return _saved(plot, LIGHT, "png", metadata={"Software": None}, titled=True)


def _uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _saved(plot: Plot, theme: Theme, kind: str, *, titled: bool = False, **options: Any) -> bytes:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.hashsalt": plot.name,
        "svg.fonttype": "path",
        "font.size": 10,
        "axes.edgecolor": theme.soft,
        "axes.facecolor": theme.paper,
        "axes.labelcolor": theme.ink,
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.7,
        "text.color": theme.ink,
        "xtick.color": theme.soft,
        "ytick.color": theme.soft,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
    }
    buffer = io.BytesIO()
    with mpl.rc_context(settings):
        figure: Figure = Figure(figsize=_SIZE, layout="constrained", facecolor=theme.paper)
        plot.draw(figure, theme)
        if titled:
            count = f" (n = {plot.n} clips)" if plot.n else ""
            figure.suptitle(f"{plot.title}{count}", fontsize=11)
        figure.savefig(buffer, format=kind, dpi=_DOTS_PER_INCH, facecolor=theme.paper, **options)
    return buffer.getvalue()
