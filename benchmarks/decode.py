"""The decoders side by side on one generated H.264 file: frames per second of processor time.

Dense decodes the whole file in order. Sparse finds clips of 16 frames in six places again. PyAV,
the reference of all scans, is the baseline. A small clip per place is what selection leaves.

python benchmarks/decode.py
"""

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from measure import save

from pipelines.decode import DECODERS, probe_video
from pipelines.decode.ffmpeg_libraries import LIBRARY_PATH, link_ffmpeg

HEIGHT, WIDTH, NUM_FRAMES, FPS = 720, 1280, 900, 30
CLIP_FRAMES, PLACES = 16, (40, 170, 333, 480, 611, 790)
RUNS = 5
Action = Callable[[], int]


def write_video(path: Path) -> Path:
    """Write 30 s of noise that drifts, with B-frames and a key frame every 2 s."""
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    picture = np.repeat(np.repeat(noise, 8, axis=0), 8, axis=1)
    with av.open(str(path), "w") as file:
        options = {"preset": "veryfast", "crf": "23", "g": "60", "bf": "2"}
        stream = file.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number in range(NUM_FRAMES):
            moved = np.roll(picture, (number, 2 * number), axis=(0, 1))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        file.mux(stream.encode())
    return path


def actions(path: Path) -> dict[tuple[str, str], Action]:
    """Return what is measured; each action returns the number of frames that it delivered."""
    probe = probe_video(path)
    assert probe.times_s is not None
    numbers = [start + offset for start in PLACES for offset in range(CLIP_FRAMES)]
    times = [probe.times_s[number] for number in numbers]
    found: dict[tuple[str, str], Action] = {}
    for name, decoder in DECODERS.items():
        assert decoder.is_right_for(probe)
        found["dense", name] = lambda decoder=decoder: sum(1 for _ in decoder.frames(path, probe))
        found["sparse", name] = lambda decoder=decoder: sum(
            1 for _ in decoder.frames_at(path, probe, numbers, times_s=times)
        )
    found["probe", "pyav"] = lambda: len(probe_video(path).times_s or ())
    return found


def measure(path: Path) -> list[dict[str, object]]:
    """Run everything in turn, so that a busy machine slows all alike; medians."""
    measured: dict[tuple[str, str], list[tuple[float, float]]] = {}
    counts: dict[tuple[str, str], int] = {}
    for run in range(RUNS + 1):
        for key, action in actions(path).items():
            cpu, wall = time.process_time(), time.perf_counter()
            counts[key] = action()
            spent = (time.process_time() - cpu, time.perf_counter() - wall)
            if run:  # the first one warms up: imports, page cache
                measured.setdefault(key, []).append(spent)
    rows: list[dict[str, object]] = []
    speeds = {
        key: counts[key] / statistics.median(cpu for cpu, _ in spent)
        for key, spent in measured.items()
    }
    for (access, name), spent in measured.items():
        wall = statistics.median(seconds for _, seconds in spent)
        rows.append(
            {
                "access": access,
                "decoder": name,
                "frames": counts[access, name],
                "frames_per_cpu_s": round(speeds[access, name], 1),
                "frames_per_s": round(counts[access, name] / wall, 1),
                "ratio_to_pyav": round(speeds[access, name] / speeds[access, "pyav"], 3),
                "cpu_s": [round(cpu, 4) for cpu, _ in spent],
            }
        )
    return sorted(rows, key=lambda row: str(row["access"]))


def main(arguments: list[str]) -> int:
    """Measure, in a process in which torchcodec finds FFmpeg if it is installed."""
    linked = "--linked" in arguments
    with tempfile.TemporaryDirectory() as folder:
        if not linked and importlib.util.find_spec("torchcodec") is not None:
            environment = {**os.environ, LIBRARY_PATH: str(link_ffmpeg(Path(folder)))}
            command = [sys.executable, __file__, "--linked"]
            return subprocess.run(command, env=environment, check=False).returncode
        if not linked:
            del DECODERS["torchcodec"]
        rows = measure(write_video(Path(folder) / "video.mp4"))
    print(f"{'access':8}{'decoder':12}{'frames/CPU s':>13}{'frames/s':>10}{'to pyav':>9}")
    for row in rows:
        print(
            f"{row['access']:8}{row['decoder']:12}{row['frames_per_cpu_s']:13}"
            f"{row['frames_per_s']:10}{row['ratio_to_pyav']:9}"
        )
    save(
        "decode",
        "where all decoders are right, which one delivers most frames per processor second",
        {
            "video": f"H.264, {WIDTH}x{HEIGHT}, {NUM_FRAMES} frames, a key frame every 60",
            "sparse": f"{len(PLACES)} places of {CLIP_FRAMES} frames",
            "runs": RUNS,
            "rows": rows,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
