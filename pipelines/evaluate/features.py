"""The features of all videos of an evaluation in one file, ``features.npz``.

In: the files that the units left. Out: for the real clips and each arm and setting, one array
(rows, D) per extractor, in the order of the rows of ``per_clip.parquet``; NaN for a video that is
not finite. The name of an array is `feature_key` and the extractor, as ``tuned|0.94|1/i3d``.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cil.errors import DataError
from pipelines.evaluate.units import Unit, features_path
from pipelines.storage import write_atomic

__all__ = ["FEATURES_FILE", "Features", "feature_key", "write_features"]

FEATURES_FILE = "features.npz"

Features = dict[str, dict[str, npt.NDArray[Any]]]
"""By `feature_key`, then by extractor."""


def feature_key(arm: str, start_time: float | None, analytic_init: bool | None) -> str:
    """Name an arm with its setting in the file of features."""
    if start_time is None:
        return arm
    return f"{arm}|{start_time:g}|{int(bool(analytic_init))}"


def write_features(folder: Path, reference: Sequence[Unit], units: Sequence[Unit]) -> Features:
    """Collect the features of all units and write them, if there are any.

    Raises:
        DataError: a file is damaged.
    """
    parts: dict[str, dict[str, list[npt.NDArray[Any]]]] = {}
    for unit in [*reference, *units]:
        path = features_path(folder, unit)
        if not path.exists():
            continue
        setting = unit.setting
        key = feature_key(unit.arm, setting.start_time, setting.analytic_init)
        try:
            with np.load(path, allow_pickle=False) as file:
                for name in file.files:
                    parts.setdefault(key, {}).setdefault(name, []).append(file[name])
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is damaged: {error}; delete it and the rows beside it") from (
                error
            )
    features = {
        key: {name: np.concatenate(arrays) for name, arrays in found.items()}
        for key, found in parts.items()
    }
    if features:
        buffer = io.BytesIO()
        flat: dict[str, Any] = {
            f"{key}/{name}": array
            for key, found in features.items()
            for name, array in found.items()
        }
        np.savez(buffer, **flat)
        write_atomic(folder / FEATURES_FILE, buffer.getvalue())
    return features
