"""The report as a page: one HTML file that needs no network and no script.

Names and messages come from outside: everything is escaped, and the page forbids scripts.
"""

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from pipelines.config import redact_uri
from pipelines.dataset_report.details import Details
from pipelines.dataset_report.histograms import Bin, Histogram
from pipelines.pages import page_environment
from pipelines.report import RunReport

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["render"]

_TEMPLATE = "page.html"
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
    environment = page_environment("pipelines.dataset_report")
    environment.filters["largest"] = _largest
    return environment.get_template(_TEMPLATE)


def _largest(shown: Histogram) -> int:
    def height(bar: Bin) -> int:
        return bar.count + bar.dropped

    return max(height(bar) for bar in shown.bins)


def _sections(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Put settings that are in no section into one of their own."""
    sections = {name: value for name, value in settings.items() if isinstance(value, dict)}
    return {"run": {k: v for k, v in settings.items() if k not in sections}, **sections}
