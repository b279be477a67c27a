"""Memory of the encode stage over a thousand files: the curve must be flat.

Samples the memory of the command, of its workers and of their decoders every second while a
thousand generated videos are encoded. Ray's own services and its object store are counted apart.

    python benchmarks/encode_memory.py [--videos 1000]     writes results/encode_memory.{json,png}
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from measure import RESULTS, save

RAY_SERVICES = ("raylet", "gcs_server", "dashboard", "log_monitor", "runtime_env", "monitor.py")
GROUPS = ("driver", "workers", "decoders", "ray services")


def write_videos(folder: Path, count: int) -> None:
    command = [sys.executable, "-m", "pipelines.demo_data", "--out", str(folder)]
    command += ["--num-videos", str(count), "--num-frames", "32", "--size", "128"]
    subprocess.run([*command, "--num-held-out", "1"], check=True, capture_output=True)


def memory_mib(process: psutil.Popen) -> dict[str, float]:
    """Return the private and shared share of memory in MiB, by kind of process."""
    totals = dict.fromkeys(GROUPS, 0.0)
    for one in [process, *process.children(recursive=True)]:
        try:
            title, used = " ".join(one.cmdline()), one.memory_full_info().pss / 2**20
        except psutil.Error:
            continue
        kind = "workers"
        if one.pid == process.pid:
            kind = "driver"
        elif "pipelines.decode.child" in title:
            kind = "decoders"
        elif any(name in title for name in RAY_SERVICES):
            kind = "ray services"
        totals[kind] += used
    return totals


def watch(command: list[str]) -> tuple[list[float], list[dict[str, float]]]:
    started = time.monotonic()
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    times, samples = [], []
    while process.poll() is None:
        samples.append(memory_mib(process))
        times.append(time.monotonic() - started)
        time.sleep(1)
    if process.returncode:
        raise SystemExit(process.stderr.read())
    return times, samples


def draw(times: list[float], samples: list[dict[str, float]]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    axes.stackplot(times, [[item[kind] for item in samples] for kind in GROUPS], labels=GROUPS)
    axes.set(xlabel="seconds", ylabel="memory in MiB (PSS)", title="encode: a thousand files")
    axes.legend(loc="lower right")
    figure.savefig(RESULTS / "encode_memory.png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--videos", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        videos, output = Path(folder) / "videos", Path(folder) / "run"
        write_videos(videos, given.videos)
        command = [sys.executable, "-m", "pipelines", "encode", "--data.videos", str(videos)]
        command += ["--output.dir", str(output), "--data.height", "64", "--data.width", "64"]
        times, samples = watch(command)
    totals = [sum(item[kind] for kind in GROUPS[:3]) for item in samples]
    middle, third = len(totals) // 2, len(totals) // 3
    RESULTS.mkdir(exist_ok=True)
    draw(times, samples)
    save(
        "encode_memory",
        "the memory of encoding does not grow with the number of files",
        {
            "videos": given.videos,
            "seconds": times[-1],
            "mib_median_second_third": statistics.median(totals[third : 2 * third]),
            "mib_median_last_third": statistics.median(totals[2 * third :]),
            "mib_peak_first_half": max(totals[:middle]),
            "mib_peak_second_half": max(totals[middle:]),
            "curve_mib": [round(value) for value in totals],
        },
    )


if __name__ == "__main__":
    main()
