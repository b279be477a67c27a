"""The leak report of a real sweep through Ray: two workers, killed half-way, the same numbers."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

LEAK = {
    "times": [0.7, 0.8, 0.9],
    "motion_times": [0.8],
    "num_clips": 8,
    "clips_per_unit": 2,
    "num_sampled_clips": 2,
    "start_times": [1.0, 0.8],
    "num_steps": 2,
    "num_shown": 1,
}


@pytest.fixture(scope="module")
def sweep_file(cil, tmp_path_factory) -> Path:
    """A finished sweep of two arms."""
    folder = tmp_path_factory.mktemp("leak")
    base = yaml.safe_load(cil.config.read_text())
    (folder / "small.yaml").write_text(yaml.safe_dump(base))
    path = folder / "two.yaml"
    common = {
        "train.num_steps": 2,
        "train.checkpoint_every": 2,
        "train.warmup_steps": 0,
        "validate": {"held_out_fraction": 0.5, "num_clips": 2, "num_videos": 0},
        "data.videos": str(cil.videos),
        "output.dir": str(folder / "out"),
        "leak": LEAK,
    }
    arms = {"none": {"time_noise.preset": "none"}, "timenoise": {}}
    text = {"base": "small.yaml", "common": common, "arms": arms}
    path.write_text(yaml.safe_dump(text, sort_keys=False))
    done = cil(*cil.command("sweep", str(path)))
    assert done.returncode == 0, done.stderr
    return path


def leak(cil, sweep_file, out, *settings):
    """Run the command; returns its report."""
    words = ("leak", "--sweep", str(sweep_file), "--out", str(out), "--json", *settings)
    done = cil(*cil.command(*words))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["leak"]


def numbers(folder):
    """All that a report says, without where it lies."""
    return [(folder / name).read_bytes() for name in ("leak.csv",)] + [
        path.read_bytes() for path in sorted((folder / "probe").glob("*.json"))
    ]


def test_a_killed_report_goes_on_and_workers_do_not_matter(cil, sweep_file, tmp_path):
    whole = leak(cil, sweep_file, tmp_path / "one", "--evaluate.num-workers", "1")
    assert whole["metrics"]["arms"] == 2
    words = ("leak", "--sweep", str(sweep_file), "--out", str(tmp_path / "two"))
    process = subprocess.Popen(
        cil.command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    limit = time.monotonic() + 300
    probe = tmp_path / "two" / "probe"
    while len(list(probe.glob("????????????????????????????????.json"))) < 3:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < limit
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 143
    before = {path.name: path.stat().st_mtime_ns for path in probe.glob("*.json")}
    again = leak(cil, sweep_file, tmp_path / "two", "--evaluate.num-workers", "2")
    assert 0 < again["metrics"]["units_done"] < whole["metrics"]["units_done"]
    kept = {path.name: path.stat().st_mtime_ns for path in probe.glob("*.json")}
    assert before.items() <= kept.items()
    assert numbers(tmp_path / "two") == numbers(tmp_path / "one")
    assert leak(cil, sweep_file, tmp_path / "two")["reused"]
