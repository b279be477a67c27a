"""The report as a page: one HTML file that needs no network and no script.

Names and messages come from outside: everything is escaped, and the page forbids scripts.
"""

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from pipelines.config import redact_uri
from pipelines.dataset_report.details import Details
from pipelines.dataset_report.histograms import Bin, Histogram
from pipelines.report import RunReport

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["render"]

_TEMPLATE = "page.html"
_LONGEST_NAME = 64
_LONGEST_MESSAGE = 200
_STAGES = {
    "list": "Not usable as listed",
    "read": "Could not be read",
    "duplicate": "Copies of another video",
    "probe": "Not recognised as a video",
    "scan": "Stopped the decoder",
    "decode": "Could not be decoded",
    "select": "Too short for a clip",
}
_REASONS = {
    "min_height": ("The video is not high enough", "px"),
    "min_width": ("The video is not wide enough", "px"),
    "min_source_fps": ("The frame rate of the video is too low", "Hz"),
    "min_motion": ("Too little motion", "px/frame"),
    "max_motion": ("Too much motion", "px/frame"),
    "min_luma": ("Too dark", "of 255"),
    "min_contrast": ("Too little contrast", "of 255"),
    "max_jump": ("Motion jumps", "times the median"),
    "min_consistent_share": ("Motion cannot be measured well", ""),
    "max_duplicate_distance": ("Repeats another clip", "bits of 64"),
    "max_clips_per_video": ("The video has more clips than are taken", "clips"),
    "settled": ("The video was encoded before, without this clip", ""),
}


def render(
    shown: Details,
    report: RunReport,
    versions: Mapping[str, str],
    pictures: Mapping[str, str],
    files: Mapping[str, str],
) -> str:
    """Make the page.

    Args:
        shown: the numbers.
        report: of the stage.
        versions: of the libraries.
        pictures: data URIs of the extreme clips, by key.
        files: what there is -> where it is.
    """
    return _template().render(
        d=shown,
        report=report,
        versions=versions,
        pictures=pictures,
        files={what: redact_uri(where) for what, where in files.items()},
        settings=_sections(shown.settings),
        stages=_STAGES,
        reasons=_REASONS,
    )


@cache
def _template() -> "Template":
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipelines.dataset_report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (_count, _share, _size, _duration, _number, _name, _message, _setting, _largest)
    environment.filters.update({each.__name__.removeprefix("_"): each for each in filters})
    return environment.get_template(_TEMPLATE)


def _printable(value: Any) -> Any:
    """Show what cannot be printed (line ends, direction marks, odd bytes) as escapes."""
    if not isinstance(value, str) or value.isprintable() or hasattr(value, "__html__"):
        return value
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in value
    )


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _share(part: float, whole: float) -> str:
    """Return a share in percent; only nothing is 0%, and only all is 100%."""
    if not whole:
        return ""
    percent = 100 * part / whole
    if part and percent < 0.1:
        return "<0.1%"
    if part < whole and percent > 99.9:
        return ">99.9%"
    return f"{percent:.0f}%" if part in (0, whole) else f"{percent:.1f}%"


def _size(num_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            break
        num_bytes /= 1000
    return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.3g} {unit}"


def _duration(hours: float) -> str:
    seconds = hours * 3600
    if seconds < 60:
        return f"{seconds:.3g} s"
    if seconds < 3600:
        return f"{seconds / 60:.3g} min"
    return f"{hours:,.1f} h"


def _number(value: float | None) -> str:
    """Return a measure with three digits, without an exponent."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 or value == 0 else f"{value:.4f}"


def _name(value: str) -> str:
    """Shorten a long name in its middle, where it matters least."""
    return _shortened(value, _LONGEST_NAME)


def _message(value: str) -> str:
    return _shortened(value, _LONGEST_MESSAGE)


def _shortened(value: str, longest: int) -> str:
    text = str(_printable(value))
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 1]}…{text[-end:]}"


def _setting(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "not set"
    return str(value)


def _largest(shown: Histogram) -> int:
    def height(bar: Bin) -> int:
        return bar.count + bar.dropped

    return max(height(bar) for bar in shown.bins)


def _sections(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Put settings that are in no section into one of their own."""
    sections = {name: value for name, value in settings.items() if isinstance(value, dict)}
    return {"run": {k: v for k, v in settings.items() if k not in sections}, **sections}
