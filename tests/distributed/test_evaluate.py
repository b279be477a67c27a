"""Evaluation on Ray: killed half-way, gone on with, and with one worker or two the same numbers."""

import contextlib
import csv
import json
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml

pytestmark = pytest.mark.slow

PATIENCE_S = 240


@pytest.fixture(scope="module")
def held_out_run(cil, tmp_path_factory) -> Path:
    """A run with held-out clips, up to its registered model; returns its configuration."""
    folder = tmp_path_factory.mktemp("evaluate")
    settings = yaml.safe_load(cil.config.read_text())
    settings["data"]["videos"] = str(cil.videos)
    settings["train"] |= {"num_steps": 2, "checkpoint_every": 2, "num_workers": 1}
    settings["validate"] = {"held_out_fraction": 0.5, "num_clips": 2, "num_videos": 0}
    settings["evaluate"] = {"clips_per_unit": 1, "num_clips": 6, "num_steps": 40}
    settings["output"] = {"dir": str(folder / "run")}
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump(settings))
    for stage in ("encode", "train", "estimate", "register"):
        done = cil(*cil.command(stage, "--config", str(config)))
        assert done.returncode == 0, done.stderr
    return config


def evaluation(cil, config: Path, out: Path, workers: int) -> list[str]:
    where = ("--config", str(config), "--out", str(out), "--json")
    starts = ("--evaluate.start-times", "1.0", "0.9", "--evaluate.videos", "none")
    return cil.command("evaluate", *where, *starts, "--evaluate.num-workers", str(workers))


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


def test_killed_half_way_and_with_one_or_two_workers_the_same_bytes(cil, held_out_run, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        evaluation(cil, held_out_run, killed, 2),
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

    resumed = cil(*evaluation(cil, held_out_run, killed, 2))
    assert resumed.returncode == 0, resumed.stderr
    report = json.loads(resumed.stdout.splitlines()[-1])["evaluate"]
    after = finished_units(killed)
    assert report["metrics"]["units"] == len(after) == 18
    assert report["metrics"]["units_done"] <= 18 - len(before)
    assert {name: after[name] for name in before} == before  # not written again

    alone = cil(*evaluation(cil, held_out_run, whole, 1))
    assert alone.returncode == 0, alone.stderr
    for name in ("per_clip.csv", "metrics.json", "set.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    with (whole / "per_clip.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert {row["start_time"] for row in rows} == {"1.0", "0.9"}

    again = cil(*evaluation(cil, held_out_run, whole, 2))
    assert json.loads(again.stdout.splitlines()[-1])["evaluate"]["reused"]
