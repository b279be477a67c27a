"""A small real run, shared by the tests of this folder."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

LIMIT_S = 1200
"""Of a command; a hang is what it ends, not slowness."""

SMALL = {
    "data": {"num_frames": 4, "fps": 8, "height": 32, "width": 32},
    "first_stage": {"patch_size": 4, "latent_channels": 4},
    "encode": {"videos_per_shard": 3},
    "train": {
        "num_steps": 6,
        "global_batch_size": 4,
        "log_every": 2,
        "checkpoint_every": 3,
        "warmup_steps": 2,
    },
    "sample": {"num_steps": 4, "num_videos": 2},
}


@dataclass(frozen=True)
class Cil:
    """Runs the command line as a user does."""

    config: Path
    videos: Path

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "pipelines", *arguments]

    def stage(self, name: str, output: Path, *overrides: str) -> list[str]:
        settings = ("--data.videos", str(self.videos), "--output.dir", str(output), *overrides)
        return self.command(name, "--config", str(self.config), *settings)

    def __call__(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)

    def run(self, name: str, output: Path, *overrides: str) -> dict:
        done = self(*self.stage(name, output, "--json", *overrides))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def small_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "videos"
    command = [sys.executable, "-m", "pipelines.demo_data", "--out", str(folder)]
    command += ["--num-videos", "7", "--num-frames", "24", "--size", "64", "--num-held-out", "1"]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "broken.mp4").write_bytes(b"not a video at all")
    return folder


@pytest.fixture(scope="session")
def cil(tmp_path_factory: pytest.TempPathFactory, small_videos: Path) -> Cil:
    config = tmp_path_factory.mktemp("config") / "small.yaml"
    config.write_text(yaml.safe_dump(SMALL))
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return Cil(config=config, videos=small_videos)


@dataclass(frozen=True)
class FinishedRun:
    """A run of all stages."""

    output: Path
    reports: dict
    stderr: str


@pytest.fixture(scope="session")
def finished_run(cil: Cil, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    output = tmp_path_factory.mktemp("run") / "out"
    # as users write it: a path relative to where they are
    command = cil.stage("run", Path(output.name), "--json")
    done = subprocess.run(
        command, cwd=output.parent, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    reports = done.stdout.splitlines()[-1].replace(f'"{output.name}/', f'"{output}/')
    return FinishedRun(output, json.loads(reports), done.stderr)
