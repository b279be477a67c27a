"""Evaluation on Ray: killed half-way, gone on with, and with one worker or two the same numbers."""

import contextlib
import csv
import json
import subprocess
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

PATIENCE_S = 240


def evaluation(cil, output: Path, out: Path, workers: int) -> list[str]:
    """Command that evaluates the run's model on all of its clips, as none are held out."""
    settings = {
        "clips": "all",
        "num_clips": "6",
        "clips_per_unit": "1",
        "num_steps": "40",
        "videos": "none",
        "num_workers": str(workers),
    }
    words = [
        word
        for name, value in settings.items()
        for word in (f"--evaluate.{name.replace('_', '-')}", value)
    ]
    starts = ("--evaluate.start-times", "1.0", "0.9")
    return cil.stage("evaluate", output, "--out", str(out), "--json", *words, *starts)


def kill_tree(process: subprocess.Popen) -> None:
    """Kill a command and everything it started, at once, as a machine that goes away does."""
    children = psutil.Process(process.pid).children(recursive=True)
    for victim in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    process.kill()
    process.wait()
    psutil.wait_procs(children, timeout=30)


def finished_units(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "units").glob("*.parquet")}


def test_killed_half_way_and_with_one_or_two_workers_the_same_bytes(cil, finished_run, tmp_path):
    assert "no held-out clips" in finished_run.reports["evaluate"]["outputs"]["skipped"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        evaluation(cil, finished_run.output, killed, 2),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + PATIENCE_S
    try:
        while len(before := finished_units(killed)) < 8:  # the 6 of the real clips, and two
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline, "it did not get that far"
            time.sleep(0.02)
    finally:
        kill_tree(process)
    assert not (killed / "per_clip.csv").exists()

    resumed = cil(*evaluation(cil, finished_run.output, killed, 2))
    assert resumed.returncode == 0, resumed.stderr
    report = json.loads(resumed.stdout.splitlines()[-1])["evaluate"]
    after = finished_units(killed)
    assert report["metrics"]["units"] == len(after) == 18
    assert report["metrics"]["units_done"] <= 18 - len(before)
    assert {name: after[name] for name in before} == before  # not written again

    alone = cil(*evaluation(cil, finished_run.output, whole, 1))
    assert alone.returncode == 0, alone.stderr
    for name in ("per_clip.csv", "metrics.json", "set.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    with (whole / "per_clip.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert {row["start_time"] for row in rows} == {"1.0", "0.9"}

    again = cil(*evaluation(cil, finished_run.output, whole, 2))
    assert json.loads(again.stdout.splitlines()[-1])["evaluate"]["reused"]
