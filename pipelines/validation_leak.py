"""How much of a one-step prediction on held-out clips comes from the condition; see `cil.metrics`.

In: a model and held-out clips. Out: the leakage measures at some ranks t of the training noise
levels, with the same noise for every checkpoint and a clean condition, as in sampling.
"""

from collections.abc import Sequence
from typing import Any

import torch

from cil.models import ImageToVideoModel
from pipelines.config import RunConfig
from pipelines.leak_probe import ClipProbe
from pipelines.validation_clips import HeldOutClip, drawn_latents

__all__ = ["LEAK_TIME", "TIMES", "leak_by_time"]

TIMES = (0.25, 0.5, 0.75, 0.9, 0.97)
"""Ranks of training noise levels, least noise first."""
LEAK_TIME = 0.75
"""The rank that one number stands for: much noise, but motion still shows through it."""

_FIRST_STEP = 1_000_000
"""Of the counter: other noise than that of the loss."""
_MEASURES = (
    "motion_transfer_ratio",
    "condition_dominance",
    "frame_difference_ratio",
    "one_step_mse",
)


@torch.no_grad()
def leak_by_time(
    model: ImageToVideoModel,
    clips: Sequence[HeldOutClip],
    config: RunConfig,
    *,
    device: torch.device,
) -> dict[str, Any]:
    """Measure the leak at each of `TIMES`.

    Args:
        model: network in evaluation mode, on ``device``.
        clips: of the model's bucket, at least two.
        config: the run.
        device: where to compute.

    Returns:
        ``by_time``: a row of measures per time; and of `LEAK_TIME` ``val_motion_transfer``,
        ``val_condition_dominance``, ``val_one_step_motion`` (motion of the prediction over that of
        the clip) and ``per_clip``, the motion transfer ratio of each clip, None where it is still.
    """
    latents = drawn_latents(clips, model, config, step=None, device=device)
    clip_probe = ClipProbe(model, latents, seed=config.seed, batch_size=config.validate.batch_size)
    rows, result = [], {}
    for number, time in enumerate(TIMES):
        probe = clip_probe.at(time, step=_FIRST_STEP + number)
        found = probe.measures()
        measures = {name: found[name] for name in _MEASURES}
        level = clip_probe.level(time)
        rows.append({"time": time, "level": level, "n": len(clips), **measures})
        if time == LEAK_TIME:
            moved, motion = probe.sums()["motion_transfer_ratio"]
            per_clip = moved / motion
            result = {
                "val_motion_transfer": measures["motion_transfer_ratio"],
                "val_condition_dominance": measures["condition_dominance"],
                "val_one_step_motion": measures["frame_difference_ratio"],
                "per_clip": [float(value) if value.isfinite() else None for value in per_clip],
            }
    return {**result, "by_time": rows, "clips": len(clips)}
