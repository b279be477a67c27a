"""Units of work: a few clips of one arm at one start time; what is committed and restarted by.

In: arms, an `EvaluationSet` and settings. Out: `Unit`s whose name is a hash of all that decides
their numbers, never of how many workers there are; and the rows of finished ones, read from
``units/NAME.parquet``, which is written last.
"""

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.config import content_hash
from pipelines.evaluate.arms import Arm, sampling_settings
from pipelines.evaluate.clip_set import EvaluationSet
from pipelines.evaluate.config import EvaluateConfig
from pipelines.storage import write_atomic

__all__ = [
    "IMAGES_FOLDER",
    "REAL_ARM",
    "UNITS_FOLDER",
    "VIDEOS_FOLDER",
    "Setting",
    "Unit",
    "features_path",
    "plan_arm",
    "plan_reference",
    "read_finished",
    "write_finished",
]

REAL_ARM = "real"
"""Stands for the real clips in units and features; no arm's own name."""
UNITS_FOLDER, VIDEOS_FOLDER, IMAGES_FOLDER = "units", "videos", "images"
_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """How an arm is sampled; all None for videos that were made elsewhere."""

    start_time: float | None
    analytic_init: bool | None
    num_steps: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """Clips of one arm with one setting."""

    arm: str
    setting: Setting
    clips: tuple[str, ...]
    seeds: tuple[int, ...]
    name: str
    """Hash of what decides the rows."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Unit":
        """Build the unit from plain data."""
        return cls(
            arm=raw["arm"],
            setting=Setting(**raw["setting"]),
            clips=tuple(raw["clips"]),
            seeds=tuple(raw["seeds"]),
            name=raw["name"],
        )


def plan_reference(
    chosen: EvaluationSet, settings: EvaluateConfig, *, made_of: Mapping[str, Any]
) -> list[Unit]:
    """Plan the measures of the real clips.

    Args:
        chosen: the clips.
        settings: of evaluation.
        made_of: what else decides the rows: first stage, extractors.
    """
    setting = Setting(start_time=None, analytic_init=None, num_steps=None)
    return list(_units(REAL_ARM, setting, chosen, seeds=(), settings=settings, made_of=made_of))


def plan_arm(
    arm: Arm,
    chosen: EvaluationSet,
    settings: EvaluateConfig,
    *,
    start_times: Sequence[float],
    analytic_init: Sequence[bool],
    made_of: Mapping[str, Any],
) -> list[Unit]:
    """Plan all settings of an arm, in the order of start times, then Analytic-Init.

    Args:
        arm: the arm.
        chosen: the clips.
        settings: of evaluation.
        start_times: empty takes the model's own.
        analytic_init: empty takes the model's own.
        made_of: what else decides the rows: extractors.
    """
    made_of = {**made_of, "arm": arm.identity, "kind": arm.kind}

    def of(setting: Setting) -> Iterator[Unit]:
        return _units(
            arm.name, setting, chosen, seeds=chosen.seeds, settings=settings, made_of=made_of
        )

    if arm.kind == "videos":
        nothing = Setting(start_time=None, analytic_init=None, num_steps=None)
        return list(of(nothing))
    own = sampling_settings(arm.folder)
    pairs = itertools.product(
        start_times or (own["start_time"],), analytic_init or (own["analytic_init"],)
    )
    units: list[Unit] = []
    for start_time, start_from_gaussian in pairs:
        setting = Setting(
            start_time=float(start_time),
            analytic_init=bool(start_from_gaussian),
            num_steps=int(settings.num_steps or own["num_steps"]),
        )
        units += of(setting)
    return units


def _units(
    arm: str,
    setting: Setting,
    chosen: EvaluationSet,
    *,
    seeds: tuple[int, ...],
    settings: EvaluateConfig,
    made_of: Mapping[str, Any],
) -> Iterator[Unit]:
    for start in range(0, len(chosen.clips), settings.clips_per_unit):
        clips = chosen.clips[start : start + settings.clips_per_unit]
        name = content_hash(
            {
                "version": _VERSION,
                "setting": asdict(setting),
                "clips": clips,
                "seeds": seeds,
                "reference": chosen.reference,
                "bucket": chosen.bucket,
                "fps": chosen.fps,
                "videos": settings.videos,
                "use_gpu": settings.use_gpu,
                "as_clips": settings.as_clips,
                **made_of,
            }
        )
        yield Unit(arm=arm, setting=setting, clips=clips, seeds=seeds, name=name[:32])


def features_path(folder: Path, unit: Unit) -> Path:
    """Name the file of a unit's features."""
    return folder / UNITS_FOLDER / f"{unit.name}.npz"


def write_finished(folder: Path, unit: Unit, rows: Sequence[Mapping[str, Any]]) -> None:
    """Commit a unit: its rows, after everything else of it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), buffer)
    write_atomic(_rows_path(folder, unit), buffer.getvalue())


def read_finished(folder: Path, unit: Unit) -> list[dict[str, Any]] | None:
    """Read the rows of a unit; None if it has to be worked on, also if a file of it is gone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = _rows_path(folder, unit)
    try:
        table = pq.ParquetFile(io.BytesIO(path.read_bytes())).read()
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
    rows: list[dict[str, Any]] = table.to_pylist()
    files = [row[name] for row in rows for name in ("video", "image") if row.get(name)]
    return rows if all((folder / file).exists() for file in files) else None


def _rows_path(folder: Path, unit: Unit) -> Path:
    return folder / UNITS_FOLDER / f"{unit.name}.parquet"
