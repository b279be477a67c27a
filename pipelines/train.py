"""Stage 2, on Ray Train with DeepSpeed: latent shards in, a fine-tuned network out.

The driver checks everything that can be checked, starts one worker per GPU (or CPU core;
`train_worker.py`), waits, and exports what was trained. Running the same command again resumes from
the last committed checkpoint.
Run: `cil train --config configs/demo.yaml`.
"""

import contextlib
import shutil
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from cil.errors import ConfigError, StageError
from pipelines import tracking
from pipelines.check_conditions import check_conditions
from pipelines.checkpoint import EMA_FILE
from pipelines.checkpoint_sums import check_sums
from pipelines.committed import RAY_FOLDER, other_trainings, run_name
from pipelines.config import RunConfig, clip_buckets, config_to_yaml, content_hash
from pipelines.dataset import TrainingData, located, open_training_data
from pipelines.delivery import deliver, deliver_unsent, load_log, owe, training_log
from pipelines.fused_input import choose_impl
from pipelines.ledger import LedgerCallback
from pipelines.log_format import logs_as_json, note_run
from pipelines.metrics_log import MetricsLog, ProgressBoard, ReportCallback, run_and_watch
from pipelines.model_folder import save_model
from pipelines.pretrained_parts import model_identity
from pipelines.progress import console
from pipelines.records import Manifest
from pipelines.report import RunReport, Stopwatch
from pipelines.resume import KeepSnapshot, last_checkpoint, prepare_resume
from pipelines.runtime import check_resources, ray_session, root_cause, worker_environment
from pipelines.side_jobs import SideJobs, say_what_is_held_out, start_side_jobs
from pipelines.staged_checkpoints import CheckpointKeeper
from pipelines.storage import (
    hash_of_folder,
    remove_temporaries,
    write_atomic,
)
from pipelines.train_outcome import check_outcome, failed_training
from pipelines.train_state import TrainState, read_state
from pipelines.train_worker import train_worker
from pipelines.watch import LossWatch, WatchBoard, watching

__all__ = ["TRAIN_FOLDER", "run", "train_identity"]

TRAIN_FOLDER = "train"
_NEEDED = {"mlflow_run_id", "model_sha256"}
_GUARDS = ("spike_window", "spike_deviation", "spike_pause_steps", "stall_warning_s")
"""Settings that only decide when to warn."""

_OF_NO_EFFECT = (
    "log_every",
    "num_checkpoints_kept",
    "max_failures",
    "checkpoint_every",
    # How the work is divided: it differs in the last bits only. A run that needed too much memory
    # can go on with others of these. zero_stage is checked when a run goes on.
    "num_workers",
    "cpus_per_worker",
    "micro_batch_size",
    "zero_stage",
    "gradient_checkpointing",
    "offload_optimizer",
    "communication_elements",
    "persistent_elements",
)


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
        DataError: there is no data set, or it is damaged, which may show during training only.
        StageError: more workers than clips or cores, or training failed; then the last committed
            checkpoint is kept.
    """
    watch = Stopwatch()
    output = Path(config.output.dir)
    folder = output / TRAIN_FOLDER
    data = open_training_data(config, num_sharers=config.train.num_workers)
    manifest = data.manifest
    _check_clips(config, data)
    impl = choose_impl(config.time_noise.impl, use_gpu=config.train.use_gpu)
    identity = train_identity(config, manifest.fingerprint)
    deliver_unsent(config, folder)
    finished = _finished(folder, identity)
    if finished is not None:
        return RunReport(**{**asdict(finished), "reused": True, "seconds": watch.seconds()})
    if config.train.num_workers > data.num_clips:
        raise StageError(
            f"train.num_workers must be <= the number of clips, got {config.train.num_workers} "
            f"workers and {data.num_clips} clips; lower train.num_workers or encode more videos"
        )
    data.check_all()
    remove_temporaries(folder)
    console.print(f"train: noise and loss by {impl} (time_noise.impl {config.time_noise.impl})")
    run_folder = (folder / RAY_FOLDER / run_name(identity)).resolve()
    state = start_state(config, manifest, identity)
    universal = prepare_resume(folder.resolve(), run_folder, state)
    _say_what_is_not_gone_on_from(run_folder)
    check_conditions(config, data)
    write_atomic(folder / "config.yaml", config_to_yaml(config).encode())
    run_id = tracking.start_run(config, folder, manifest, identity)
    note_run(run_id)
    log = training_log(folder, identity)
    session.enter_context(ray_session(config.cluster, debug=debug))
    say_what_is_held_out(config, data)
    jobs = start_side_jobs(config, folder, identity=identity, run_id=run_id)
    try:
        load = load_log(folder, identity)
        with tracking.record_load(config, run_id, load), jobs.cancelled_on_error():
            checkpoint = _fit(
                config,
                folder=folder,
                identity=identity,
                state=state,
                run_folder=run_folder,
                universal=universal,
                run_id=run_id,
                log=log,
                impl=impl,
                jobs=jobs,
                validated=bool(data.held_out),
            )
            jobs.drain()
    except BaseException:
        with contextlib.suppress(StageError):  # the failure itself is what the user must see
            tracking.finish_run(config, run_id, failed=True)
        raise
    model = folder / "model"
    check_sums(checkpoint, name=EMA_FILE)
    save_model(config, data.largest, model, weights=checkpoint / EMA_FILE)
    rows = log.rows()
    losses = [row["loss"] for row in rows]
    tail = losses[-max(1, len(losses) // 10) :]
    warnings = _warnings_file(folder, identity)
    report = RunReport(
        stage="train",
        reused=False,
        inputs={"dataset": manifest.fingerprint, "identity": identity, "clips": data.num_clips},
        outputs={
            "model": str(model),
            "model_sha256": hash_of_folder(model),
            "metrics": str(log.path),
            "checkpoint": str(checkpoint),
            "mlflow_run_id": run_id,
            **jobs.outputs(),
            **({"warnings": str(warnings)} if warnings.exists() else {}),
        },
        metrics={
            "steps": float(config.train.num_steps),
            "loss_first": losses[0],
            "loss_last_tenth": sum(tail) / len(tail),
            "data_wait_share": _data_wait_share(rows),
            **jobs.metrics(),
        },
        seconds=watch.seconds(),
    )
    owe(config, folder, identity=identity, run_id=run_id)
    report.save(folder / "report.json")
    deliver(config, folder)
    return report


def _finished(folder: Path, identity: str) -> RunReport | None:
    """Return the report of this training if it is done and its model is whole."""
    done = folder / "report.json"
    if not done.exists():
        return None
    report = RunReport.load(done)
    if report.inputs.get("identity") != identity or _NEEDED - report.outputs.keys():
        return None
    note_run(str(report.outputs["mlflow_run_id"]))
    whole = hash_of_folder(folder / "model") == report.outputs["model_sha256"]
    return report if whole else None


def _say_what_is_not_gone_on_from(run_folder: Path) -> None:
    """Tell that a training begins at step 0 beside others: some setting, or the data, changed."""
    others = other_trainings(run_folder)
    if others and last_checkpoint(run_folder) is None:
        console.print(
            f"train: beginning at step 0 as {run_folder.name}; other settings, another data set or "
            f"another version of this program trained {others} here, which stays",
            markup=False,
        )


def _warnings_file(folder: Path, identity: str) -> Path:
    """Where it is written what was warned of, if there was anything."""
    return folder / f"warnings-{identity[:12]}.jsonl"


def _check_clips(config: RunConfig, dataset: TrainingData) -> None:
    """Refuse settings that describe other clips than the data set has."""
    fps = dataset.manifest.identity["settings"]["clips"]["fps"]
    wrong = []
    if config.data.fps != fps:
        wrong.append(f"data.fps is {config.data.fps}, the clips of the data set have {fps}")
    asked = [bucket.name for bucket in clip_buckets(config.data)]
    there = sorted(dataset.readers)
    if not set(there) <= set(asked):
        wrong.append(
            f"the settings describe clips of {', '.join(asked)} (height x width x frames), those "
            f"of the data set are {', '.join(there)}"
        )
    if wrong:
        raise ConfigError("; ".join(wrong) + "; use the settings that it was encoded with")


def _data_wait_share(rows: list[dict[str, float]]) -> float:
    """Return the share of the time of all steps that rank 0 waited for its batches, 0 to 1."""
    known = [row for row in rows if "data_wait_s" in row]  # an earlier version had none
    seconds = sum(row["seconds"] for row in known)
    return sum(row["data_wait_s"] for row in known) / seconds if seconds else 0.0


def train_identity(config: RunConfig, manifest_fingerprint: str) -> str:
    """Hash of all that decides the trained weights beyond their last bits; names the run."""
    settings = asdict(config.train)
    for name in _OF_NO_EFFECT:
        settings.pop(name)
    if config.train.trainable != "lora":
        for name in ("lora_rank", "lora_alpha", "lora_targets"):
            settings.pop(name)  # decide nothing then
    settings.pop("best_metric")
    if config.train.conditioning_frame == "first":  # names of earlier runs stay
        settings.pop("conditioning_frame")
    for name in _GUARDS:
        settings.pop(name)
    time_noise = asdict(config.time_noise)
    for name in ("token_preset", "token_beta_m"):  # names of earlier runs stay
        if time_noise[name] is None:
            time_noise.pop(name)
    time_noise.pop("impl")  # the same noise: it differs as another device does, in the last bits
    return content_hash(
        {
            "seed": config.seed,
            "model": model_identity(config),
            "time_noise": time_noise,
            "train": settings,
            "held_out_fraction": config.validate.held_out_fraction,
            "manifest": manifest_fingerprint,
        }
    )


def start_state(config: RunConfig, manifest: Manifest, identity: str) -> TrainState:
    """Return where a run starts, with what must agree when it goes on from a checkpoint."""
    return TrainState(
        seed=config.seed,
        world_size=config.train.num_workers,
        zero_stage=config.train.zero_stage,
        trainable=config.train.trainable,
        model_hash=content_hash(model_identity(config)),
        encoder_hash=manifest.identity_hash,
        manifest_fingerprint=manifest.fingerprint,
        config_hash=identity,
    )


def _fit(
    config: RunConfig,
    *,
    folder: Path,
    identity: str,
    state: TrainState,
    run_folder: Path,
    universal: Path | None,
    run_id: str,
    log: MetricsLog,
    impl: str,
    jobs: SideJobs,
    validated: bool,
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
    check_resources(
        train.num_workers,
        resources,
        "train.num_workers",
        scale_up_s=config.cluster.scale_up_s,
    )
    last = last_checkpoint(run_folder)
    done = 0 if last is None else read_state(last).num_steps
    board = ray.remote(ProgressBoard).options(num_cpus=0).remote(done)
    watch = ray.remote(WatchBoard).options(num_cpus=0).remote()
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "config": asdict(located(config)),
            "state": asdict(state),
            "folder": str(folder.resolve()),
            "universal": None if universal is None else str(universal),
            "impl": impl,
            "watch": watch,
            "run_id": run_id,
            "logs_as_json": logs_as_json(),
        },
        torch_config=TorchConfig(backend="nccl" if train.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=train.num_workers,
            use_gpu=train.use_gpu,
            resources_per_worker=resources,
        ),
        run_config=RayRunConfig(
            name=run_folder.name,
            storage_path=str(run_folder.parent),
            failure_config=FailureConfig(max_failures=train.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=train.num_checkpoints_kept),
            callbacks=[
                LedgerCallback((folder / f"ledger-{identity[:12]}.jsonl").resolve()),
                KeepSnapshot(run_folder),
                ReportCallback(
                    log_path=log.path.resolve(),
                    board=board,
                    tracking_uri=tracking.tracking_uri(config),
                    run_id=run_id,
                    num_steps=train.num_steps,
                    keep=CheckpointKeeper.of(config, folder) if validated else None,
                    watch=LossWatch(located(config), watch),
                ),
            ],
            worker_runtime_env={"env_vars": worker_environment(use_gpu=train.use_gpu)},
        ),
    )
    try:
        with watching(watch, _warnings_file(folder, identity), limit_s=train.stall_warning_s):
            result = run_and_watch(
                trainer.fit,
                board,
                title="train: steps",
                total=train.num_steps,
                beside=jobs.poll_and_note,
            )
    except TrainingFailedError as error:
        raise failed_training(error) from error
    except ray.exceptions.RayError as error:
        cause = root_cause(error)
        first_line = str(cause).partition("\n")[0]
        raise StageError(
            f"training stopped: {type(cause).__name__}: {first_line}; the last committed "
            "checkpoint is kept, run the same command again to go on from it"
        ) from error
    finally:
        if universal is not None:
            shutil.rmtree(universal, ignore_errors=True)
    check_outcome(result.return_value or {}, folder, identity)
    if result.checkpoint is None:
        raise StageError("training ended without a checkpoint; this is a bug, please report it")
    return Path(result.checkpoint.path)
