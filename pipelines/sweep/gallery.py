"""Samples of all arms beside each other: a row is one image and one seed, a column is an arm.

In: the GIFs that validation and sampling wrote. Out: the same videos, small, as GIF data URIs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.config import RunConfig
from pipelines.pages.videos import gif_uri
from pipelines.sample import SAMPLE_FOLDER
from pipelines.sweep.results import Result
from pipelines.train import TRAIN_FOLDER
from pipelines.validation import step_folder
from pipelines.validation_videos import read_pair
from pipelines.video_io import read_gif, split_row

__all__ = ["GalleryRow", "gallery"]

_SIDE = 128
"""Longer side of a shown video in pixels, at most."""
_MOST_ROWS = 6
_SAMPLES_PER_SEED = 2

_Video = npt.NDArray[np.uint8]
_Pair = tuple[_Video, _Video, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryRow:
    """Videos from one image and one seed."""

    title: str
    first: str | None
    """Data URI of what the samples start from, the real clip or the image; None if none is left."""
    arms: tuple[str | None, ...]
    """Data URI by arm, in their order; None where there is no video."""


def gallery(results: Sequence[Result], arms: Sequence[str]) -> tuple[list[GalleryRow], int]:
    """Collect the sampled videos of the finished trainings.

    Args:
        results: of all trainings.
        arms: names in the order of the columns.

    Returns:
        The rows that are shown, held-out images first, and how many others there are.
    """
    finished = [result for result in results if result.state == "finished"]
    if not finished:
        return [], 0
    seeds = list(dict.fromkeys(result.run.seed for result in finished))
    held_out, sampled = [], []
    for seed in seeds:
        by_arm = {
            result.run.arm: result.run.config for result in finished if result.run.seed == seed
        }
        configs = [by_arm.get(arm) for arm in arms]
        own = [result for result in finished if result.run.seed == seed]
        most = max(len(r.validations[-1]["videos"]) if r.validations else 0 for r in own)
        for number in range(most):
            title = f"held-out clip {number + 1}, seed {seed + number}"
            held_out.append((title, configs, _of_validation(number)))
        shown = min(_SAMPLES_PER_SEED, *(c.sample.num_videos for c in by_arm.values()))
        for number in range(shown):
            title = f"first clip of the data set, seed {seed}, noise {number + 1}"
            sampled.append((title, configs, _of_sampling(number)))
    rows = [row for row in (_row(*each) for each in held_out) if row is not None]
    # one of them stays, also where there are many held-out clips
    rows = rows[: _MOST_ROWS - 1] if len(held_out) >= _MOST_ROWS else rows
    room = _MOST_ROWS - len(rows)
    rows += [row for row in (_row(*each) for each in sampled[:room]) if row is not None]
    return rows, len(held_out) + len(sampled) - len(rows)


def _of_validation(number: int) -> Callable[[RunConfig], _Pair]:
    def read(config: RunConfig) -> _Pair:
        folder = step_folder(Path(config.output.dir) / TRAIN_FOLDER, config.train.num_steps)
        fps = config.validate.fps or config.data.fps
        return (*read_pair(folder, number, fps=fps), fps)

    return read


def _of_sampling(number: int) -> Callable[[RunConfig], _Pair]:
    def read(config: RunConfig) -> _Pair:
        fps = config.data.fps
        row = read_gif(Path(config.output.dir) / SAMPLE_FOLDER / "sample.gif", fps=fps)
        image, *videos = split_row(row, config.sample.num_videos + 1)
        return image, videos[number], fps

    return read


def _row(
    title: str, configs: Sequence[RunConfig | None], read: Callable[[RunConfig], _Pair]
) -> GalleryRow | None:
    """Read one row; None if no arm has a video."""
    first: str | None = None
    shown: list[str | None] = []
    for config in configs:
        try:
            pair = None if config is None else read(config)
        except OSError:
            pair = None
        if pair is None:
            shown.append(None)
            continue
        start, video, fps = pair
        first = first or gif_uri(start, fps=fps, side=_SIDE)
        shown.append(gif_uri(video, fps=fps, side=_SIDE))
    return GalleryRow(title=title, first=first, arms=tuple(shown)) if first else None
