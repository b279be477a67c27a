"""TimeNoise: noise on the conditioning image that depends on time, its presets and its controls.

    sigma_cond = beta_m * sigmoid(mu(t) + scale * n),  n ~ N(0, 1) per clip
    mu(t)      = mu_max * (2 t^a - 1)
    condition  = conditioning latents + sigma_cond * noise

`TimeNoiseConfig` names a preset, ``build(schedule)`` turns it into a `Corruption`; training code
reads the same for TimeNoise and for every baseline:

    corruption = TimeNoiseConfig(preset="mild").build(schedule)
    sigma_cond = corruption.sigma_cond(level, normal, other_level)
    noised = corruption.corrupt(conditioning_latents, sigma_cond, noise)
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from cil.baselines import (
    ConstantNoise,
    LogNormalNoise,
    NoiseLaw,
    ShuffledNoise,
    VideoLevelNoise,
    constant_like,
)
from cil.conditioning import AddsNoise, NoiseMode, Target
from cil.corruption import Corruption
from cil.errors import ConfigError
from cil.noise_schedule import NoiseSchedule, TimeMap, require
from cil.quadrature import normal_nodes
from cil.shapes import broadcast

__all__ = ["PRESETS", "Corruption", "Preset", "TimeNoise", "TimeNoiseConfig"]

Preset = Literal[
    "none",
    "mild",
    "constant",
    "shuffled",
    "lognormal",
    "cdm",
    "paper-dynamicrafter",
    "paper-videocrafter",
    "paper-svd",
    "paper-svd-fixed",
    "paper-svd-baseline",
]


_LARGEST_POWER = 1e30
"""Where t^a is cut, so that float32 stays finite."""


@dataclass(frozen=True, slots=True)
class TimeNoise(AddsNoise):
    """Time-dependent noise on the conditioning image, logit-normal in size.

        sigma_cond = beta_m * sigmoid(mu(t) + scale * n),  n ~ N(0, 1)
        mu(t)      = mu_max * (2 t^a - 1)

    Little noise at small t, where the noisy video itself shows the motion, and much at large t,
    where a clean condition would be copied instead. At inference the condition stays clean.

    Args:
        beta_m: largest sigma_cond, > 0, in the unit of the conditioning latents (scaled latents
            have a standard deviation of about 1).
        a: exponent of t, > 0. Larger values keep the noise small until t is near 1.
        mu_max: mu(0) = -mu_max and mu(1) = mu_max, >= 0: how much the noise depends on time.
        scale: standard deviation of the logit of sigma_cond / beta_m, > 0.
        noise: ``shared``: noise one image, then repeat it over frames. ``per_frame``: repeat, then
            noise every frame. ``scalar``: one number per clip, a constant shift, as released for
            SVD.
        time_map: how the video's noise level becomes t in [0, 1]: ``index`` = timestep / number of
            timesteps, ``sigma`` = sigma / 700 (may pass 1), ``rank`` = share of the training noise
            levels below it.
        target: what is noised: conditioning ``latents``, image ``tokens``, ``both``, or the
            ``pixels`` of the image before it is encoded.

    Raises:
        ConfigError: a value is out of its range.

    Example:
        >>> law = TimeNoise(beta_m=5.0, a=5.0)
        >>> sigma_cond = law.sigma_cond(t, normal)              # (B,), (B,) -> (B,)
        >>> noised = law.corrupt(latents, sigma_cond, noise)    # (B, F, C, H, W)

    Source: Zhao et al. 2024, "Identifying and Solving Conditional Image Leakage in Image-to-Video
        Diffusion Model", arXiv 2406.15735, where sigma_cond is called beta_s, and mu_max and scale
        are 1.
    """

    beta_m: float
    a: float = 5.0
    mu_max: float = 1.0
    scale: float = 1.0
    noise: NoiseMode = "shared"
    time_map: TimeMap = "index"
    target: Target = "latents"

    def __post_init__(self) -> None:
        advice = "the paper uses beta_m 15 to 100, a 5, mu_max 1; preset 'mild' has beta_m 5"
        for name, low, wanted in (
            ("beta_m", False, "> 0 and finite"),
            ("a", False, "> 0 and finite"),
            ("mu_max", True, ">= 0 and finite"),
            ("scale", False, "> 0 and finite"),
        ):
            value = getattr(self, name)
            ok = math.isfinite(value) and (value >= 0 if low else value > 0)
            require(ok, name, wanted, value, advice)
        for name, choices in (("noise", NoiseMode), ("time_map", TimeMap), ("target", Target)):
            value = getattr(self, name)
            names = get_args(choices)
            require(value in names, name, "one of " + ", ".join(names), value, "see cil.TimeNoise")

    @staticmethod
    def preset(name: str) -> NoiseLaw:
        """Return the noise law of a preset with its own values.

        Args:
            name: one of `PRESETS`; ``none``, ``constant``, ``lognormal``, ``shuffled`` and ``cdm``
                give baselines, which have the same methods.

        Returns:
            The noise law.

        Raises:
            ConfigError: no preset has that name.
        """
        return TimeNoiseConfig(preset=name).law()  # type: ignore[arg-type]

    def mu(self, t: Tensor) -> Tensor:
        """Return the mean of the logit, mu_max * (2 t^a - 1).

        Args:
            t: any shape, >= 0; in [0, 1] but for time map ``sigma``, which may pass 1.

        Returns:
            Shape and dtype of ``t``.
        """
        power = torch.as_tensor(t) ** self.a
        # t above 1 may overflow; any number this large is the same to the sigmoid
        return self.mu_max * (2.0 * power.clamp(max=_LARGEST_POWER) - 1.0)

    def sigma_cond(self, t: Tensor, normal: Tensor, *, other_t: Tensor | None = None) -> Tensor:
        """Draw the noise level of the condition.

        The sigmoid is the stable one: where the released exp(y) / (1 + exp(y)) is NaN, this is
        ``beta_m``.

        Args:
            t: (B,) times, see `mu`.
            normal: (B,) standard normal numbers, or any shape that broadcasts with ``t``.
            other_t: unused; `ShuffledNoise` needs it.

        Returns:
            (B,) sigma_cond in [0, beta_m].
        """
        return self.beta_m * torch.sigmoid(self.mu(t) + self.scale * normal)

    def _standard(self, sigma_cond: Tensor, t: Tensor) -> Tensor:
        logit = torch.log(sigma_cond) - torch.log(self.beta_m - sigma_cond)
        return (logit - self.mu(t)) / self.scale

    def pdf(self, sigma_cond: Tensor, t: Tensor) -> Tensor:
        """Return the density of sigma_cond at time t.

            beta_m / (s (beta_m - s)) * N(ln(s / (beta_m - s)); mu(t), scale^2)

        Args:
            sigma_cond: any shape that broadcasts with ``t``.
            t: times, see `mu`.

        Returns:
            Density per unit of sigma_cond, >= 0; 0 outside (0, beta_m).
        """
        sigma_cond, t = broadcast(torch.as_tensor(sigma_cond), torch.as_tensor(t))
        inside = (sigma_cond > 0) & (sigma_cond < self.beta_m)
        safe = torch.where(inside, sigma_cond, torch.full_like(sigma_cond, self.beta_m / 2))
        log_norm = math.log(self.scale) + 0.5 * math.log(2.0 * math.pi) - math.log(self.beta_m)
        log_pdf = (
            -0.5 * self._standard(safe, t) ** 2
            - torch.log(safe)
            - torch.log(self.beta_m - safe)
            - log_norm
        )
        return torch.where(inside, log_pdf.exp(), torch.zeros_like(safe))

    def cdf(self, sigma_cond: Tensor, t: Tensor) -> Tensor:
        """Return the probability of a value below sigma_cond at time t, in [0, 1]."""
        clamped = torch.as_tensor(sigma_cond).clamp(0.0, self.beta_m)
        probability: Tensor = torch.special.ndtr(self._standard(clamped, t))
        return probability

    def quantile(self, q: Tensor, t: Tensor) -> Tensor:
        """Return the sigma_cond below which a share q in [0, 1] of the draws at time t falls."""
        return self.sigma_cond(t, torch.special.ndtri(torch.as_tensor(q)))

    def mean(self, t: Tensor) -> Tensor:
        """Return the mean of sigma_cond at time t, by Gauss-Hermite quadrature."""
        t = torch.as_tensor(t)
        nodes, weights = normal_nodes(t)
        return (self.sigma_cond(t[..., None], nodes) * weights).sum(-1)


_LAWS: dict[str, NoiseLaw] = {
    "none": ConstantNoise(0.0),
    "lognormal": LogNormalNoise(),
    "cdm": VideoLevelNoise(),
    # The released baseline of SVD: its sigma_cond has the video's distribution, not (-3, 0.5).
    "paper-svd-baseline": LogNormalNoise(-1.2, 1.2, noise="per_frame", target="pixels"),
}

_TIME_NOISE: dict[str, TimeNoise] = {
    "paper-dynamicrafter": TimeNoise(100.0, noise="per_frame", time_map="index"),
    "paper-videocrafter": TimeNoise(
        100.0, mu_max=4.0, noise="per_frame", time_map="index", target="tokens"
    ),
    "paper-svd": TimeNoise(15.0, noise="scalar", time_map="sigma"),
    "paper-svd-fixed": TimeNoise(15.0, noise="shared", time_map="rank"),
    # Of toy worlds: it cures their leak, others were hardly tried; docs/adr/0015-default-preset.md.
    "mild": TimeNoise(5.0, noise="shared", time_map="rank"),
}

PRESETS: tuple[str, ...] = get_args(Preset)
"""Names of all presets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeNoiseConfig:
    """Noise on the condition in training, by preset; a field that is null keeps the preset's value.

    ``constant`` and ``shuffled`` are controls of the TimeNoise that the other fields describe (by
    default ``mild``): the constant of the same mean, and the same marginal with t permuted.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    preset: Preset = "mild"
    """Named noise law: none, mild, constant, shuffled, lognormal, cdm, or the paper-... ones."""
    beta_m: float | None = None
    """Largest sigma_cond, > 0, in the unit of the conditioning latents."""
    a: float | None = None
    """Exponent of mu(t) = mu_max * (2 t^a - 1), > 0."""
    mu_max: float | None = None
    """mu(1) = -mu(0), >= 0: how much the noise depends on time."""
    scale: float | None = None
    """Standard deviation of the logit of sigma_cond / beta_m, > 0."""
    noise: NoiseMode | None = None
    """shared (noise, then repeat over frames), per_frame (repeat, then noise) or scalar."""
    time_map: TimeMap | None = None
    """index (timestep / count), sigma (sigma / 700) or rank (share of training levels below)."""
    target: Target | None = None
    """What is noised: latents, tokens, both, or pixels (the image before it is encoded)."""
    token_preset: Preset | None = None
    """Noise law of the image tokens alone, with ``target`` tokens or both; null: that of the
    latents."""
    token_beta_m: float | None = None
    """Largest noise level of the image tokens, > 0, in their unit; null: that of their law."""
    impl: Literal["auto", "torch", "triton"] = "auto"
    """What adds the noise in training: torch, Triton kernels (GPU only), or auto: Triton on a GPU.
    The noise is the same, from the same bits."""

    def __post_init__(self) -> None:
        require(
            self.preset in PRESETS,
            "time_noise.preset",
            "one of " + ", ".join(PRESETS),
            self.preset,
            "'mild' is the default",
        )
        choices = ("auto", "torch", "triton")
        require(
            self.impl in choices,
            "time_noise.impl",
            "one of " + ", ".join(choices),
            self.impl,
            "'auto' is the default",
        )
        self.token_law()

    def _given(self, *names: str) -> dict[str, float | str]:
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def law(self) -> NoiseLaw:
        """Return the noise law that this configuration names.

        Raises:
            ConfigError: a value is out of its range, or the preset has no such parameter.
        """
        shape = self._given("beta_m", "a", "mu_max", "scale")
        where = self._given("noise", "time_map", "target")
        if self.preset in _LAWS:
            if shape:
                name = next(iter(shape))
                raise ConfigError(
                    f"time_noise.{name} has no meaning for preset {self.preset!r}, "
                    f"got {shape[name]!r}; remove it or choose preset 'mild'"
                )
            return replace(_LAWS[self.preset], **where)  # type: ignore[type-var]
        base = _TIME_NOISE.get(self.preset, _TIME_NOISE["mild"])
        values = {name: getattr(base, name) for name in TimeNoise.__dataclass_fields__}
        law = TimeNoise(**(values | shape | where))
        if self.preset == "constant":
            return constant_like(law)
        if self.preset == "shuffled":
            return ShuffledNoise(law)
        return law

    def token_law(self) -> NoiseLaw | None:
        """Return the noise law of the image tokens; None where it is that of the latents.

        Raises:
            ConfigError: a value is out of its range, or tokens are not noised.
        """
        law = self.law()
        if self.token_preset is None and self.token_beta_m is None:
            return None
        wanted = "null unless time_noise.target is tokens or both"
        given = (self.token_preset, self.token_beta_m)
        require(
            law.target in ("tokens", "both"),
            "time_noise.token_preset and token_beta_m",
            wanted,
            given,
            "set time_noise.target to noise the image tokens, or leave them out",
        )
        own = replace(self, token_preset=None, token_beta_m=None)
        try:
            if self.token_preset is not None:
                own = TimeNoiseConfig(preset=self.token_preset, time_map=self.time_map)
            if self.token_beta_m is not None:
                own = replace(own, beta_m=self.token_beta_m)
        except ConfigError as error:
            raise ConfigError(
                f"time_noise.token_preset {given[0]} and token_beta_m {given[1]}: {error}"
            ) from error
        return own.law()

    def build(self, schedule: NoiseSchedule) -> Corruption:
        """Tie the noise law to a noise schedule.

        Args:
            schedule: noise schedule of the model.

        Returns:
            The corruption that training calls.

        Raises:
            ConfigError: the schedule does not have the time map, for example EDM and ``index``.
        """
        corruption = Corruption(self.law(), schedule, self.token_law())
        some = schedule.level(torch.tensor([0.5]))
        corruption.sigma_cond(some, some, some)
        corruption.sigma_tokens(some, some, some)
        return corruption
