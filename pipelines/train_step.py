"""One optimiser step: take the worker's clips, draw their noise, forward, backward, update. No Ray.

All randomness comes from (seed, place in the global batch, purpose, step), so losses do not depend
on how many workers share the batch.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cil.errors import StageError
from cil.losses import Counter, LossResult, denoising_loss, draw_training, square_error
from cil.models import ImageToVideoModel
from cil.network_input import build_input
from pipelines import fused_input
from pipelines.batches import Batch, BatchSource
from pipelines.clip_inputs import draw_batch
from pipelines.config import RunConfig
from pipelines.dropout_seed import seeded_dropout
from pipelines.engine import update_weights
from pipelines.zero_config import SMALLEST_LOSS_SCALE, micro_batch_size

__all__ = ["NonFiniteLossError", "TrainStep"]


class NonFiniteLossError(StageError):
    """A loss or gradient that is NaN or infinite; raised on every rank, the weights untouched.

    Attributes:
        record: what is needed to look into it, as plain JSON: step, what, value, seed, clips.
    """

    def __init__(self, message: str, record: dict[str, Any]) -> None:
        super().__init__(message)
        self.record = record


class TrainStep:
    """Takes optimiser steps with a DeepSpeed engine; ``impl`` is torch or triton.

    ``at`` is told the step and the phase that begins: batch, forward, reduce, or backward.
    """

    def __init__(
        self,
        config: RunConfig,
        model: ImageToVideoModel,
        batches: BatchSource,
        engine: Any,
        *,
        world_size: int,
        impl: str = "torch",
        at: Callable[[int, str], None] = lambda step, phase: None,
    ) -> None:
        self._config, self._model, self._batches, self._engine = config, model, batches, engine
        self._world_size = world_size
        self._micro = micro_batch_size(config.train)
        self._corruption = config.time_noise.build(model.schedule)
        self._fused = impl == "triton"
        self._at = at

    def __call__(self, step: int, *, learning_rate: float) -> dict[str, float]:
        """Take one optimiser step; a collective call.

        Args:
            step: optimiser step, from 0.
            learning_rate: of this step.

        Returns:
            loss (mean over the global batch), grad_norm, learning_rate, clips, sigma_cond; in fp16
            also loss_scale.

        Raises:
            NonFiniteLossError: the loss or the norm of the gradient is not finite; in fp16 at every
                loss scale.
        """
        self._at(step, "batch")
        batch = self._batches.batch(step)  # once: a source that reads ahead gives each batch once
        row = None
        while row is None:
            row = self._attempt(step, batch, learning_rate)
        return row

    def _attempt(self, step: int, batch: Batch, learning_rate: float) -> dict[str, float] | None:
        """Take the step once; None if fp16 overflowed, then the next attempt has a smaller scale.

        Steps are not skipped: a step is a pure function of its number, so the same one is repeated.
        """
        config, engine = self._config, self._engine
        fp16 = config.train.precision == "fp16"
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate
        total, sigma_cond_total = 0.0, 0.0
        for start in range(0, len(batch), self._micro):
            part = batch.part(start, start + self._micro)
            self._at(step, "forward")
            result = self.loss(part, step)
            self._at(step, "reduce")
            mean_loss = self._mean_over_ranks(result.loss.detach())
            if not torch.isfinite(mean_loss):
                raise self._not_finite("loss", mean_loss.item(), step)
            self._at(step, "backward")
            engine.backward(result.loss)
            grad_norm = update_weights(engine, config.train)
            total += mean_loss.item() * len(part)
            sigma_cond_total += result.sigma_cond.sum().item()
        share = len(batch)
        if not math.isfinite(grad_norm):  # then the weights were left alone
            if fp16 and engine.optimizer.loss_scale > SMALLEST_LOSS_SCALE:
                return None
            raise self._not_finite("gradient norm", grad_norm, step)
        return {
            "loss": total / share,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "sigma_cond": sigma_cond_total / share,
            "clips": float(config.train.global_batch_size),
            **({"loss_scale": engine.optimizer.loss_scale} if fp16 else {}),
        }

    def _not_finite(self, name: str, value: float, step: int) -> NonFiniteLossError:
        keys = self._batches.keys(step)
        return NonFiniteLossError(
            f"the {name} of step {step} is {value}; stopped before the weights were touched. Lower "
            f"train.learning_rate, or look at these clips: {keys}",
            # JSON has no NaN
            {
                "step": step,
                "what": name,
                "value": str(value),
                "seed": self._config.seed,
                "clips": keys,
            },
        )

    def loss(self, batch: Batch, step: int) -> LossResult:
        """Draw this step's noise for some places of the global batch and return their loss."""
        config, model = self._config, self._model
        ids = torch.tensor(batch.slots, dtype=torch.int64, device=self._engine.device)
        drawn = draw_batch(config, model, batch, sample_ids=ids, step=step)
        draws = draw_training(
            drawn.clean.shape,
            schedule=model.schedule,
            corruption=self._corruption,
            seed=config.seed,
            sample_ids=ids,
            step=step,
            token_shape=drawn.tokens.shape[1:],
            with_noise=not self._fused,
        )
        conditions = model.training_conditions(
            drawn.clips,
            drawn.tokens,
            uniform=draws.dropout,
            dropout=config.train.condition_dropout,
            counter=Counter(seed=config.seed, sample_ids=ids, step=step),
        )
        with seeded_dropout(
            seed=config.seed, sample_id=batch.slots[0], step=step, device=self._engine.device
        ):
            return denoising_loss(
                model.network_call(conditions.clips, network=self._engine),
                drawn.clean,
                drawn.conditioning,
                schedule=model.schedule,
                parameterization=model.parameterization,
                corruption=self._corruption,
                draws=draws,
                dropout=conditions.dropout,
                tokens=conditions.tokens,
                build_input=fused_input.build_input if self._fused else build_input,
                square_error=fused_input.square_error if self._fused else square_error,
            )

    def _mean_over_ranks(self, value: Tensor) -> Tensor:
        if self._world_size > 1:
            value = value.clone()
            torch.distributed.all_reduce(value)
            value /= self._world_size
        return value
