"""Two nights of `cil retrain` as jobs of a Ray cluster, with MLflow's server as registry."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.servers.local_mlflow import Registry
from tests.servers.local_ray import ROOT, Head, running_head

LIMIT_S = 1500
NAME = "whole"
THIN = {
    "data": {"num_frames": 4, "fps": 8, "height": 32, "width": 32},
    "first_stage": {"patch_size": 4, "latent_channels": 4},
    "encode": {"videos_per_shard": 3},
    "train": {
        "num_steps": 8,
        "global_batch_size": 4,
        "num_workers": 1,
        "checkpoint_every": 4,
        "log_every": 2,
        "warmup_steps": 2,
    },
    "validate": {"held_out_fraction": 0.4, "num_clips": 2, "num_videos": 0},
    "sample": {"num_steps": 3, "num_videos": 1},
    "gate": {
        "num_clips": 4,
        "num_sampled_clips": 2,
        "seeds_per_clip": 1,
        "motion_error_tolerance": 5.0,
        "leak_tolerance": 5.0,
        "alignment_tolerance": 5.0,
    },
    "evaluate": {"num_workers": 1, "clips_per_unit": 4},
    "tracking": {"model_name": NAME},
}


@dataclass(frozen=True)
class Nights:
    """What was said, and who may ask the registry; the cluster is gone."""

    registry: Registry
    config: Path
    output: Path
    token: str
    by_ray: subprocess.CompletedProcess
    """`ray job submit`: the first model."""
    by_cil: subprocess.CompletedProcess
    """`cil submit`, after new videos: the second one."""
    followed: subprocess.CompletedProcess
    """The same submission once more."""
    repeated: subprocess.CompletedProcess
    """And with --again: a night without anything new."""

    def cil(self, name: str, *words: str, **variables: str) -> subprocess.CompletedProcess:
        """Run a command as somebody who only knows MLflow's address and a password."""
        command = [sys.executable, "-m", "pipelines", name, "--config", str(self.config)]
        return subprocess.run(
            [*command, "--json", *words],
            env=self.registry.environment | variables,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def outputs(self, name: str, *words: str) -> dict:
        """Run a command that must go well."""
        done = self.cil(name, *words)
        assert done.returncode == 0, done.stderr
        self.check_no_secret(done.stdout + done.stderr)
        return json.loads(done.stdout.splitlines()[-1])[name]["outputs"]

    def check_no_secret(self, shown: str) -> None:
        assert not [secret for secret in (*self.registry.secrets, self.token) if secret in shown]


def by_ray_job_submit(head: Head, command: list[str]) -> subprocess.CompletedProcess:
    """Submit as docs/cluster.md says, by Ray's own command."""
    ray = str(Path(sys.executable).with_name("ray"))
    return subprocess.run(
        [
            *(ray, "job", "submit", "--address", head.address),
            *("--runtime-env", "infra/runtime_env.yaml", "--working-dir", "."),
            *("--", "python", "-m", "pipelines", *command),
        ],
        cwd=ROOT,
        env=head.environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def two_nights(folder: Path, registry: Registry) -> Nights:
    """Deliver videos, submit, deliver more, submit again."""
    videos, made, config = folder / "videos", folder / "made", folder / "thin.yaml"
    videos.mkdir()
    command = [sys.executable, "-m", "pipelines.demo_data", "--out", str(made)]
    command += ["--num-videos", "12", "--num-frames", "24", "--size", "64", "--num-held-out", "1"]
    subprocess.run(command, check=True, capture_output=True)
    waiting = sorted(made.glob("*.mp4"))
    settings = {
        **THIN,
        "data": {**THIN["data"], "videos": str(videos)},
        "output": {"dir": str(folder / "out")},
    }
    config.write_text(yaml.safe_dump(settings))
    retrain = ["retrain", "--config", str(config), "--json"]
    hidden = {name: text for name, text in registry.environment.items() if "MLFLOW_" in name}
    with running_head(**hidden) as head:
        token = head.token.read_text()
        for video in waiting[:8]:
            shutil.copy2(video, videos / video.name)
        by_ray = by_ray_job_submit(head, retrain)
        assert by_ray.returncode == 0, by_ray.stdout + by_ray.stderr
        for video in waiting[8:]:
            shutil.copy2(video, videos / video.name)
        by_cil = head.submit("--", *retrain, limit_s=LIMIT_S)
        followed = head.submit("--", *retrain)
        repeated = head.submit("--again", "--", *retrain)
    return Nights(registry, config, folder / "out", token, by_ray, by_cil, followed, repeated)
