"""Evaluation on Ray Data: arms in, a folder of per-clip rows, videos, features and numbers out.

Each task works on one unit (`pipelines.evaluate.units`) and commits it; the driver plans, reads the
rows of all units in their order and takes them together. What is finished is not done again.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cil.errors import StageError
from pipelines.config import RunConfig, content_hash
from pipelines.dataset import located, open_training_data
from pipelines.evaluate.arms import Arm, check_model, check_names, located_arm
from pipelines.evaluate.clip_set import EvaluationSet, freeze_images, open_set
from pipelines.evaluate.extractors import (
    EXTRACTORS,
    check_lengths,
    described_extractors,
    extractor_hashes,
    reasons_for_absence,
)
from pipelines.evaluate.features import write_features
from pipelines.evaluate.summary import METRICS_FILE, summarise
from pipelines.evaluate.units import Unit, plan_arm, plan_reference, read_finished
from pipelines.evaluate.video_folder import check_videos
from pipelines.evaluate.worker import UnitWorker, WorkerSettings, work_on_unit
from pipelines.progress import stage_progress
from pipelines.ray_map import map_rows
from pipelines.remote import is_url
from pipelines.runtime import ray_session
from pipelines.storage import read_json, remove_temporaries, write_atomic, write_json

__all__ = ["EVALUATE_FOLDER", "ROWS_FILE", "TABLE_FILE", "Evaluation", "evaluate_arms"]

EVALUATE_FOLDER = "evaluate"
_VERSION = 1
TABLE_FILE, ROWS_FILE = "per_clip.csv", "per_clip.parquet"

COLUMNS = (
    "arm",
    "start_time",
    "analytic_init",
    "clip_key",
    "seed",
    "fps",
    "num_frames",
    "motion_real",
    "motion_real_consistent",
    "motion",
    "motion_consistent",
    "consistent_share",
    "motion_median",
    "first_transition",
    "jump",
    "moves",
    "moves_real",
    "ssim",
    "histogram",
    "alignment_mse",
    "luminance",
    "luminance_real",
    "flags",
    "flags_real",
    "video",
    "video_real",
    "image",
)
"""Of the table, before those of the extractors that are configured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What an evaluation found."""

    folder: Path
    chosen: EvaluationSet
    rows: list[dict[str, Any]]
    """Of ``per_clip.parquet``, in its order: arms, settings, clips, seeds."""
    metrics: dict[str, Any]
    """What ``metrics.json`` says."""
    reused: bool
    """Whether every unit was finished before."""
    num_units: int
    num_done: int
    """Units that this call worked on."""


def evaluate_arms(
    config: RunConfig,
    arms: Sequence[Arm],
    *,
    start_times: Sequence[float] = (),
    analytic_init: Sequence[bool] = (),
    folder: Path | None = None,
    session: ExitStack,
    debug: bool = False,
) -> Evaluation:
    """Sample or read the videos of all arms, measure them, and compare them with the first arm.

    Args:
        config: the run; its data set has the clips.
        arms: models or folders of videos, at least one; see `pipelines.evaluate.arms`.
        start_times: M of every model; empty takes ``evaluate.start_times``, else each model's own.
        analytic_init: as ``start_times``.
        folder: where everything goes; None takes OUTPUT/evaluate.
        session: where the Ray session is entered if one is needed.
        debug: show Ray's own logs.

    Raises:
        ConfigError: no clips are held out, or an arm's videos are not like the clips.
        DataError: the frozen clips are gone, or a file cannot be read.
        StageError: a worker failed; what is finished is kept.
    """
    check_names(arms)
    folder = folder or Path(config.output.dir) / EVALUATE_FOLDER
    settings = config.evaluate
    hashes = extractor_hashes(settings)
    chosen = open_set(config, folder)
    check_lengths(hashes, chosen.size.num_frames)
    for arm in arms:
        check_model(arm, chosen, as_clips=settings.as_clips)
        if arm.kind == "videos":
            check_videos(arm, chosen)
    made_of: dict[str, Any] = {"extractors": hashes}
    first_stage = open_training_data(config).manifest.identity_hash
    reference = plan_reference(chosen, settings, made_of={**made_of, "data": first_stage})
    units: list[Unit] = []
    for arm in arms:
        units += plan_arm(
            arm,
            chosen,
            settings,
            start_times=start_times or settings.start_times,
            analytic_init=analytic_init or settings.analytic_init,
            made_of={**made_of, "data": first_stage},
        )
    identity = _identity(config, chosen, arms, [*reference, *units])
    kept = _complete(folder, identity, chosen, [*reference, *units])
    if kept is not None:
        return kept
    worker = WorkerSettings(
        config=_located(config),
        folder=folder.absolute(),
        chosen=chosen,
        arms=tuple(located_arm(arm) for arm in arms),
        identity=content_hash([identity, str(folder.absolute())]),
    )
    done = _finish_units(reference, worker, session, "real clips", debug=debug)
    real = {row["clip_key"]: row for unit in reference for row in _rows(folder, unit)}
    freeze_images(folder, chosen, {key: real[key]["image_sha256"] for key in chosen.clips})
    done += _finish_units(units, worker, session, "videos of the arms", debug=debug)
    rows = [
        _joined(unit, row, real[row["clip_key"]], chosen)
        for unit in units
        for row in _rows(folder, unit)
    ]
    _write_table(folder, rows)
    features = write_features(folder, reference, units)
    metrics = summarise(
        rows,
        features,
        settings,
        chosen=chosen,
        arms=arms,
        extractors=described_extractors(folder, hashes),
        absent=reasons_for_absence(settings),
        seed=config.seed,
    )
    metrics["identity"] = identity
    write_json(folder / METRICS_FILE, metrics)
    return Evaluation(
        folder=folder,
        chosen=chosen,
        rows=rows,
        metrics=metrics,
        reused=not done,
        num_units=len(reference) + len(units),
        num_done=done,
    )


def _identity(
    config: RunConfig, chosen: EvaluationSet, arms: Sequence[Arm], units: Sequence[Unit]
) -> str:
    """Hash all that decides the tables and numbers."""
    settings = config.evaluate
    return content_hash(
        {
            "version": _VERSION,
            "set": chosen.sha256,
            "arms": [(arm.name, arm.identity) for arm in arms],
            "units": [(unit.arm, unit.name) for unit in units],
            "seed": config.seed,
            "inception": [settings.inception_videos, settings.inception_splits],
            "intervals": [settings.bootstrap_samples, settings.confidence],
        }
    )


def _complete(
    folder: Path, identity: str, chosen: EvaluationSet, units: Sequence[Unit]
) -> Evaluation | None:
    """Return the evaluation that the folder holds, if it is this one and whole."""
    import pyarrow.parquet as pq

    path = folder / METRICS_FILE
    files = [folder / name for name in (METRICS_FILE, TABLE_FILE, ROWS_FILE)]
    if not all(file.exists() for file in files) or read_json(path).get("identity") != identity:
        return None
    if any(read_finished(folder, unit) is None for unit in units):
        return None
    return Evaluation(
        folder=folder,
        chosen=chosen,
        rows=pq.ParquetFile(io.BytesIO((folder / ROWS_FILE).read_bytes())).read().to_pylist(),
        metrics=read_json(path),
        reused=True,
        num_units=len(units),
        num_done=0,
    )


def _finish_units(
    units: Sequence[Unit],
    settings: WorkerSettings,
    session: ExitStack,
    title: str,
    *,
    debug: bool,
) -> int:
    """Work on the units that are not finished; returns how many there were."""
    missing = [unit for unit in units if read_finished(settings.folder, unit) is None]
    config = settings.config
    if missing:
        session.enter_context(ray_session(config.cluster, debug=debug))
    remove_temporaries(settings.folder / "units")
    # 1:1, a unit becomes its files in the folder; only its name travels.
    results = map_rows(
        [{"unit": json.dumps(unit.to_json())} for unit in missing],
        UnitWorker if config.evaluate.use_gpu else work_on_unit,
        settings={"settings": settings},
        concurrency=config.evaluate.num_workers,
        max_retries=config.evaluate.max_retries,
        doing="evaluation",
        num_gpus=int(config.evaluate.use_gpu),
    )
    with stage_progress(f"evaluate: {title}, units", len(units)) as progress:
        progress.update(len(units) - len(missing))
        for _ in results:
            progress.advance()
    return len(missing)


def _rows(folder: Path, unit: Unit) -> list[dict[str, Any]]:
    rows = read_finished(folder, unit)
    if rows is None:
        raise StageError(
            f"the unit {unit.name} of {folder} was finished and is gone; is the folder on a file "
            "system that all machines of the cluster share?"
        )
    return rows


def _joined(
    unit: Unit, row: Mapping[str, Any], real: Mapping[str, Any], chosen: EvaluationSet
) -> dict[str, Any]:
    """Put the real clip's measures beside those of a video."""
    joined = {
        **row,
        "arm": unit.arm,
        "fps": chosen.fps,
        "num_frames": chosen.size.num_frames,
        "motion_real": real["motion"],
        "motion_real_consistent": real["motion_consistent"],
        "moves_real": real["moves"],
        "luminance_real": real["luminance"],
        "flags_real": real["flags"],
        "video_real": real["video"],
        "image": real["image"],
    }
    more = sorted(set(joined) - set(COLUMNS))
    return {name: joined[name] for name in (*COLUMNS, *more)}


def _write_table(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), buffer)
    write_atomic(folder / ROWS_FILE, buffer.getvalue())
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_atomic(folder / TABLE_FILE, text.getvalue().encode())


def _located(config: RunConfig) -> RunConfig:
    """Return a configuration for workers, which are in another folder: no path is relative."""
    given = {name: getattr(config.evaluate, name) for name in EXTRACTORS}
    absolute: dict[str, Any] = {
        name: str(Path(place).absolute()) for name, place in given.items() if place
    }
    data = replace(
        config.data,
        videos=_absolute(config.data.videos),
        video_root=_absolute(config.data.video_root) if config.data.video_root else None,
    )
    return replace(located(config), data=data, evaluate=replace(config.evaluate, **absolute))


def _absolute(place: str) -> str:
    return place if not place or is_url(place) else str(Path(place).absolute())
