"""A picture of the first batch as the network sees it, with the very noise of step 0.

In: the run's data set. Out: ``first_batch.png``: a row per clip with its first frame, the
conditioning latents and the noisy video of step 0, and both at several noise levels, decoded.
A condition or a video that is pure noise at every level shows here before anything is trained.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cil.losses import Counter, NetworkInputs, denoising_loss, draw_training
from cil.models import ImageToVideoModel
from cil.network_input import TrainingDraws
from pipelines.batches import Batch, BatchReader
from pipelines.clip_inputs import draw_batch
from pipelines.config import RunConfig
from pipelines.dataset import open_training_data
from pipelines.model_folder import build_model
from pipelines.picture_grid import picture_grid
from pipelines.storage import commit, temporary_beside

__all__ = ["FIRST_BATCH_FILE", "StepInputs", "first_batch_picture", "step_inputs"]

FIRST_BATCH_FILE = "first_batch.png"
TIMES = (0.1, 0.5, 0.9)
"""Ranks of training noise levels that are shown besides that of step 0."""

_SHOWN_CLIPS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class StepInputs:
    """What the network gets in a step for some clips, and what that was made of."""

    clean: Tensor
    """(B, F, C, h, w) scaled clean latents."""
    inputs: NetworkInputs
    """As the network gets them."""
    level: Tensor
    """(B,) noise level of the video."""
    rank: Tensor
    """(B,) share of the training noise levels below it."""


def step_inputs(
    config: RunConfig,
    model: ImageToVideoModel,
    batch: Batch,
    *,
    step: int,
    level: float | None = None,
) -> StepInputs:
    """Draw what the network sees of a batch in a step, by the functions that training calls.

    Args:
        config: the run.
        model: for its schedule and scales; its network is not called.
        batch: clips with their places in the global batch.
        step: optimiser step, from 0.
        level: one noise level for all clips in place of theirs; the noise stays the same.
    """
    ids = torch.tensor(batch.slots, dtype=torch.int64)
    drawn = draw_batch(config, model, batch, sample_ids=ids, step=step)
    corruption = config.time_noise.build(model.schedule)
    draws: TrainingDraws = draw_training(
        drawn.clean.shape,
        schedule=model.schedule,
        corruption=corruption,
        seed=config.seed,
        sample_ids=ids,
        step=step,
        token_shape=drawn.tokens.shape[1:],
    )
    if level is not None:
        draws = replace(draws, level=torch.full_like(draws.level, level))
    seen: list[NetworkInputs] = []

    def watch(inputs: NetworkInputs) -> Tensor:
        seen.append(inputs)
        return torch.zeros_like(drawn.clean)

    conditions = model.training_conditions(
        drawn.clips,
        drawn.tokens,
        uniform=draws.dropout,
        dropout=config.train.condition_dropout,
        counter=Counter(seed=config.seed, sample_ids=ids, step=step),
    )
    result = denoising_loss(
        watch,
        drawn.clean,
        drawn.conditioning,
        schedule=model.schedule,
        parameterization=model.parameterization,
        corruption=corruption,
        draws=draws,
        dropout=conditions.dropout,
        tokens=conditions.tokens,
    )
    return StepInputs(clean=drawn.clean, inputs=seen[0], level=result.level, rank=result.rank)


def first_batch_picture(config: RunConfig, path: Path) -> dict[str, Any]:
    """Write the picture of the batch of step 0.

    Args:
        config: the run.
        path: PNG file.

    Returns:
        ``clips``: keys of the clips that are shown.

    Raises:
        DataError: a shard cannot be read.
    """
    from PIL import Image

    data = open_training_data(config)
    model = build_model(config, data.largest)
    source = BatchReader(
        data.readers, global_batch_size=config.train.global_batch_size, seed=config.seed
    )
    batch = source.batch(0)
    batch = batch.part(0, min(len(batch), _SHOWN_CLIPS))
    picture = picture_grid(grid_of(config, model, batch))
    temporary = temporary_beside(path)
    Image.fromarray(picture).save(temporary, format="PNG")
    commit(temporary, path)
    return {"clips": [record.key for record in batch.records]}


def grid_of(
    config: RunConfig, model: ImageToVideoModel, batch: Batch
) -> list[list[tuple[str, npt.NDArray[np.uint8]]]]:
    """Return the rows of the picture: text and decoded frame."""
    own = step_inputs(config, model, batch, step=0)
    levels = [float(model.schedule.level(torch.tensor(t, dtype=torch.float64))) for t in TIMES]
    others = [step_inputs(config, model, batch, step=0, level=level) for level in levels]
    decode = _decoder(model)
    rows = []
    for number in range(len(batch)):
        row = [("clip, first frame\nclean", decode(_unscaled(model, own.clean[number, :1])))]
        for name, draw in (("condition", _condition), ("video", _video)):
            for at, step in enumerate([own, *others]):
                when = "step 0" if at == 0 else "same noise"
                text = f"{name}, {when}\n{_label(name, step, number)}"
                row.append((text, decode(draw(model, step, number))))
        rows.append(row)
    return rows


def _label(name: str, step: StepInputs, number: int) -> str:
    inputs, rank = step.inputs, float(step.rank[number])
    if name == "video":
        return f"t {rank:.2f}, sigma {float(step.level[number]):.3g}"
    if not bool(inputs.keep[number]):
        return f"t {rank:.2f}, dropped"
    return f"t {rank:.2f}, sigma_cond {float(inputs.sigma_cond[number]):.3g}"


def _condition(model: ImageToVideoModel, step: StepInputs, number: int) -> Tensor:
    """Return the first frame of the conditioning latents, unscaled."""
    return step.inputs.conditioning_latents[number, :1] / model.conditioning_scale


def _video(model: ImageToVideoModel, step: StepInputs, number: int) -> Tensor:
    """Return the middle frame of the noisy video as the network gets it, unscaled.

    At any noise level that has about the variance of clean latents, so it can be decoded.
    """
    middle = step.clean.shape[1] // 2
    return _unscaled(model, step.inputs.noisy[number, middle : middle + 1])


def _unscaled(model: ImageToVideoModel, latents: Tensor) -> Tensor:
    return latents / model.first_stage.scaling_factor


def _decoder(model: ImageToVideoModel) -> Callable[[Tensor], npt.NDArray[np.uint8]]:
    def decode(latents: Tensor) -> npt.NDArray[np.uint8]:
        (frame,) = np.asarray(model.first_stage.decode(latents.float()))
        return np.asarray(frame, dtype=np.uint8)

    return decode
