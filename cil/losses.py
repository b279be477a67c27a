"""The denoising loss, for every parameterisation, schedule and corruption.

    draws  = draw_training(clean.shape, schedule=..., corruption=..., seed=, sample_ids=, step=)
    result = denoising_loss(network, clean, conditioning, schedule=..., corruption=..., draws=draws)
    result.loss.backward()

All randomness is in ``draws``, which depends on seed, sample ids and step only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cil import rng
from cil.conditioning import drop, keep_mask
from cil.errors import ConfigError, DataError
from cil.noise_schedule import NoiseSchedule
from cil.parameterization import Parameterization, input_scale, training_target
from cil.rng import Stream
from cil.shapes import append_dims, check_shape
from cil.time_noise import Corruption

__all__ = [
    "LossResult",
    "Network",
    "NetworkInputs",
    "TrainingDraws",
    "denoising_loss",
    "draw_training",
    "loss_by_quantile",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingDraws:
    """Every random number of one training step of one batch."""

    level: Tensor
    """(B,) noise level of the video: sigma for EDM, timestep for VP, t for flow."""
    noise: Tensor
    """(B, F, C, H, W) noise of the video latents."""
    normal: Tensor
    """(B,) standard normal numbers that become sigma_cond."""
    other_level: Tensor
    """(B,) training noise level unrelated to ``level``, for the ``shuffled`` control."""
    cond_noise: Tensor
    """(B, *corruption.noise_shape) noise of the conditioning latents."""
    dropout: Tensor
    """(B,) uniform numbers that drop the condition."""
    token_noise: Tensor | None = None
    """(B, L, D) noise of the image tokens; None where they are not noised."""


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

    tokens_noised = corruption.target in ("tokens", "both")
    dropout_ids = torch.full_like(ids, rng.BATCH_SAMPLE_ID) if dropout_per_batch else ids
    return TrainingDraws(
        level=schedule.level(uniform(Stream.TIME)),
        noise=normal(shape, Stream.VIDEO_NOISE),
        normal=normal((), Stream.SIGMA_COND),
        other_level=schedule.level(uniform(Stream.SHUFFLED_TIME)),
        cond_noise=normal(corruption.noise_shape(shape), Stream.COND_NOISE),
        dropout=uniform(Stream.DROPOUT, dropout_ids),
        token_noise=normal(token_shape, Stream.TOKEN_NOISE)
        if tokens_noised and token_shape is not None
        else None,
    )


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

    Returns:
        The loss, its value for each clip, and what was drawn.

    Raises:
        ConfigError: noise on the pixels, but latents that are encoded already.
        DataError: the shapes do not fit each other.
    """
    check_shape("clean latents", clean, "B F C H W")
    batch, frames, channels, height, width = clean.shape
    sizes = {"B": batch, "C": channels, "H": height, "W": width}
    check_shape("noise", draws.noise, "B F C H W", F=frames, **sizes)
    level = draws.level
    sigma_cond = corruption.sigma_cond(level, draws.normal, draws.other_level)
    if callable(conditioning_latents):
        conditioning_latents = conditioning_latents(sigma_cond)
    elif corruption.target == "pixels":
        raise ConfigError(
            "time_noise.target 'pixels' needs the conditioning image and its encoder in training, "
            "got encoded latents; choose target 'latents' or give a function"
        )
    check_shape("conditioning_latents", conditioning_latents, "B F C H W", **sizes)
    repeated = conditioning_latents.expand(batch, frames, channels, height, width)

    alpha, sigma = schedule.scales(level)
    clean = clean * append_dims(schedule.clean_scale(level), 5).to(clean.dtype)
    noisy = append_dims(alpha, 5) * clean + append_dims(sigma, 5) * draws.noise
    target = training_target(
        clean, draws.noise, parameterization, alpha=alpha, sigma=sigma, sigma_data=sigma_data
    )

    corrupted = corruption.corrupt(repeated, sigma_cond, draws.cond_noise)
    if callable(tokens):
        tokens = tokens(corrupted)
    elif tokens is not None and draws.token_noise is not None:
        tokens = corruption.corrupt_tokens(tokens, sigma_cond, draws.token_noise)
    elif tokens is not None and corruption.target in ("tokens", "both"):
        raise DataError("token_noise must be drawn when tokens are noised; give token_shape")
    keep = keep_mask(draws.dropout, dropout)

    c_in = append_dims(input_scale(parameterization, sigma, sigma_data), 5)
    prediction = network(
        NetworkInputs(
            noisy=(c_in * noisy).to(clean.dtype),
            time=schedule.network_time(level),
            conditioning_latents=drop(corrupted, keep),
            tokens=None if tokens is None else drop(tokens, keep),
            sigma_cond=sigma_cond,
            keep=keep,
        )
    )
    if prediction.shape != target.shape:
        raise DataError(
            f"the network must return {tuple(target.shape)}, got {tuple(prediction.shape)}"
        )
    per_sample = (prediction.float() - target.float()).square().flatten(1).mean(dim=1)
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
