"""One optimiser step: take the worker's clips, draw their noise, forward, backward, update. No Ray.

All randomness comes from (seed, place in the global batch, purpose, step), so losses do not depend
on how many workers share the batch.
"""

import math
from typing import Any

import torch
from torch import Tensor

from cil.errors import StageError
from cil.losses import LossResult, denoising_loss, draw_training, square_error
from cil.models import ImageToVideoModel
from cil.network_input import build_input
from cil.rng import Stream, normal
from pipelines import fused_input
from pipelines.batches import Batch, BatchSource
from pipelines.config import RunConfig
from pipelines.zero_config import micro_batch_size

__all__ = ["NonFiniteLossError", "TrainStep"]


class NonFiniteLossError(StageError):
    """A loss or gradient that is NaN or infinite; raised on every rank, the weights untouched."""


class TrainStep:
    """Takes optimiser steps with a DeepSpeed engine; ``impl`` is torch or triton."""

    def __init__(
        self,
        config: RunConfig,
        model: ImageToVideoModel,
        batches: BatchSource,
        engine: Any,
        *,
        world_size: int,
        impl: str = "torch",
    ) -> None:
        self._config, self._model, self._batches, self._engine = config, model, batches, engine
        self._world_size = world_size
        self._micro = micro_batch_size(config.train)
        self._corruption = config.time_noise.build(model.schedule)
        self._fused = impl == "triton"

    def __call__(self, step: int, *, learning_rate: float) -> dict[str, float]:
        """Take one optimiser step; a collective call.

        Args:
            step: optimiser step, from 0.
            learning_rate: of this step.

        Returns:
            loss (mean over the global batch), grad_norm, learning_rate, clips, sigma_cond.

        Raises:
            NonFiniteLossError: the loss or the norm of the gradient is not finite.
        """
        config, engine = self._config, self._engine
        batch = self._batches.batch(step)
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate
        total, sigma_cond_total = 0.0, 0.0
        for start in range(0, len(batch), self._micro):
            part = batch.part(start, start + self._micro)
            result = self._loss(part, step)
            mean_loss = self._mean_over_ranks(result.loss.detach())
            if not torch.isfinite(mean_loss):
                raise self._not_finite("loss", mean_loss.item(), step)
            engine.backward(result.loss)
            engine.step()
            total += mean_loss.item() * len(part)
            sigma_cond_total += result.sigma_cond.sum().item()
        share = len(batch)
        grad_norm = float(engine.get_global_grad_norm() or 0.0)
        if not math.isfinite(grad_norm):  # then DeepSpeed has left the weights alone, silently
            raise self._not_finite("gradient norm", grad_norm, step)
        return {
            "loss": total / share,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "sigma_cond": sigma_cond_total / share,
            "clips": float(config.train.global_batch_size),
        }

    def _not_finite(self, name: str, value: float, step: int) -> NonFiniteLossError:
        keys = self._batches.keys(step)
        return NonFiniteLossError(
            f"the {name} of step {step} is {value}; stopped before the weights were touched. Lower "
            f"train.learning_rate, or look at these clips: {keys}"
        )

    def _loss(self, batch: Batch, step: int) -> LossResult:
        """Draw this step's noise for some places of the global batch and return their loss."""
        config, model = self._config, self._model
        device = self._engine.device
        mean = batch.mean.to(device, non_blocking=True)
        std = batch.std.to(device, non_blocking=True)
        tokens = batch.image_embeds.to(device, non_blocking=True)
        ids = torch.tensor(batch.slots, dtype=torch.int64, device=device)

        def noise(like: Tensor, stream: Stream) -> Tensor:
            return normal(
                like.shape[1:], seed=config.seed, sample_ids=ids, stream=stream, step=step
            )

        clean = (mean + std * noise(mean, Stream.POSTERIOR)) * model.first_stage.scaling_factor
        first, first_std = mean[:, :1], std[:, :1]
        conditioning = first + first_std * noise(first, Stream.COND_POSTERIOR)
        draws = draw_training(
            clean.shape,
            schedule=model.schedule,
            corruption=self._corruption,
            seed=config.seed,
            sample_ids=ids,
            step=step,
            token_shape=tokens.shape[1:],
            with_noise=not self._fused,
        )
        return denoising_loss(
            model.network_call(
                fps=torch.tensor([record.fps for record in batch.records]),
                motion_bucket_id=torch.full((len(batch),), float(config.model.motion_bucket_id)),
                network=self._engine,
            ),
            clean,
            conditioning * model.conditioning_scale,
            schedule=model.schedule,
            parameterization=model.parameterization,
            corruption=self._corruption,
            draws=draws,
            dropout=config.train.condition_dropout,
            tokens=tokens,
            build_input=fused_input.build_input if self._fused else build_input,
            square_error=fused_input.square_error if self._fused else square_error,
        )

    def _mean_over_ranks(self, value: Tensor) -> Tensor:
        if self._world_size > 1:
            value = value.clone()
            torch.distributed.all_reduce(value)
            value /= self._world_size
        return value
