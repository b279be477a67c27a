"""Validation of one checkpoint: averaged weights in, measures and videos on held-out clips out.

A function of the run's settings, the data set and the weights: noise comes from the run's seed, so
what differs between checkpoints is the network. No Ray; `pipelines.side_jobs` runs it beside
training, `cil validate` by hand.
"""

import shutil
import time
from pathlib import Path
from typing import Any

import torch

from cil.analytic_init import AnalyticInit
from cil.errors import DataError
from cil.models import ImageToVideoModel
from pipelines.checkpoint import EMA_FILE
from pipelines.checkpoint_sums import check_sums
from pipelines.config import RunConfig, content_hash, dataset_of
from pipelines.dataset import TrainingData, open_training_data
from pipelines.engine import choose_trainable
from pipelines.model_folder import build_model
from pipelines.shard_reader import ShardReader
from pipelines.shards import moments_of, read_moments
from pipelines.storage import read_json, replace_folder, temporary_beside, write_json
from pipelines.train_state import STATE_FILE
from pipelines.validation_clips import choose_clips
from pipelines.validation_leak import leak_by_time
from pipelines.validation_loss import held_out_loss
from pipelines.validation_videos import motion_of_samples, sample_clips, write_videos

__all__ = [
    "METRICS_FILE",
    "VALIDATION_FOLDER",
    "read_history",
    "read_record",
    "step_folder",
    "validate",
]

VALIDATION_FOLDER = "validation"
METRICS_FILE = "metrics.json"
_VERSION = 1


def step_folder(train_folder: Path, step: int) -> Path:
    """Name the folder of a checkpoint's validation."""
    return train_folder / VALIDATION_FOLDER / f"step-{step:06d}"


def read_history(train_folder: Path, identity: str) -> list[dict[str, Any]]:
    """Read all validations of a run that are complete, in the order of their steps."""
    paths = (train_folder / VALIDATION_FOLDER).glob(f"step-*/{METRICS_FILE}")
    records = [read_record(path, identity) for path in paths]
    own = [record for record in records if record is not None]
    return sorted(own, key=lambda record: int(record["step"]))


def read_record(path: Path, identity: str) -> dict[str, Any] | None:
    """Read a validation of a run; None if it is missing, damaged or of another run."""
    try:
        record = read_json(path)
    except (FileNotFoundError, DataError):
        return None
    own = isinstance(record, dict) and record.get("identity") == identity
    return record if own else None


def validate(config: RunConfig, *, checkpoint: Path, identity: str, folder: Path) -> dict[str, Any]:
    """Validate a checkpoint and write the folder of its results, whole or not at all.

    Args:
        config: the run.
        checkpoint: folder with the averaged weights and ``train_state.json``.
        identity: hash of the training, written down.
        folder: where the results go; replaced.

    Returns:
        What ``metrics.json`` says.

    Raises:
        DataError: no held-out clips, or weights that are damaged or of another run.
    """
    started = time.monotonic()
    device = torch.device("cuda" if config.validate.num_gpus else "cpu")
    data = open_training_data(config)
    if not data.held_out:
        raise DataError(
            "there are no held-out clips to validate on; raise validate.held_out_fraction, which "
            "takes a new training"
        )
    for name in (EMA_FILE, STATE_FILE):
        check_sums(checkpoint, name=name)
    step = int(read_json(checkpoint / STATE_FILE)["num_steps"])
    model = _trained_model(config, data.largest, checkpoint / EMA_FILE)
    model.network.to(device).eval()
    loss = held_out_loss(
        model, choose_clips(data, config.validate.num_clips), config, device=device
    )
    own = choose_clips(data, config.validate.num_clips, bucket=data.largest.bucket)
    leak: dict[str, Any] = {}
    if len(own) > 1:
        leak = leak_by_time(model, own, config, device=device)
    shown = choose_clips(data, config.validate.num_videos, bucket=data.largest.bucket)
    samples = sample_clips(model, shown, config, statistics=_statistics(config, data, model))
    motion = motion_of_samples(samples) if samples else {}
    parts = (loss, leak, motion)
    numbers = {
        name: value
        for part in parts
        for name, value in part.items()
        if name.startswith("val_") and value is not None
    }
    for number, row in enumerate(loss["by_bin"]):
        numbers[f"val_loss_bin_{number}"] = row["loss"]
    record = {
        "format_version": _VERSION,
        "identity": identity,
        "settings": _settings_hash(config),
        "step": step,
        "metrics": numbers,
        "n": {"loss": loss["clips"], "leak": leak.get("clips", 0), "videos": len(samples)},
        "loss_by_bin": loss["by_bin"],
        "leak_by_time": leak.get("by_time", []),
        "motion_transfer_per_clip": leak.get("per_clip", []),
        "videos": motion.get("videos", []),
        "seconds": round(time.monotonic() - started, 2),
    }
    temporary = temporary_beside(folder)
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    if samples:
        write_videos(samples, temporary, fps=config.validate.fps or config.data.fps)
    write_json(temporary / METRICS_FILE, record)
    replace_folder(temporary, folder)
    return record


def _settings_hash(config: RunConfig) -> str:
    """Hash what decides a validation's numbers beside the training; see `train_identity`."""
    own = config.validate
    return content_hash(
        {
            "num_clips": own.num_clips,
            "num_bins": own.num_bins,
            "num_videos": own.num_videos,
            "num_steps": own.num_steps,
            "start_time": config.sample.start_time,
            "analytic_init": config.sample.analytic_init,
        }
    )


def _trained_model(config: RunConfig, dataset: ShardReader, weights: Path) -> ImageToVideoModel:
    """Build the model with averaged weights; what was not trained keeps its fresh ones."""
    from safetensors.torch import load_file

    model = build_model(config, dataset)
    trained = load_file(weights)
    wrong = sorted(choose_trainable(config.train, model) ^ set(trained))
    if wrong:
        raise DataError(
            f"{weights} must hold the parameters that are trained; {len(wrong)} are missing or "
            f"too many, the first is {wrong[0]}; give the configuration of its training"
        )
    model.network.load_state_dict({**model.network.state_dict(), **trained})
    return model


def _statistics(
    config: RunConfig, data: TrainingData, model: ImageToVideoModel
) -> AnalyticInit | None:
    """Take the statistics from the moments that lie beside the shards, as `estimate` finds them."""
    if not config.sample.analytic_init:
        return None
    names = [entry.name for entry in data.largest.entries]
    moments = moments_of({name: read_moments(dataset_of(config), name) for name in names})
    return AnalyticInit.from_moments(moments).scaled(model.first_stage.scaling_factor)
