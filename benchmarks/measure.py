"""What every benchmark shares: paired timing, the hardware, and one JSON result.

A benchmark runs its subject and a named baseline in turn, in the same process run, and reports the
ratio of the medians. Results go to benchmarks/results/NAME.json together with the hardware.
"""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def hardware() -> dict[str, Any]:
    """Describe this machine: processor, cores, memory, GPU, versions."""
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    gpu = "none"
    if Path("/dev/nvidia0").exists():
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        try:
            gpu = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        except OSError:
            gpu = "unknown: no nvidia-smi"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_gib": round(memory),
        "gpu": gpu,
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


def paired(
    subject: Callable[[], object], baseline: Callable[[], object], *, runs: int = 7
) -> dict[str, Any]:
    """Time both in turn, after one warm-up each; ratio = subject / baseline of the medians."""
    times: dict[str, list[float]] = {"subject": [], "baseline": []}
    for number in range(runs + 1):
        for name, action in (("subject", subject), ("baseline", baseline)):
            started = time.perf_counter()
            action()
            if number:
                times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "subject_s": medians["subject"],
        "baseline_s": medians["baseline"],
        "ratio": medians["subject"] / medians["baseline"],
        "runs": runs,
        "all_s": times,
    }


def save(name: str, claim: str, result: dict[str, Any]) -> None:
    """Print the result and write it with the hardware."""
    whole = {"benchmark": name, "claim": claim, "hardware": hardware(), **result}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
    print(json.dumps({key: value for key, value in whole.items() if key != "all_s"}, indent=1))
