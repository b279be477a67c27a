"""Encoding a data set against a plain multiprocessing loop over the same decoder and encoder.

Both turn the same generated videos into stored latents, on all cores and, for the scaling, on one
core. The loop has no restart, isolation, checks, records, thumbnails or shards: it opens a video,
takes the frames of its clips, encodes them and writes one safetensors file. Ours is the second pass
of `cil encode`, through Ray Data. The rate is that of the steady state, from the first finished
pieces to the last; start-up is shown apart. Sources of two sizes: with 640 by 640 pixels (as many
as 480p has) decoding is most of the work, as it is for a user; with 384 it is not, and what is done
besides shows. One core is timed once, in the first round.

    python benchmarks/encode.py [--source-sizes 640 384] [--videos 32] [--size 256] [--rounds 3]
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import save

FRAMES = 16
FPS = 8.0
VIDEOS_PER_SHARD = 4
"""Fewer than a user would have, so that there are enough shards to time."""


def write_videos(folder: Path, count: int, size: int) -> None:
    """Write videos of eight clips each: drifting noise at 24 Hz, H.264."""
    command = [sys.executable, "-m", "pipelines.demo_data", "--out", str(folder)]
    command += ["--num-videos", str(count), "--num-frames", "256", "--size", str(size)]
    subprocess.run([*command, "--num-held-out", "1"], check=True, capture_output=True)


def encode(videos: Path, output: Path, workers: int, size: int) -> None:
    """Run `cil encode` on as many cores; a second time it only encodes, since the scan is kept."""
    cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0))[:workers])
    command = ["taskset", "-c", cores, sys.executable, "-m", "pipelines", "encode"]
    command += ["--data.videos", str(videos), "--output.dir", str(output)]
    command += ["--data.num-frames", str(FRAMES)]
    command += ["--data.fps", str(FPS), "--data.height", str(size), "--data.width", str(size)]
    command += ["--encode.num-workers", str(workers), "--encode.videos-per-shard"]
    command += [str(VIDEOS_PER_SHARD)]
    command += ["--select.shot-threshold", "None", "--decode.backend", "pyav"]
    subprocess.run(command, check=True, capture_output=True)


def steady_rate(moments: list[float], clips: list[int], workers: int) -> float:
    """Return clips per second after the first piece of each worker is done."""
    order = sorted(zip(moments, clips, strict=True))
    first = order[workers - 1][0]
    later = [count for moment, count in order if moment > first]
    return sum(later) / (order[-1][0] - first)


def ours(videos: Path, prepared: Path, workers: int, size: int) -> dict[str, float]:
    """Encode again what was scanned; shards are timed by their files."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        shutil.copytree(prepared, output)
        shards = output / "dataset" / "shards"
        shutil.rmtree(shards)
        (output / "dataset" / "manifest.json").unlink()
        started = time.time()
        encode(videos, output, workers, size)
        paths = sorted(shards.glob("*.json"))
        moments = [path.stat().st_mtime for path in paths]
        clips = [json.loads(path.read_bytes())["count"] for path in paths]
        return {
            "clips_per_s": steady_rate(moments, clips, workers),
            "start_up_s": min(moments) - started,
            "clips": sum(clips),
        }


_STAGE = None


def _start(first_stage: str) -> None:
    import cv2
    import torch

    from cil.models import load_first_stage

    global _STAGE  # noqa: PLW0603
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _STAGE = load_first_stage(first_stage)


def _loop_body(task: tuple[str, list[dict], str, int]) -> tuple[float, int]:
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from pipelines.decode import cover_and_crop, probe_video, sequential

    path, clips, out, size = task
    wanted = {number for clip in clips for number in clip["frames"]}
    kept = {
        frame.number: cover_and_crop(frame.pixels, size, size)
        for frame in sequential(Path(path), probe_video(Path(path)))
        if frame.number in wanted
    }
    tensors = {}
    for number, clip in enumerate(clips):
        posterior = _STAGE.encode(np.stack([kept[index] for index in clip["frames"]]))
        tensors[f"{number}.mean"] = posterior.mean.to(torch.bfloat16)
        tensors[f"{number}.std"] = posterior.std.to(torch.bfloat16)
    save_file(tensors, out)
    return time.time(), len(clips)


def loop(videos: Path, prepared: Path, workers: int, size: int) -> dict[str, float]:
    """Do the same by `multiprocessing.Pool`, a video a task."""
    plan = json.loads((prepared / "dataset" / "plan.json").read_bytes())
    stage, everywhere = str(prepared / "dataset" / "first_stage"), os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as folder:
        tasks = [
            (str(videos / item["path"]), item["clips"], f"{folder}/{item['sha256']}", size)
            for shard in plan["shards"]
            for item in shard["inputs"]
        ]
        os.sched_setaffinity(0, sorted(everywhere)[:workers])
        started = time.time()
        context = multiprocessing.get_context("spawn")
        with context.Pool(workers, initializer=_start, initargs=(stage,)) as pool:
            done = list(pool.imap_unordered(_loop_body, tasks))
        os.sched_setaffinity(0, everywhere)
        moments, clips = [moment for moment, _ in done], [count for _, count in done]
        return {
            "clips_per_s": steady_rate(moments, clips, workers),
            "start_up_s": min(moments) - started,
            "clips": sum(clips),
        }


def compare(source_size: int, count: int, size: int, rounds: int) -> dict[str, Any]:
    """Time both on all cores and on one, in turn."""
    cores = len(os.sched_getaffinity(0))
    both = {"loop": loop, "ours": ours}
    done = []
    with tempfile.TemporaryDirectory() as folder:
        videos, prepared = Path(folder) / "videos", Path(folder) / "prepared"
        write_videos(videos, count, source_size)
        encode(videos, prepared, cores, size)
        one_core = {name: way(videos, prepared, 1, size) for name, way in both.items()}
        print(source_size, "one core", json.dumps(one_core), flush=True)
        for _ in range(rounds):
            done.append({name: way(videos, prepared, cores, size) for name, way in both.items()})
            print(source_size, json.dumps(done[-1]), flush=True)
    rates = {name: statistics.median(item[name]["clips_per_s"] for item in done) for name in both}
    ratios = [item["ours"]["clips_per_s"] / item["loop"]["clips_per_s"] for item in done]
    return {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "ratio_on_one_core": one_core["ours"]["clips_per_s"] / one_core["loop"]["clips_per_s"],
        "scaling": rates["ours"] / one_core["ours"]["clips_per_s"],
        "scaling_of_loop": rates["loop"] / one_core["loop"]["clips_per_s"],
        "one_core": one_core,
        "rounds": done,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--videos", type=int, default=32)
    parser.add_argument(
        "--source-sizes", type=int, nargs="+", default=[640, 384], help="of the videos, in pixels"
    )
    parser.add_argument("--size", type=int, default=256, help="of the clips, in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    found = {
        f"source_{source}": compare(source, given.videos, given.size, given.rounds)
        for source in given.source_sizes
    }
    save(
        "encode",
        "clips per second of encoding through Ray Data against a plain loop; the goal is 0.95 "
        "where decoding is most of the work",
        {
            "workers": len(os.sched_getaffinity(0)),
            "videos": given.videos,
            "size": given.size,
            "videos_per_shard": VIDEOS_PER_SHARD,
            **found,
        },
    )


if __name__ == "__main__":
    main()
