"""The work of one evaluation worker: a unit in; its videos, features, rows in a folder. No Ray.

    real clips:  stored latents (or source frames) -> frames -> conditioning image, motion, features
    an arm:      conditioning image -> sampled or read video -> motion, alignment, features

A worker keeps its model and extractors for the next unit. Each video is made by itself with noise
of its own number, on one thread, so its numbers do not depend on what else is going on.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cil.analytic_init import AnalyticInit
from cil.errors import DataError
from cil.generate import generate_latents
from cil.models import FirstStage, ImageToVideoModel, load
from cil.models.storage import read_json as read_object
from pipelines.config import RunConfig
from pipelines.estimate import STATISTICS_FILE
from pipelines.evaluate.arms import Arm, refuse_other
from pipelines.evaluate.clip_measures import alignment_row, motion_row, unmeasured_row
from pipelines.evaluate.clip_set import EvaluationSet, clip_places
from pipelines.evaluate.extractors import FeatureExtractors
from pipelines.evaluate.units import (
    IMAGES_FOLDER,
    REAL_ARM,
    VIDEOS_FOLDER,
    Unit,
    features_path,
    write_finished,
)
from pipelines.evaluate.video_folder import find_videos, read_video
from pipelines.model_settings import FAMILIES_WITH_TEXT
from pipelines.storage import sha256_of_file, write_atomic
from pipelines.validation_clips import sample_id

__all__ = ["UnitWorker", "WorkerSettings", "work_on_unit"]

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSettings:
    """All that a worker must know, besides the unit."""

    config: RunConfig
    """With absolute paths."""
    folder: Path
    """Of the evaluation, absolute."""
    chosen: EvaluationSet
    arms: tuple[Arm, ...]
    """With absolute folders."""
    identity: str
    """Hash of all of this."""


def work_on_unit(
    batch: dict[str, npt.NDArray[Any]], *, settings: WorkerSettings
) -> dict[str, list[str]]:
    """Work on one unit in a worker process, which keeps its models for the next one.

    Args:
        batch: one row with the column ``unit``, a `Unit` as JSON.
        settings: of the evaluation.

    Returns:
        One row with the column ``unit``, the unit's name.
    """
    worker = _WORKERS.get(settings.identity)
    if worker is None:
        _WORKERS.clear()
        worker = _WORKERS[settings.identity] = UnitWorker(settings)
    return worker(batch)


_WORKERS: dict[str, "UnitWorker"] = {}


class UnitWorker:
    """Takes units, makes or reads their videos and measures them."""

    def __init__(self, settings: WorkerSettings) -> None:
        import cv2

        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        self._settings = settings
        self._arms = {arm.name: arm for arm in settings.arms}
        self._places = clip_places(settings.config)
        self._device = torch.device("cuda" if settings.config.evaluate.use_gpu else "cpu")
        self._first_stage: FirstStage | None = None
        self._opened: tuple[str, ImageToVideoModel] | None = None
        self._extractors = FeatureExtractors(
            settings.config.evaluate, settings.folder, device=self._device.type
        )

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, list[str]]:
        """Work on one unit; returns its name."""
        (text,) = batch["unit"]
        unit = Unit.from_json(json.loads(text))
        features: dict[str, list[npt.NDArray[Any]]] = {}
        rows = []
        for row, found in self._real(unit) if unit.arm == REAL_ARM else self._arm(unit):
            rows.append(row)
            for name, values in found.items():
                features.setdefault(name, []).append(values)
        folder = self._settings.folder
        if features:
            buffer = io.BytesIO()
            arrays: dict[str, Any] = {name: np.stack(parts) for name, parts in features.items()}
            np.savez(buffer, **arrays)
            write_atomic(features_path(folder, unit), buffer.getvalue())
        write_finished(folder, unit, rows)
        return {"unit": [unit.name]}

    def _real(self, unit: Unit) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Measure the real clips, and leave their first frames as the conditioning images."""
        fps = self._settings.chosen.fps
        for key in unit.clips:
            frames = self._real_frames(key)
            image = f"{IMAGES_FOLDER}/{key}.png"
            write_atomic(self._settings.folder / image, _png(frames[0]))
            yield (
                {
                    "clip_key": key,
                    **motion_row(frames, fps=fps),
                    "image": image,
                    "image_sha256": sha256_of_file(self._settings.folder / image),
                    "video": self._keep(frames, unit, f"{key}-real"),
                },
                self._extractors.features(frames),
            )

    def _real_frames(self, key: str) -> Frames:
        place = self._places[key]
        clip = place.reader.clip(place.index)
        if self._settings.chosen.reference == "source":
            from pipelines.evaluate.source_frames import source_frames

            return source_frames(clip.record, self._settings.config)
        if self._first_stage is None:
            self._first_stage = place.reader.first_stage()
        frames: Frames = np.asarray(self._first_stage.decode(clip.mean))
        return frames

    def _arm(self, unit: Unit) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        chosen, arm = self._settings.chosen, self._arms[unit.arm]
        for (key, seed), frames in self._videos(unit, arm):
            image = self._image(key)
            known = {
                "clip_key": key,
                "seed": seed,
                "start_time": unit.setting.start_time,
                "analytic_init": unit.setting.analytic_init,
            }
            if frames is None:
                nothing = self._extractors.nothing()
                yield {**known, **unmeasured_row(), "video": None, **nothing[0]}, nothing[1]
                continue
            if frames.shape[1:] != image.shape or len(frames) != chosen.size.num_frames:
                says = dict(zip(("num_frames", "height", "width"), frames.shape, strict=False))
                refuse_other(arm.name, says, chosen.size, chosen.fps)
            yield (
                {
                    **known,
                    **motion_row(frames, fps=chosen.fps),
                    **alignment_row(image, frames),
                    **self._extractors.scores(image, frames, fps=chosen.fps),
                    "video": self._keep(frames, unit, f"{key}-s{seed}"),
                },
                self._extractors.features(frames),
            )

    def _videos(self, unit: Unit, arm: Arm) -> Iterator[tuple[tuple[str, int], Frames | None]]:
        """Make or read the videos of a unit; None for one that is not finite."""
        pairs = [(key, seed) for key in unit.clips for seed in unit.seeds]
        if arm.kind == "videos":
            found = find_videos(arm.folder, self._settings.chosen)
            for pair in pairs:
                yield pair, read_video(found[pair], fps=self._settings.chosen.fps)
            return
        model = self._model(arm)
        for key, seed in pairs:
            yield (key, seed), self._sampled(model, arm, unit, key, seed)

    def _model(self, arm: Arm) -> ImageToVideoModel:
        """Return the model of an arm; it stays until that of another arm is asked for."""
        if self._opened is None or self._opened[0] != arm.name:
            self._opened = None  # its memory goes first
            told = self._settings.chosen if self._settings.config.evaluate.as_clips else None
            self._opened = arm.name, _open_model(arm.folder, told, self._device)
        return self._opened[1]

    def _sampled(
        self, model: ImageToVideoModel, arm: Arm, unit: Unit, key: str, seed: int
    ) -> Frames | None:
        setting = unit.setting
        assert setting.start_time is not None
        assert setting.num_steps is not None
        statistics = None
        if setting.analytic_init:
            statistics = AnalyticInit.load(arm.folder / STATISTICS_FILE)
        caption = None
        if model.family in FAMILIES_WITH_TEXT:
            place = self._places[key]
            caption = place.reader.clip(place.index).record.caption
        (latents,) = generate_latents(
            model,
            self._image(key),
            seed=seed,
            sample_ids=[sample_id(key)],
            start_time=setting.start_time,
            analytic_init=statistics,
            num_steps=setting.num_steps,
            prompt=caption,
        )
        if not latents.isfinite().all():
            return None
        return np.asarray(model.first_stage.decode(latents))

    def _image(self, key: str) -> Frames:
        from pipelines.video_io import read_image

        return read_image(self._settings.folder / IMAGES_FOLDER / f"{key}.png")

    def _keep(self, frames: Frames, unit: Unit, name: str) -> str | None:
        """Write a video as the settings say; returns its path from the evaluation's folder."""
        kind = self._settings.config.evaluate.videos
        if kind == "none":
            return None
        relative = f"{VIDEOS_FOLDER}/{unit.name[:12]}/{name}.{kind}"
        path = self._settings.folder / relative
        if kind == "npz":
            buffer = io.BytesIO()
            np.savez_compressed(buffer, frames=frames)
            write_atomic(path, buffer.getvalue())
        else:
            from pipelines.video_io import enlarge, write_mp4

            write_mp4(path, enlarge(frames), fps=self._settings.chosen.fps)
        return relative


def _open_model(
    folder: Path, told: EvaluationSet | None, device: torch.device
) -> ImageToVideoModel:
    """Read a model, on request for the size, length and rate of the clips."""
    family = read_object(folder / "model.json").get("family")
    if not isinstance(family, str):
        raise DataError(f"{folder}/model.json names no family of models; save the model again")
    options: dict[str, Any] = {}
    if told is not None and family != "tiny":
        size = told.size
        options = {"num_frames": size.num_frames, "height": size.height, "width": size.width}
        options["fps"] = told.fps
    model = load(family, folder, **options)
    model.network.to(device).eval()
    return model


def _png(picture: Frames) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()
