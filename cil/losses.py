"""The denoising loss, for every parameterisation, schedule and corruption.

    draws  = draw_training(clean.shape, schedule=..., corruption=..., seed=, sample_ids=, step=)
    result = denoising_loss(network, clean, conditioning, schedule=..., corruption=..., draws=draws)
    result.loss.backward()

All randomness is in ``draws``, which depends on seed, sample ids and step only. What the network
sees is made by ``build_input`` and compared by ``square_error``: two functions that the caller may
replace by faster ones of the same meaning.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cil import rng
from cil.conditioning import keep_mask
from cil.corruption import Corruption
from cil.errors import ConfigError, DataError
from cil.network_input import BuiltInput, Counter, InputRequest, TrainingDraws, build_input
from cil.noise_schedule import NoiseSchedule
from cil.parameterization import Parameterization, input_scale
from cil.rng import Stream
from cil.shapes import check_shape

__all__ = [
    "BuiltInput",
    "Counter",
    "InputRequest",
    "LossResult",
    "Network",
    "NetworkInputs",
    "TrainingDraws",
    "build_input",
    "denoising_loss",
    "draw_training",
    "loss_by_quantile",
    "square_error",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkInputs:
    """What the network gets."""

    noisy: Tensor
    """(B, F, C, H, W) noisy latents times c_in."""
    time: Tensor
    """(B,) the network's time: c_noise for EDM, timestep for VP, 1000 t for flow."""
    conditioning_latents: Tensor
    """(B, F, C, H, W) conditioning latents: noised, repeated over frames, zero where dropped."""
    tokens: Tensor | None
    """(B, L, D) image tokens: noised if asked for, zero where dropped; None without tokens."""
    sigma_cond: Tensor
    """(B,) noise level of the condition, to be told to the network (SVD: noise_aug_strength)."""
    keep: Tensor
    """(B,) 1 where the condition is kept, 0 where it was dropped."""
    stacked: Tensor | None = None
    """(B, F, 2C, H, W) of which ``noisy`` and ``conditioning_latents`` are views, if it exists."""

    def concatenated(self) -> Tensor:
        """Return ``noisy`` and ``conditioning_latents`` concatenated on channels."""
        if self.stacked is not None:
            return self.stacked
        return torch.cat([self.noisy, self.conditioning_latents], dim=2)


Network = Callable[[NetworkInputs], Tensor]
"""prediction (B, F, C, H, W) = network(inputs)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossResult:
    """A loss and what it is made of."""

    loss: Tensor
    """() mean over the batch, float32; has the gradient."""
    per_sample: Tensor
    """(B,) loss of each clip, float32, detached."""
    rank: Tensor
    """(B,) share of training noise levels below the clip's, in [0, 1], for `loss_by_quantile`."""
    level: Tensor
    """(B,) noise level of the video."""
    sigma_cond: Tensor
    """(B,) noise level of the condition."""
    keep: Tensor
    """(B,) 1 where the condition was kept."""


def draw_training(
    shape: Sequence[int],
    *,
    schedule: NoiseSchedule,
    corruption: Corruption,
    seed: int,
    sample_ids: Tensor | Sequence[int],
    step: int,
    token_shape: Sequence[int] | None = None,
    dropout_per_batch: bool = False,
    with_noise: bool = True,
) -> TrainingDraws:
    """Draw everything random that `denoising_loss` needs.

    Args:
        shape: (F, C, H, W) of one clip's latents, or (B, F, C, H, W), whose B must be the number
            of sample ids.
        schedule: noise schedule, for the distribution of levels.
        corruption: for the shape of the conditioning noise.
        seed: 64-bit key.
        sample_ids: (B,) global ids of the clips.
        step: training step.
        token_shape: (L, D) of one clip's image tokens if they may be noised.
        dropout_per_batch: use one number for all clips of a step, as the released SVD code does.
        with_noise: draw the noise of latents and tokens; without, it is left to ``build_input``.

    Returns:
        The draws, float32, on the device of ``sample_ids``.

    Raises:
        DataError: B differs from the number of sample ids.
    """
    ids = torch.as_tensor(sample_ids, dtype=torch.int64)
    if len(shape) == 5:
        if shape[0] != ids.shape[0]:
            raise DataError(f"shape must have B = {ids.shape[0]} sample ids, got {tuple(shape)}")
        shape = shape[1:]

    def normal(size: Sequence[int], stream: Stream) -> Tensor:
        return rng.normal(size, seed=seed, sample_ids=ids, stream=stream, step=step)

    def uniform(stream: Stream, samples: Tensor = ids) -> Tensor:
        return rng.uniform((), seed=seed, sample_ids=samples, stream=stream, step=step)

    tokens_noised = with_noise and corruption.target in ("tokens", "both")
    dropout_ids = torch.full_like(ids, rng.BATCH_SAMPLE_ID) if dropout_per_batch else ids
    return TrainingDraws(
        level=schedule.level(uniform(Stream.TIME)),
        noise=normal(shape, Stream.VIDEO_NOISE) if with_noise else None,
        normal=normal((), Stream.SIGMA_COND),
        other_level=schedule.level(uniform(Stream.SHUFFLED_TIME)),
        cond_noise=normal(corruption.noise_shape(shape), Stream.COND_NOISE) if with_noise else None,
        dropout=uniform(Stream.DROPOUT, dropout_ids),
        token_noise=normal(token_shape, Stream.TOKEN_NOISE)
        if tokens_noised and token_shape is not None
        else None,
        token_normal=None if corruption.token_law is None else normal((), Stream.TOKEN_SIGMA),
        counter=None if dropout_per_batch else Counter(seed=seed, sample_ids=ids, step=step),
    )


def square_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean square of prediction - target for each clip, (B,) float32."""
    return (prediction.float() - target.float()).square().flatten(1).mean(dim=1)


def denoising_loss(
    network: Network,
    clean: Tensor,
    conditioning_latents: Tensor | Callable[[Tensor], Tensor],
    *,
    schedule: NoiseSchedule,
    parameterization: Parameterization,
    corruption: Corruption,
    draws: TrainingDraws,
    dropout: float = 0.0,
    tokens: Tensor | Callable[[Tensor], Tensor] | None = None,
    sigma_data: float = 1.0,
    build_input: Callable[[InputRequest], BuiltInput] = build_input,
    square_error: Callable[[Tensor, Tensor], Tensor] = square_error,
) -> LossResult:
    """Return the mean square of prediction - target.

    For EDM this is EDM's weighted loss of the denoised latents: weight * c_out^2 = 1. The loss is
    summed in float32 whatever the network's dtype.

    Args:
        network: prediction (B, F, C, H, W) = network(NetworkInputs).
        clean: (B, F, C, H, W) clean latents in the scale of training.
        conditioning_latents: (B, 1, C, H, W) or (B, F, C, H, W), in the scale that
            the network gets; or a function that makes them from sigma_cond (B,), for noise on the
            pixels: encode(corruption.corrupt_pixels(images, sigma_cond, noise)).
        schedule: noise schedule.
        parameterization: what the network predicts.
        corruption: noise on the condition, from `TimeNoiseConfig.build`.
        draws: the random numbers, from `draw_training` or from elsewhere.
        dropout: probability in [0, 1] of dropping the condition (latents and tokens).
        tokens: (B, L, D) image tokens; or a function that makes them from the noised conditioning
            latents (B, F, C, H, W), so that tokens and latents hide the same; or None.
        sigma_data: standard deviation of the clean latents, EDM only.
        build_input: makes what the network sees; `build_input` or a function of the same meaning.
        square_error: (B,) float32 losses of prediction and target, with a gradient.

    Returns:
        The loss, its value for each clip, and what was drawn.

    Raises:
        ConfigError: noise on the pixels, but latents that are encoded already.
        DataError: the shapes do not fit each other.
    """
    check_shape("clean latents", clean, "B F C H W")
    batch, _, channels, height, width = clean.shape
    level = draws.level
    sigma_cond = corruption.sigma_cond(level, draws.normal, draws.other_level)
    if callable(conditioning_latents):
        conditioning_latents = conditioning_latents(sigma_cond)
    elif corruption.target == "pixels":
        raise ConfigError(
            "time_noise.target 'pixels' needs the conditioning image and its encoder in training, "
            "got encoded latents; choose target 'latents' or give a function"
        )
    check_shape(
        "conditioning_latents",
        conditioning_latents,
        "B F C H W",
        **{"B": batch, "C": channels, "H": height, "W": width},
    )
    alpha, sigma = schedule.scales(level)
    keep = keep_mask(draws.dropout, dropout)
    token_normal = draws.normal if draws.token_normal is None else draws.token_normal
    built = build_input(
        InputRequest(
            clean=clean,
            conditioning_latents=conditioning_latents,
            tokens=tokens,
            clean_scale=schedule.clean_scale(level),
            alpha=alpha,
            sigma=sigma,
            c_in=input_scale(parameterization, sigma, sigma_data),
            parameterization=parameterization,
            sigma_data=sigma_data,
            corruption=corruption,
            sigma_cond=sigma_cond,
            keep=keep,
            dropout=dropout,
            draws=draws,
            sigma_tokens=corruption.sigma_tokens(level, token_normal, draws.other_level),
        )
    )
    prediction = network(
        NetworkInputs(
            noisy=built.noisy,
            time=schedule.network_time(level),
            conditioning_latents=built.conditioning_latents,
            tokens=built.tokens,
            sigma_cond=sigma_cond,
            keep=keep,
            stacked=built.stacked,
        )
    )
    if prediction.shape != built.target.shape:
        raise DataError(
            f"the network must return {tuple(built.target.shape)}, got {tuple(prediction.shape)}"
        )
    per_sample = square_error(prediction, built.target)
    return LossResult(
        loss=per_sample.mean(),
        per_sample=per_sample.detach(),
        rank=schedule.rank(level),
        level=level,
        sigma_cond=sigma_cond,
        keep=keep,
    )


def loss_by_quantile(per_sample: Tensor, rank: Tensor, num_bins: int = 4) -> tuple[Tensor, Tensor]:
    """Sum losses by the quantile of their noise level; sums of several batches may be added.

    Args:
        per_sample: (B,) losses.
        rank: (B,) in [0, 1].
        num_bins: number of equally likely bins, >= 1; bin 0 has the least noise.

    Returns:
        (num_bins,) float64 sums of losses and (num_bins,) int64 counts.
    """
    bins = (rank.double() * num_bins).long().clamp(0, num_bins - 1)
    sums = torch.zeros(num_bins, dtype=torch.float64, device=bins.device)
    sums = sums.index_add(0, bins, per_sample.double())
    return sums, torch.bincount(bins, minlength=num_bins)
