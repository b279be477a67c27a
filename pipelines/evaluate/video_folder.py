"""Videos that were made elsewhere, as an arm: ``videos:FOLDER``.

In: a folder with one video per clip and seed, named CLIPKEY.mp4 or CLIPKEY-s1.mp4 (mp4, gif or
npz), or listed in ``manifest.csv`` by the columns file, clip_key or image, and seed. Out: frames
(F, H, W, 3) of each, or that they are not finite. An npz has ``frames``: uint8, or floats in 0..1.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cil.errors import ConfigError, DataError
from pipelines.evaluate.arms import Arm, refuse_other
from pipelines.evaluate.clip_set import EvaluationSet

__all__ = ["MANIFEST", "check_videos", "find_videos", "read_video"]

MANIFEST = "manifest.csv"
_SUFFIXES = (".mp4", ".gif", ".npz")
_NAME = re.compile(r"(?P<key>[0-9a-f]{32})(-s(?P<seed>\d+))?")
_SHOWN = 3

Videos = dict[tuple[str, int], Path]


def find_videos(folder: Path, chosen: EvaluationSet) -> Videos:
    """Find the video of each clip and seed.

    Args:
        folder: of the arm.
        chosen: clips and seeds that must be there; others are left alone.

    Raises:
        ConfigError: some are missing, or two files are of one clip and seed.
    """
    found: Videos = {}
    manifest = folder / MANIFEST
    listed = _listed(manifest, chosen) if manifest.exists() else _named(folder, chosen)
    for key, seed, path in listed:
        other = found.setdefault((key, seed), path)
        if other != path:
            raise ConfigError(
                f"{other.name} and {path.name} in {folder} are both of clip {key}, seed {seed}"
            )
    wanted = [(key, seed) for key in chosen.clips for seed in chosen.seeds]
    missing = [pair for pair in wanted if pair not in found]
    if missing:
        names = ", ".join(f"{key}-s{seed}" for key, seed in missing[:_SHOWN])
        raise ConfigError(
            f"{folder} has no video for {len(missing)} of {len(wanted)} pairs of clip and seed, "
            f"the first are {names}; sample them, or lower evaluate.num_clips and "
            "evaluate.seeds_per_clip"
        )
    return {pair: found[pair] for pair in wanted}


def check_videos(arm: Arm, chosen: EvaluationSet) -> None:
    """Refuse videos that are not like the clips, before anything is measured.

    Raises:
        ConfigError: a video is missing, or has another size, length or rate; with both values.
        DataError: a file cannot be read.
    """
    for path in find_videos(arm.folder, chosen).values():
        refuse_other(f"{arm.name} ({path.name})", _said(path), chosen.size, chosen.fps)


def read_video(path: Path, *, fps: float) -> npt.NDArray[np.uint8] | None:
    """Read a whole video.

    Args:
        path: mp4, gif or npz.
        fps: frames per second that a GIF was written with, in Hz.

    Returns:
        (F, H, W, 3) uint8 RGB; None if an npz has numbers that are not finite.

    Raises:
        DataError: it cannot be read.
    """
    if path.suffix == ".npz":
        return _as_pixels(_frames_of(path), path)
    if path.suffix == ".gif":
        from pipelines.video_io import read_gif

        try:
            return read_gif(path, fps=fps)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"cannot read {path}: {error}") from error
    from pipelines.decode import probe_video, sequential

    probe = probe_video(path)
    return np.stack([frame.pixels for frame in sequential(path, probe)])


def _said(path: Path) -> dict[str, float]:
    if path.suffix == ".mp4":
        from pipelines.decode import probe_video

        probe = probe_video(path)
        return {
            "num_frames": probe.num_frames,
            "height": probe.height,
            "width": probe.width,
            "fps": probe.average_fps,
        }
    if path.suffix == ".gif":
        from PIL import Image

        try:
            with Image.open(path) as image:
                return {"height": image.height, "width": image.width}
        except OSError as error:
            raise DataError(f"cannot read {path}: {error}") from error
    count, height, width, _ = _frames_of(path).shape
    return {"num_frames": count, "height": height, "width": width}


def _frames_of(path: Path) -> npt.NDArray[np.generic]:
    try:
        with np.load(path, allow_pickle=False) as file:
            frames: npt.NDArray[np.generic] = file["frames"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} must hold an array named frames: {error}") from error
    if frames.ndim != 4 or frames.shape[3] != 3:
        raise DataError(f"frames in {path} must be (F, H, W, 3), got {frames.shape}")
    return frames


def _as_pixels(frames: npt.NDArray[np.generic], path: Path) -> npt.NDArray[np.uint8] | None:
    if frames.dtype == np.uint8:
        return frames.astype(np.uint8)
    if not np.issubdtype(frames.dtype, np.floating):
        raise DataError(f"frames in {path} must be uint8, or floats in [0, 1], got {frames.dtype}")
    values = frames.astype(np.float64)
    if not np.isfinite(values).all():
        return None
    if values.min() < 0 or values.max() > 1:
        raise DataError(
            f"floats in {path} must be in [0, 1], got {values.min():.3g} to {values.max():.3g}"
        )
    return np.round(255 * values).astype(np.uint8)


def _named(folder: Path, chosen: EvaluationSet) -> Iterator[tuple[str, int, Path]]:
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.stem)
        if path.suffix in _SUFFIXES and match:
            seed = match["seed"]
            yield match["key"], chosen.seeds[0] if seed is None else int(seed), path


def _listed(manifest: Path, chosen: EvaluationSet) -> Iterator[tuple[str, int, Path]]:
    with manifest.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        columns = set(table.fieldnames or ())
        if "file" not in columns or not columns & {"clip_key", "image"}:
            raise ConfigError(
                f"{manifest} must have the columns file and clip_key (or image), got "
                f"{', '.join(sorted(columns)) or 'none'}"
            )
        for row in table:
            path = manifest.parent / row["file"]
            inside = path.resolve().is_relative_to(manifest.parent.resolve())
            if not inside or path.suffix not in _SUFFIXES or not path.is_file():
                raise ConfigError(
                    f"{manifest} names {row['file']}, which must be an mp4, gif or npz in that "
                    "folder"
                )
            key = row.get("clip_key") or Path(row["image"]).stem
            seed = row.get("seed") or ""
            if seed and not seed.isdigit():
                raise ConfigError(f"{manifest}: the seed of {row['file']} is {seed!r}, no number")
            yield key, int(seed) if seed else chosen.seeds[0], path
