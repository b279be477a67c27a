"""A simulated week of scheduled retraining, with real stages and a real registry.

Seven nights: new videos on four of them, one of these killed at a random moment and started again
by the scheduler, one with two starts at once, and one with a worse model, which the gate refuses.
"""

import contextlib
import dataclasses
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from pipelines.config import load_config
from pipelines.tracking.versions import tag_version

pytestmark = pytest.mark.slow

_WEEK = {
    "data": {"num_frames": 8, "fps": 8, "height": 32, "width": 32},
    "first_stage": {"patch_size": 4, "latent_channels": 4},
    "encode": {"videos_per_shard": 8},
    "model": {
        "family": "tiny",
        "block_out_channels": [32, 64],
        "num_attention_heads": [1, 2],
        "cross_attention_dim": 32,
        "addition_time_embed_dim": 32,
    },
    "time_noise": {"preset": "mild", "beta_m": 1.0},
    "train": {
        "num_steps": 40,
        "global_batch_size": 8,
        "num_workers": 1,
        "warmup_steps": 2,
        "checkpoint_every": 10,
    },
    "validate": {"held_out_fraction": 0.4, "num_clips": 4, "num_videos": 0},
    "sample": {"num_steps": 4, "num_videos": 1},
    # Wide, as forty steps are noise; the worse model is far beyond.
    "gate": {
        "num_clips": 8,
        "num_sampled_clips": 8,
        "seeds_per_clip": 1,
        "motion_error_tolerance": 0.5,
        "leak_tolerance": 0.5,
        "alignment_tolerance": 0.5,
    },
    "evaluate": {"num_workers": 2, "clips_per_unit": 4},
    "tracking": {"model_name": "nightly", "system_metrics_s": 0},
}


class Service:
    """A scheduler and its folder of videos."""

    def __init__(self, folder: Path) -> None:
        self.videos, self.output = folder / "videos", folder / "out"
        self._made, self.config = folder / "made", folder / "week.yaml"
        self.videos.mkdir()
        week = {"data": {"videos": str(self.videos)}, "output": {"dir": str(self.output)}}
        merged = {**_WEEK, "data": {**_WEEK["data"], **week["data"]}, "output": week["output"]}
        self.config.write_text(yaml.safe_dump(merged))
        subprocess.run(
            [
                *(sys.executable, "-m", "pipelines.demo_data", "--out", str(self._made)),
                *("--num-videos", "40", "--num-held-out", "1"),
            ],
            check=True,
            capture_output=True,
        )
        self._waiting = sorted(self._made.glob("*.mp4"))

    def deliver(self, count: int) -> None:
        for _ in range(count):
            video = self._waiting.pop(0)
            shutil.copy2(video, self.videos / video.name)

    def command(self, name: str, *overrides: str) -> list[str]:
        config = ("--config", str(self.config), "--json")
        return [sys.executable, "-m", "pipelines", name, *config, *overrides]

    def run(self, name: str, *overrides: str) -> tuple[int, dict]:
        done = subprocess.run(
            self.command(name, *overrides),
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout.splitlines()[-1])[name]["outputs"]

    def start(self) -> subprocess.Popen:
        return subprocess.Popen(
            self.command("retrain"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    return Service(tmp_path_factory.mktemp("service"))


def kill(process: subprocess.Popen) -> None:
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for each in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(family, timeout=30)


def test_a_week(service):
    ledger = []

    def night(*overrides):
        code, outputs = service.run("retrain", *overrides)
        ledger.append((code, outputs["status"], outputs.get("version"), outputs.get("champion")))
        return outputs

    service.deliver(16)  # Monday: the first model
    night()
    night()  # Tuesday: nothing
    service.deliver(8)  # Wednesday: killed at a random moment, and started again
    process = service.start()
    time.sleep(random.Random(time.time_ns()).uniform(5, 60))
    kill(process)
    night()
    night("--retrain.start-from", "config", "--train.num-steps", "1")  # Thursday: a worse model
    night("--retrain.start-from", "config", "--train.num-steps", "1")  # and its retry
    service.deliver(8)  # Friday: two starts at once
    starts = [service.start(), service.start()]
    said = [json.loads(start.communicate(timeout=1800)[0].splitlines()[-1]) for start in starts]
    both = sorted(each["retrain"]["outputs"]["status"] for each in said)
    assert [start.returncode for start in starts] == [0, 0]
    assert both in (["already running", "promoted"], ["nothing new", "promoted"])
    night()  # Saturday: nothing
    service.deliver(4)  # Sunday
    night()

    assert ledger == [
        (0, "promoted", "1", "1"),
        (0, "nothing new", "1", "1"),
        (0, "promoted", "2", "2"),
        (3, "refused", "3", "2"),
        (0, "nothing new", "3", "2"),
        (0, "nothing new", "4", "4"),
        (0, "promoted", "5", "5"),
    ]
    code, status = service.run("status")
    assert code == 0
    assert [(move["action"], move["version"], move["previous"]) for move in status["history"]] == [
        ("promote", "1", None),
        ("promote", "2", "1"),
        ("promote", "4", "2"),
        ("promote", "5", "4"),
    ]
    gates = {each["version"]: each["gate"] for each in status["versions"]}
    assert gates == {"1": "passed", "2": "passed", "3": "refused", "4": "passed", "5": "passed"}
    fingerprints = [each["fingerprint"] for each in status["versions"]]
    assert len(set(fingerprints)) == len(fingerprints) == 5

    code, moved = service.run("rollback", "--yes", "--reason", "users complain")
    assert (code, moved["version"], moved["previous"]) == (0, "4", "5")
    code, outputs = service.run("retrain")
    assert (code, outputs["status"], outputs["champion"]) == (0, "nothing new", "4"), (
        "what was rolled back stays so"
    )


def test_a_champion_of_another_family_is_refused_before_anything_starts(service):
    done = subprocess.run(
        service.command("retrain", "--tracking.model-name", "other"),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    version = json.loads(done.stdout.splitlines()[-1])["retrain"]["outputs"]["version"]
    config = load_config(service.config)
    tracking = dataclasses.replace(config.tracking, model_name="other")
    tag_version(dataclasses.replace(config, tracking=tracking), version, {"family": "svd"})
    again = subprocess.run(
        service.command("retrain", "--tracking.model-name", "other"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert again.returncode == 2
    assert "is of the family svd, this configuration trains tiny" in again.stderr


def test_an_empty_folder_of_videos_is_refused(service, tmp_path):
    (tmp_path / "videos").mkdir()
    done = subprocess.run(
        service.command(
            "retrain",
            *("--data.videos", str(tmp_path / "videos"), "--output.dir", str(tmp_path / "out")),
        ),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode in (1, 2)
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
