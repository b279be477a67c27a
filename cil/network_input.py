"""What the network sees and should predict: noisy video, noised condition, target, tokens.

`denoising_loss` describes it in an `InputRequest`; `build_input` makes it in plain torch, and any
function of the same meaning may take its place.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from cil.conditioning import drop
from cil.corruption import Corruption
from cil.errors import DataError
from cil.parameterization import Parameterization, training_target
from cil.shapes import append_dims, check_shape

__all__ = ["BuiltInput", "Counter", "InputRequest", "TrainingDraws", "build_input"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """What every random number of a step is a function of; see `cil.rng`."""

    seed: int
    """64-bit key."""
    sample_ids: Tensor
    """(B,) int64 global ids of the clips."""
    step: int
    """Training step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingDraws:
    """Every random number of one training step of one batch."""

    level: Tensor
    """(B,) noise level of the video: sigma for EDM, timestep for VP, t for flow."""
    noise: Tensor | None
    """(B, F, C, H, W) noise of the video latents; None where it is drawn while it is added."""
    normal: Tensor
    """(B,) standard normal numbers that become sigma_cond."""
    other_level: Tensor
    """(B,) training noise level unrelated to ``level``, for the ``shuffled`` control."""
    cond_noise: Tensor | None
    """(B, *corruption.noise_shape) noise of the conditioning latents; None as for ``noise``."""
    dropout: Tensor
    """(B,) uniform numbers that drop the condition."""
    token_noise: Tensor | None = None
    """(B, L, D) noise of the image tokens; None where they are not noised."""
    token_normal: Tensor | None = None
    """(B,) standard normal numbers that become the noise level of image tokens; None takes
    ``normal``."""
    counter: Counter | None = None
    """Where the noise comes from; None if it comes from elsewhere, or if dropout is per batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRequest:
    """All that decides what the network sees and should predict."""

    clean: Tensor
    """(B, F, C, H, W) clean latents, before ``clean_scale``."""
    conditioning_latents: Tensor
    """(B, 1 or F, C, H, W) conditioning latents without noise."""
    tokens: Tensor | Callable[[Tensor], Tensor] | None
    """(B, L, D) image tokens, or what makes them from the noised conditioning latents."""
    clean_scale: Tensor
    """(B,) factor that clean latents get first."""
    alpha: Tensor
    """(B,) factor of the clean latents."""
    sigma: Tensor
    """(B,) factor of the noise."""
    c_in: Tensor
    """(B,) factor of the noisy latents for the network."""
    parameterization: Parameterization
    """What the network predicts."""
    sigma_data: float
    """Standard deviation of the clean latents, EDM only."""
    corruption: Corruption
    """Noise on the condition."""
    sigma_cond: Tensor
    """(B,) noise level of the condition."""
    keep: Tensor
    """(B,) 1 where the condition is kept."""
    dropout: float
    """Probability of dropping the condition, from which ``keep`` was drawn."""
    draws: TrainingDraws
    """The random numbers."""
    sigma_tokens: Tensor | None = None
    """(B,) noise level of image tokens; None is ``sigma_cond``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltInput:
    """What `build_input` makes."""

    noisy: Tensor
    """(B, F, C, H, W) noisy latents times c_in."""
    target: Tensor
    """(B, F, C, H, W) what the network should predict."""
    conditioning_latents: Tensor
    """(B, F, C, H, W) noised, repeated over frames, zero where dropped."""
    tokens: Tensor | None
    """(B, L, D) noised, zero where dropped."""
    stacked: Tensor | None = None
    """See `NetworkInputs.stacked`."""


def build_input(request: InputRequest) -> BuiltInput:
    """Noise video and condition, drop what is dropped, and make the target, in plain torch.

    Args:
        request: latents, numbers per clip, and the noise in ``request.draws``.

    Returns:
        What the network sees and should predict.

    Raises:
        DataError: noise that is needed was not drawn, or has another shape.
    """
    draws, corruption, tokens = request.draws, request.corruption, request.tokens
    if draws.noise is None or draws.cond_noise is None:
        raise DataError("noise must be drawn for build_input; call draw_training with_noise=True")
    batch, frames, channels, height, width = request.clean.shape
    sizes = {"B": batch, "C": channels, "H": height, "W": width}
    check_shape("noise", draws.noise, "B F C H W", F=frames, **sizes)
    alpha, sigma = request.alpha, request.sigma
    clean = request.clean * append_dims(request.clean_scale, 5).to(request.clean.dtype)
    noisy = append_dims(alpha, 5) * clean + append_dims(sigma, 5) * draws.noise
    target = training_target(
        clean,
        draws.noise,
        request.parameterization,
        alpha=alpha,
        sigma=sigma,
        sigma_data=request.sigma_data,
    )
    repeated = request.conditioning_latents.expand(batch, frames, channels, height, width)
    corrupted = corruption.corrupt(repeated, request.sigma_cond, draws.cond_noise)
    if callable(tokens):
        tokens = tokens(corrupted)
    elif tokens is not None and draws.token_noise is not None:
        level = request.sigma_cond if request.sigma_tokens is None else request.sigma_tokens
        tokens = corruption.corrupt_tokens(tokens, level, draws.token_noise)
    elif tokens is not None and corruption.target in ("tokens", "both"):
        raise DataError("token_noise must be drawn when tokens are noised; give token_shape")
    return BuiltInput(
        noisy=(append_dims(request.c_in, 5) * noisy).to(clean.dtype),
        target=target,
        conditioning_latents=drop(corrupted, request.keep),
        tokens=None if tokens is None else drop(tokens, request.keep),
    )
