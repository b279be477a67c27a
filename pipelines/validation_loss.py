"""The loss of training on held-out clips, by noise level, with the same noise for every checkpoint.

The distribution of training noise levels is cut into equally likely bins; each clip gets one level
in each bin. So the mean over all is an unbiased estimate of the training loss, and what differs
from one checkpoint to the next is the network alone.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cil.losses import denoising_loss, draw_training
from cil.models import ImageToVideoModel
from cil.rng import Stream, uniform
from cil.time_noise import Corruption, TimeNoiseConfig
from pipelines.clip_inputs import DrawnClips
from pipelines.config import RunConfig
from pipelines.validation_clips import HeldOutClip, chunks, drawn_latents

__all__ = ["binned_level", "held_out_loss", "mean_and_error"]


def binned_level(
    model: ImageToVideoModel, sample_ids: Tensor, *, seed: int, number: int, num_bins: int
) -> Tensor:
    """Draw one noise level per clip from a bin of the training distribution.

    Args:
        model: for its schedule.
        sample_ids: (B,) int64.
        seed: the run's seed.
        number: of the bin, from 0, which has the least noise.
        num_bins: equally likely bins.

    Returns:
        (B,) float32.
    """
    # in float64: (4 + u) / 5 rounds to 1 in float32, and the level of 1 is infinite
    part = uniform((), seed=seed, sample_ids=sample_ids, stream=Stream.TIME, step=number).double()
    return model.schedule.level((number + part) / num_bins).float()


@torch.no_grad()
def held_out_loss(
    model: ImageToVideoModel,
    clips: Sequence[HeldOutClip],
    config: RunConfig,
    *,
    device: torch.device,
) -> dict[str, Any]:
    """Measure the loss on clips, with the noise of training on the condition and without.

    Args:
        model: network in evaluation mode, on ``device``.
        clips: held-out clips, at least one.
        config: the run.
        device: where to compute.

    Returns:
        ``val_loss`` and ``val_loss_clean`` with their standard errors over clips
        (``..._error``, None for one clip), ``clips`` and ``by_bin``.
    """
    noised = config.time_noise.build(model.schedule)
    clean = TimeNoiseConfig(preset="none").build(model.schedule)
    size, num_bins = config.validate.batch_size, config.validate.num_bins
    by_bin: list[dict[str, Any]] = []
    totals = {"loss": [0.0] * len(clips), "loss_clean": [0.0] * len(clips)}
    for number in range(num_bins):
        found: dict[str, list[float]] = {"loss": [], "loss_clean": []}
        for batch in chunks(clips, size):
            latents = drawn_latents(batch, model, config, step=number, device=device)
            for name, corruption in (("loss", noised), ("loss_clean", clean)):
                losses = _losses(model, latents, corruption, config, number=number)
                found[name] += losses.double().tolist()
        row: dict[str, Any] = {"from": number / num_bins, "to": (number + 1) / num_bins}
        for name, values in found.items():
            row[name], row[f"{name}_error"] = mean_and_error(values)
            totals[name] = [a + b / num_bins for a, b in zip(totals[name], values, strict=True)]
        by_bin.append({**row, "n": len(clips)})
    result: dict[str, Any] = {"by_bin": by_bin, "clips": len(clips)}
    for name, values in totals.items():
        result[f"val_{name}"], result[f"val_{name}_error"] = mean_and_error(values)
    return result


def _losses(
    model: ImageToVideoModel,
    latents: DrawnClips,
    corruption: Corruption,
    config: RunConfig,
    *,
    number: int,
) -> Tensor:
    """Return the loss of each clip in one bin of noise levels, (B,)."""
    draws = draw_training(
        latents.clean.shape,
        schedule=model.schedule,
        corruption=corruption,
        seed=config.seed,
        sample_ids=latents.sample_ids,
        step=number,
        token_shape=latents.tokens.shape[1:],
    )
    level = binned_level(
        model,
        latents.sample_ids,
        seed=config.seed,
        number=number,
        num_bins=config.validate.num_bins,
    )
    return denoising_loss(
        model.network_call(latents.clips),
        latents.clean,
        latents.conditioning,
        schedule=model.schedule,
        parameterization=model.parameterization,
        corruption=corruption,
        draws=replace(draws, level=level),
        tokens=latents.tokens,
    ).per_sample


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error; None for the error of one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    return mean, statistics.stdev(values) / math.sqrt(len(values))
