"""Our training step against bare PyTorch and bare DeepSpeed, and against encoding on the fly.

The same network, batch size, optimiser and clipping in one process, on the same device, taken in
turn. Ours is what a worker does: clips from the reader that reads ahead, TimeNoise, all noise by
counter, DeepSpeed, the weight average, and the row of metrics written to a file. The bare loops
train on one batch that is held in memory, with `torch.randn`, a clean condition and no average.
On the fly is our step on a batch that was decoded from video and encoded just before.

    python benchmarks/train_step.py [--size 128] [--frames 8] [--batch 2] [--runs 11]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import save

STEPS = 3
"""Steps of each subject at a time."""


def prepare(folder: Path, size: int, frames: int, batch: int) -> dict[str, Any]:
    """Write videos, encode them, and return the configuration of a training on one process."""
    videos = folder / "videos"
    command = [sys.executable, "-m", "pipelines.demo_data", "--out", str(videos)]
    command += ["--num-videos", "16", "--num-frames", str(8 * frames), "--size", str(size)]
    subprocess.run([*command, "--num-held-out", "1"], check=True, capture_output=True)
    raw = {
        "data": {
            "videos": str(videos),
            "num_frames": frames,
            "fps": 24.0,
            "height": size,
            "width": size,
        },
        "model": {"family": "tiny"},
        "train": {
            "num_steps": 100_000,
            "global_batch_size": batch,
            "num_workers": 1,
            "learning_rate": 1e-5,
        },
        "select": {"shot_threshold": None},
        "output": {"dir": str(folder / "run")},
    }
    written = folder / "config.yaml"
    written.write_text(json.dumps(raw))  # JSON is YAML
    encode = [sys.executable, "-m", "pipelines", "encode", "--config", str(written)]
    subprocess.run(encode, check=True, capture_output=True)
    return raw


def adamw(network: torch.nn.Module, train: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        network.parameters(),
        lr=train.learning_rate,
        betas=(train.adam_beta1, train.adam_beta2),
        weight_decay=train.weight_decay,
    )


def bare_loss(model: Any, network: Any, batch: Any) -> torch.Tensor:
    """EDM's loss by hand, with a clean condition."""
    from cil.losses import NetworkInputs
    from cil.models import ClipConditions
    from cil.parameterization import input_scale, training_target

    clean = batch.mean + batch.std * torch.randn_like(batch.mean)
    clean = clean * model.first_stage.scaling_factor
    level = model.schedule.sigma(torch.randn(len(batch)))
    alpha, sigma = model.schedule.scales(level)
    wide = level[:, None, None, None, None]
    noise = torch.randn_like(clean)
    noisy = (clean + wide * noise) * input_scale(model.parameterization, sigma).reshape(wide.shape)
    target = training_target(clean, noise, model.parameterization, alpha=alpha, sigma=sigma)
    condition = batch.mean[:, :1].expand_as(clean) * model.conditioning_scale
    call = model.network_call(
        ClipConditions(
            fps=torch.tensor([record.fps for record in batch.records]),
            motion_bucket_id=torch.full((len(batch),), 127.0),
            frame_stride=torch.ones(len(batch)),
        ),
        network=network,
    )
    inputs = NetworkInputs(
        noisy=noisy,
        time=model.schedule.network_time(level),
        conditioning_latents=condition,
        tokens=batch.image_embeds,
        sigma_cond=torch.zeros(len(batch)),
        keep=torch.ones(len(batch), dtype=torch.bool),
        stacked=None,
    )
    return (call(inputs) - target).square().mean()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=128, help="of the clips, in pixels")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--runs", type=int, default=11)
    given = parser.parse_args()
    if given.runs < 2:
        parser.error(f"--runs must be at least 2, for quartiles, got {given.runs}")
    from pipelines.allocator import keep_freed_memory

    keep_freed_memory(all_of_it=True)  # as a worker does, and so for the bare loops, too
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = "29731"
    with tempfile.TemporaryDirectory() as folder:
        raw = prepare(Path(folder), given.size, given.frames, given.batch)
        stages = {f"zero_{stage}": run(Path(folder), raw, stage, given.runs) for stage in (0, 2)}
    save(
        "train_step",
        "seconds of a step, ours against bare loops; the goal is at most 1.03",
        {
            "clips": f"{given.batch} of {given.size}x{given.size}x{given.frames}",
            "threads": torch.get_num_threads(),
            **stages,
        },
    )


def run(folder: Path, raw: dict[str, Any], zero_stage: int, runs: int) -> dict[str, Any]:
    """Compare the subjects at one ZeRO stage."""
    from pipelines.config import validate_config
    from pipelines.dataset import open_training_data
    from pipelines.model_folder import build_model
    from pipelines.prefetch import read_ahead

    train = {**raw["train"], "zero_stage": zero_stage}
    config = validate_config({**raw, "train": train}, source="the benchmark")
    data = open_training_data(config, num_sharers=1)
    with read_ahead(config, data, first_step=0, rank=0, world_size=1) as batches:
        held = batches.batch(0)
        our_step = OurStep(config, build_model(config, data.largest), batches, folder)
        fresh = FreshBatches(config, data, held)
        subjects = {
            "ours": our_step,
            "torch": bare_torch(config, build_model(config, data.largest), held),
            "deepspeed": bare_deepspeed(config, build_model(config, data.largest), held),
            "on_the_fly": our_step.on(fresh),
        }
        times = in_turn(subjects, runs)
    seconds = {name: [one for block in blocks for one in block] for name, blocks in times.items()}
    return {
        "parameters": our_step.num_parameters,
        "median_s": {name: statistics.median(every) for name, every in seconds.items()},
        "ratio_to_torch": of_pairs(times, "ours", "torch"),
        "ratio_to_deepspeed": of_pairs(times, "ours", "deepspeed"),
        "deepspeed_to_torch": of_pairs(times, "deepspeed", "torch"),
        "on_the_fly_to_pre_encoded": of_pairs(times, "on_the_fly", "ours"),
        "data_wait_share": sum(our_step.waits[STEPS:]) / sum(seconds["ours"]),
        "all_s": times,
    }


def bare_torch(config: Any, model: Any, held: Any) -> Callable[[], None]:
    optimiser, network = adamw(model.network, config.train), model.network

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        bare_loss(model, network, held).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.train.max_grad_norm)
        optimiser.step()

    return step


def bare_deepspeed(config: Any, model: Any, held: Any) -> Callable[[], None]:
    import deepspeed

    from pipelines.zero_config import deepspeed_config

    engine, *_ = deepspeed.initialize(
        model=model.network,
        model_parameters=model.network.parameters(),
        config=deepspeed_config(config.train),
    )

    def step() -> None:
        engine.backward(bare_loss(model, engine, held))
        engine.step()

    return step


class OurStep:
    """What a worker does for each step."""

    def __init__(self, config: Any, model: Any, batches: Any, folder: Path) -> None:
        from pipelines.engine import start_engine
        from pipelines.metrics_log import MetricsLog
        from pipelines.train_step import TrainStep
        from pipelines.weight_average import ShardedEma

        self._config, self._model, self._batches = config, model, batches
        self._engine = start_engine(config.train, model)
        self._ema = ShardedEma(self._engine, config.train.ema_decay)
        self._take = TrainStep(config, model, batches, self._engine, world_size=1)
        self._log, self._rows = MetricsLog(folder / "metrics.jsonl"), []
        self._next_step = 1
        self.waits: list[float] = []
        self.num_parameters = sum(p.numel() for p in model.network.parameters())

    def __call__(self) -> None:
        started = time.perf_counter()
        step, self._next_step = self._next_step, self._next_step + 1
        row = self._take(step, learning_rate=self._config.train.learning_rate)
        self._ema.update()
        self.waits.append(self._batches.last_wait_s)
        self._rows.append({**row, "step": step, "seconds": time.perf_counter() - started})
        if len(self._rows) == self._config.train.log_every:
            self._log.append(self._rows)
            self._rows.clear()

    def on(self, source: Any) -> Callable[[], None]:
        """Return the same step on batches of another source."""
        from pipelines.train_step import TrainStep

        take = TrainStep(self._config, self._model, source, self._engine, world_size=1)

        def step() -> None:
            take(0, learning_rate=self._config.train.learning_rate)
            self._ema.update()

        return step


class FreshBatches:
    """A source that decodes and encodes the clips of a batch each time it is asked."""

    def __init__(self, config: Any, data: Any, like: Any) -> None:
        self._config, self._stage, self._like = config, data.largest.first_stage(), like

    def batch(self, step: int) -> Any:
        import numpy as np

        from pipelines.decode import cover_and_crop, probe_video, sequential

        del step
        means, stds = [], []
        for record in self._like.records:
            path = Path(self._config.data.videos) / record.path
            wanted, size = set(record.frames), (record.height, record.width)
            frames = {}
            for frame in sequential(path, probe_video(path)):
                if frame.number in wanted:
                    frames[frame.number] = cover_and_crop(frame.pixels, *size)
                if frame.number == record.frames[-1]:
                    break
            stack = np.stack([frames[number] for number in record.frames])
            posterior = self._stage.encode(stack)
            means.append(posterior.mean)
            stds.append(posterior.std)
        return replace(self._like, mean=torch.stack(means), std=torch.stack(stds))

    def keys(self, step: int) -> list[str]:
        del step
        return [record.key for record in self._like.records]


def in_turn(subjects: dict[str, Callable[[], None]], runs: int) -> dict[str, list[list[float]]]:
    """Time blocks of steps, the subjects in turn, after one block of each to warm up."""
    times: dict[str, list[list[float]]] = {name: [] for name in subjects}
    for number in range(runs + 1):
        for name, action in subjects.items():
            block = []
            for _ in range(STEPS):
                started = time.perf_counter()
                action()
                block.append(time.perf_counter() - started)
            if number:
                times[name].append(block)
    return times


def of_pairs(times: dict[str, list[list[float]]], subject: str, baseline: str) -> dict[str, Any]:
    """Median and quartiles of the ratio of blocks that were timed next to each other."""
    pairs = zip(times[subject], times[baseline], strict=True)
    ratios = sorted(sum(block) / sum(other) for block, other in pairs)
    low, median, high = statistics.quantiles(ratios, n=4)
    return {"median": median, "quartiles": [low, high]}


if __name__ == "__main__":
    main()
