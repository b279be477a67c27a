"""Noise schedules: the one place where timestep, t, alpha and sigma are converted.

Every schedule has a native noise *level* of shape (B,): sigma for EDM, the timestep for VP, t for
flow matching. ``scales(level)`` gives alpha and sigma of ``noisy = alpha * clean + sigma * noise``.

| | level | alpha | sigma | noise to signal |
|---|---|---|---|---|
| `EDMSchedule` | sigma | 1 | sigma | sigma |
| `VPSchedule` | timesteps | sqrt(alphas_cumprod) | sqrt(1 - alphas_cumprod) | their ratio |
| `FlowSchedule` | t | 1 - t | t | t / (1 - t) |

``level(uniform)`` draws from the training distribution and ``rank`` is its inverse, ``time`` is the
t of TimeNoise, ``start_level`` is the level of a start time M. Arithmetic is float64 inside;
results have the dtype of the argument, float32 for timesteps.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from cil.errors import ConfigError
from cil.vp_tables import BetaSchedule, alphas_cumprod, clean_scales

__all__ = ["EDMSchedule", "FlowSchedule", "NoiseSchedule", "TimeMap", "VPSchedule", "require"]

TimeMap = Literal["index", "sigma", "rank"]

SIGMA_TIME_UNIT = 700.0
"""The sigma that the released SVD code calls t = 1."""
KARRAS_RHO = 7.0
"""Exponent of the Karras sigmas."""


def require(condition: bool, name: str, wanted: str, got: object, advice: str) -> None:
    """Refuse a setting with a message that says what, got and what to do.

    Raises:
        ConfigError: ``condition`` is false.
    """
    if not condition:
        raise ConfigError(f"{name} must be {wanted}, got {got!r}; {advice}")


def _positive(value: float) -> bool:
    return value > 0 and math.isfinite(value)


def _ndtr(values: Tensor) -> Tensor:
    share: Tensor = torch.special.ndtr(values)
    return share


class NoiseSchedule(Protocol):
    """What training, TimeNoise and the samplers ask of a noise schedule."""

    def level(self, uniform: Tensor) -> Tensor:
        """Draw the training noise level (B,) from a uniform number (B,) in (0, 1)."""

    def scales(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha (B,) and sigma (B,) of noisy = alpha * clean + sigma * noise."""

    def noise_to_signal(self, level: Tensor) -> Tensor:
        """Return sigma / alpha (B,), in [0, inf]: sigma for unscaled clean latents."""

    def level_of(self, noise_to_signal: Tensor) -> Tensor:
        """Return the level (B,) that has a noise to signal ratio: its inverse."""

    def time(self, level: Tensor, time_map: TimeMap) -> Tensor:
        """Return TimeNoise's t (B,) of a level (B,)."""

    def rank(self, level: Tensor) -> Tensor:
        """Return the share (B,) of training noise levels below a level."""

    def clean_scale(self, level: Tensor) -> Tensor:
        """Return the factor (B,) that clean latents get before they are noised; mostly 1."""

    def network_time(self, level: Tensor) -> Tensor:
        """Return what the network is told about the level, (B,)."""

    def start_level(self, start_time: float) -> float:
        """Return the level of a start time M in (0, 1], 1 being the end of the schedule."""

    def check_level(self, level: float) -> None:
        """Raise ConfigError where sampling cannot start from a level."""


def _check_start(start_time: float) -> None:
    require(
        0.0 < start_time <= 1.0,
        "start_time",
        "in (0, 1]",
        start_time,
        "1 starts from pure noise, 0.94 is what the paper uses with Analytic-Init",
    )


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
            require(_positive(value), name, "> 0 and finite", value, advice)
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
        return _ndtr((sigma.double().log() - self.p_mean) / self.p_std).to(sigma.dtype)

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

    def noise_to_signal(self, level: Tensor) -> Tensor:
        """Return sigma."""
        return level

    def level_of(self, noise_to_signal: Tensor) -> Tensor:
        """Return sigma."""
        return noise_to_signal

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

    def start_level(self, start_time: float) -> float:
        """Return the sigma at ``start_time`` in (0, 1] of the Karras ramp, 1 being sigma_max.

        The ramp is even in sigma^(1/7): starting at 0.94 leaves out the first 6 % of the steps.
        """
        _check_start(start_time)
        low, high = self.sigma_min ** (1 / KARRAS_RHO), self.sigma_max ** (1 / KARRAS_RHO)
        return min(float((low + start_time * (high - low)) ** KARRAS_RHO), self.sigma_max)

    def check_level(self, level: float) -> None:
        """Raise ConfigError unless sigma_min < level <= sigma_max."""
        wanted = f"a sigma in ({self.sigma_min}, {self.sigma_max}]"
        ok = self.sigma_min < level <= self.sigma_max
        require(ok, "the start level", wanted, level, "use start_level(0.94), or raise sigma_max")


@dataclass(frozen=True, slots=True, kw_only=True)
class VPSchedule:
    """VP: noisy = sqrt(alphas_cumprod) * clean + sqrt(1 - alphas_cumprod) * noise.

    Timesteps are 0 to num_train_timesteps - 1, equally likely in training.

    Source: Ho et al. 2020, arXiv 2006.11239; zero terminal SNR: Lin et al. 2023, algorithm 1,
        arXiv 2305.08891; dynamic rescale: released DynamiCrafter code.
    """

    beta_start: float = 0.00085
    """First beta, in (0, 1)."""
    beta_end: float = 0.012
    """Last beta, in [beta_start, 1)."""
    beta_schedule: BetaSchedule = "scaled_linear"
    """``scaled_linear``: betas linear in their square roots (Stable Diffusion);
    ``squaredcos_cap_v2``: the cosine schedule, which has no use for the two betas (I2VGen-XL)."""
    num_train_timesteps: int = 1000
    """Number of timesteps, >= 2."""
    zero_terminal_snr: bool = False
    """Shift and scale so that the last timestep is pure noise (DynamiCrafter)."""
    base_scale: float = 1.0
    """Dynamic rescale: factor of the clean latents from ``rescale_steps`` on, > 0. DynamiCrafter
    has 0.7 at 512 and 0.3 at 1024, VideoCrafter 0.7; 1 turns it off."""
    rescale_steps: int = 400
    """Timesteps over which the factor goes linearly from 1 to ``base_scale``, >= 2."""

    def __post_init__(self) -> None:
        advice = "Stable Diffusion has 1000 timesteps, beta 0.00085 to 0.012"
        ok = 0 < self.beta_start <= self.beta_end < 1
        got = (self.beta_start, self.beta_end)
        require(ok, "beta_start, beta_end", "increasing in (0, 1)", got, advice)
        known = get_args(BetaSchedule)
        chosen = self.beta_schedule
        require(chosen in known, "beta_schedule", f"one of {known}", chosen, advice)
        count = self.num_train_timesteps
        require(count >= 2, "num_train_timesteps", ">= 2", count, advice)
        require(_positive(self.base_scale), "base_scale", "> 0", self.base_scale, "1 is off")
        steps = self.rescale_steps
        require(steps >= 2, "rescale_steps", ">= 2", steps, "DynamiCrafter has 400")

    @property
    def alphas_cumprod(self) -> Tensor:
        """Product of (1 - beta) up to each timestep, (num_train_timesteps,) float64."""
        return alphas_cumprod(
            self.beta_schedule,
            self.beta_start,
            self.beta_end,
            self.num_train_timesteps,
            self.zero_terminal_snr,
        )

    @property
    def clean_scales(self) -> Tensor:
        """Dynamic rescale of each timestep, (num_train_timesteps,) float64."""
        return clean_scales(self.base_scale, self.rescale_steps, self.num_train_timesteps)

    def _at(self, table: Tensor, timesteps: Tensor) -> Tensor:
        dtype = timesteps.dtype if timesteps.is_floating_point() else torch.float32
        return table.to(timesteps.device)[timesteps.long()].to(dtype)

    def level(self, uniform: Tensor) -> Tensor:
        """Draw equally likely timesteps (B,) int64 from uniform numbers in (0, 1)."""
        return (uniform.double() * self.num_train_timesteps).long()

    def scales(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return sqrt(alphas_cumprod) and sqrt(1 - alphas_cumprod)."""
        table = self.alphas_cumprod
        return self._at(table.sqrt(), level), self._at((1.0 - table).sqrt(), level)

    def noise_to_signal(self, level: Tensor) -> Tensor:
        """Return sqrt((1 - alphas_cumprod) / alphas_cumprod); infinite at zero terminal SNR."""
        table = self.alphas_cumprod
        return self._at(((1.0 - table) / table).sqrt(), level)

    def level_of(self, noise_to_signal: Tensor) -> Tensor:
        """Return the timesteps (int64) whose noise to signal ratio is nearest in logarithm."""
        ratio = noise_to_signal.double()
        # ln(1 + ratio^2) = -ln(alphas_cumprod) grows with the timestep and stays exact near 0.
        key = -self.alphas_cumprod.to(ratio.device).log()
        wanted = torch.log1p(ratio.square())
        above = torch.searchsorted(key, wanted).clamp(1, self.num_train_timesteps - 1)
        low, high = key[above - 1], key[above]
        # The neighbour in ln(ratio): compare ratio^2 with the geometric mean of its neighbours'.
        middle = torch.sqrt(torch.expm1(low) * torch.expm1(high))
        nearer_low = (ratio.square() < middle) | ((high == torch.inf) & (ratio < torch.inf))
        return torch.where(nearer_low, above - 1, above)

    def time(self, level: Tensor, time_map: TimeMap) -> Tensor:
        """Return t = timestep / num_train_timesteps in [0, 1), for ``index`` and ``rank`` alike.

        Raises:
            ConfigError: ``sigma``, which is EDM's.
        """
        if time_map == "sigma":
            raise ConfigError(
                f"time_map {time_map!r} is for EDM and the schedule is VP; set it to 'index'"
            )
        return self.rank(level)

    def rank(self, level: Tensor) -> Tensor:
        """Return timestep / num_train_timesteps."""
        dtype = level.dtype if level.is_floating_point() else torch.float32
        return (level.double() / self.num_train_timesteps).to(dtype)

    def clean_scale(self, level: Tensor) -> Tensor:
        """Return the dynamic rescale of the timesteps, (B,)."""
        return self._at(self.clean_scales, level)

    def network_time(self, level: Tensor) -> Tensor:
        """Return the timesteps."""
        return level

    def start_level(self, start_time: float) -> float:
        """Return the timestep M - 1 of the start time M / num_train_timesteps in (0, 1]."""
        _check_start(start_time)
        return max(round(start_time * self.num_train_timesteps) - 1, 0)

    def check_level(self, level: float) -> None:
        """Raise ConfigError unless the level is a timestep."""
        last = self.num_train_timesteps - 1
        ok = 0 <= level <= last and level == int(level)
        require(ok, "the start level", f"a timestep in [0, {last}]", level, "M starts at M - 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSchedule:
    """Flow matching: noisy = (1 - t) * clean + t * noise, with logit(t) normal, then shifted.

    Source: Esser et al. 2024, "Scaling Rectified Flow Transformers", sections 3.1 and 5.3.2, arXiv
        2403.03206.
    """

    logit_mean: float = 0.0
    """Mean of logit(t) in training, before the shift."""
    logit_std: float = 1.0
    """Standard deviation of logit(t) in training, > 0."""
    shift: float = 1.0
    """t -> shift * t / (1 + (shift - 1) * t), > 0; above 1 there is more noise."""
    num_train_timesteps: int = 1000
    """The network is told t times this."""

    def __post_init__(self) -> None:
        advice = "SD3 has logit_mean 0, logit_std 1, shift 3; Wan has shift 3 to 5"
        require(math.isfinite(self.logit_mean), "logit_mean", "finite", self.logit_mean, advice)
        for name in ("logit_std", "shift", "num_train_timesteps"):
            value = getattr(self, name)
            require(_positive(value), name, "> 0 and finite", value, advice)

    def shifted(self, t: Tensor) -> Tensor:
        """Return shift * t / (1 + (shift - 1) * t), of any shape."""
        return self.shift * t / (1.0 + (self.shift - 1.0) * t)

    def level(self, uniform: Tensor) -> Tensor:
        """Draw training t from uniform numbers in (0, 1), by the inverse distribution."""
        z = torch.special.ndtri(uniform.double())
        t = torch.sigmoid(self.logit_mean + self.logit_std * z)
        return self.shifted(t).to(uniform.dtype)

    def rank(self, level: Tensor) -> Tensor:
        """Return the share of training t below ``level``, in [0, 1]."""
        t = level.double()
        # logit of the unshifted t = logit(t) - ln(shift)
        z = torch.log(t) - torch.log1p(-t) - math.log(self.shift) - self.logit_mean
        return _ndtr(z / self.logit_std).to(level.dtype)

    def scales(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1 - t and t."""
        return 1.0 - level, level

    def noise_to_signal(self, level: Tensor) -> Tensor:
        """Return t / (1 - t); infinite at t = 1."""
        return level / (1.0 - level)

    def level_of(self, noise_to_signal: Tensor) -> Tensor:
        """Return t = ratio / (1 + ratio)."""
        return 1.0 / (1.0 + 1.0 / noise_to_signal)

    def time(self, level: Tensor, time_map: TimeMap) -> Tensor:
        """Return t itself (``index``) or its rank (``rank``).

        Raises:
            ConfigError: ``sigma``, which is EDM's.
        """
        if time_map == "sigma":
            raise ConfigError(
                f"time_map {time_map!r} is for EDM and the schedule is flow; set it to 'rank'"
            )
        return level if time_map == "index" else self.rank(level)

    def clean_scale(self, level: Tensor) -> Tensor:
        """Return 1: flow matching noises the clean latents as they are."""
        return torch.ones_like(level)

    def network_time(self, level: Tensor) -> Tensor:
        """Return t * num_train_timesteps."""
        return level * self.num_train_timesteps

    def start_level(self, start_time: float) -> float:
        """Return the shifted t of ``start_time`` in (0, 1]."""
        _check_start(start_time)
        return float(self.shifted(torch.tensor(start_time, dtype=torch.float64)))

    def check_level(self, level: float) -> None:
        """Raise ConfigError unless 0 < level <= 1."""
        require(0.0 < level <= 1.0, "the start level", "a t in (0, 1]", level, "0.94 is usual")
