"""The page of a leak report: one HTML file without scripts that needs no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from pipelines.leak.config import DECISION_TIMES
from pipelines.leak.drawing import svg_uris
from pipelines.leak.look import looks_of
from pipelines.leak.plots import Plot
from pipelines.leak.resamples import Estimate
from pipelines.leak.series import Point
from pipelines.leak.words import MEANINGS, TITLES, UNITS
from pipelines.pages import page_environment
from pipelines.report import versions

if TYPE_CHECKING:
    from jinja2 import Template

    from pipelines.leak.report import Study

__all__ = ["render_page"]

_OF_THE_PROBE = ("motion_transfer_ratio", "condition_dominance", "one_step_mse", "one_step_motion")
_OF_THE_VIDEOS = ("motion", "motion_error", "alignment_mse", "ssim")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cell:
    estimate: Estimate
    difference: Estimate | None
    p: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Table:
    """Arms as rows, and places or measures as columns."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[_Cell | None]]
    n: int


def render_page(study: "Study", plots: Sequence[Plot], *, files: Mapping[str, str]) -> str:
    """Return the page as HTML.

    Args:
        study: all that was measured and decided.
        plots: of the study.
        files: what is beside the page, by what it is.
    """
    looks = looks_of([arm.name for arm in study.arms])
    shown = {TITLES[name]: f"{MEANINGS[name]} [{UNITS[name]}]" for name in MEANINGS}
    return _template().render(
        s=study,
        tables=_tables(study),
        plots=[(plot, *svg_uris(plot)) for plot in plots],
        keys={name: _key(name) for name in looks},
        looks=looks,
        meanings=shown,
        files=files,
        versions=versions(),
        times=DECISION_TIMES,
        level=f"{100 * float(study.settings['level']):g}%",
    )


def _tables(study: "Study") -> list[_Table]:
    """Return the tables of values, each with one measure, or all those of the videos."""
    tables = []
    for measure in _OF_THE_PROBE:
        by_place = {(p.arm, p.time): p for p in study.probe if p.measure == measure}
        times = [time for time in DECISION_TIMES if any(time == place for _, place in by_place)]
        if times:
            places = {f"t {time:g}": time for time in times}
            tables.append(_table(study, measure, by_place, places))
    if study.start is not None:
        by_name = {(p.arm, p.measure): p for p in study.sampled if p.start == study.start}
        n = next(iter(by_name.values())).estimate.n if by_name else 0
        rows = {
            arm.name: [_cell(by_name.get((arm.name, name))) for name in _OF_THE_VIDEOS]
            for arm in study.arms
        }
        columns = [f"{TITLES[name]} [{UNITS[name]}]" for name in _OF_THE_VIDEOS]
        tables.append(
            _Table(title=f"Videos, {study.start}", note="", columns=columns, rows=rows, n=n)
        )
    return tables


def _table(
    study: "Study",
    measure: str,
    points: Mapping[tuple[str, float | None], Point],
    places: Mapping[str, float],
) -> _Table:
    rows = {
        arm.name: [_cell(points.get((arm.name, place))) for place in places.values()]
        for arm in study.arms
    }
    n = next(iter(points.values())).estimate.n
    title = f"{TITLES[measure]} [{UNITS[measure]}]"
    return _Table(title=title, note=MEANINGS[measure], columns=list(places), rows=rows, n=n)


def _cell(point: Point | None) -> _Cell | None:
    if point is None:
        return None
    return _Cell(estimate=point.estimate, difference=point.difference, p=point.p)


def _key(name: str) -> str:
    """Return the name of an arm's colours in the style sheet."""
    return "arm-" + "".join(sign if sign.isalnum() else f"-{ord(sign):x}-" for sign in name)


@cache
def _template() -> "Template":
    environment = page_environment("pipelines.leak")
    environment.filters["signed"] = _signed
    environment.filters["chance"] = _chance
    environment.filters["noise"] = _noise
    return environment.get_template("page.html")


def _signed(value: float) -> str:
    """Write a difference with its sign and three digits."""
    return f"{value:+.3g}"


def _chance(value: float) -> str:
    """Write a p value."""
    return "p < 0.001" if value < 0.001 else f"p {value:.2g}"


def _noise(noise: object) -> str:
    """Write the settings of a noise that are not its preset's own."""
    names = ("beta_m", "a", "mu_max", "scale", "noise", "time_map", "target")
    given = {name: getattr(noise, name) for name in names}
    return ", ".join(f"{name} {value}" for name, value in given.items() if value is not None)
