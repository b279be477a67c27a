"""Stage 1, on Ray Data: a folder of videos in, a data set of latent shards out.

    videos -> inventory -> plan (which video to which shard) -> first stage, fitted once
           -> one Ray row per missing shard -> task: decode, encode, write -> manifest

The shard is the unit of work: a task writes it whole, its sidecar last. Running again skips what
is complete, so a killed run goes on where it stopped and gives the same bytes.
Run: `cil encode --config configs/demo.yaml`.
"""

import json
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cil.errors import DataError, StageError
from cil.models import FirstStage, load_first_stage
from pipelines.config import RunConfig, config_to_yaml, content_hash
from pipelines.decode import (
    ClipTransform,
)
from pipelines.first_stage import NoClipsError, ensure_first_stage
from pipelines.progress import console, stage_progress
from pipelines.records import (
    FORMAT_VERSION,
    Manifest,
    QuarantineRecord,
    ShardSidecar,
    ShardSpec,
    VideoFile,
)
from pipelines.report import RunReport, Stopwatch
from pipelines.runtime import ray_session, root_cause
from pipelines.shard_encoder import encode_shard
from pipelines.shards import (
    NewerFormatError,
    complete_sidecar,
    entry_of,
    load_manifest,
)
from pipelines.sources import Inventory, extend_plan, take_inventory
from pipelines.storage import (
    read_json,
    remove_temporaries,
    write_atomic,
    write_json,
)

__all__ = ["DATASET_FOLDER", "is_complete", "run", "transform_of"]

DATASET_FOLDER = "dataset"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """The part of the data set that decides its bytes: identity and shard specs."""

    identity: dict[str, Any]
    specs: list[ShardSpec]

    @property
    def identity_hash(self) -> str:
        return content_hash(self.identity)


def run(config: RunConfig, *, session: ExitStack, debug: bool = False) -> RunReport:
    """Encode the videos of ``config.data`` into ``OUTPUT/dataset``.

    Args:
        config: the run.
        session: where the Ray session is entered if one is needed.
        debug: show Ray's own logs.

    Returns:
        Counts, paths and durations.

    Raises:
        ConfigError: the data set there was made with other settings.
        StageError: no clip could be made of any video, or a shard could not be written.
    """
    watch = Stopwatch()
    dataset = Path(config.output.dir) / DATASET_FOLDER
    inventory = _inventory(config, dataset)
    _refuse_other_identity(config, dataset)
    complete = _complete_manifest(config, dataset, inventory)
    if complete is not None:
        return _report(config, dataset, complete, inventory, watch, reused=True)
    remove_temporaries(dataset)
    remove_temporaries(dataset / "shards")
    _save_inventory(dataset, inventory)
    write_atomic(dataset / "config.yaml", config_to_yaml(config).encode())
    session.enter_context(ray_session(config.cluster, debug=debug))
    try:
        first_stage = ensure_first_stage(config, dataset, transform_of(config), inventory.videos)
    except NoClipsError as error:
        _save_quarantine(dataset, [*error.refused, *inventory.refused])
        raise
    plan = _make_plan(config, dataset, inventory, first_stage)
    _encode_missing(config, dataset, plan)
    remove_temporaries(dataset / "shards")  # of workers that died and were replaced
    manifest = _finish(dataset, plan, inventory)
    return _report(config, dataset, manifest, inventory, watch, reused=False)


def is_complete(config: RunConfig) -> bool:
    """Tell whether the data set is there, whole, and of these settings and videos."""
    dataset = Path(config.output.dir) / DATASET_FOLDER
    return _complete_manifest(config, dataset, _inventory(config, dataset)) is not None


def transform_of(config: RunConfig) -> ClipTransform:
    """Return how clips are cut, from the configuration."""
    return ClipTransform(
        num_frames=config.data.num_frames,
        fps=config.data.fps,
        height=config.data.height,
        width=config.data.width,
        max_clips=config.data.max_clips_per_video,
    )


def _inventory(config: RunConfig, dataset: Path) -> Inventory:
    path = dataset / "inventory.json"
    known = {}
    with suppress(OSError, DataError, KeyError, TypeError):  # it only saves hashing again
        known = {item["path"]: VideoFile.from_json(item) for item in read_json(path)}
    return take_inventory(Path(config.data.videos), known)


def _save_inventory(dataset: Path, inventory: Inventory) -> None:
    write_json(dataset / "inventory.json", [video.to_json() for video in inventory.videos])


def _settings_identity(config: RunConfig) -> dict[str, Any]:
    """Everything in the configuration that decides the bytes of a shard."""
    fit = asdict(config.first_stage)
    return {
        "transform": asdict(transform_of(config)),
        "latents_dtype": config.encode.latents_dtype,
        "videos_per_shard": config.encode.videos_per_shard,
        "first_stage": {key: value for key, value in fit.items() if key != "path"}
        if config.first_stage.path is None
        else {"fingerprint": load_first_stage(config.first_stage.path).fingerprint()},
        "model_family": config.model.family,
        "image_embeds_shape": [1, config.model.cross_attention_dim],
    }


def _refuse_other_identity(config: RunConfig, dataset: Path) -> None:
    """Refuse to mix with a data set that was made with other settings."""
    from cil.errors import ConfigError

    path = dataset / "plan.json"
    if not path.exists():
        return
    there = read_json(path)["identity"]["settings"]
    asked = json.loads(json.dumps(_settings_identity(config)))
    if there != asked:
        old, new = _flat(there), _flat(asked)
        names = sorted(key for key in old | new if old.get(key) != new.get(key))
        lines = [f"  {name}: {old.get(name)} there, {new.get(name)} asked" for name in names]
        raise ConfigError(
            f"{dataset} was made with other settings:\n"
            + "\n".join(lines)
            + "\nchoose another output.dir, or delete this data set"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name nested settings by dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _make_plan(
    config: RunConfig, dataset: Path, inventory: Inventory, first_stage: FirstStage
) -> _Plan:
    identity = {
        "settings": _settings_identity(config),
        "first_stage": first_stage.fingerprint(),
        "scaling_factor": first_stage.scaling_factor,
    }
    path = dataset / "plan.json"
    old = read_json(path)["shards"] if path.exists() else []
    specs = [ShardSpec.from_json(item) for item in old]
    specs = extend_plan(specs, inventory.videos, config.encode.videos_per_shard)
    plan = _Plan(identity=identity, specs=specs)
    write_json(path, {"identity": identity, "shards": [spec.to_json() for spec in specs]})
    return plan


def _encode_missing(config: RunConfig, dataset: Path, plan: _Plan) -> None:
    """Write the shards that are not complete, on Ray Data actors."""
    import ray
    from ray.data import TaskPoolStrategy

    identity_hash = plan.identity_hash
    missing = [s for s in plan.specs if complete_sidecar(dataset, s, identity_hash) is None]
    if not missing:
        return
    rows = ray.data.from_items(
        [{"spec": json.dumps(spec.to_json())} for spec in missing],
        override_num_blocks=len(missing),  # one shard = one row = one block
    )
    # 1:1, a shard spec becomes a shard on disk; only its sidecar travels. One CPU per task:
    # decoding and encoding are single-threaded, so their bytes do not depend on the host. Tasks,
    # not actors: the stages share worker processes, and a file that kills one is tried a bounded
    # number of times.
    done = rows.map_batches(
        encode_shard,
        fn_kwargs={
            "source": str(Path(config.data.videos).resolve()),
            "dataset": str(dataset.resolve()),
            "transform": transform_of(config),
            "identity_hash": identity_hash,
            "latents_dtype": config.encode.latents_dtype,
            "image_embeds_shape": (1, config.model.cross_attention_dim),
        },
        batch_size=1,
        compute=TaskPoolStrategy(size=config.encode.num_workers),
        num_cpus=1,
        max_retries=config.encode.max_retries,
    )
    clips = 0
    try:
        with stage_progress("encode: shards", len(plan.specs)) as progress:
            progress.update(len(plan.specs) - len(missing))
            for row in done.iter_rows():
                clips += json.loads(row["sidecar"])["count"]
                progress.advance(f"{clips} clips")
    except ray.exceptions.RayError as error:
        cause = root_cause(error)
        raise StageError(
            f"encoding stopped: {type(cause).__name__}: {cause}; finished shards are kept, "
            "run the same command again to go on"
        ) from error


def _sidecars(dataset: Path, plan: _Plan) -> list[ShardSidecar]:
    sidecars = []
    for spec in plan.specs:
        sidecar = complete_sidecar(dataset, spec, plan.identity_hash)
        if sidecar is None:
            raise StageError(f"shard {spec.name} is not complete; run the same command again")
        sidecars.append(sidecar)
    return sidecars


def _finish(dataset: Path, plan: _Plan, inventory: Inventory) -> Manifest:
    """Write the quarantine list, then the manifest."""
    sidecars = _sidecars(dataset, plan)
    refused = [QuarantineRecord.from_json(q) for s in sidecars for q in s.quarantined]
    refused += inventory.refused
    _save_quarantine(dataset, refused)
    shards = [entry_of(sidecar) for sidecar in sidecars if sidecar.count]
    inputs = [item for sidecar in sidecars for item in sidecar.inputs]
    encoded = sum(item["clips"] > 0 for item in inputs)
    if not shards:
        raise NoClipsError(refused)
    by_stage: dict[str, int] = {}
    for record in refused:
        by_stage[record.stage] = by_stage.get(record.stage, 0) + 1
    settings = plan.identity["settings"]
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        fingerprint=content_hash({"identity": plan.identity, "shards": shards}),
        identity=plan.identity,
        identity_hash=plan.identity_hash,
        latents_shape=_latents_shape(dataset, settings),
        shards=shards,
        totals={
            "videos": encoded + len(refused),
            "videos_encoded": encoded,
            "videos_quarantined": len(refused),
            "clips": sum(entry["count"] for entry in shards),
            "shards": len(shards),
            "bytes": sum(entry["num_bytes"] for entry in shards),
        },
        quarantined_by_stage=by_stage,
    )
    write_json(dataset / "manifest.json", manifest.to_json())
    return manifest


def _save_quarantine(dataset: Path, refused: list[QuarantineRecord]) -> None:
    """Write one line per refused file, sorted by path."""
    ordered = sorted(refused, key=lambda record: record.path)
    lines = [json.dumps(record.to_json(), sort_keys=True) + "\n" for record in ordered]
    write_atomic(dataset / "quarantine.jsonl", "".join(lines).encode())


def _latents_shape(dataset: Path, settings: dict[str, Any]) -> list[int]:
    first_stage = load_first_stage(dataset / "first_stage")
    transform, factor = settings["transform"], first_stage.downsampling
    size = [transform["height"] // factor, transform["width"] // factor]
    return [transform["num_frames"], first_stage.latent_channels, *size]


def _complete_manifest(config: RunConfig, dataset: Path, inventory: Inventory) -> Manifest | None:
    if not (dataset / "manifest.json").exists() or not (dataset / "plan.json").exists():
        return None
    raw = read_json(dataset / "plan.json")
    if raw["identity"]["settings"] != json.loads(json.dumps(_settings_identity(config))):
        return None
    specs = [ShardSpec.from_json(item) for item in raw["shards"]]
    if len(extend_plan(specs, inventory.videos, config.encode.videos_per_shard)) != len(specs):
        return None
    try:
        manifest = load_manifest(dataset)
        _sidecars(dataset, _Plan(identity=raw["identity"], specs=specs))
    except NewerFormatError:
        raise
    except (DataError, StageError):
        return None
    return manifest


def _report(
    config: RunConfig,
    dataset: Path,
    manifest: Manifest,
    inventory: Inventory,
    watch: Stopwatch,
    *,
    reused: bool,
) -> RunReport:
    totals = manifest.totals
    plan = read_json(dataset / "plan.json")["shards"]
    planned = {item["sha256"] for spec in plan for item in spec["inputs"]}
    gone = len(planned - {video.sha256 for video in inventory.videos})
    if gone:
        console.print(
            f"warning: {gone} videos of the data set are no longer in {config.data.videos}; "
            "their clips stay in it",
            style="yellow",
        )
    report = RunReport(
        stage="encode",
        reused=reused,
        inputs={"videos": config.data.videos, "other_files": inventory.num_other_files},
        outputs={
            "dataset": str(dataset),
            "quarantine": str(dataset / "quarantine.jsonl"),
            "fingerprint": manifest.fingerprint,
        },
        metrics={key: float(value) for key, value in totals.items()},
        seconds=watch.seconds(),
    )
    report.save(dataset / "report.json")
    return report
