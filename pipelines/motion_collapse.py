"""The rule that says when a training is losing its motion: samples freeze and the leak grows.

Two numbers are followed over the validations, per clip and with the same noise each time: how much
a sampled video moves over how much the real clip does, at most 1, so that noise that turns into
a picture is no loss; and the motion transfer ratio at rank 0.75, the share of the motion in the
noisy video that reaches a one-step prediction. For each, the last ``collapse_validations`` values
are compared with the best one before them. Motion has collapsed if for both numbers

- each of them has lost at least ``collapse_drop`` of that best value,
- and by more than ``collapse_z`` standard errors of the differences between clips,
- and the last is not above the first of them by more than that: nothing recovers.

One number alone proves nothing: samples stand still where the clips do, and the ratio also falls
while a network learns what cannot be known.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from pipelines.settings import ValidateConfig
from pipelines.validation_loss import mean_and_error

__all__ = ["motion_collapse"]

Series = list[list[float]]
"""A number for each clip, for each validation."""


def motion_collapse(history: Sequence[dict[str, Any]], settings: ValidateConfig) -> str | None:
    """Tell whether the last validation shows that motion has collapsed.

    Args:
        history: records of all validations of a run, as ``metrics.json`` has them, by step.
        settings: ``collapse_validations``, ``collapse_drop`` and ``collapse_z``.

    Returns:
        What has happened and what to do, or None.
    """
    if len(history) <= settings.collapse_validations:
        return None
    moving = [[row["motion_ratio"] for row in record["videos"]] for record in history]
    motion = _fall([[None if v is None else min(v, 1.0) for v in row] for row in moving], settings)
    transfer = _fall([record["motion_transfer_per_clip"] for record in history], settings)
    if motion is None or transfer is None:
        return None
    return (
        f"motion collapse: by step {history[-1]['step']} the motion of samples fell from "
        f"{motion[0]:.2f} to {motion[1]:.2f} of that of the held-out clips, and the motion "
        f"transfer ratio from {transfer[0]:.2f} to {transfer[1]:.2f}: the network copies the image "
        "and ignores the noisy video. Stop, take the checkpoint in train/best, and train with more "
        "noise on the condition (time_noise.beta_m, or preset mild instead of none) or a lower "
        "train.learning_rate"
    )


def _fall(
    rows: Sequence[Sequence[float | None]], settings: ValidateConfig
) -> tuple[float, float] | None:
    """Return the best mean before and the last one, if the rule holds for this number."""
    series = _complete(rows)
    if not series or len(series[0]) < 2:
        return None
    before = series[: -settings.collapse_validations]
    recent = series[-settings.collapse_validations :]
    best = max(before, key=statistics.fmean)
    height = statistics.fmean(best)
    for row in recent:
        loss = statistics.fmean(best) - statistics.fmean(row)
        if loss < settings.collapse_drop * height or not _beyond_noise(best, row, settings):
            return None
    if height <= 0 or _beyond_noise(recent[-1], recent[0], settings):
        return None
    return height, statistics.fmean(recent[-1])


def _beyond_noise(high: Sequence[float], low: Sequence[float], settings: ValidateConfig) -> bool:
    """Tell whether one row is above another by more than the differences between clips explain."""
    gap, error = mean_and_error([a - b for a, b in zip(high, low, strict=True)])
    return error is not None and gap > settings.collapse_z * error


def _complete(rows: Sequence[Sequence[float | None]]) -> Series:
    """Keep the clips that have a number in every validation; none if their count changes."""
    if len({len(row) for row in rows}) != 1:
        return []
    kept = [column for column in zip(*rows, strict=True) if None not in column]
    return [[float(v) for v in row if v is not None] for row in zip(*kept, strict=True)]
