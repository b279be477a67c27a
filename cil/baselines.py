"""The noise laws that TimeNoise is measured against.

Each has the methods of `cil.TimeNoise`: ``sigma_cond(t, normal)``, ``pdf(sigma_cond, t)``,
``quantile(q, t)``, ``mean(t)`` and ``corrupt``. `ShuffledNoise` also needs an unrelated time.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cil.conditioning import AddsNoise, NoiseMode, Target
from cil.noise_schedule import TimeMap, require
from cil.quadrature import unit_nodes
from cil.shapes import broadcast

__all__ = [
    "ConstantNoise",
    "LogNormalNoise",
    "NoiseLaw",
    "ShuffledNoise",
    "VideoLevelNoise",
    "constant_like",
    "mean_over_time",
]


class NoiseLaw(Protocol):
    """A distribution of sigma_cond given t."""

    @property
    def noise(self) -> NoiseMode:
        """How the noise is spread over frames."""

    @property
    def time_map(self) -> TimeMap:
        """How a noise level becomes t."""

    @property
    def target(self) -> Target:
        """What is noised."""

    def sigma_cond(self, t: Tensor, normal: Tensor, *, other_t: Tensor | None = None) -> Tensor:
        """Draw sigma_cond (B,) at times t (B,) from standard normal numbers (B,)."""

    def pdf(self, sigma_cond: Tensor, t: Tensor) -> Tensor:
        """Return the density of sigma_cond at time t."""

    def cdf(self, sigma_cond: Tensor, t: Tensor) -> Tensor:
        """Return the probability of a value below sigma_cond at time t."""

    def quantile(self, q: Tensor, t: Tensor) -> Tensor:
        """Return the sigma_cond below which a share q of the draws at time t falls."""

    def mean(self, t: Tensor) -> Tensor:
        """Return the mean of sigma_cond at time t."""

    def corrupt(self, latents: Tensor, sigma_cond: Tensor, noise: Tensor) -> Tensor:
        """Noise conditioning latents."""


@dataclass(frozen=True, slots=True)
class ConstantNoise(AddsNoise):
    """The same sigma_cond at every time; 0 is training on the clean condition."""

    value: float
    """sigma_cond, >= 0, in the unit of the conditioning latents."""
    noise: NoiseMode = "shared"
    """How the noise is spread over frames."""
    time_map: TimeMap = "rank"
    """Unused; here because every noise law has one."""
    target: Target = "latents"
    """What is noised."""

    def __post_init__(self) -> None:
        ok = self.value >= 0 and math.isfinite(self.value)
        require(ok, "value", ">= 0 and finite", self.value, "0 means no noise")

    def sigma_cond(self, t: Tensor, normal: Tensor, *, other_t: Tensor | None = None) -> Tensor:
        """Return ``value`` for every clip, (B,)."""
        return torch.full_like(normal, self.value)

    def pdf(self, sigma_cond: Tensor, t: Tensor) -> Tensor:
        """Return 0, or inf at ``value``: all mass sits in one point."""
        sigma_cond, _ = broadcast(sigma_cond, t)
        return torch.where(sigma_cond == self.value, math.inf, torch.zeros_like(sigma_cond))

    def cdf(self, sigma_cond: Tensor, t: Tensor) -> Tensor:
        """Return 0 below ``value`` and 1 from there on."""
        sigma_cond, _ = broadcast(sigma_cond, t)
        return (sigma_cond >= self.value).to(sigma_cond.dtype)

    def quantile(self, q: Tensor, t: Tensor) -> Tensor:
        """Return ``value``."""
        return torch.full_like(broadcast(q, t)[0], self.value)

    def mean(self, t: Tensor) -> Tensor:
        """Return ``value``."""
        return torch.full_like(t, self.value)


@dataclass(frozen=True, slots=True)
class LogNormalNoise(AddsNoise):
    """ln(sigma_cond) ~ N(log_mean, log_std^2) at every time: what SVD and CogVideoX practise."""

    log_mean: float = -3.0
    """Mean of ln(sigma_cond); -3 is a median of 0.05."""
    log_std: float = 0.5
    """Standard deviation of ln(sigma_cond), > 0."""
    noise: NoiseMode = "shared"
    """How the noise is spread over frames."""
    time_map: TimeMap = "rank"
    """Unused; here because every noise law has one."""
    target: Target = "latents"
    """What is noised."""

    def __post_init__(self) -> None:
        advice = "SVD and CogVideoX use log_mean -3, log_std 0.5"
        require(math.isfinite(self.log_mean), "log_mean", "finite", self.log_mean, advice)
        ok = self.log_std > 0 and math.isfinite(self.log_std)
        require(ok, "log_std", "> 0 and finite", self.log_std, advice)

    def _standard(self, sigma_cond: Tensor) -> Tensor:
        return (sigma_cond.log() - self.log_mean) / self.log_std

    def sigma_cond(self, t: Tensor, normal: Tensor, *, other_t: Tensor | None = None) -> Tensor:
        """Return exp(log_mean + log_std * normal), (B,)."""
        return torch.exp(self.log_mean + self.log_std * normal)

    def pdf(self, sigma_cond: Tensor, t: Tensor) -> Tensor:
        """Return the log-normal density, the same at every time; 0 for sigma_cond <= 0."""
        sigma_cond, _ = broadcast(sigma_cond, t)
        inside = sigma_cond > 0
        safe = torch.where(inside, sigma_cond, torch.ones_like(sigma_cond))
        log_norm = math.log(self.log_std) + 0.5 * math.log(2.0 * math.pi)
        log_pdf = -0.5 * self._standard(safe) ** 2 - safe.log() - log_norm
        return torch.where(inside, log_pdf.exp(), torch.zeros_like(safe))

    def cdf(self, sigma_cond: Tensor, t: Tensor) -> Tensor:
        """Return the log-normal distribution function, the same at every time."""
        sigma_cond, _ = broadcast(sigma_cond, t)
        probability: Tensor = torch.special.ndtr(self._standard(sigma_cond.clamp_min(0.0)))
        return probability

    def quantile(self, q: Tensor, t: Tensor) -> Tensor:
        """Return the inverse of `cdf` for q in [0, 1]."""
        q, _ = broadcast(q, t)
        return torch.exp(self.log_mean + self.log_std * torch.special.ndtri(q))

    def mean(self, t: Tensor) -> Tensor:
        """Return exp(log_mean + log_std^2 / 2)."""
        return torch.full_like(t, math.exp(self.log_mean + 0.5 * self.log_std**2))


@dataclass(frozen=True, slots=True)
class ShuffledNoise(AddsNoise):
    """The marginal of another noise law with its link to time cut.

    sigma_cond is drawn at the time of an unrelated clip. What a model trained with it lacks against
    one trained with ``law`` is due to time dependence alone. Density and quantiles are those of the
    marginal for t uniform on (0, 1), which holds for time maps ``rank`` and ``index``.
    """

    law: NoiseLaw
    """The noise law whose marginal is kept."""

    @property
    def noise(self) -> NoiseMode:  # type: ignore[override]
        """Noise mode of ``law``."""
        return self.law.noise

    @property
    def time_map(self) -> TimeMap:
        """Time map of ``law``."""
        return self.law.time_map

    @property
    def target(self) -> Target:
        """Target of ``law``."""
        return self.law.target

    def sigma_cond(self, t: Tensor, normal: Tensor, *, other_t: Tensor | None = None) -> Tensor:
        """Draw sigma_cond of ``law`` at unrelated times.

        Args:
            t: (B,) the clips' own times, which have no influence.
            normal: (B,) standard normal.
            other_t: (B,) times drawn from the training distribution independently of ``t``.

        Returns:
            (B,) sigma_cond.

        Raises:
            ConfigError: ``other_t`` is missing.
        """
        require(other_t is not None, "other_t", "given", None, "draw it from Stream.SHUFFLED_TIME")
        assert other_t is not None
        return self.law.sigma_cond(other_t, normal)

    def pdf(self, sigma_cond: Tensor, t: Tensor) -> Tensor:
        """Return the marginal density, the same at every time."""
        sigma_cond, _ = broadcast(sigma_cond, t)
        nodes, weights = unit_nodes(sigma_cond)
        return (self.law.pdf(sigma_cond[..., None], nodes) * weights).sum(-1)

    def cdf(self, sigma_cond: Tensor, t: Tensor) -> Tensor:
        """Return the marginal distribution function, the same at every time."""
        sigma_cond, _ = broadcast(sigma_cond, t)
        nodes, weights = unit_nodes(sigma_cond)
        return (self.law.cdf(sigma_cond[..., None], nodes) * weights).sum(-1)

    def quantile(self, q: Tensor, t: Tensor) -> Tensor:
        """Return the inverse of `cdf` for q in (0, 1), by bisection."""
        q, _ = broadcast(q, t)
        nodes, _ = unit_nodes(q)
        at_nodes = self.law.quantile(q[..., None], nodes)
        low, high = at_nodes.amin(dim=-1), at_nodes.amax(dim=-1)
        for _ in range(60):
            middle = 0.5 * (low + high)
            below = self.cdf(middle, middle) < q
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return 0.5 * (low + high)

    def mean(self, t: Tensor) -> Tensor:
        """Return the mean of the marginal."""
        return torch.full_like(t, mean_over_time(self.law))


@dataclass(frozen=True, slots=True)
class VideoLevelNoise(AddsNoise):
    """The condition noised as much as the video is: cascaded diffusion's augmentation (``cdm``).

    ``t`` is here the video's noise-to-signal ratio sigma / alpha, which may be infinite.
    ``corrupt`` keeps the scale of the latents, (latents + sigma_cond * noise) / sqrt(1 +
    sigma_cond^2), as the video itself has it at the network's input.

    Source: Ho et al. 2021, "Cascaded Diffusion Models", section 4, arXiv 2106.15282; with the
        level tied to the video's, as the paper's figure 9 does.
    """

    noise: NoiseMode = "shared"
    """How the noise is spread over frames."""
    time_map: TimeMap = "rank"
    """Unused; here because every noise law has one."""
    target: Target = "latents"
    """Only ``latents``: tokens have no noise level of their own."""

    def __post_init__(self) -> None:
        advice = "preset 'cdm' noises the conditioning latents only"
        require(self.target == "latents", "target", "'latents'", self.target, advice)

    def sigma_cond(self, t: Tensor, normal: Tensor, *, other_t: Tensor | None = None) -> Tensor:
        """Return ``t``, the video's own noise-to-signal ratio, (B,)."""
        return t

    def pdf(self, sigma_cond: Tensor, t: Tensor) -> Tensor:
        """Return 0, or inf at ``t``: all mass sits in one point."""
        return torch.where(sigma_cond == t, math.inf, torch.zeros_like(sigma_cond * t))

    def cdf(self, sigma_cond: Tensor, t: Tensor) -> Tensor:
        """Return 0 below ``t`` and 1 from there on."""
        return (sigma_cond >= t).to(sigma_cond.dtype)

    def quantile(self, q: Tensor, t: Tensor) -> Tensor:
        """Return ``t``."""
        return broadcast(t, q)[0]

    def mean(self, t: Tensor) -> Tensor:
        """Return ``t``."""
        return t

    def corrupt(self, latents: Tensor, sigma_cond: Tensor, noise: Tensor) -> Tensor:
        """Noise conditioning latents, keeping their scale.

        Args:
            latents: (B, F, C, H, W) conditioning latents.
            sigma_cond: (B,) noise-to-signal ratio, >= 0; infinity gives pure noise.
            noise: standard normal, as for `cil.TimeNoise.corrupt`.

        Returns:
            (B, F, C, H, W), dtype of ``latents``.
        """
        signal = 1.0 / torch.hypot(sigma_cond, torch.ones_like(sigma_cond))
        # sigma * signal without inf * 0
        level = torch.sqrt(((1.0 - signal) * (1.0 + signal)).clamp_min(0.0))
        scaled = latents * signal.reshape(-1, 1, 1, 1, 1)
        return AddsNoise.corrupt(self, scaled, level, noise).to(latents.dtype)


def mean_over_time(law: NoiseLaw) -> float:
    """Return the mean of sigma_cond for t uniform on (0, 1)."""
    nodes, weights = unit_nodes(torch.empty((), dtype=torch.float64))
    return float((law.mean(nodes) * weights).sum())


def constant_like(law: NoiseLaw) -> ConstantNoise:
    """Return the constant noise with the mean of ``law`` over t uniform on (0, 1).

    The matching control: what ``law`` gains over it is not due to the amount of noise.
    """
    return ConstantNoise(
        mean_over_time(law), noise=law.noise, time_map=law.time_map, target=law.target
    )
