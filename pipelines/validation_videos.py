"""Videos sampled from the first frames of held-out clips, and how much they move.

In: a model, held-out clips and the statistics of Analytic-Init. Out: pairs of videos, the real clip
through the first stage and the sampled one, with the motion of both; files and a grid of them.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cil.analytic_init import AnalyticInit
from cil.generate import generate
from cil.metrics.motion import motion_score
from cil.models import ImageToVideoModel
from pipelines.config import RunConfig
from pipelines.picture_grid import caption_height, captioned, picture_grid
from pipelines.validation_clips import HeldOutClip
from pipelines.video_io import (
    enlarge,
    read_gif,
    side_by_side,
    split_row,
    write_gif,
    write_mp4,
)

__all__ = [
    "SampledClip",
    "motion_of_samples",
    "read_pair",
    "sample_clips",
    "video_name",
    "write_videos",
]

_LARGEST_SEED = 2**63
_SHOWN_FRAMES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledClip:
    """A held-out clip and the video sampled from its first frame, (F, H, W, 3) uint8 each."""

    key: str
    seed: int
    real: npt.NDArray[np.uint8]
    sampled: npt.NDArray[np.uint8]


def sample_clips(
    model: ImageToVideoModel,
    clips: Sequence[HeldOutClip],
    config: RunConfig,
    *,
    statistics: AnalyticInit | None,
) -> list[SampledClip]:
    """Sample one video per clip; clip k has the run's seed plus k.

    Args:
        model: network and first stage.
        clips: of the model's bucket.
        config: the run.
        statistics: of the training latents, scaled; None starts from N(0, sigma^2 I).
    """
    made = []
    for number, clip in enumerate(clips):
        seed = (config.seed + number) % _LARGEST_SEED
        (video,) = generate(
            model,
            clip.image,
            seed=seed,
            start_time=config.sample.start_time,
            analytic_init=statistics,
            num_steps=config.validate.num_steps,
        )
        made.append(
            SampledClip(
                key=clip.stored.record.key,
                seed=seed,
                real=np.asarray(model.first_stage.decode(clip.stored.mean)),
                sampled=np.asarray(video),
            )
        )
    return made


def motion_of_samples(samples: Sequence[SampledClip]) -> dict[str, Any]:
    """Compare the motion of samples with that of the real clips.

    Motion is the part of the mean flow that is consistent, so that a video that falls apart does
    not count as one that moves; see `cil.metrics.motion`.

    Returns:
        ``val_motion_real`` and ``val_motion_sample`` (mean px/frame at a short side of 256),
        ``val_motion_ratio`` (sample over real), ``val_motion_error`` (mean absolute difference over
        the real mean), ``val_consistent_share``; and ``videos``, a row per clip. The ratio and the
        error are left out where no real clip moves.
    """
    rows: list[dict[str, Any]] = []
    for sample in samples:
        real, made = motion_score(sample.real), motion_score(sample.sampled)
        rows.append(
            {
                "key": sample.key,
                "seed": sample.seed,
                "motion_real": real.consistent,
                "motion_sample": made.consistent,
                "motion_sample_all": made.value,
                "consistent_share": made.consistent_share,
                "motion_ratio": made.consistent / real.consistent if real.consistent else None,
            }
        )
    mean_real = statistics.fmean(row["motion_real"] for row in rows)
    mean_made = statistics.fmean(row["motion_sample"] for row in rows)
    result: dict[str, Any] = {
        "val_motion_real": mean_real,
        "val_motion_sample": mean_made,
        "val_consistent_share": statistics.fmean(row["consistent_share"] for row in rows),
        "videos": rows,
    }
    if mean_real > 0 and math.isfinite(mean_real):
        gaps = [abs(row["motion_sample"] - row["motion_real"]) for row in rows]
        result["val_motion_ratio"] = mean_made / mean_real
        result["val_motion_error"] = statistics.fmean(gaps) / mean_real
    return result


def write_videos(samples: Sequence[SampledClip], folder: Path, *, fps: float) -> list[str]:
    """Write each pair side by side as GIF and mp4, the real clip left, and a grid of frames.

    Args:
        samples: at least one.
        folder: where the files go.
        fps: frames per second of the videos.

    Returns:
        The names of the files.
    """
    names, rows = ["grid.png"], []
    for number, sample in enumerate(samples):
        shown = _side_by_side(sample, f"seed {sample.seed}")
        for suffix, write in ((".gif", write_gif), (".mp4", write_mp4)):
            names.append(video_name(number, suffix))
            write(folder / names[-1], shown, fps=fps)
        rows.append(_row(sample))
    from PIL import Image

    Image.fromarray(picture_grid(rows)).save(folder / "grid.png")
    return names


def video_name(number: int, suffix: str) -> str:
    """Name the file of a pair of videos."""
    return f"video-{number:02d}{suffix}"


def read_pair(
    folder: Path, number: int, *, fps: float
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Read the GIF of a pair, written with so many fps: clip and sample, without captions.

    Raises:
        OSError: it is missing or damaged.
    """
    frames = read_gif(folder / video_name(number, ".gif"), fps=fps)
    real, sampled = split_row(frames[:, caption_height(1) :], 2)
    return real, sampled


def _side_by_side(sample: SampledClip, note: str) -> npt.NDArray[np.uint8]:
    texts = ((sample.real, "held-out clip"), (sample.sampled, f"sampled, {note}"))
    return side_by_side(
        [np.stack([captioned(frame, text) for frame in enlarge(video)]) for video, text in texts]
    )


def _row(sample: SampledClip) -> list[tuple[str, npt.NDArray[np.uint8]]]:
    last = len(sample.real) - 1
    count = min(_SHOWN_FRAMES, last + 1)
    places = [round(last * number / max(count - 1, 1)) for number in range(count)]
    return [
        (f"{name}\nframe {place}", video[place])
        for name, video in (("held-out clip", sample.real), ("sampled", sample.sampled))
        for place in places
    ]
