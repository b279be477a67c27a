"""Histograms of the report: values in, bins with counts out."""

import bisect
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "BRIGHTNESS",
    "DURATIONS_S",
    "MOTION",
    "Bin",
    "Histogram",
    "binned",
    "common",
    "with_edges",
]

DURATIONS_S = (0.0, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, math.inf)
"""Edges for durations of videos, in seconds."""
MOTION = (0.0, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, math.inf)
"""Edges for motion scores in px/frame; under 0.1 a picture stands still."""
BRIGHTNESS = (*(float(edge) for edge in range(0, 240, 16)), 240.0, math.inf)
"""Edges for mean brightness, 0 to 255."""
_MOST_VALUES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """One bar."""

    label: str
    """Its values, in words."""
    low: float | None
    """Least value that it counts; None if it is no range."""
    high: float | None
    """First value above it; None if it has no end, or is no range."""
    count: int
    """Videos, or clips that are kept."""
    dropped: int
    """Candidate clips that are not kept; 0 for videos."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """A distribution."""

    title: str
    unit: str
    """Unit of the values and labels."""
    of: str
    """What is counted: videos or clips."""
    bins: list[Bin]
    """In order of the values; without the empty ones at both ends."""


def binned(
    title: str,
    unit: str,
    edges: Sequence[float],
    values: Iterable[float],
    dropped: Iterable[float] | None = None,
) -> Histogram:
    """Count values between edges.

    Args:
        title: what is shown.
        unit: of the values; "s" gives labels in seconds, minutes and hours.
        edges: ascending, the first one not above any value, the last one infinite.
        values: of videos, or of clips that are kept.
        dropped: of candidate clips that are not kept; None counts videos.
    """
    counts = _counts(edges, values)
    others = _counts(edges, dropped or ())
    used = [place for place, both in enumerate(zip(counts, others, strict=True)) if any(both)]
    bins = [
        Bin(
            label=_label(edges[place], edges[place + 1], unit),
            low=edges[place],
            high=None if math.isinf(edges[place + 1]) else edges[place + 1],
            count=counts[place],
            dropped=others[place],
        )
        for place in (range(used[0], used[-1] + 1) if used else ())
    ]
    return Histogram(title=title, unit=unit, of="videos" if dropped is None else "clips", bins=bins)


def with_edges(edges: Sequence[float], *thresholds: float | None) -> list[float]:
    """Add thresholds to edges, so that no bar lies on both sides of one."""
    return sorted({*edges, *(float(value) for value in thresholds if value is not None)})


def common(title: str, unit: str, values: Iterable[str], *, numeric: bool = False) -> Histogram:
    """Count the most common values of videos, and all others together.

    Args:
        title: what is shown.
        unit: of the values.
        values: one of each video, as it is shown.
        numeric: sort by the number that a value is, else by frequency.
    """
    found = sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))
    shown, rest = found[:_MOST_VALUES], found[_MOST_VALUES:]
    if numeric:
        shown.sort(key=lambda item: float(item[0]))
    if rest:
        shown.append((f"{len(rest)} others", sum(count for _, count in rest)))
    bins = [Bin(label=label, low=None, high=None, count=n, dropped=0) for label, n in shown]
    return Histogram(title=title, unit=unit, of="videos", bins=bins)


def _counts(edges: Sequence[float], values: Iterable[float]) -> list[int]:
    counts = [0] * (len(edges) - 1)
    for value in values:
        counts[bisect.bisect_right(edges, value) - 1] += 1
    return counts


def _label(low: float, high: float, unit: str) -> str:
    size, name = 1, ""
    if unit == "s":
        size, name = (1, " s") if low < 60 else (60, " min") if low < 3600 else (3600, " h")
    if math.isinf(high):
        return f"{low / size:g}{name} and more"
    return f"{low / size:g} to {high / size:g}{name}"
