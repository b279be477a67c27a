"""Stored clips as training sees them: a sample of the posterior, scaled, and what they are told.

In: posteriors and conditions of some clips of one bucket, as a data set holds them. Out: tensors on
the device of the network. Training, validation and the picture of the first batch share this.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cil.models import ClipConditions, ImageToVideoModel
from cil.rng import Stream, normal, uniform
from pipelines.batches import Batch
from pipelines.config import RunConfig
from pipelines.records import ClipRecord

__all__ = ["DrawnClips", "clip_conditions", "draw_batch", "draw_clips"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnClips:
    """Some clips of one bucket in the scale of training."""

    clean: Tensor
    """(B, F, C, h, w) scaled clean latents."""
    conditioning: Tensor
    """(B, 1, C, h, w) conditioning frame in the scale that the network gets, without noise; or
    (B, F, C, h, w) where a data set holds more."""
    frame: Tensor
    """(B, 1, C, h, w) conditioning frame in the scale of ``clean``."""
    tokens: Tensor
    """(B, L, D) image tokens as the network attends to them."""
    clips: ClipConditions
    """What else the network may be told."""
    sample_ids: Tensor
    """(B,) int64 numbers of the clips in the counter of all random numbers."""


def draw_batch(
    config: RunConfig, model: ImageToVideoModel, batch: Batch, *, sample_ids: Tensor, step: int
) -> DrawnClips:
    """Draw the latents of a batch of training; see `draw_clips`."""
    frames = None
    if config.train.conditioning_frame == "random":
        drawn = uniform(
            (),
            seed=config.seed,
            sample_ids=sample_ids,
            stream=Stream.CONDITIONING_FRAME,
            step=step,
        )
        frames = (drawn * batch.mean.shape[1]).long()
    return draw_clips(
        config,
        model,
        records=batch.records,
        mean=batch.mean,
        std=batch.std,
        image_embeds=batch.image_embeds,
        text_embeds=batch.text_embeds,
        conditioning_latents=batch.conditioning_latents,
        sample_ids=sample_ids,
        step=step,
        frames=frames,
    )


def draw_clips(
    config: RunConfig,
    model: ImageToVideoModel,
    *,
    records: Sequence[ClipRecord],
    mean: Tensor,
    std: Tensor,
    image_embeds: Tensor,
    text_embeds: Tensor | None,
    sample_ids: Tensor,
    step: int | None,
    frames: Tensor | None = None,
    conditioning_latents: Tensor | None = None,
) -> DrawnClips:
    """Draw latents from the stored posteriors, and gather the conditions.

    Args:
        config: the run; its seed decides the samples.
        model: for its scales and its image tokens.
        records: of the clips.
        mean: (B, F, C, h, w) of the posterior, unscaled.
        std: (B, F, C, h, w) of the posterior.
        image_embeds: (B, L, D).
        text_embeds: (B, L, D), if the data set has texts.
        sample_ids: (B,) int64, on the device of the result.
        step: of the counter; None takes the mean of the posterior.
        frames: (B,) int64 conditioning frame of each clip; None takes the first.
        conditioning_latents: (B, F, C, h, w), unscaled, where the data set holds them; they are
            taken as they are, in place of a frame of the clip's latents.
    """
    device = sample_ids.device
    mean, std = mean.to(device, non_blocking=True), std.to(device, non_blocking=True)

    def sample(mean: Tensor, std: Tensor, stream: Stream) -> Tensor:
        if step is None:
            return mean
        shape = mean.shape[1:]
        noise = normal(shape, seed=config.seed, sample_ids=sample_ids, stream=stream, step=step)
        return mean + std * noise

    scale = model.first_stage.scaling_factor
    rows = torch.arange(len(mean), device=device)
    chosen = torch.zeros_like(rows) if frames is None else frames.to(device)
    shown = sample(mean[rows, chosen][:, None], std[rows, chosen][:, None], Stream.COND_POSTERIOR)
    told = shown
    if conditioning_latents is not None:
        told = conditioning_latents.to(device, non_blocking=True)
    return DrawnClips(
        clean=sample(mean, std, Stream.POSTERIOR) * scale,
        conditioning=told * model.conditioning_scale,
        frame=shown * scale,
        tokens=model.image_tokens(image_embeds.to(device, non_blocking=True)),
        clips=clip_conditions(config, model, records, text_embeds, device=device),
        sample_ids=sample_ids,
    )


def clip_conditions(
    config: RunConfig,
    model: ImageToVideoModel,
    records: Sequence[ClipRecord],
    text_embeds: Tensor | None,
    *,
    device: torch.device,
) -> ClipConditions:
    """Gather what the records say; `model.motion_bucket_id` replaces the clips' own motion."""
    motion = config.model.motion_bucket_id
    if motion is None and not model.told_motion_of_clips:
        motion = float(model.config.motion_bucket_id)

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    return ClipConditions(
        fps=column([record.fps for record in records]),
        motion_bucket_id=column(
            [record.motion_bucket_id if motion is None else motion for record in records]
        ),
        frame_stride=column([record.source_fps / record.fps for record in records]),
        text_embeds=None if text_embeds is None else text_embeds.to(device, non_blocking=True),
    )
