"""Stage 1, on Ray Data: videos in, a data set of latent shards out.

    listing -> scan: every video decoded once, its clips found and scored -> selection -> plan
            -> first stage, fitted once -> one Ray row per missing shard: decode, encode, write
            -> manifest, report

The shard is the unit of work: a worker writes it whole, its sidecar last. Running again skips what
is complete, so a killed run goes on where it stopped and gives the same bytes.
Run: `cil encode --config configs/demo.yaml`.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

from cil.errors import DataError, StageError
from cil.models import FirstStage
from cil.models.first_stage import latent_frames
from pipelines import dataset_report, prometheus
from pipelines.config import RunConfig, config_to_yaml, content_hash, dataset_of
from pipelines.dataset import located
from pipelines.dataset_identity import (
    PLAN_NAME,
    clip_hash,
    read_plan,
    refuse_other_identity,
    settings_identity,
    write_plan,
)
from pipelines.first_stage import NoClipsError, ensure_first_stage
from pipelines.model_settings import token_width
from pipelines.null_condition import ensure_null_condition
from pipelines.planning import extend_plan
from pipelines.progress import console, stage_progress
from pipelines.ray_map import map_rows
from pipelines.records import (
    FORMAT_VERSION,
    Manifest,
    QuarantineRecord,
    ShardSidecar,
    ShardSpec,
)
from pipelines.remote import shown_url
from pipelines.report import RunReport, Stopwatch
from pipelines.runtime import ray_session
from pipelines.scan import is_unchanged, known_records, save_inventory, scan_videos
from pipelines.selection.bucket import Bucket
from pipelines.shard_encoder import EncoderSettings, ShardEncoder, encode_shard
from pipelines.shards import (
    MANIFEST_NAME,
    NewerFormatError,
    complete_sidecar,
    dataset_fingerprint,
    entry_of,
    load_manifest,
)
from pipelines.source_state import (
    QUARANTINE_NAME,
    SourceState,
    places,
    planned,
    refuse_bad_source,
    save_refusals,
    source_options,
    understand,
)
from pipelines.sources import SourceVideo, list_videos
from pipelines.store import Store, open_store, write_json

__all__ = ["run"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """The part of the data set that decides its bytes: identity and shard specs."""

    identity: dict[str, Any]
    specs: list[ShardSpec]

    @property
    def identity_hash(self) -> str:
        return content_hash(self.identity)


def run(config: RunConfig, *, session: ExitStack, debug: bool = False) -> RunReport:
    """Encode the videos of ``config.data`` into the data set of ``config.output``.

    Args:
        config: the run.
        session: where the Ray session is entered if one is needed.
        debug: show Ray's own logs.

    Returns:
        Counts, paths and durations.

    Raises:
        ConfigError: the data set there was made with other settings.
        StageError: too many videos are broken, no clip could be made of any, or a shard could not
            be written; what is complete is kept.
    """
    watch = Stopwatch()
    store = open_store(dataset_of(config))
    _refuse_newer_format(store)
    settings = settings_identity(config)
    refuse_other_identity(store, settings)
    listing = list_videos(config.data.videos, options=source_options(config))
    known = known_records(store, config)
    if all(is_unchanged(video, known) for video in listing.videos):
        records = scan_videos(config, store, listing.videos, known)
        source = understand(config, store, listing, records)
        complete = _complete_manifest(config, store, source)
        if complete is not None:
            refuse_bad_source(config, store, source)
            null_condition = ensure_null_condition(config, store)
            if complete.null_condition != null_condition:  # an older data set, or made anew
                complete = replace(complete, null_condition=null_condition)
                write_json(store, MANIFEST_NAME, complete.to_json())
            return _report(store, config, complete, source, watch, reused=True)
    store.remove_temporaries()
    store.write("config.yaml", config_to_yaml(config).encode())
    session.enter_context(ray_session(config.cluster, debug=debug))
    records = scan_videos(config, store, listing.videos, known)
    save_inventory(store, config, records)
    source = understand(config, store, listing, records)
    save_refusals(store, source.refused, source.selection)
    refuse_bad_source(config, store, source)
    first_stage = ensure_first_stage(config, store, source, settings)
    null_condition = ensure_null_condition(config, store)
    plan = _make_plan(config, store, source, settings, first_stage)
    _encode_missing(config, store, plan, source)
    store.remove_temporaries()  # of workers that died and were replaced
    manifest = _finish(store, plan, source, first_stage, null_condition)
    prometheus.add_quarantined(manifest.totals["videos_quarantined"], run_id=prometheus.NO_RUN)
    return _report(store, config, manifest, source, watch, reused=False)


def _refuse_newer_format(store: Store) -> None:
    """Stop before anything of a newer program's data set is overwritten."""
    if not store.exists(MANIFEST_NAME):
        return
    try:
        load_manifest(store)
    except NewerFormatError:
        raise
    except DataError:
        return  # damaged: it is written again


def _make_plan(
    config: RunConfig,
    store: Store,
    source: SourceState,
    settings: dict[str, Any],
    first_stage: FirstStage,
) -> _Plan:
    identity = {
        "settings": settings,
        "first_stage": first_stage.fingerprint(),
        "scaling_factor": first_stage.scaling_factor,
    }
    specs = extend_plan(
        planned(store),
        source.videos,
        source.selection.kept,
        videos_per_shard=config.encode.videos_per_shard,
    )
    plan = _Plan(identity=identity, specs=specs)
    write_plan(store, identity, [spec.to_json() for spec in specs])
    return plan


def _encode_missing(config: RunConfig, store: Store, plan: _Plan, source: SourceState) -> None:
    """Write the shards that are not complete, on Ray Data workers."""
    missing = [spec for spec in plan.specs if _is_missing(store, spec, plan, source)]
    encode, where = config.encode, places(source)
    settings = EncoderSettings(
        dataset=dataset_of(config),
        identity_hash=plan.identity_hash,
        clip_hash=clip_hash(plan.identity),
        fps=config.data.fps,
        seed=config.seed,
        token_width=token_width(config.model),
        decode=config.decode,
        encode=encode,
        condition=located(config).condition,
    )
    # 1:1, a shard spec becomes a shard in the data set; only its sidecar travels. Frames come from
    # decoder processes beside the worker, so they never cross the network.
    results = map_rows(
        [_row(spec, where) for spec in missing],
        ShardEncoder if encode.use_gpu else encode_shard,
        settings={"settings": settings},
        concurrency=encode.num_workers,
        max_retries=encode.max_retries,
        doing="encoding",
        num_cpus=encode.decoders_per_worker,
        num_gpus=int(encode.use_gpu),
    )
    clips, watch = 0, Stopwatch()
    with stage_progress("encode: shards", len(plan.specs)) as progress:
        progress.update(len(plan.specs) - len(missing))
        for row in results:
            clips += json.loads(row["sidecar"])["count"]
            progress.advance(f"{clips} clips")
    if clips:
        prometheus.set_clips_per_second(
            clips / max(watch.seconds(), 0.01), run_id=prometheus.NO_RUN, stage="encode"
        )


def _is_missing(store: Store, spec: ShardSpec, plan: _Plan, source: SourceState) -> bool:
    """Tell whether a shard must be written, also because a video may be readable by now."""
    sidecar = complete_sidecar(store, spec, plan.identity_hash)
    return sidecar is None or _has_unread(sidecar, source)


def _has_unread(sidecar: ShardSidecar, source: SourceState) -> bool:
    """Tell whether a video of the source could not be read, as when a network fails."""
    return any(
        record["stage"] == "read" and record["sha256"] in source.videos
        for record in sidecar.quarantined
    )


def _row(spec: ShardSpec, places: Mapping[str, SourceVideo]) -> dict[str, str]:
    """Return a shard and where its videos are; one that is gone by now will be refused."""
    nowhere = SourceVideo(name="", location="", offset=None, num_bytes=0, version="", caption=None)
    found = [asdict(places.get(item["sha256"], nowhere)) for item in spec.inputs]
    return {"spec": json.dumps(spec.to_json()), "places": json.dumps(found)}


def _sidecars(store: Store, plan: _Plan) -> list[ShardSidecar]:
    sidecars = []
    for spec in plan.specs:
        sidecar = complete_sidecar(store, spec, plan.identity_hash)
        if sidecar is None:
            raise StageError(f"shard {spec.name} is not complete; run the same command again")
        sidecars.append(sidecar)
    return sidecars


def _finish(
    store: Store,
    plan: _Plan,
    source: SourceState,
    first_stage: FirstStage,
    null_condition: str | None,
) -> Manifest:
    """Write the list of refused videos and dropped clips, then the manifest."""
    sidecars = _sidecars(store, plan)
    shards = [entry_of(sidecar) for sidecar in sidecars if sidecar.count]
    late = [
        QuarantineRecord.from_json(record)
        for sidecar in sidecars
        for record in sidecar.quarantined
        if record["sha256"] in source.videos
    ]
    # once, also where several shards wanted clips of a video
    refused = [*dict.fromkeys(late), *source.refused]
    save_refusals(store, refused, source.selection)
    if not shards:
        raise NoClipsError(refused, len(source.selection.dropped))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        fingerprint=dataset_fingerprint(plan.identity, shards),
        identity=plan.identity,
        identity_hash=plan.identity_hash,
        buckets=_buckets(sidecars, first_stage),
        shards=shards,
        totals=_totals(sidecars, source),
        quarantined_by_stage=_counted(record.stage for record in refused),
        dropped_by_reason=_counted(clip.reason for clip in source.selection.dropped),
        null_condition=null_condition,
    )
    write_json(store, MANIFEST_NAME, manifest.to_json())
    return manifest


def _totals(sidecars: Sequence[ShardSidecar], source: SourceState) -> dict[str, int]:
    """Count; the videos of the source are encoded, quarantined or without clips."""
    inputs = [item for sidecar in sidecars for item in sidecar.inputs]
    encoded = {item["sha256"] for item in inputs if item["clips"]}
    late = {record["sha256"] for sidecar in sidecars for record in sidecar.quarantined}
    now = set(source.videos)
    return {
        "videos": len(source.listing.videos) + len(source.listing.refused),
        "videos_encoded": len(encoded & now),
        "videos_quarantined": len(source.refused) + len(late & now - encoded),
        "videos_without_clips": len(now - encoded - late),
        "videos_gone": len(encoded - now),
        "clips": sum(sidecar.count for sidecar in sidecars),
        "clips_dropped": len(source.selection.dropped),
        "shards": sum(sidecar.count > 0 for sidecar in sidecars),
        "bytes": sum(sidecar.num_bytes for sidecar in sidecars),
    }


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _buckets(
    sidecars: Sequence[ShardSidecar], first_stage: FirstStage
) -> dict[str, dict[str, Any]]:
    buckets: dict[str, dict[str, Any]] = {}
    for sidecar in sidecars:
        if not sidecar.count:
            continue
        size, factor = Bucket.parse(sidecar.bucket), first_stage.downsampling
        frames = latent_frames(first_stage, size.num_frames)
        shape = [frames, first_stage.latent_channels]
        shape += [size.height // factor, size.width // factor]
        known = buckets.setdefault(sidecar.bucket, {"latents_shape": shape, "clips": 0})
        known["clips"] += sidecar.count
    return dict(sorted(buckets.items()))


def _complete_manifest(config: RunConfig, store: Store, source: SourceState) -> Manifest | None:
    """Return the manifest if the data set is whole and of just these videos and settings."""
    if not store.exists(MANIFEST_NAME) or not store.exists(PLAN_NAME):
        return None
    identity = read_plan(store)["identity"]
    specs = planned(store)
    extended = extend_plan(
        specs,
        source.videos,
        source.selection.kept,
        videos_per_shard=config.encode.videos_per_shard,
    )
    if len(extended) != len(specs):
        return None
    try:
        manifest = load_manifest(store)
        sidecars = _sidecars(store, _Plan(identity=identity, specs=specs))
    except NewerFormatError:
        raise
    except (DataError, StageError):
        return None
    if any(_has_unread(sidecar, source) for sidecar in sidecars):
        return None
    if manifest.totals != _totals(sidecars, source):
        return None  # broken videos or copies came or went
    return manifest


def _report(
    store: Store,
    config: RunConfig,
    manifest: Manifest,
    source: SourceState,
    watch: Stopwatch,
    *,
    reused: bool,
) -> RunReport:
    warnings = dataset_report.warnings_of(store, config, source)
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    report = RunReport(
        stage="encode",
        reused=reused,
        inputs={
            "videos": shown_url(config.data.videos),
            "other_files": source.listing.num_other_files,
            "warnings": warnings,
        },
        outputs={
            "dataset": store.url(),
            "report": store.url(dataset_report.PAGE_NAME),
            "quarantine": store.url(QUARANTINE_NAME),
            "fingerprint": manifest.fingerprint,
        },
        metrics={key: float(value) for key, value in manifest.totals.items()},
        seconds=watch.seconds(),
    )
    if not reused or not store.exists(dataset_report.PAGE_NAME):
        dataset_report.write(store, config, manifest, source, report)
    return report
