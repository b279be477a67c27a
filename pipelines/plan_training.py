"""`cil plan --stage train`: what training would need, without starting it, Ray or a GPU.

In: the configuration, and the data set where there is one (else `data.*` and `first_stage.*` say
what a clip is). Out: parameters, steps and epochs, bytes per worker for each ZeRO stage with and
without an optimiser on the CPU and for several numbers of workers, bytes of a checkpoint, and the
first choice that fits into the memory of a device. Activations are measured, see `activations.py`;
the other bytes are sums, see `train_memory.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from cil.errors import ConfigError
from cil.models import ImageToVideoModel, config_class
from cil.models.first_stage import latent_layout
from pipelines.activations import MeasuredNetwork, measure_network
from pipelines.config import RunConfig, clip_buckets, dataset_of
from pipelines.dataset import open_training_data
from pipelines.engine import choose_trainable
from pipelines.model_folder import new_model
from pipelines.pretrained_parts import is_missing
from pipelines.report import RunReport, Stopwatch
from pipelines.selection.bucket import Bucket
from pipelines.settings import TrainConfig
from pipelines.shard_reader import chosen_bucket
from pipelines.shards import load_manifest
from pipelines.store import open_store
from pipelines.train_memory import checkpoint_bytes, clips_per_worker, rank_bytes
from pipelines.zero_config import micro_batch_size

__all__ = ["ESTIMATED", "MEASURED", "choices", "measure_run", "plan_training"]

_WORKERS = (1, 2, 4, 8, 16)
_ASSUMED_GIB = 80.0
_USABLE = 0.9
"""Share of a device's memory that is planned with; the rest is its context and fragmentation."""

MEASURED = ("parameters", "activations")
"""What the network itself was asked for; the pass has shapes and no values."""
ESTIMATED = (
    "weights, masters, gradients, optimiser, average: sums, without padding",
    "buffers, update: upper bounds",
    "activations of other numbers of clips: in proportion",
)
"""What was added up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Clips:
    """What a plan knows of the clips."""

    buckets: tuple[str, ...]
    latent_channels: int
    downsampling: int
    count: int | None
    """None without a data set."""
    fingerprint: str | None

    @property
    def largest(self) -> Bucket:
        sizes = [Bucket.parse(name) for name in self.buckets]
        return max(sizes, key=lambda size: size.height * size.width * size.num_frames)


def plan_training(config: RunConfig, *, gpu_memory_gib: float | None = None) -> RunReport:
    """Say what `train` would need.

    Args:
        config: the run.
        gpu_memory_gib: memory of a device in GiB; None takes that of the GPU here, else 80.

    Returns:
        Counts and bytes.

    Raises:
        ConfigError: no memory at all was given, or the settings describe no clip.
        DataError: the data set cannot be read.
    """
    if gpu_memory_gib is not None and not gpu_memory_gib > 0:
        raise ConfigError(f"--gpu-memory-gib must be > 0, got {gpu_memory_gib}; for example 80")
    watch = Stopwatch()
    clips = _clips(config)
    measured = _measure(config, clips)
    train, size = config.train, measured.size
    memory, source = _device_memory(gpu_memory_gib)
    usable = int(memory * _USABLE * 2**30)
    rows = list(_rows(config, measured, usable))
    micro, passes = clips_per_worker(train) or (micro_batch_size(train), 1)
    one = checkpoint_bytes(train, size)
    seen = train.num_steps * train.global_batch_size
    return RunReport(
        stage="plan",
        reused=False,
        inputs={
            "stage": "train",
            "workers": train.num_workers,
            "family": config.model.family,
            "pretrained": config.model.pretrained,
            "sizes_from": "published model"
            if is_missing(config)
            else "model.pretrained"
            if config.model.pretrained
            else "settings",
            "precision": train.precision,
            "buckets": list(clips.buckets),
            "measured_bucket": clips.largest.name,
            "clips": clips.count,
            "dataset": clips.fingerprint,
            "device_memory_gib": memory,
            "device_memory_from": source,
            "usable_share": _USABLE,
        },
        outputs={
            "steps": {
                "steps": train.num_steps,
                "clips_per_step": train.global_batch_size,
                "micro_batch_size": micro,
                "micro_batches_per_worker_and_step": passes,
                "clips_seen": seen,
                "epochs": None if clips.count is None else round(seen / clips.count, 2),
            },
            "activations": {
                "micro_batch_size": measured.micro_batch_size,
                "plain": measured.plain,
                "checkpointed": measured.checkpointed,
            },
            "memory": rows,
            "workers_left_out": sorted({*_WORKERS} - {row["num_workers"] for row in rows}),
            "configured": rank_bytes(
                train,
                size,
                activations=measured.activations(micro, checkpointing=train.gradient_checkpointing),
            ).to_json(),
            "fits": _first_fit(config, measured, usable),
            "measured": list(MEASURED),
            "estimated": list(ESTIMATED),
        },
        metrics={
            "parameters": float(size.total),
            "parameters_trained": float(size.trained),
            "checkpoint_bytes": float(one),
            "checkpoints_bytes": float(one * train.num_checkpoints_kept),
        },
        seconds=watch.seconds(),
    )


def measure_run(config: RunConfig) -> MeasuredNetwork:
    """Count the parameters and the activations of a run's network, for its largest clips.

    Raises:
        DataError: the data set cannot be read.
    """
    return _measure(config, _clips(config))


def _clips(config: RunConfig) -> _Clips:
    store = open_store(dataset_of(config))
    if store.exists("manifest.json"):
        manifest = load_manifest(store)
        asked = config.train.bucket
        names = sorted(manifest.buckets) if asked is None else [chosen_bucket(manifest, asked)]
        first = names[0]
        _, channels, rows, _ = manifest.buckets[first]["latents_shape"]
        return _Clips(
            buckets=tuple(names),
            latent_channels=channels,
            downsampling=Bucket.parse(first).height // rows,
            count=open_training_data(config).num_clips,  # without those that are held out
            fingerprint=manifest.fingerprint,
        )
    names = [bucket.name for bucket in clip_buckets(config.data)]
    if config.train.bucket is not None:
        names = [config.train.bucket]
    stage = config.first_stage
    channels, factor = stage.latent_channels, stage.patch_size
    if stage.path is not None:
        channels, factor = latent_layout(stage.path)
    elif is_missing(config):
        published: dict[str, Any] = {
            item.name: item.default for item in fields(config_class(config.model.family))
        }
        channels, factor = published["latent_channels"], published["downsampling"]
    return _Clips(
        buckets=tuple(names),
        latent_channels=channels,
        downsampling=factor,
        count=None,
        fingerprint=None,
    )


def _measure(config: RunConfig, clips: _Clips) -> MeasuredNetwork:
    return measure_network(
        config.train,
        partial(_model, config, clips),
        micro_batch_size=micro_batch_size(config.train),
        choose=choose_trainable,
    )


def _model(config: RunConfig, clips: _Clips) -> ImageToVideoModel:
    if is_missing(config):  # built anew, a family's network has the published sizes
        config = replace(config, model=replace(config.model, pretrained=None))
    return new_model(
        config,
        clips.largest,
        latent_channels=clips.latent_channels,
        downsampling=clips.downsampling,
    )


def choices(train: TrainConfig, *, workers: tuple[int, ...]) -> Iterator[TrainConfig]:
    """Yield the settings that a plan compares: workers, ZeRO stage and place of the optimiser."""
    for count in workers:
        for stage in (0, 1, 2, 3):
            if stage == 0 and train.precision == "fp16":
                continue  # training refuses it
            for offload in (False, True) if stage else (False,):
                yield replace(train, num_workers=count, zero_stage=stage, offload_optimizer=offload)


def _rows(config: RunConfig, measured: MeasuredNetwork, usable: int) -> Iterator[dict[str, Any]]:
    workers = tuple(sorted({config.train.num_workers, *_WORKERS}))
    for train in choices(config.train, workers=workers):
        clips = clips_per_worker(train)
        if clips is None:  # the global batch does not divide over so many
            continue
        yield _row(train, measured, clips[0], usable)


def _row(train: TrainConfig, measured: MeasuredNetwork, micro: int, usable: int) -> dict[str, Any]:
    needed = rank_bytes(
        train,
        measured.size,
        activations=measured.activations(micro, checkpointing=train.gradient_checkpointing),
    )
    return {
        "num_workers": train.num_workers,
        "zero_stage": train.zero_stage,
        "offload_optimizer": train.offload_optimizer,
        "gradient_checkpointing": train.gradient_checkpointing,
        "micro_batch_size": micro,
        **needed.to_json(),
        "fits": needed.total <= usable,
    }


def _first_fit(config: RunConfig, measured: MeasuredNetwork, usable: int) -> dict[str, Any] | None:
    """Return the fastest choice for the configured workers that fits.

    What costs no time comes first: ZeRO stages, then checkpointing, then an optimiser on the CPU.
    """
    clips = clips_per_worker(config.train)
    if clips is None:
        return None
    candidates = [
        replace(train, gradient_checkpointing=checkpointing)
        for checkpointing in (False, True)
        for train in choices(config.train, workers=(config.train.num_workers,))
        if config.train.use_gpu or not train.offload_optimizer
    ]
    candidates.sort(key=lambda train: (train.offload_optimizer, train.gradient_checkpointing))
    rows = (_row(train, measured, clips[0], usable) for train in candidates)
    return next((row for row in rows if row["fits"]), None)


def _device_memory(given: float | None) -> tuple[float, str]:
    if given is not None:
        return given, "given"
    import torch

    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0).total_memory / 2**30
        return round(found, 2), "detected"
    return _ASSUMED_GIB, "assumed"
