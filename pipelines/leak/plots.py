"""The plots of a leak report. In: points, tables, densities. Out: `Plot`s, which draw themselves.

Each has a name, a title, a caption that says what it means and of how many clips it is, axes with
units, and is drawn on light and dark paper; see `pipelines.leak.drawing`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.leak.density import NoiseDensity
from pipelines.leak.look import ArmLook, Theme
from pipelines.leak.resamples import Numbers
from pipelines.leak.sample_table import SampleTable, Start
from pipelines.leak.series import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Plot", "plots_of"]

_LEGEND_SIGNS = 62
"""Width of a legend's line."""
_RANK = "rank t of the noise level (share of training levels below)"
_CURVES = (
    (
        "motion-transfer",
        "motion_transfer_ratio",
        "Motion transfer",
        "motion transfer (ratio)",
        "The share of the motion in the noisy video that reaches a one-step prediction. 1: all of "
        "it, 0: the network looks at the image only. Higher is less leak. It falls to 0 as t nears "
        "1 for a perfect network too: compare arms at the same t.",
    ),
    (
        "condition-dominance",
        "condition_dominance",
        "Condition dominance",
        "condition dominance (ratio)",
        "How much another image changes a prediction against another noisy video. 1: the image "
        "decides alone. Lower is less leak, but a network that ignores the image is lowest: read "
        "it with the error.",
    ),
    (
        "one-step-error",
        "one_step_mse",
        "One-step error",
        "squared error (latent units squared)",
        "Mean squared error of a one-step prediction on held-out clips, with a clean image. Lower "
        "is better.",
    ),
    (
        "one-step-motion",
        "one_step_motion",
        "One-step motion",
        "optical flow, prediction / clip (ratio)",
        "Motion of the decoded prediction over that of the clip. It is blind to direction: one "
        "learned by heart counts as motion, so this shows the effect and does not prove it.",
    ),
    (
        "frame-difference",
        "frame_difference_ratio",
        "One-step frame difference",
        "frame difference, prediction / clip (ratio)",
        "Energy of the difference between frames of the prediction over that of the clip, in "
        "latents. As blind to direction as the motion.",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """One figure."""

    name: str
    """Of its file."""
    title: str
    caption: str
    """What it means, for people."""
    n: int
    """Clips behind it; 0 where nothing was measured."""
    wide: bool
    """Whether it takes the whole width of a page."""
    draw: Callable[["Figure", Theme], None]


def plots_of(
    *,
    probe: Sequence[Point],
    sampled: Sequence[Point],
    samples: SampleTable | None,
    start: Start | None,
    densities: Mapping[str, NoiseDensity | None],
    looks: Mapping[str, ArmLook],
) -> list[Plot]:
    """Return the plots of what was measured, in the order of the page.

    Args:
        probe: one-step points.
        sampled: points of videos.
        samples: the table of videos, for single clips.
        start: where arms are compared.
        densities: noise of the conditions in training, by arm.
        looks: by arm, all of them, in their order.
    """
    plots = [
        plot for each in _CURVES if (plot := _curve(*each, points=probe, looks=looks)) is not None
    ]
    if samples is not None and samples.keys and start is not None:
        plots.append(_scatter(samples, start, looks))
        plots.append(_error_by_start(sampled, looks, len(samples.keys)))
        plots.append(_plane(sampled, samples, start, looks))
    known = {arm: density for arm, density in densities.items() if density is not None}
    if known:
        plots.append(_densities(known, looks))
    return plots


def short(name: str, longest: int = 26) -> str:
    """Shorten a name for a legend."""
    return name if len(name) <= longest else f"{name[: longest - 9]}...{name[-6:]}"


def _curve(
    name: str,
    measure: str,
    title: str,
    unit: str,
    caption: str,
    *,
    points: Sequence[Point],
    looks: Mapping[str, ArmLook],
) -> Plot | None:
    own = [point for point in points if point.measure == measure]
    if not own:
        return None
    n = own[0].estimate.n

    def draw(figure: "Figure", theme: Theme) -> None:
        axes = figure.subplots()
        for arm, look in looks.items():
            line = [point for point in own if point.arm == arm and point.estimate.value is not None]
            x = _floats(point.time for point in line)
            style = _style(look, theme)
            axes.plot(x, _floats(p.estimate.value for p in line), **style, label=short(arm))
            _band(axes, x, line, style["color"])
        axes.set_xlim(0, 1)
        if all((point.estimate.low or 0.0) >= 0 for point in own):
            axes.set_ylim(bottom=0)
        axes.set_xlabel(_RANK)
        axes.set_ylabel(unit)
        _legend(figure, axes)

    return Plot(name=name, title=title, caption=caption, n=n, wide=False, draw=draw)


def _scatter(samples: SampleTable, start: Start, looks: Mapping[str, ArmLook]) -> Plot:
    arms = [arm for arm in looks if (arm, start) in samples.values]
    most = max(
        float(np.max(samples.values[arm, start][name]))
        for arm in arms
        for name in ("motion", "motion_real")
    )
    columns, rows = _layout(len(arms))

    def draw(figure: "Figure", theme: Theme) -> None:
        figure.set_size_inches(2.6 * max(columns, 2), 2.7 * rows + 0.3)
        grid = figure.subplots(rows, columns, squeeze=False)
        places = list(grid.flat)
        for axes in places[len(arms) :]:
            axes.set_visible(False)
        for arm, axes in zip(arms, places, strict=False):
            own = samples.values[arm, start]
            axes.axline((0, 0), slope=1, color=theme.soft, linewidth=0.9, linestyle="--")
            axes.plot(
                own["motion_real"],
                own["motion"],
                linestyle="none",
                marker=looks[arm].mark,
                color=looks[arm].colour(theme),
                markersize=4.5,
                alpha=0.8,
            )
            axes.set_title(short(arm), fontsize=10)
            axes.set_xlim(0, most * 1.05 or 1)
            axes.set_ylim(0, most * 1.05 or 1)
        figure.supxlabel("motion of the real clip (px/frame)", fontsize=10, color=theme.ink)
        figure.supylabel("motion of the video (px/frame)", fontsize=10, color=theme.ink)

    return Plot(
        name="motion-in-out",
        title="Motion in against motion out",
        caption=f"Each mark is a clip, sampled from its first frame ({start}). On the dashed line "
        "the video moves as much as the clip. Nothing tells a network how much that is, so a wide "
        "cloud is no fault; a cloud below the line is lost motion.",
        n=len(samples.keys),
        wide=columns > 2,
        draw=draw,
    )


def _error_by_start(points: Sequence[Point], looks: Mapping[str, ArmLook], n: int) -> Plot:
    own = [point for point in points if point.measure == "motion_error"]

    def draw(figure: "Figure", theme: Theme) -> None:
        axes = figure.subplots()
        both = {point.start.analytic_init for point in own if point.start is not None}
        for arm, look in looks.items():
            style = _style(look, theme)
            for gaussian in sorted(both):
                line = sorted(_of_start(own, arm, gaussian), key=lambda point: point.start.time)  # type: ignore[union-attr]
                if gaussian:  # at the largest M both starts are nearly the same, and sampled once
                    line += _last_of(own, arm, line)
                x = _floats(point.start.time for point in line if point.start is not None)
                shown = {**style, "linestyle": "--" if gaussian else "-"}
                label = None if gaussian else short(arm)
                if gaussian:
                    shown["markerfacecolor"] = theme.paper
                axes.plot(x, _floats(p.estimate.value for p in line), **shown, label=label)
                if not gaussian:  # two bands over each other cannot be read; the table has both
                    _band(axes, x, line, style["color"])
        axes.set_ylim(bottom=0)
        axes.invert_xaxis()
        axes.set_xlabel("start time M (share of the diffusion time)")
        axes.set_ylabel("|motion out - motion in| (px/frame)")
        _legend(figure, axes)

    return Plot(
        name="motion-error-by-start",
        title="Motion error against the start time",
        caption="Mean distance of a video's motion from that of its clip. Solid: from noise of the "
        "start's size alone; dashed: from the Analytic-Init Gaussian. A smaller M is a motion "
        "knob: more motion there is no evidence that the leak is gone.",
        n=n,
        wide=False,
        draw=draw,
    )


def _plane(
    points: Sequence[Point], samples: SampleTable, start: Start, looks: Mapping[str, ArmLook]
) -> Plot:
    real = float(np.mean(next(iter(samples.values.values()))["motion_real"]))
    named = {(p.arm, p.start, p.measure): p.estimate for p in points}

    def draw(figure: "Figure", theme: Theme) -> None:
        axes = figure.subplots()
        axes.axhline(real, color=theme.soft, linewidth=0.9, linestyle="--")
        for arm, look in looks.items():
            colour = look.colour(theme)
            path = [s for s in samples.starts(arm) if s.analytic_init == start.analytic_init]
            across = _floats(named[arm, each, "alignment_mse"].value for each in path)
            up = _floats(named[arm, each, "motion"].value for each in path)
            axes.plot(across, up, color=colour, linewidth=0.8, alpha=0.6)
            axes.plot(across, up, color=colour, marker=look.mark, markersize=2.5, linestyle="none")
            if (arm, start, "motion") in named:
                x, y = named[arm, start, "alignment_mse"], named[arm, start, "motion"]
                axes.errorbar(
                    _floats([x.value]),
                    _floats([y.value]),
                    xerr=_reach(x),
                    yerr=_reach(y),
                    color=colour,
                    marker=look.mark,
                    markersize=7,
                    capsize=2,
                    linewidth=1,
                    label=short(arm),
                )
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("first frame against the image (squared error, 0..1 scale)")
        axes.set_ylabel("motion of the videos (px/frame)")
        _legend(figure, axes)

    return Plot(
        name="alignment-motion",
        title="Alignment against motion",
        caption=f"Large marks: {start}, with intervals; small ones: other start times M. Left is "
        "closer to the image. The dashed line is the mean motion of the real clips: above it is "
        "not better. A video that falls apart moves too.",
        n=len(samples.keys),
        wide=False,
        draw=draw,
    )


def _densities(densities: Mapping[str, NoiseDensity], looks: Mapping[str, ArmLook]) -> Plot:
    lines = (":", "--", "-")
    columns, rows = _layout(len(densities))

    def draw(figure: "Figure", theme: Theme) -> None:
        figure.set_size_inches(2.6 * max(columns, 2), 2.3 * rows + 0.6)
        grid = figure.subplots(rows, columns, squeeze=False)
        places = list(grid.flat)
        for axes in places[len(densities) :]:
            axes.set_visible(False)
        for (arm, density), axes in zip(densities.items(), places, strict=False):
            colour = looks[arm].colour(theme)
            for (time, curve), line in zip(density.curves.items(), lines, strict=False):
                axes.plot(density.grid, curve, color=colour, linestyle=line, label=f"t {time:g}")
            for (time, value), line in zip(density.points.items(), lines, strict=False):
                axes.axvline(value, color=colour, linestyle=line, label=f"t {time:g}")
            if density.points:
                axes.set_yticks([])
            axes.set_xlim(left=-0.02 * max(1.0, axes.get_xlim()[1]))
            axes.set_ylim(bottom=0)
            axes.set_title(f"{short(arm, 20)}, mean {density.mean:.3g}", fontsize=10)
        figure.supxlabel("sigma_cond (std of noise on the conditioning latents)", fontsize=10)
        figure.supylabel("density (1 / sigma_cond)", fontsize=10)
        handles, labels = places[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False)

    return Plot(
        name="noise-density",
        title="Noise on the condition in training",
        caption="How much noise the image had in training, at three ranks t, by the formula of "
        "each arm; a line straight up is one single value. It says what was done, not what it did.",
        n=0,
        wide=columns > 2,
        draw=draw,
    )


def _layout(count: int) -> tuple[int, int]:
    """Return columns and rows of small plots, without lonely ones where it can be helped."""
    columns = min(count, 2 if count == 4 else 3)
    return columns, -(-count // columns)


def _style(look: ArmLook, theme: Theme) -> dict[str, Any]:
    return {
        "color": look.colour(theme),
        "marker": look.mark,
        "markersize": 4,
        "linestyle": look.line,
        "linewidth": 1.5,
    }


def _floats(values: Iterable[float | None]) -> Numbers:
    """Return values to draw; a gap where there is none."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _band(axes: "Axes", x: Numbers, line: Sequence[Point], colour: str) -> None:
    low, high = (_floats(getattr(p.estimate, end) for p in line) for end in ("low", "high"))
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def _reach(estimate: Any) -> list[list[float]] | None:
    if estimate.low is None:
        return None
    return [[estimate.value - estimate.low], [estimate.high - estimate.value]]


def _of_start(points: Sequence[Point], arm: str, gaussian: bool) -> list[Point]:
    return [
        point
        for point in points
        if point.arm == arm and point.start is not None and point.start.analytic_init == gaussian
    ]


def _last_of(points: Sequence[Point], arm: str, line: Sequence[Point]) -> Iterator[Point]:
    """Give a line of Analytic-Init the point of the largest M, where there is one only."""
    others = _of_start(points, arm, False)
    if not others:
        return
    last = max(others, key=lambda point: point.start.time)  # type: ignore[union-attr]
    if all(point.start.time != last.start.time for point in line):  # type: ignore[union-attr]
        yield last


def _legend(figure: "Figure", axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = min(len(labels), max(1, _LEGEND_SIGNS // (max(map(len, labels)) + 6)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
