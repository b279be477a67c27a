"""Feature extractors that the user supplies, as settings name them.

In: `EvaluateConfig` with files and folders. Out: their hashes, without opening them, and why others
are absent; and in a worker `FeatureExtractors`, which turn frames into features for distances
between sets of videos and into scores of one video, and say what they are in a file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cil.errors import ConfigError
from cil.metrics.extractors import PREPROCESSING, VideoNetwork
from cil.metrics.weight_files import reason_for_absence
from pipelines.config import content_hash
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.units import UNITS_FOLDER
from pipelines.storage import hash_of_folder, read_json, sha256_of_file, write_json

__all__ = [
    "EXTRACTORS",
    "SCORES",
    "FeatureExtractors",
    "check_lengths",
    "described_extractors",
    "extractor_hashes",
    "reasons_for_absence",
]

_OF_SETS = ("i3d", "videomae", "features", "c3d")
"""Settings of TorchScript files whose rows make sets; also their kinds in `VideoNetwork`."""
SCORES = {
    "raft": ("motion_raft", "motion_raft_consistent", "dynamic_degree"),
    "clip": ("clip_alignment", "clip_consistency"),
    "dino": ("dino_subject", "dino_image_subject"),
}
"""Columns of the other extractors, one number per video, by their setting."""
EXTRACTORS = (*_OF_SETS, *SCORES)
"""Settings that name one."""

Frames = npt.NDArray[np.uint8]


def extractor_hashes(settings: EvaluateConfig) -> dict[str, str]:
    """Hash the extractors that are there, by the name of their setting."""
    absent = reasons_for_absence(settings)
    hashes = {}
    for name in EXTRACTORS:
        if name not in absent:
            path = Path(getattr(settings, name))
            hashes[name] = hash_of_folder(path) if path.is_dir() else sha256_of_file(path)
    return hashes


def reasons_for_absence(settings: EvaluateConfig) -> dict[str, str]:
    """Say why an extractor is absent, by its setting: none was given, or it is not there."""
    found: dict[str, str] = {}
    for name in EXTRACTORS:
        place = getattr(settings, name)
        if place is None:
            found[name] = f"evaluate.{name} is not set"
        elif reason_for_absence(place, name):
            found[name] = f"evaluate.{name}: there is no {place}"
    return found


def check_lengths(hashes: Mapping[str, str], num_frames: int) -> None:
    """Refuse extractors that do not take videos of so many frames.

    Raises:
        ConfigError: one of them, with both numbers.
    """
    for name in set(hashes) & set(_OF_SETS):
        takes = PREPROCESSING[name]
        if (takes.num_frames or num_frames) != num_frames or num_frames < takes.least_frames:
            wanted = takes.num_frames or f"at least {takes.least_frames}"
            raise ConfigError(
                f"evaluate.{name} takes {wanted} frames, the clips have {num_frames}; set "
                f"evaluate.{name} to null, or evaluate on longer clips"
            )


def described_extractors(folder: Path, hashes: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Read what workers wrote about the extractors: ``sha256`` and ``preprocessing`` of each."""
    path = _description(folder, hashes)
    found: dict[str, dict[str, str]] = read_json(path) if path.exists() else {}
    return {name: found.get(name, {"sha256": sha256}) for name, sha256 in hashes.items()}


class FeatureExtractors:
    """The extractors of a worker, opened once; a wrong one is refused then."""

    def __init__(self, settings: EvaluateConfig, folder: Path, *, device: str) -> None:
        """Open all that are there.

        Args:
            settings: of evaluation.
            folder: of the evaluation, where what they are is written down.
            device: cpu or cuda.

        Raises:
            DataError: a file is of another network.
        """
        hashes = extractor_hashes(settings)
        self._of_sets = {
            name: VideoNetwork.from_file(getattr(settings, name), name, device=device)
            for name in _OF_SETS
            if name in hashes
        }
        self._scoring: dict[str, Any] = {}
        for name in SCORES:
            if name in hashes:
                self._scoring[name] = _open(name, settings, device)
        path = _description(folder, hashes)
        if hashes and not path.exists():
            write_json(path, self._described())

    def features(self, frames: Frames) -> dict[str, npt.NDArray[np.float32]]:
        """Return one row per extractor of sets, (D,)."""
        return {name: each.features(frames[None])[0] for name, each in self._of_sets.items()}

    def scores(self, image: Frames, frames: Frames, *, fps: float) -> dict[str, float]:
        """Return the scores of one video by the other extractors, by column of `SCORES`."""
        found: dict[str, float] = {}
        for name, network in self._scoring.items():
            values: tuple[float, ...]
            if name == "raft":
                values = _by_flow(network, frames, fps)
            else:
                values = _by_embeddings(name, network, image, frames)
            found |= dict(zip(SCORES[name], values, strict=True))
        return found

    def nothing(self) -> tuple[dict[str, None], dict[str, npt.NDArray[np.float32]]]:
        """Return what stands for scores and features of a video that is not finite."""
        columns = [column for name in self._scoring for column in SCORES[name]]
        rows = {
            name: np.full(each.width, np.nan, np.float32) for name, each in self._of_sets.items()
        }
        return dict.fromkeys(columns), rows

    def _described(self) -> dict[str, dict[str, str]]:
        sets = {
            name: {"sha256": each.sha256, "preprocessing": each.preprocessing.name}
            for name, each in self._of_sets.items()
        }
        scoring = {
            name: {"sha256": each.sha256, "preprocessing": each.preprocessing}
            for name, each in self._scoring.items()
        }
        return {**sets, **scoring}


def _open(name: str, settings: EvaluateConfig, device: str) -> Any:
    from cil.metrics.embeddings import ImageNetwork
    from cil.metrics.raft import RAFTFlow

    place = getattr(settings, name)
    if name == "raft":
        return RAFTFlow.from_file(place, pixels=settings.raft_pixels, device=device)
    network = ImageNetwork.from_folder(place, device=device)
    if network.kind != name:
        raise ConfigError(f"evaluate.{name} = {place} holds a {network.kind} network; exchange it")
    return network


def _by_flow(method: Any, frames: Frames, fps: float) -> tuple[float, float, float]:
    from cil.metrics.motion import motion_score
    from cil.metrics.motion_judgement import dynamic_degree

    score = motion_score(frames, method=method)
    degree = dynamic_degree(frames, fps=fps, method=method, score=score)
    return score.value, score.consistent, float(degree.moves)


def _by_embeddings(name: str, network: Any, image: Frames, frames: Frames) -> tuple[float, float]:
    from cil.metrics import alignment

    of_frames, of_image = network.embed(frames)[None], network.embed(image[None])
    if name == "clip":
        aligned = alignment.image_alignment(of_frames, of_image)
        return float(aligned[0]), float(alignment.temporal_consistency(of_frames)[0])
    subject = alignment.subject_consistency(of_frames)
    return float(subject[0]), float(alignment.image_subject_consistency(of_frames, of_image)[0])


def _description(folder: Path, hashes: Mapping[str, str]) -> Path:
    return folder / UNITS_FOLDER / f"extractors-{content_hash(dict(hashes))[:12]}.json"
