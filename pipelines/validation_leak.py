"""How much of a one-step prediction on held-out clips comes from the condition; see `cil.metrics`.

In: a model and held-out clips. Out: the leakage measures at some ranks t of the training noise
levels, with the same noise for every checkpoint and a clean condition, as in sampling.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cil.metrics.leakage import motion_transfer_ratio, probe_leakage
from cil.models import Condition, ImageToVideoModel
from cil.parameterization import Denoiser
from cil.rng import Stream, normal
from pipelines.clip_inputs import DrawnClips
from pipelines.config import RunConfig
from pipelines.validation_clips import HeldOutClip, drawn_latents

__all__ = ["LEAK_TIME", "TIMES", "leak_by_time"]

TIMES = (0.25, 0.5, 0.75, 0.9, 0.97)
"""Ranks of training noise levels, least noise first."""
LEAK_TIME = 0.75
"""The rank that one number stands for: much noise, but motion still shows through it."""

_FIRST_STEP = 1_000_000
"""Of the counter: other noise than that of the loss."""


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
    ids = latents.sample_ids
    make_denoiser = _Denoisers(model, latents, config)
    rows, result = [], {}
    for number, time in enumerate(TIMES):
        level = model.schedule.level(torch.tensor([time], dtype=torch.float64)).float()
        noise = normal(
            latents.clean.shape[1:],
            seed=config.seed,
            sample_ids=ids,
            stream=Stream.VIDEO_NOISE,
            step=_FIRST_STEP + number,
        )
        probe = probe_leakage(
            make_denoiser,
            latents.clean,
            latents.frame,
            noise,
            schedule=model.schedule,
            level=level.to(device).expand(len(clips)),
        )
        measures = probe.measures()
        rows.append({"time": time, "level": float(level), "n": len(clips), **measures})
        if time == LEAK_TIME:
            per_clip = motion_transfer_ratio(
                probe.p, probe.p_static, probe.clean, probe.frame, per_clip=True
            )
            result = {
                "val_motion_transfer": measures["motion_transfer_ratio"],
                "val_condition_dominance": measures["condition_dominance"],
                "val_one_step_motion": measures["frame_difference_ratio"],
                "per_clip": [float(value) if value.isfinite() else None for value in per_clip],
            }
    return {**result, "by_time": rows, "clips": len(clips)}


class _Denoisers:
    """Makes denoisers for clips in an order; they take a few clips at a time."""

    def __init__(self, model: ImageToVideoModel, latents: DrawnClips, config: RunConfig) -> None:
        self._model, self._size = model, config.validate.batch_size
        told = latents.clips
        self._condition = Condition(
            conditioning_latents=latents.conditioning.expand_as(latents.clean),
            image_embeds=latents.tokens,
            fps=told.fps,
            motion_bucket_id=told.motion_bucket_id,
            frame_stride=told.frame_stride,
            text_embeds=told.text_embeds,
            sigma_cond=torch.zeros_like(told.fps),
        )

    def __call__(self, order: Tensor) -> Denoiser:
        def denoise(noisy: Tensor, level: Tensor) -> Tensor:
            parts = [
                self._model.denoise(noisy[place], level[place], self._condition.rows(order[place]))
                for place in torch.split(torch.arange(len(order), device=order.device), self._size)
            ]
            return torch.cat(parts)

        return denoise
