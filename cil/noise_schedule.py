"""Noise schedules: the one place where timestep, t, alpha and sigma are converted.

Every schedule has a native noise *level* of shape (B,): sigma for EDM. ``scales(level)`` gives
alpha and sigma of ``noisy = alpha * clean + sigma * noise``. ``level(uniform)`` draws from the
training distribution, ``time(level, time_map)`` is the t of TimeNoise. Arithmetic is float64
inside; results have the dtype of the argument.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from cil.errors import ConfigError

__all__ = ["EDMSchedule", "NoiseSchedule", "TimeMap", "require"]

TimeMap = Literal["index", "sigma", "rank"]

SIGMA_TIME_UNIT = 700.0
"""The sigma that the released SVD code calls t = 1."""


def require(condition: bool, name: str, wanted: str, got: object, advice: str) -> None:
    """Refuse a setting with a message that says what, got and what to do.

    Raises:
        ConfigError: ``condition`` is false.
    """
    if not condition:
        raise ConfigError(f"{name} must be {wanted}, got {got!r}; {advice}")


class NoiseSchedule(Protocol):
    """What training, TimeNoise and the samplers ask of a noise schedule."""

    def level(self, uniform: Tensor) -> Tensor:
        """Draw the training noise level (B,) from a uniform number (B,) in (0, 1)."""

    def scales(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha (B,) and sigma (B,) of noisy = alpha * clean + sigma * noise."""

    def time(self, level: Tensor, time_map: TimeMap) -> Tensor:
        """Return TimeNoise's t (B,) of a level (B,)."""

    def rank(self, level: Tensor) -> Tensor:
        """Return the share (B,) of training noise levels below a level."""

    def clean_scale(self, level: Tensor) -> Tensor:
        """Return the factor (B,) that clean latents get before they are noised; mostly 1."""

    def network_time(self, level: Tensor) -> Tensor:
        """Return what the network is told about the level, (B,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EDMSchedule:
    """EDM: noisy = clean + sigma * noise, with ln(sigma) ~ N(p_mean, p_std^2) in training.

    Source: Karras et al. 2022, "Elucidating the Design Space", table 1, arXiv 2206.00364.
    """

    p_mean: float = -1.2
    """Mean of ln(sigma) in training. The released SVD recipe has -1.2, SVD_Xtend 0.7."""
    p_std: float = 1.2
    """Standard deviation of ln(sigma) in training, > 0."""
    sigma_data: float = 1.0
    """Standard deviation of the scaled clean latents, > 0. SVD has 1."""
    sigma_min: float = 0.002
    """Smallest sigma that a sampler visits before 0, > 0."""
    sigma_max: float = 700.0
    """Largest sigma that a sampler may start from, > sigma_min."""

    def __post_init__(self) -> None:
        advice = "SVD was trained with p_std 1.2, sigma_data 1, sigma 0.002 to 700"
        require(math.isfinite(self.p_mean), "p_mean", "finite", self.p_mean, advice)
        for name in ("p_std", "sigma_data", "sigma_min", "sigma_max"):
            value = getattr(self, name)
            require(value > 0 and math.isfinite(value), name, "> 0 and finite", value, advice)
        require(
            self.sigma_max > self.sigma_min,
            "sigma_max",
            f"> sigma_min = {self.sigma_min}",
            self.sigma_max,
            advice,
        )

    def sigma(self, normal: Tensor) -> Tensor:
        """Turn standard normal numbers into training sigmas, exp(p_mean + p_std * normal)."""
        return torch.exp(self.p_mean + self.p_std * normal.double()).to(normal.dtype)

    def rank(self, sigma: Tensor) -> Tensor:
        """Return the share of training sigmas below ``sigma``, in [0, 1].

        Args:
            sigma: any shape, >= 0.

        Returns:
            The log-normal distribution function, same shape and dtype.
        """
        z = (sigma.double().log() - self.p_mean) / self.p_std
        share: Tensor = torch.special.ndtr(z)
        return share.to(sigma.dtype)

    def sigma_at(self, t: Tensor) -> Tensor:
        """Return the sigma of rank ``t``, capped to [sigma_min, sigma_max].

        Args:
            t: any shape, in [0, 1].

        Returns:
            The inverse of `rank`, same shape and dtype.
        """
        z = torch.special.ndtri(t.double())
        sigma = torch.exp(self.p_mean + self.p_std * z)
        return sigma.clamp(self.sigma_min, self.sigma_max).to(t.dtype)

    def level(self, uniform: Tensor) -> Tensor:
        """Draw training sigmas from uniform numbers in (0, 1), by the inverse distribution."""
        return self.sigma(torch.special.ndtri(uniform.double())).to(uniform.dtype)

    def scales(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha = 1 and sigma."""
        return torch.ones_like(level), level

    def time(self, level: Tensor, time_map: TimeMap) -> Tensor:
        """Return t = sigma / 700 (``sigma``, as released) or the rank of sigma (``rank``).

        Raises:
            ConfigError: ``index``, since EDM has no timesteps.
        """
        if time_map == "rank":
            return self.rank(level)
        if time_map == "sigma":
            return level / SIGMA_TIME_UNIT
        raise ConfigError(
            f"time_map {time_map!r} needs discrete timesteps and EDM has none; "
            "set time_map to 'rank' (or 'sigma', as the released SVD code)"
        )

    def clean_scale(self, level: Tensor) -> Tensor:
        """Return 1: EDM noises the clean latents as they are."""
        return torch.ones_like(level)

    def network_time(self, level: Tensor) -> Tensor:
        """Return c_noise = ln(sigma) / 4."""
        return level.double().log().div(4.0).to(level.dtype)
