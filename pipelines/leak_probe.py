"""The leakage probe on stored clips: what validation and the leak report share.

In: a model, held-out clips and a rank t of the training noise levels. Out: the one-step predictions
of `cil.metrics.leakage`, with a clean condition as in sampling, and with noise that depends on the
seed, the clip and a number that the caller gives, so that it is the same for every model.
"""

import torch
from torch import Tensor

from cil.metrics.leakage import LeakageProbe, probe_leakage
from cil.models import Condition, ImageToVideoModel
from cil.parameterization import Denoiser
from cil.rng import Stream, normal
from pipelines.clip_inputs import DrawnClips

__all__ = ["ClipProbe"]


class ClipProbe:
    """Probes a model on some clips of one bucket, at one time after the other."""

    def __init__(
        self, model: ImageToVideoModel, latents: DrawnClips, *, seed: int, batch_size: int
    ) -> None:
        """Take what is the same at all times.

        Args:
            model: network in evaluation mode, on the device of ``latents``.
            latents: of at least two clips; clip i is swapped with clip i + 1, the last with the
                first.
            seed: of the noise.
            batch_size: clips per forward pass; it does not change the results.
        """
        self._model, self._latents, self._seed = model, latents, seed
        self._make = _Denoisers(model, latents, batch_size)

    def level(self, time: float) -> float:
        """Return the noise level of a rank t of training, in the schedule's unit."""
        rank = torch.tensor([time], dtype=torch.float64)
        return float(self._model.schedule.level(rank).float())

    @torch.no_grad()
    def at(self, time: float, *, step: int) -> LeakageProbe:
        """Make the predictions at a rank t of the training noise levels, in (0, 1).

        Args:
            time: the rank.
            step: counter of the noise; another one gives other noise.
        """
        latents = self._latents
        noise = normal(
            latents.clean.shape[1:],
            seed=self._seed,
            sample_ids=latents.sample_ids,
            stream=Stream.VIDEO_NOISE,
            step=step,
        )
        level = torch.tensor([self.level(time)], device=latents.clean.device)
        return probe_leakage(
            self._make,
            latents.clean,
            latents.frame,
            noise,
            schedule=self._model.schedule,
            level=level.expand(len(latents.clean)),
        )


class _Denoisers:
    """Makes denoisers for clips in an order; they take a few clips at a time."""

    def __init__(self, model: ImageToVideoModel, latents: DrawnClips, batch_size: int) -> None:
        self._model, self._size = model, batch_size
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
