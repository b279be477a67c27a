"""Videos of all arms beside each other: a row is one image and one seed, the worst alignment first.

In: the rows of `pipelines.evaluate` and its folder. Out: rows of small GIFs with their numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.evaluate.video_folder import read_video
from pipelines.leak.sample_table import Start
from pipelines.pages.videos import gif_uri
from pipelines.video_io import enlarge

__all__ = ["Cell", "VideoRow", "video_rows"]

_SIDE = 160
"""Longer side of a shown video in pixels, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One video and what is known of it."""

    name: str
    """Of the arm, or of the real clip."""
    uri: str | None
    """None where there is no video."""
    motion: float | None
    """Consistent flow, px/frame at a short side of 256."""
    alignment: float | None
    """Squared error of the first frame against the image; None for the real clip."""
    flags: str


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoRow:
    """One image and one seed."""

    clip: str
    """Key of the clip."""
    seed: int
    worst: float | None
    """Largest alignment error of its videos."""
    cells: tuple[Cell, ...]
    """The real clip, then the arms in their order."""


def video_rows(
    rows: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    start: Start,
    arms: Sequence[str],
    fps: float,
    most: int,
) -> tuple[list[VideoRow], int]:
    """Choose rows and read their videos.

    Args:
        rows: of the evaluation, one per video.
        folder: of the evaluation.
        start: which videos are shown.
        arms: names in the order of the columns.
        fps: frames per second of the videos.
        most: rows at most.

    Returns:
        The rows that are shown, and how many others there are.
    """
    found: dict[tuple[str, int], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        own = Start(time=float(row["start_time"]), analytic_init=bool(row["analytic_init"]))
        if own == start:
            found.setdefault((row["clip_key"], int(row["seed"])), {})[row["arm"]] = row

    def worst(index: tuple[str, int]) -> float:
        errors = [row["alignment_mse"] for row in found[index].values()]
        return max((float(error) for error in errors if error is not None), default=float("inf"))

    order = sorted(found, key=lambda index: (-worst(index), index))
    shown = [
        _row(index, by_arm=found[index], folder=folder, arms=arms, fps=fps, worst=worst(index))
        for index in order[:most]
    ]
    return shown, len(order) - len(shown)


def _row(
    index: tuple[str, int],
    *,
    by_arm: Mapping[str, Mapping[str, Any]],
    folder: Path,
    arms: Sequence[str],
    fps: float,
    worst: float,
) -> VideoRow:
    first = next(iter(by_arm.values()))
    cells = [
        Cell(
            name="real clip",
            uri=_uri(folder, first.get("video_real"), fps),
            motion=first["motion_real_consistent"],
            alignment=None,
            flags=str(first.get("flags_real") or ""),
        )
    ]
    for arm in arms:
        row = by_arm.get(arm, {})
        cells.append(
            Cell(
                name=arm,
                uri=_uri(folder, row.get("video"), fps),
                motion=row.get("motion_consistent"),
                alignment=row.get("alignment_mse"),
                flags=str(row.get("flags") or ""),
            )
        )
    return VideoRow(
        clip=index[0],
        seed=index[1],
        worst=worst if np.isfinite(worst) else None,
        cells=tuple(cells),
    )


def _uri(folder: Path, relative: str | None, fps: float) -> str | None:
    if not relative or not (folder / relative).exists():
        return None
    video: npt.NDArray[np.uint8] | None = read_video(folder / relative, fps=fps)
    return None if video is None else gif_uri(enlarge(video), fps=fps, side=_SIDE)
