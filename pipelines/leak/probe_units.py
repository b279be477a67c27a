"""One-step predictions of held-out clips: a unit is a few clips of one arm at one rank t.

In: arms, keys of clips, settings. Out: rows with sums per clip, each kept in ``probe/NAME.json``
under a hash of all that decides it, so that a killed report goes on and one arm more costs one arm
more. Units never depend on how many workers there are.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cil.errors import DataError
from cil.metrics.leakage import LeakageProbe
from cil.metrics.motion import motion_score
from cil.models import ImageToVideoModel, load
from pipelines.config import RunConfig, content_hash
from pipelines.dataset import located, open_dataset
from pipelines.evaluate.arms import Arm
from pipelines.evaluate.clip_set import clip_places
from pipelines.leak_probe import ClipProbe
from pipelines.progress import stage_progress
from pipelines.ray_map import map_rows
from pipelines.runtime import ray_session
from pipelines.storage import read_json, write_json
from pipelines.validation_clips import HeldOutClip, drawn_latents, held_out_clip

__all__ = ["PROBE_FOLDER", "ProbeUnit", "ProbeWorker", "plan_units", "probe_arms", "probe_unit"]

PROBE_FOLDER = "probe"
_VERSION = 1
_FIRST_STEP = 2_000_000
"""Of the counter: other noise than that of training and of its validation."""
_STEPS_PER_TIME = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeUnit:
    """Some clips of one arm at one rank."""

    name: str
    """Hash of what decides the row."""
    arm: str
    folder: str
    """Model folder."""
    identity: str
    """Hash of its content."""
    time: float
    with_motion: bool
    """Whether predictions are decoded to measure their motion."""
    keys: tuple[str, ...]


def probe_arms(
    config: RunConfig,
    arms: Sequence[Arm],
    keys: Sequence[str],
    *,
    folder: Path,
    session: ExitStack,
    debug: bool = False,
) -> tuple[list[dict[str, Any]], int]:
    """Probe all arms, and keep what is finished.

    Args:
        config: the run; its sections leak and evaluate.
        arms: models.
        keys: of the clips, in order.
        folder: of the report.
        session: where Ray is entered when something is left to do.
        debug: show the logs of workers.

    Returns:
        The rows of all units with the names of their arms, and how many units were made now.

    Raises:
        DataError: a model does not fit the clips.
        StageError: a worker failed.
    """
    fingerprint = open_dataset(config).manifest.fingerprint
    units = plan_units(config, arms, keys, fingerprint=fingerprint)
    place = folder / PROBE_FOLDER
    rows = {unit: _finished(place, unit) for unit in units}
    left = list({unit.name: unit for unit, row in rows.items() if row is None}.values())
    if left:
        session.enter_context(ray_session(config.cluster, debug=debug))
        own = config.evaluate
        # 1:1, a unit becomes its file; of workers only its name comes back
        results = map_rows(
            [{"unit": json.dumps(asdict(unit))} for unit in left],
            ProbeWorker if own.use_gpu else probe_unit,
            settings={"config": located(config), "folder": str(place.absolute())},
            concurrency=own.num_workers,
            max_retries=own.max_retries,
            num_gpus=int(own.use_gpu),
            doing="the leakage probe",
        )
        with stage_progress("leak: one-step predictions", len(left)) as progress:
            for _ in results:
                progress.advance()
        rows = {unit: row or _finished(place, unit) for unit, row in rows.items()}
    found = [{**row, "arm": unit.arm} for unit, row in rows.items() if row is not None]
    if len(found) < len(units):
        raise DataError(f"{len(units) - len(found)} probes left no result in {place}; run again")
    return found, len(left)


def plan_units(
    config: RunConfig, arms: Sequence[Arm], keys: Sequence[str], *, fingerprint: str
) -> list[ProbeUnit]:
    """Divide the probe into units.

    Args:
        config: the run.
        arms: models.
        keys: of the clips, in order; at least two.
        fingerprint: of the data set.
    """
    own = config.leak
    made_of = {
        "version": _VERSION,
        "dataset": fingerprint,
        "seed": config.seed,
        "motion_bucket_id": config.model.motion_bucket_id,
        "use_gpu": config.evaluate.use_gpu,
    }
    units = []
    for arm in arms:
        for chunk in _chunks(tuple(keys), own.clips_per_unit):
            for time in own.times:
                decides = {
                    "model": arm.identity,
                    "time": time,
                    "with_motion": time in own.motion_times,
                    "keys": chunk,
                }
                units.append(
                    ProbeUnit(
                        name=content_hash({**made_of, **decides})[:32],
                        arm=arm.name,
                        folder=str(arm.folder.absolute()),
                        identity=arm.identity,
                        time=time,
                        with_motion=time in own.motion_times,
                        keys=chunk,
                    )
                )
    return units


def _chunks(keys: tuple[str, ...], size: int) -> list[tuple[str, ...]]:
    """Divide keys; a single one that is left over joins those before it, as it has no other."""
    chunks = [keys[start : start + size] for start in range(0, len(keys), size)]
    if len(chunks) > 1 and len(chunks[-1]) == 1:
        chunks[-2:] = [chunks[-2] + chunks[-1]]
    return chunks


def _finished(folder: Path, unit: ProbeUnit) -> dict[str, Any] | None:
    """Read the row of a unit; None if it has to be made, also if it is damaged."""
    try:
        row = read_json(folder / f"{unit.name}.json")
    except (FileNotFoundError, DataError):
        return None
    ok = isinstance(row, dict) and row.get("keys") == list(unit.keys)
    return row if ok else None


class ProbeWorker:
    """A worker with a GPU: keeps the model on it from one unit to the next."""

    def __init__(self, **settings: Any) -> None:
        """Take the settings of `probe_unit`."""
        self._settings = settings

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Probe one unit."""
        return probe_unit(batch, **self._settings)


def probe_unit(batch: dict[str, Any], *, config: RunConfig, folder: str) -> dict[str, Any]:
    """Probe one unit and write its row: the worker's side.

    Args:
        batch: ``unit``, one `ProbeUnit` as JSON.
        config: the run.
        folder: where rows go.

    Returns:
        Its name, as a column.
    """
    import cv2

    if not config.evaluate.use_gpu:
        torch.set_num_threads(1)  # the same sums whatever the number of cores
    cv2.setNumThreads(1)
    raw = json.loads(str(batch["unit"][0]))
    unit = ProbeUnit(**{**raw, "keys": tuple(raw["keys"])})
    device = "cuda" if config.evaluate.use_gpu else "cpu"
    model = _model(unit.folder, unit.identity, device)
    row = measure(model, _clips(config, unit.keys), config, unit, device=torch.device(device))
    write_json(Path(folder) / f"{unit.name}.json", row)
    return {"name": np.array([unit.name], dtype=object)}


def measure(
    model: ImageToVideoModel,
    clips: Sequence[HeldOutClip],
    config: RunConfig,
    unit: ProbeUnit,
    *,
    device: torch.device,
) -> dict[str, Any]:
    """Probe a model on clips at the rank of a unit; returns the row.

    Raises:
        DataError: the model is made for clips of another shape.
    """
    shape = tuple(clips[0].stored.mean.shape)
    if tuple(model.latents_shape) != shape:
        raise DataError(
            f"arm {unit.arm} is made for latents {list(model.latents_shape)}, the clips have "
            f"{list(shape)}; report on a data set like the one it was trained on"
        )
    latents = drawn_latents(clips, model, config, step=None, device=device)
    probe = ClipProbe(model, latents, seed=config.seed, batch_size=config.validate.batch_size)
    found = probe.at(unit.time, step=_FIRST_STEP + round(unit.time * _STEPS_PER_TIME))
    sums = {name: _lists(*parts, unit) for name, parts in found.sums().items()}
    if unit.with_motion:
        sums["one_step_motion"] = _motion(model, clips, found, probe.level(unit.time))
    return {
        "arm": unit.arm,
        "time": unit.time,
        "level": probe.level(unit.time),
        "keys": list(unit.keys),
        "sums": sums,
    }


def _lists(
    top: torch.Tensor, bottom: torch.Tensor, unit: ProbeUnit
) -> tuple[list[float], list[float]]:
    """Return plain numbers; what is not finite is refused here, with its clip."""
    bad = (~(top.isfinite() & bottom.isfinite())).nonzero().flatten().tolist()
    if bad:
        raise DataError(
            f"a one-step prediction of arm {unit.arm} at t {unit.time:g} is not finite for clip "
            f"{unit.keys[bad[0]]}; its weights are broken, or the precision is too low"
        )
    return top.tolist(), bottom.tolist()


def _motion(
    model: ImageToVideoModel, clips: Sequence[HeldOutClip], probe: LeakageProbe, level: float
) -> tuple[list[float], list[float]]:
    """Return the consistent flow of decoded predictions and of the clips, px/frame at 256."""
    stage = model.first_stage
    factor = float(model.schedule.clean_scale(torch.tensor([level]))) * stage.scaling_factor
    predicted = [
        motion_score(np.asarray(stage.decode((latents / factor).float().cpu()))).consistent
        for latents in probe.p
    ]
    real = [motion_score(np.asarray(stage.decode(clip.stored.mean))).consistent for clip in clips]
    return predicted, real


@lru_cache(maxsize=1)
def _model(folder: str, identity: str, device: str) -> ImageToVideoModel:
    """Load a model once per worker; its identity makes a changed folder another one."""
    family = str(read_json(Path(folder) / "model.json").get("family"))
    model = load(family, folder)
    model.network.to(device).eval()
    return model


@lru_cache(maxsize=4)
def _clips(config: RunConfig, keys: tuple[str, ...]) -> tuple[HeldOutClip, ...]:
    places = clip_places(config)
    return tuple(held_out_clip(places[key]) for key in keys)
