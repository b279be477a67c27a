"""What the network predicts, and the linear maps between prediction, denoised and target.

For noisy = alpha * clean + sigma * noise each parameterisation is one row of numbers per sample:
``denoised = c_skip * noisy + c_out * prediction`` and ``target = a * clean + b * noise``. The
training loss is the plain mean square of prediction - target: for EDM that equals the weighted loss
on the denoised latents, because weight * c_out^2 = 1.
"""

from collections.abc import Callable
from enum import StrEnum

import torch
from torch import Tensor

from cil.errors import ConfigError
from cil.noise_schedule import NoiseSchedule
from cil.shapes import append_dims

__all__ = [
    "Denoiser",
    "Parameterization",
    "as_denoiser",
    "denoised_scales",
    "edm_weight",
    "input_scale",
    "target_scales",
    "to_denoised",
    "to_prediction",
    "training_target",
]

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""denoised (B, F, C, H, W) = denoiser(noisy (B, F, C, H, W), level (B,))."""


class Parameterization(StrEnum):
    """What the network's output means, in diffusers' spelling; plus ``edm`` and ``flow``."""

    EPSILON = "epsilon"
    """The noise."""
    V_PREDICTION = "v_prediction"
    """alpha * noise - sigma * clean, for alpha^2 + sigma^2 = 1."""
    EDM = "edm"
    """F of denoised = c_skip * noisy + c_out * F(c_in * noisy), with SVD's sign: c_out < 0."""
    FLOW = "flow"
    """The velocity noise - clean, for alpha = 1 - t and sigma = t."""


def denoised_scales(
    parameterization: Parameterization, alpha: Tensor, sigma: Tensor, sigma_data: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return c_skip and c_out of denoised = c_skip * noisy + c_out * prediction.

    Args:
        parameterization: what the network predicts.
        alpha: (B,) factor of the clean latents; ``epsilon`` needs alpha > 0.
        sigma: (B,) factor of the noise.
        sigma_data: standard deviation of the clean latents, ``edm`` only.

    Returns:
        Two (B,) tensors.

    Source: Salimans and Ho 2022, appendix D (v); Karras et al. 2022, table 1 (edm; c_out negated as
        in SVD, so that the prediction has the sign of v).
    """
    match parameterization:
        case Parameterization.EPSILON:
            return 1.0 / alpha, -sigma / alpha
        case Parameterization.V_PREDICTION:
            return alpha, -sigma
        case Parameterization.EDM:
            total = torch.hypot(sigma, torch.full_like(sigma, sigma_data))
            return (sigma_data / total) ** 2, -sigma * sigma_data / total
        case Parameterization.FLOW:
            return torch.ones_like(alpha), -sigma


def target_scales(
    parameterization: Parameterization, alpha: Tensor, sigma: Tensor, sigma_data: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return a and b of target = a * clean + b * noise.

    Args:
        parameterization: what the network predicts.
        alpha: (B,) factor of the clean latents.
        sigma: (B,) factor of the noise.
        sigma_data: standard deviation of the clean latents, ``edm`` only.

    Returns:
        Two (B,) tensors.
    """
    match parameterization:
        case Parameterization.EPSILON:
            return torch.zeros_like(alpha), torch.ones_like(alpha)
        case Parameterization.V_PREDICTION:
            return -sigma, alpha
        case Parameterization.EDM:
            total = torch.hypot(sigma, torch.full_like(sigma, sigma_data))
            return -sigma / (sigma_data * total), sigma_data / total
        case Parameterization.FLOW:
            return -torch.ones_like(alpha), torch.ones_like(alpha)


def input_scale(
    parameterization: Parameterization, sigma: Tensor, sigma_data: float = 1.0
) -> Tensor:
    """Return c_in, the factor (B,) of the noisy latents for the network; 1 except for EDM."""
    if parameterization is Parameterization.EDM:
        return 1.0 / torch.hypot(sigma, torch.full_like(sigma, sigma_data))
    return torch.ones_like(sigma)


def edm_weight(sigma: Tensor, sigma_data: float = 1.0) -> Tensor:
    """Return EDM's weight of the squared error of the denoised latents, (B,).

    Source: Karras et al. 2022, table 1: (sigma^2 + sigma_data^2) / (sigma * sigma_data)^2.
    """
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def to_denoised(
    prediction: Tensor,
    noisy: Tensor,
    parameterization: Parameterization,
    *,
    alpha: Tensor,
    sigma: Tensor,
    sigma_data: float = 1.0,
) -> Tensor:
    """Turn the network's prediction into denoised latents.

    Args:
        prediction: (B, ...) output of the network.
        noisy: (B, ...) noisy latents, not scaled by c_in.
        parameterization: what the network predicts.
        alpha: (B,) factor of the clean latents.
        sigma: (B,) factor of the noise.
        sigma_data: standard deviation of the clean latents, ``edm`` only.

    Returns:
        (B, ...) denoised latents.
    """
    skip, out = denoised_scales(parameterization, alpha, sigma, sigma_data)
    return append_dims(skip, noisy.ndim) * noisy + append_dims(out, noisy.ndim) * prediction


def to_prediction(
    denoised: Tensor,
    noisy: Tensor,
    parameterization: Parameterization,
    *,
    alpha: Tensor,
    sigma: Tensor,
    sigma_data: float = 1.0,
) -> Tensor:
    """Turn denoised latents into the prediction that means them: the inverse of `to_denoised`.

    Args:
        denoised: (B, ...) denoised latents.
        noisy: (B, ...) noisy latents, not scaled by c_in.
        parameterization: what the network predicts.
        alpha: (B,) factor of the clean latents.
        sigma: (B,) factor of the noise, > 0.
        sigma_data: standard deviation of the clean latents, ``edm`` only.

    Returns:
        (B, ...) prediction.
    """
    skip, out = denoised_scales(parameterization, alpha, sigma, sigma_data)
    return (denoised - append_dims(skip, noisy.ndim) * noisy) / append_dims(out, noisy.ndim)


def training_target(
    clean: Tensor,
    noise: Tensor,
    parameterization: Parameterization,
    *,
    alpha: Tensor,
    sigma: Tensor,
    sigma_data: float = 1.0,
) -> Tensor:
    """Return what the network should predict.

    Args:
        clean: (B, ...) clean latents, with the schedule's clean scale applied.
        noise: (B, ...) the noise that was added.
        parameterization: what the network predicts.
        alpha: (B,) factor of the clean latents.
        sigma: (B,) factor of the noise.
        sigma_data: standard deviation of the clean latents, ``edm`` only.

    Returns:
        (B, ...) target.
    """
    a, b = target_scales(parameterization, alpha, sigma, sigma_data)
    return append_dims(a, clean.ndim) * clean + append_dims(b, clean.ndim) * noise


def as_denoiser(
    network: Callable[[Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    parameterization: Parameterization,
    sigma_data: float = 1.0,
) -> Denoiser:
    """Wrap a network as a denoiser, the interface of every sampler.

    Args:
        network: prediction (B, ...) = network(c_in * noisy (B, ...), network time (B,)).
        schedule: converts a level to alpha, sigma and the network's time.
        parameterization: what the network predicts.
        sigma_data: standard deviation of the clean latents, ``edm`` only.

    Returns:
        denoised = denoiser(noisy, level).

    Raises:
        ConfigError: ``epsilon`` with zero terminal SNR, where the noise says nothing of the clean
            latents.
    """
    if parameterization is Parameterization.EPSILON and getattr(
        schedule, "zero_terminal_snr", False
    ):
        raise ConfigError(
            "parameterization 'epsilon' cannot be sampled with zero_terminal_snr: alpha is 0 at "
            "the last timestep; use 'v_prediction', or turn zero_terminal_snr off"
        )

    def denoiser(noisy: Tensor, level: Tensor) -> Tensor:
        alpha, sigma = schedule.scales(level)
        c_in = append_dims(input_scale(parameterization, sigma, sigma_data), noisy.ndim)
        prediction = network(c_in.to(noisy.dtype) * noisy, schedule.network_time(level))
        return to_denoised(
            prediction, noisy, parameterization, alpha=alpha, sigma=sigma, sigma_data=sigma_data
        ).to(noisy.dtype)

    return denoiser
