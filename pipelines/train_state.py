"""Where a training run is, and what must agree for it to go on: ``train_state.json``."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

from cil.errors import DataError

__all__ = ["STATE_FILE", "TrainState", "read_state"]

STATE_FILE = "train_state.json"
_VERSION = 2
_HASHES = {
    "model_hash": "hash of the settings of the model",
    "encoder_hash": "hash of what the data set was encoded with",
    "manifest_fingerprint": "version of the data set",
    "config_hash": "hash of all that decides the weights",
}


@dataclass(kw_only=True, slots=True)
class TrainState:
    """Where a run is; with the run's settings it decides everything that follows.

    None stands for what version 1 of the format did not record.
    """

    format_version: int = _VERSION
    num_steps: int = 0
    """Optimiser steps done; the position in the order of the clips, too."""
    num_clips_seen: int = 0
    """Clips trained on."""
    epoch: int | None = None
    """Epoch of the data set that the next step belongs to."""
    seed: int = 0
    """Seed of order and noise; with ``num_steps`` it is the whole state of all randomness."""
    world_size: int = 1
    """Workers that wrote the checkpoint."""
    zero_stage: int | None = None
    """What was divided over them."""
    trainable: str | None = None
    """What is trained."""
    model_hash: str | None = None
    """Hash of the settings of the model."""
    encoder_hash: str | None = None
    """Hash of the settings and of the first stage that the data set was encoded with."""
    manifest_fingerprint: str = ""
    """Version of the data set."""
    config_hash: str = ""
    """Hash of all that decides the weights."""

    def require_same_run(self, other: "TrainState") -> None:
        """Refuse to resume from another run's checkpoint.

        Args:
            other: of the checkpoint.

        Raises:
            DataError: something differs; both values are in the message.
        """
        if not 1 <= other.format_version <= self.format_version:
            raise DataError(
                f"the checkpoint has another format: format_version is {other.format_version} "
                f"there and {self.format_version} here; go on with the version of this program "
                "that wrote it, or use another output.dir"
            )
        names = ["seed", "trainable", "zero_stage", *_HASHES]
        if other.format_version == 1:  # each worker has its own part of the average there
            names = ["seed", "world_size", "config_hash", "manifest_fingerprint"]
        for name in names:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                what = f" ({_HASHES[name]})" if name in _HASHES else ""
                raise DataError(
                    f"the checkpoint is of another run: {name}{what} is {theirs} there and {mine} "
                    "here; use the settings it was made with, or another output.dir"
                )


def read_state(folder: Path) -> TrainState:
    """Read where the run of a checkpoint was.

    Raises:
        OSError: there is no such file.
        ValueError: it is not JSON, or has other fields than this version knows.
    """
    found = json.loads((folder / STATE_FILE).read_bytes())
    if not isinstance(found, dict):
        raise ValueError(f"{STATE_FILE} holds no fields")
    names = {field.name for field in fields(TrainState)}
    # A later version may have other fields; its number is what the message is about.
    known = {name: value for name, value in found.items() if name in names}
    if known.get("format_version", 0) <= _VERSION and set(found) != set(known):
        raise ValueError(f"unknown fields {sorted(set(found) - set(known))} in {STATE_FILE}")
    return TrainState(**known)
