"""The speed of the disc in the videos of a leak report, for the world of `pipelines.demo_stills`.

    python -m pipelines.experiments.discs build/experiments/stillness/seed-0/tuned/sweep/leak

Optical flow takes flickering texture for motion, and small networks flicker; the disc is the only
thing in this world that moves. In: the videos that `cil leak` has sampled, kept as npz. Out:
discs.json in the folder of the report, with rows as those of leak.json. The real clips are the arm
``real``.
"""

import argparse
import csv
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cil.errors import CilError, DataError
from pipelines.demo_stills import RADIUS, SPEED
from pipelines.evaluate.video_folder import read_video
from pipelines.storage import write_atomic

__all__ = ["REAL", "disc_speed", "main", "measure_discs"]

REAL = "real"
"""Arm of the real clips."""
_BRIGHT = 165
"""Grey level that the texture does not reach."""
_SEEN = 0.1
"""Share of the disc that must be bright in every frame."""


def disc_speed(frames: NDArray[np.uint8], *, fps: float) -> float | None:
    """Return the speed of the straight line that fits the disc's places best.

    Args:
        frames: (F, H, W, 3) uint8, F >= 2.
        fps: frames per second.

    Returns:
        Frame widths per second; None where the disc is lost in a frame.
    """
    weight = np.clip(frames.mean(-1) - _BRIGHT, 0, None)
    area = (weight > 0).mean((1, 2))
    if area.min() < _SEEN * np.pi * RADIUS**2:
        return None
    time = np.arange(len(frames)) / fps
    velocity = [
        np.polyfit(time, np.unwrap(_turns(weight.sum(axis))) / (2 * np.pi), 1)[0] for axis in (1, 2)
    ]
    return float(np.hypot(*velocity))


def _turns(profile: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the angles of the centres of (F, N) profiles on a circle."""
    size = profile.shape[1]
    circle = np.exp(2j * np.pi * (np.arange(size) + 0.5) / size)
    angles: NDArray[np.float64] = np.angle(profile @ circle)
    return angles


def measure_discs(folder: Path) -> dict[str, Any]:
    """Measure all videos of a leak report.

    Args:
        folder: of the report.

    Returns:
        As leak.json: arms, clips, and rows of ``disc_speed`` (mean, in frame widths per second),
        ``disc_moving`` (share of the discs faster than half of the world's speed) and ``disc_lost``
        (share of the videos without a disc, which are in neither).

    Raises:
        DataError: the report has no videos, or a file is damaged.
    """
    speeds: dict[tuple[str, float, bool], list[float | None]] = defaultdict(list)
    keys = set()
    for table in sorted((folder / "samples").glob("*/per_clip.csv")):
        with table.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                keys.add(row["clip_key"])
                start = (float(row["start_time"]), row["analytic_init"] == "True")
                speeds[row["arm"], *start].append(_speed_of(table.parent, row, "video"))
                real = (REAL, *start)
                speeds[real].append(_speed_of(table.parent, row, "video_real"))
    if not speeds:
        raise DataError(f"{folder} has no sampled videos; run `cil leak` with evaluate.videos npz")
    return {
        "arms": [{"name": name} for name in sorted({place[0] for place in speeds})],
        "clips": {"sampled": sorted(keys)},
        "values": list(_rows(speeds)),
    }


def _speed_of(folder: Path, row: Mapping[str, str], column: str) -> float | None:
    fps = float(row["fps"])
    if not row[column]:
        return None
    frames = read_video(folder / row[column], fps=fps)
    return None if frames is None else disc_speed(frames, fps=fps)


def _rows(
    speeds: Mapping[tuple[str, float, bool], Sequence[float | None]],
) -> Iterator[dict[str, Any]]:
    for (arm, start, gaussian), own in sorted(speeds.items()):
        seen = np.array([speed for speed in own if speed is not None])
        found = {
            "disc_speed": float(seen.mean()) if len(seen) else None,
            "disc_moving": float((seen > SPEED / 2).mean()) if len(seen) else None,
            "disc_lost": 1 - len(seen) / len(own),
        }
        for measure, value in found.items():
            place = {"t": None, "start_time": start, "analytic_init": gaussian}
            yield {"arm": arm, "measure": measure, **place, "value": value, "n": len(seen)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 failed, 2 wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.experiments.discs",
        description="Measure the discs in the videos of a leak report.",
    )
    parser.add_argument("folder", type=Path, help="of the leak report")
    given = parser.parse_args(arguments)
    try:
        found = measure_discs(given.folder)
    except CilError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    write_atomic(given.folder / "discs.json", (json.dumps(found, indent=1) + "\n").encode())
    sys.stdout.write(f"written: {given.folder / 'discs.json'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
