"""Stage 4: trained network and statistics in, a registered model in MLflow out.

Assembles one complete model folder, logs it as pyfunc and registers it with the alias `challenger`.
Registering the same model again returns the version that is there.
Run: `cil register --config configs/demo.yaml`.
"""

import io
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cil.errors import ConfigError, DataError
from cil.models import load
from pipelines import tracking
from pipelines.config import RunConfig, config_to_yaml, content_hash
from pipelines.dataset import open_dataset
from pipelines.delivery import deliver_unsent
from pipelines.estimate import ESTIMATE_FOLDER, STATISTICS_FILE
from pipelines.model_card import CARD_FILE, publish_model_card
from pipelines.records import Manifest
from pipelines.report import RunReport, Stopwatch
from pipelines.shard_reader import ShardReader
from pipelines.storage import (
    hash_of_folder,
    replace_folder,
    sha256_of_file,
    temporary_beside,
    write_atomic,
    write_json,
)
from pipelines.tracking.versions import version_of
from pipelines.train import TRAIN_FOLDER

__all__ = ["REGISTER_FOLDER", "conditioning_image", "run"]

REGISTER_FOLDER = "register"


def run(
    config: RunConfig,
    *,
    into_registry: bool = True,
    alias: str | None = tracking.ALIAS,
    tags: Mapping[str, str] | None = None,
) -> RunReport:
    """Register the model that `train` exported, with the statistics of `estimate`.

    Args:
        config: the run.
        into_registry: False leaves it at the model folder; a model that was registered stays so.
        alias: of the registered version; None gives none.
        tags: more tags, of the training's MLflow run and of the version.

    Returns:
        Name, version and URI of the registered model, and the model folder.

    Raises:
        ConfigError: the bucket of the statistics is not the one that the model is made for.
        DataError: an earlier stage has not run on this version of the data set.
        StageError: MLflow failed.
    """
    watch = Stopwatch()
    output = Path(config.output.dir)
    folder = output / REGISTER_FOLDER
    dataset = open_dataset(config)
    manifest = dataset.manifest
    deliver_unsent(config, output / TRAIN_FOLDER)
    trained = _report_of(output / TRAIN_FOLDER, "train", manifest)
    estimated = _report_of(output / ESTIMATE_FOLDER, "estimate", manifest)
    statistics = output / ESTIMATE_FOLDER / STATISTICS_FILE
    about = {
        "weights": hash_of_folder(output / TRAIN_FOLDER / "model"),
        "statistics": sha256_of_file(statistics),
        "sample": {**asdict(config.sample), "num_videos": None},  # of the run's stage alone
    }
    registry = {"name": config.tracking.model_name, "store": tracking.tracking_uri(config)}
    in_registry, unregistered = content_hash({**about, **registry}), content_hash(about)
    identity = in_registry if into_registry else unregistered
    done = folder / "report.json"
    enough = {identity, in_registry}
    before = RunReport.load(done) if done.exists() else None
    if before is not None and before.inputs.get("identity") in enough:
        whole = hash_of_folder(folder / "model") == before.outputs.get("model_sha256")
        if whole:
            return RunReport(**{**asdict(before), "reused": True, "seconds": watch.seconds()})
    write_atomic(folder / "config.yaml", config_to_yaml(config).encode())
    model = folder / "model"
    _assemble(config, output / TRAIN_FOLDER / "model", statistics, model)
    loaded = load(config.model.family, model)  # what cannot be loaded is not registered
    if tuple(loaded.latents_shape) != dataset.latents_shape:
        raise ConfigError(
            f"the model is made for latents {list(loaded.latents_shape)}, the statistics are of "
            f"{dataset.bucket}, which has {list(dataset.latents_shape)}; give estimate and "
            "register the largest bucket that was trained on as train.bucket"
        )
    run_id = str(trained.outputs["mlflow_run_id"])
    for name, text in (tags or {}).items():
        tracking.tag_run(config, run_id, name, text)
    registered: tracking.RegisteredModel = {"run_id": run_id}
    if into_registry:
        registered = tracking.register_model(
            config,
            run_id,
            model,
            identity=identity,
            input_example=conditioning_image(dataset, 0),
            tags={
                "manifest_fingerprint": manifest.fingerprint,
                "train_identity": str(trained.inputs["identity"]),
                "family": config.model.family,
                "time_noise": config.time_noise.preset,
                **(tags or {}),
            },
            metrics={
                "analytic_init_variance": estimated.metrics["variance"],
                **{f"data_{key}": float(value) for key, value in manifest.totals.items()},
            },
            alias=alias,
        )
        publish_model_card(
            config,
            version_of(config, registered["version"]),
            folder / CARD_FILE,
            parent=(tags or {}).get("parent_version"),
        )
    tracking.finish_run(config, run_id)
    report = RunReport(
        stage="register",
        reused=False,
        inputs={"identity": identity, "train": trained.inputs["identity"]},
        outputs={
            **registered,
            "model": str(model),
            "model_sha256": hash_of_folder(model),
            "tracking_uri": tracking.shown_uri(config),
        },
        metrics={},
        seconds=watch.seconds(),
    )
    report.save(done)
    return report


def conditioning_image(dataset: ShardReader, index: int) -> npt.NDArray[np.uint8]:
    """Return the conditioning frame of a clip of the data set, (H, W, 3) uint8."""
    from PIL import Image

    with Image.open(io.BytesIO(dataset.thumbnail(index))) as image:
        return np.array(image.convert("RGB"))


def _report_of(folder: Path, stage: str, manifest: Manifest) -> RunReport:
    path = folder / "report.json"
    if not path.exists():
        raise DataError(f"{stage} has not finished in {folder}; run `cil {stage}` first")
    report = RunReport.load(path)
    if report.inputs["dataset"] != manifest.fingerprint:
        raise DataError(
            f"{folder} is of another version of the data set; run `cil {stage}` for this one, "
            f"{manifest.fingerprint[:12]}"
        )
    return report


def _assemble(config: RunConfig, trained: Path, statistics: Path, model: Path) -> None:
    """Put weights, first stage, statistics and sampling defaults into one folder."""
    temporary = temporary_beside(model)
    if temporary.exists():
        shutil.rmtree(temporary)
    shutil.copytree(trained, temporary)
    shutil.copy2(statistics, temporary / STATISTICS_FILE)
    sampling = asdict(config.sample)
    sampling.pop("num_videos")
    write_json(temporary / "sampling.json", sampling)
    write_json(temporary / "time_noise.json", asdict(config.time_noise))
    replace_folder(temporary, model)
