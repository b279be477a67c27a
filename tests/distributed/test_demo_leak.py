"""The demo's arms `none` and `timenoise`, trained as `make demo` does, on two seeds.

Plain training leaks and TimeNoise cures it, at the price of alignment. The gaps are asserted with
wide margins; nothing is asserted about the controls, which come close, nor about sampled motion.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cil.generate import generate
from cil.metrics.leakage import probe_leakage
from cil.models import Condition, load
from cil.rng import Stream, normal
from pipelines.config import load_config
from pipelines.dataset import open_training_data
from pipelines.validation_clips import choose_clips, drawn_latents

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "configs"
SEEDS = (0, 1)
TIMES = (0.7, 0.8)
NUM_SAMPLED = 16


@dataclass(frozen=True)
class Leak:
    """Measures of one training on clips that it has not seen; the last is of sampled videos."""

    motion_transfer: dict[float, float]
    dominance: dict[float, float]
    error: dict[float, float]
    alignment: float


def findings(plain: Leak, cured: Leak) -> dict[str, bool]:
    """Say of each sentence about the demo whether it holds."""
    return {
        "more motion gets through at 0.7": (
            cured.motion_transfer[0.7] > 1.3 * plain.motion_transfer[0.7]
        ),
        "more motion gets through at 0.8": (
            cured.motion_transfer[0.8] > 1.5 * plain.motion_transfer[0.8]
        ),
        "the condition dominates less at 0.8": cured.dominance[0.8] < plain.dominance[0.8] - 0.2,
        "one-step predictions are better at 0.7": cured.error[0.7] < 0.75 * plain.error[0.7],
        "the image is kept less exactly": cured.alignment > plain.alignment,
    }


@torch.no_grad()
def measure(folder: Path) -> Leak:
    """Measure a training from its model folder, with the same noise for all."""
    config = load_config(folder / "train" / "config.yaml")
    model = load("tiny", folder / "register" / "model")
    clips = choose_clips(open_training_data(config), 64)
    assert len(clips) > 50
    drawn = drawn_latents(clips, model, config, step=None, device=torch.device("cpu"))
    condition = Condition(
        conditioning_latents=drawn.conditioning.expand_as(drawn.clean),
        image_embeds=drawn.tokens,
        fps=drawn.clips.fps,
        motion_bucket_id=drawn.clips.motion_bucket_id,
        frame_stride=drawn.clips.frame_stride,
        sigma_cond=torch.zeros(len(clips)),
    )

    def denoiser(order):
        return lambda noisy, level: torch.cat(
            [
                model.denoise(noisy[part], level[part], condition.rows(order[part]))
                for part in torch.split(torch.arange(len(clips)), 8)
            ]
        )

    found = {}
    for time in TIMES:
        level = model.schedule.level(torch.tensor([time], dtype=torch.float64)).float()
        noise = normal(
            drawn.clean.shape[1:],
            seed=7,
            sample_ids=drawn.sample_ids,
            stream=Stream.VIDEO_NOISE,
            step=0,
        )
        found[time] = probe_leakage(
            denoiser,
            drawn.clean,
            drawn.frame,
            noise,
            schedule=model.schedule,
            level=level.expand(len(clips)),
        ).measures()

    def by_time(name: str) -> dict[float, float]:
        return {time: found[time][name] for time in TIMES}

    return Leak(
        motion_transfer=by_time("motion_transfer_ratio"),
        dominance=by_time("condition_dominance"),
        error=by_time("one_step_mse"),
        alignment=float(
            np.mean([alignment(model, clip, k) for k, clip in enumerate(clips[:NUM_SAMPLED])])
        ),
    )


def alignment(model, clip, number: int) -> float:
    """Return the mean square of the first frame of a video minus its image, both from 0 to 1."""
    (video,) = generate(model, clip.image, seed=number, num_steps=15)
    there = model.first_stage.decode(clip.stored.mean)[0]
    return float((video[0].double() - torch.as_tensor(there).double()).div(255).square().mean())


@pytest.fixture(scope="module")
def leaks(tmp_path_factory) -> dict[tuple[str, int], Leak]:
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "pipelines.demo_data", "--out", str(folder / "videos")]
    subprocess.run(command, check=True, capture_output=True)
    raw = yaml.safe_load((CONFIGS / "demo_arms.yaml").read_text())
    raw["base"] = str(CONFIGS / "demo.yaml")
    raw["common"] |= {"data.videos": str(folder / "videos"), "output.dir": str(folder / "run")}
    raw["seeds"] = list(SEEDS)
    (folder / "arms.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    command = [sys.executable, "-m", "pipelines", "sweep", str(folder / "arms.yaml")]
    command += ["--only", "none", "--only", "timenoise"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stderr
    arms = folder / "run" / "sweep" / "arms"
    return {
        (arm, seed): measure(arms / arm / f"seed-{seed}")
        for arm in ("none", "timenoise")
        for seed in SEEDS
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_timenoise_cures_the_leak_at_the_price_of_alignment(leaks, seed):
    plain, cured = leaks["none", seed], leaks["timenoise", seed]
    held = findings(plain, cured)
    assert all(held.values()), (held, plain, cured)


@pytest.mark.parametrize("seed", SEEDS)
def test_another_plain_training_is_no_cure(leaks, seed):
    """The margins are wider than what the seed alone makes of the same training."""
    held = findings(leaks["none", seed], leaks["none", 1 - seed])
    assert not any(list(held.values())[:-1]), (held, leaks)
