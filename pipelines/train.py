"""Stage 2, on Ray Train with DeepSpeed: latent shards in, a fine-tuned network out.

The driver checks everything that can be checked, starts one worker per GPU (or CPU core) and waits.
Each worker builds the same network, takes its share of every batch, and takes optimiser steps
(`train_step.py`). Running the same command again resumes from the last committed checkpoint.
Run: `cil train --config configs/demo.yaml`.
"""

import contextlib
import shlex
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cil.errors import ConfigError, StageError
from pipelines import tracking
from pipelines.checkpoint import EMA_FILE
from pipelines.config import (
    RunConfig,
    clip_buckets,
    config_to_yaml,
    content_hash,
    validate_config,
)
from pipelines.dataset import open_dataset
from pipelines.fused_input import choose_impl
from pipelines.metrics_log import MetricsLog, ProgressBoard, ReportCallback, run_and_watch
from pipelines.model_folder import build_model, save_model
from pipelines.progress import console
from pipelines.report import RunReport, Stopwatch
from pipelines.runtime import check_resources, ray_session, root_cause, worker_environment
from pipelines.shards import ShardReader
from pipelines.storage import (
    hash_of_folder,
    read_json,
    remove_temporaries,
    write_atomic,
    write_json,
)

__all__ = ["TRAIN_FOLDER", "run", "train_identity"]

TRAIN_FOLDER = "train"


def run(config: RunConfig, *, session: ExitStack, debug: bool = False) -> RunReport:
    """Fine-tune the network on ``OUTPUT/dataset`` and export it to ``OUTPUT/train/model``.

    Args:
        config: the run.
        session: where the Ray session is entered if one is needed.
        debug: show the logs of workers.

    Returns:
        Paths, losses and durations.

    Raises:
        ConfigError: the settings describe other clips than the data set has, or ask for Triton
            without a GPU.
        DataError: there is no data set, or it is damaged.
        StageError: more workers than clips or cores, or training failed; then the last committed
            checkpoint is kept.
    """
    watch = Stopwatch()
    output = Path(config.output.dir)
    folder = output / TRAIN_FOLDER
    reader = open_dataset(config)
    manifest = reader.manifest
    _check_clips(config, reader)
    impl = choose_impl(config.time_noise.impl, use_gpu=config.train.use_gpu)
    identity = train_identity(config, manifest.fingerprint)
    done = folder / "report.json"
    if done.exists() and read_json(done)["inputs"]["identity"] == identity:
        report = RunReport.load(done)
        if hash_of_folder(folder / "model") == report.outputs["model_sha256"]:
            return RunReport(**{**asdict(report), "reused": True, "seconds": watch.seconds()})
    if config.train.num_workers > len(reader):
        raise StageError(
            f"train.num_workers must be <= the number of clips, got {config.train.num_workers} "
            f"workers and {len(reader)} clips; lower train.num_workers or encode more videos"
        )
    reader.check_all()
    remove_temporaries(folder)
    write_atomic(folder / "config.yaml", config_to_yaml(config).encode())
    console.print(f"train: noise and loss by {impl} (time_noise.impl {config.time_noise.impl})")
    run_id = tracking.start_run(config, folder, manifest, identity)
    log = MetricsLog(folder / f"metrics-{identity[:12]}.jsonl")
    session.enter_context(ray_session(config.cluster, debug=debug))
    try:
        checkpoint = _fit(
            config,
            folder=folder,
            identity=identity,
            manifest_fingerprint=manifest.fingerprint,
            run_id=run_id,
            log=log,
            impl=impl,
        )
    except StageError:
        with contextlib.suppress(StageError):  # the failure itself is what the user must see
            tracking.finish_run(config, run_id, failed=True)
        raise
    model = folder / "model"
    save_model(config, reader, model, weights=checkpoint / EMA_FILE)
    losses = log.losses()
    tracking.sync_metrics(config, run_id, log)
    tail = losses[-max(1, len(losses) // 10) :]
    report = RunReport(
        stage="train",
        reused=False,
        inputs={"dataset": manifest.fingerprint, "identity": identity, "clips": len(reader)},
        outputs={
            "model": str(model),
            "model_sha256": hash_of_folder(model),
            "metrics": str(log.path),
            "checkpoint": str(checkpoint),
            "mlflow_run_id": run_id,
        },
        metrics={
            "steps": float(config.train.num_steps),
            "loss_first": losses[0],
            "loss_last_tenth": sum(tail) / len(tail),
        },
        seconds=watch.seconds(),
    )
    report.save(done)
    return report


def _check_clips(config: RunConfig, dataset: ShardReader) -> None:
    """Refuse settings that describe other clips than the data set has."""
    fps = dataset.manifest.identity["settings"]["clips"]["fps"]
    wrong = []
    if config.data.fps != fps:
        wrong.append(f"data.fps is {config.data.fps}, the clips of the data set have {fps}")
    asked = [bucket.name for bucket in clip_buckets(config.data)]
    if dataset.bucket not in asked:
        wrong.append(
            f"the settings describe clips of {', '.join(asked)} (height x width x frames), those "
            f"of the data set are {dataset.bucket}"
        )
    if wrong:
        raise ConfigError("; ".join(wrong) + "; use the settings that it was encoded with")


def train_identity(config: RunConfig, manifest_fingerprint: str) -> str:
    """Hash of all that decides the trained weights: names the run and seals its checkpoints."""
    settings = asdict(config.train)
    for name in ("log_every", "num_checkpoints_kept", "max_failures", "checkpoint_every"):
        settings.pop(name)
    time_noise = asdict(config.time_noise)
    time_noise.pop("impl")  # the same noise: it differs as another device does, in the last bits
    return content_hash(
        {
            "seed": config.seed,
            "model": asdict(config.model),
            "time_noise": time_noise,
            "train": settings,
            "manifest": manifest_fingerprint,
        }
    )


def _fit(
    config: RunConfig,
    *,
    folder: Path,
    identity: str,
    manifest_fingerprint: str,
    run_id: str,
    log: MetricsLog,
    impl: str,
) -> Path:
    """Run Ray Train to the last step; returns the folder of the last checkpoint."""
    train = config.train
    import ray
    from ray.train import CheckpointConfig, FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    resources: dict[str, float] = {"CPU": train.cpus_per_worker}
    if train.use_gpu:
        resources["GPU"] = 1
    check_resources(train.num_workers, resources, "train.num_workers")
    board = ray.remote(ProgressBoard).options(num_cpus=0).remote()
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "config": asdict(config),
            "config_hash": identity,
            "manifest_fingerprint": manifest_fingerprint,
            "impl": impl,
        },
        torch_config=TorchConfig(backend="nccl" if train.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=train.num_workers,
            use_gpu=train.use_gpu,
            resources_per_worker=resources,
        ),
        run_config=RayRunConfig(
            name=f"train-{identity[:12]}",
            storage_path=str((folder / "ray").resolve()),
            failure_config=FailureConfig(max_failures=train.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=train.num_checkpoints_kept),
            callbacks=[
                ReportCallback(
                    log_path=log.path.resolve(),
                    board=board,
                    tracking_uri=tracking.tracking_uri(config),
                    run_id=run_id,
                )
            ],
            worker_runtime_env={"env_vars": worker_environment(use_gpu=train.use_gpu)},
        ),
    )
    try:
        result = run_and_watch(trainer.fit, board, title="train: steps", total=train.num_steps)
    except TrainingFailedError as error:
        failures = getattr(error, "worker_failures", None) or {}
        rank, first = next(iter(failures.items()), (None, error))
        cause = root_cause(first)
        if isinstance(cause, StageError | ConfigError):  # says what to do itself
            raise StageError(str(cause)) from error
        where = f" on worker {rank}" if rank is not None else ""
        raise StageError(
            f"training failed{where}: {type(cause).__name__}: {cause}; the last committed "
            "checkpoint is kept, run the same command again to go on from it"
        ) from error
    except ray.exceptions.RayError as error:
        cause = root_cause(error)
        first_line = str(cause).partition("\n")[0]
        raise StageError(
            f"training stopped: {type(cause).__name__}: {first_line}; the last committed "
            "checkpoint is kept, run the same command again to go on from it"
        ) from error
    outcome = result.return_value or {}
    if "stopped" in outcome:
        written = _write_nonfinite(folder, identity, outcome["nonfinite"])
        raise StageError(f"{outcome['stopped']}; written to {written}")
    if result.checkpoint is None:
        raise StageError("training ended without a checkpoint; this is a bug, please report it")
    return Path(result.checkpoint.path)


def _write_nonfinite(folder: Path, identity: str, record: dict[str, Any]) -> Path:
    """Write down a step whose loss or gradient is not finite, and how to see it again."""
    path = folder / f"nonfinite-step-{record['step']}.json"
    config, output = (folder / "config.yaml").resolve(), folder.parent.resolve()
    # Not with another number of steps: that would be another learning rate, so another run. The
    # same one goes on from its last checkpoint and stops at the same step.
    replay = (
        f"cil train --config {shlex.quote(str(config))} --output.dir {shlex.quote(str(output))}"
    )
    write_json(path, {**record, "identity": identity, "replay": replay})
    return path


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """One training process; Ray Train calls it on every worker.

    Args:
        settings: the resolved configuration and where the data set is.

    Returns:
        ``{"stopped": reason, "nonfinite": record}`` if a guard stopped the run on all workers, else
        an empty dict.

    Raises:
        StageError: the GPU has too little memory.
    """
    import torch

    try:
        return _train(settings)
    except torch.OutOfMemoryError as error:
        raise StageError(
            f"the GPU has too little memory: {str(error).partition('. ')[0]}; lower "
            "train.micro_batch_size, set train.gradient_checkpointing, or raise train.zero_stage "
            "(from 1 on, train.offload_optimizer moves the optimiser's state to the CPU)"
        ) from error


def _train(settings: dict[str, Any]) -> dict[str, Any]:
    """Train until the last step, as ``train_worker``."""
    import ray.train
    import torch
    from ray.train import Checkpoint

    from pipelines.checkpoint import TrainState, load_checkpoint, save_checkpoint
    from pipelines.engine import start_engine
    from pipelines.train_step import NonFiniteLossError, TrainStep
    from pipelines.weight_average import ShardedEma
    from pipelines.zero_config import learning_rate

    config = validate_config(settings["config"], source="the driver's configuration")
    train = config.train
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(train.cpus_per_worker)
    reader = open_dataset(config)
    model = build_model(config, reader)
    engine = start_engine(train, model)
    ema = ShardedEma(engine, train.ema_decay)
    state = TrainState(
        seed=config.seed,
        world_size=world_size,
        config_hash=settings["config_hash"],
        manifest_fingerprint=settings["manifest_fingerprint"],
    )
    last_checkpoint = ray.train.get_checkpoint()
    if last_checkpoint is not None:
        with last_checkpoint.as_directory() as saved:
            state = load_checkpoint(Path(saved), engine=engine, ema=ema, expected=state, rank=rank)
    step_of = TrainStep(
        config, model, reader, engine, rank=rank, world_size=world_size, impl=settings["impl"]
    )
    rows: list[dict[str, float]] = []
    while state.num_steps < train.num_steps:
        started = time.monotonic()
        step = state.num_steps
        try:
            row = step_of(step, learning_rate=learning_rate(train, step))
        except NonFiniteLossError as error:
            # every rank sees the same loss and stops here
            return {"stopped": str(error), "nonfinite": error.record}
        ema.update()
        state.num_steps += 1
        state.num_clips_seen += train.global_batch_size
        rows.append({**row, "step": step, "seconds": time.monotonic() - started})
        last = state.num_steps == train.num_steps
        if last or state.num_steps % train.checkpoint_every == 0:
            with tempfile.TemporaryDirectory() as temporary:
                save_checkpoint(
                    Path(temporary), engine=engine, ema=ema, state=state, rank=rank, last=last
                )
                ray.train.report({"rows": rows}, checkpoint=Checkpoint.from_directory(temporary))
            rows = []
        elif state.num_steps % train.log_every == 0:
            ray.train.report({"rows": rows})
            rows = []
    engine.destroy()
    return {}
