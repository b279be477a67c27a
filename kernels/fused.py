"""The public functions: arguments are checked here, on the host and without waiting for a device.

    made = training_input(clean, cond, key=key, sample_ids=ids, scales=scales, level=sigma_cond)
    prediction = network(made.network_input)
    loss = square_error(prediction, made.target).mean()

``key`` is an int64 tensor (seed, step) on the device of the latents. `make_key` makes one; adding 1
to ``key[1]`` in place between steps, or inside a captured CUDA graph, gives fresh noise.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

import kernels.ops  # noqa: F401  registers the operators
from kernels.checks import (
    FLOATS,
    INT32,
    check_device,
    check_floats,
    check_layout,
    check_small,
    require,
)
from kernels.rng_torch import COND_NOISE, TOKEN_NOISE

__all__ = [
    "COND_NOISE",
    "TOKEN_NOISE",
    "Layout",
    "LogitNormal",
    "Moments",
    "Noise",
    "TrainingInput",
    "corrupt",
    "make_key",
    "no_moments",
    "square_error",
    "square_error_and_grad",
    "training_input",
    "update_moments",
]

Noise = Literal["none", "shared", "per_frame", "scalar"]
"""How noise meets the condition: one image noised, then repeated (``shared``); repeated, then each
frame noised (``per_frame``); one number per clip (``scalar``); or not at all (``none``)."""

Layout = Literal["bfchw", "bcfhw"]
"""Order of the dimensions: frames before channels, or channels before frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitNormal:
    """sigma_cond = beta_m * sigmoid(level + scale * normal), drawn inside the kernel."""

    beta_m: float
    """Largest sigma_cond, > 0."""
    scale: float = 1.0
    """Standard deviation of the logit, > 0."""

    def __post_init__(self) -> None:
        for name, value in (("beta_m", self.beta_m), ("scale", self.scale)):
            require(0.0 < value < math.inf, f"{name} must be > 0 and finite, got {value}")


class TrainingInput(NamedTuple):
    """What one training step needs."""

    network_input: Tensor
    """Noisy latents, then corrupted condition, concatenated on channels."""
    target: Tensor
    """What the network should predict; empty if there is no target."""
    sigma_cond: Tensor
    """(B,) float32 noise level of the condition."""
    keep: Tensor
    """(B,) float32, 1 where the condition is kept and 0 where it was dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Moments of clips at each position, on one device."""

    count: Tensor
    """() int64 number of clips."""
    mean: Tensor
    """(F, C, H, W) float64."""
    m2: Tensor
    """(F, C, H, W) float64 sum of squared differences from the mean."""


def make_key(seed: int, step: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the (2,) int64 tensor (seed, step).

    Args:
        seed: 64-bit key; numbers from 2**63 on become their two's complement.
        step: training step, in [0, 2**32).
        device: where the latents are.

    Raises:
        ValueError: a number does not fit.
    """
    require(-(2**63) <= seed < 2**64, f"seed must fit in 64 bits, got {seed=}")
    require(0 <= step < 2**32, f"step must be in [0, 2**32), got {step=}")
    return torch.tensor([seed - 2**64 if seed >= 2**63 else seed, step], device=device)


def training_input(
    clean: Tensor,
    cond: Tensor,
    *,
    key: Tensor,
    sample_ids: Tensor,
    scales: Tensor,
    level: Tensor,
    law: LogitNormal | None = None,
    noise: Noise = "shared",
    dropout: float = 0.0,
    layout: Layout = "bfchw",
    dtype: torch.dtype | None = None,
    target_dtype: torch.dtype | None = None,
    with_target: bool = True,
) -> TrainingInput:
    """Noise the video, noise the condition, drop some conditions and make the target, in one pass.

        noisy  = scales[:, 0] * clean + scales[:, 1] * eps
        target = scales[:, 2] * clean + scales[:, 3] * eps
        shown  = keep * (scales[:, 4] * cond + sigma_cond * noise)
        network_input = concatenate(noisy, shown) on channels

    Args:
        clean: (B, F, C, H, W), or (B, C, F, H, W) by ``layout``: clean latents; float32, bfloat16
            or float16, any strides.
        cond: the same with F or 1 frames, any of these dtypes: conditioning latents.
        key: (2,) int64 seed and step, see `make_key`.
        sample_ids: (B,) int64 global ids of the clips, in [0, 2**32); not checked, see below:
            of others the lower 32 bits count.
        scales: (B, 5) float32 rows of the linear maps, which get no gradient: VP, EDM and flow
            matching, and every parameterisation, are one such row each. The last is mostly 1.
        level: (B,) float32 sigma_cond; with a ``law``, the mean of its logit, mu(t).
        law: draw sigma_cond inside the kernel.
        noise: how noise meets the condition.
        dropout: probability in [0, 1] that the condition of a clip is dropped.
        layout: order of the dimensions of all video tensors.
        dtype: of the network's input; by default that of ``clean``.
        target_dtype: of the target; by default ``dtype``.
        with_target: make the target.

    Returns:
        Network input, target, sigma_cond, keep. Arithmetic is float32, rounded once at the end.

    Raises:
        ValueError: shapes, dtypes, devices or sizes do not fit. Values on a device are not looked
            at, because that would make the host wait for it.
    """
    check_floats("clean", clean, 5)
    check_floats("cond", cond, 5)
    check_layout(layout)
    channels_first = layout == "bcfhw"
    if channels_first:
        clean, cond = clean.transpose(1, 2), cond.transpose(1, 2)
    batch, frames, channels, height, width = clean.shape
    require(
        cond.shape[1] in (1, frames)
        and (cond.shape[0], *cond.shape[2:]) == (batch, channels, height, width),
        f"cond must have the shape of clean, {tuple(clean.shape)}, or one frame of it; "
        f"got {tuple(cond.shape)} (both as B F C H W)",
    )
    require(
        2 * clean[:1].numel() < INT32,
        f"one clip must have fewer than 2**30 elements, got {clean[:1].numel()}; use fewer frames",
    )
    require(noise in ("none", "shared", "per_frame", "scalar"), f"unknown {noise=}")
    require(0.0 <= dropout <= 1.0, f"dropout must be in [0, 1], got {dropout=}")
    dtype = dtype or clean.dtype
    target_dtype = (target_dtype or dtype) if with_target else None
    for name, given in (("dtype", dtype), ("target_dtype", target_dtype)):
        require(given is None or given in FLOATS, f"{name} must be one of {FLOATS}, got {given}")
    check_device("cond", cond, clean)
    network_input, target, sigma_cond, keep = torch.ops.cil_kernels.training_input(
        clean,
        cond,
        check_small("scales", scales, (batch, 5), torch.float32, clean),
        check_small("level", level, (batch,), torch.float32, clean),
        check_small("key", key, (2,), torch.int64, clean),
        check_small("sample_ids", sample_ids, (batch,), torch.int64, clean),
        noise,
        None if law is None else law.beta_m,
        1.0 if law is None else law.scale,
        dropout,
        dtype,
        target_dtype,
        channels_first,
    )
    if channels_first:
        network_input = network_input.transpose(1, 2)
        target = target.transpose(1, 2) if with_target else target
    return TrainingInput(network_input, target, sigma_cond, keep)


def corrupt(
    values: Tensor,
    *,
    key: Tensor,
    sample_ids: Tensor,
    sigma_cond: Tensor,
    keep: Tensor | None = None,
    stream: int = TOKEN_NOISE,
) -> Tensor:
    """Return keep * (values + sigma_cond * noise) of any conditioning tensor, such as tokens.

    Args:
        values: (B, ...) float32, bfloat16 or float16.
        key: (2,) int64 seed and step.
        sample_ids: (B,) int64 global ids of the clips.
        sigma_cond: (B,) float32 noise level.
        keep: (B,) float32, 0 where the result shall be 0; by default all are kept.
        stream: what the noise is for, ``cil.rng.Stream``.

    Returns:
        Shape and dtype of ``values``, contiguous.

    Raises:
        ValueError: shapes, dtypes, devices or sizes do not fit.
    """
    require(0 <= stream < 2**31, f"stream must be in [0, 2**31), got {stream=}")
    require(values.ndim >= 1, "values must have a batch dimension, got a single number")
    check_floats("values", values, values.ndim)
    require(
        values[:1].numel() < INT32 - 1024,
        f"one clip of values must have fewer than 2**31 elements, got {values[:1].numel()}",
    )
    batch = values.shape[0]
    if keep is None:
        keep = torch.ones_like(sigma_cond)
    shape = values.shape
    if values.ndim != 3:  # the kernel knows rows and columns
        width = shape[-1] if values.ndim > 1 else 1
        values = values.reshape(batch, values[:1].numel() // width if batch else 1, width)
    out: Tensor = torch.ops.cil_kernels.corrupt(
        values,
        check_small("sigma_cond", sigma_cond, (batch,), torch.float32, values),
        check_small("keep", keep, (batch,), torch.float32, values),
        check_small("key", key, (2,), torch.int64, values),
        check_small("sample_ids", sample_ids, (batch,), torch.int64, values),
        stream,
    )
    return out.reshape(shape)


def _checked_errors(
    prediction: Tensor, target: Tensor, weight: Tensor | None, layout: Layout
) -> tuple[Tensor, Tensor, Tensor]:
    check_layout(layout)
    check_floats("prediction", prediction, 5)
    check_floats("target", target, 5)
    require(
        prediction.shape == target.shape,
        f"target must have the shape {tuple(prediction.shape)} of the prediction, "
        f"got {tuple(target.shape)}",
    )
    require(
        prediction[:1].numel() < INT32,
        f"one clip must have fewer than 2**31 elements, got {prediction[:1].numel()}",
    )
    check_device("target", target, prediction)
    batch = prediction.shape[0]
    if weight is None:
        weight = prediction.new_ones(batch, dtype=torch.float32)
    weight = check_small("weight", weight, (batch,), torch.float32, prediction)
    if layout == "bcfhw":
        prediction, target = prediction.transpose(1, 2), target.transpose(1, 2)
    return prediction, target, weight


def square_error(
    prediction: Tensor, target: Tensor, weight: Tensor | None = None, *, layout: Layout = "bfchw"
) -> Tensor:
    """Return weight * mean((prediction - target)^2) of each clip; has a gradient.

    Args:
        prediction: (B, F, C, H, W), or (B, C, F, H, W) by ``layout``; the gradient's target.
        target: the same shape; gets no gradient.
        weight: (B,) float32, by default 1; gets no gradient.
        layout: order of the dimensions. The bits of the result do not depend on it.

    Returns:
        (B,) float32. The backward pass reads prediction and target again and writes the gradient.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    losses: Tensor = torch.ops.cil_kernels.square_error(
        *_checked_errors(prediction, target, weight, layout)
    )
    return losses


def square_error_and_grad(
    prediction: Tensor, target: Tensor, weight: Tensor | None = None, *, layout: Layout = "bfchw"
) -> tuple[Tensor, Tensor]:
    """Return `square_error` and its gradient by the prediction, in one pass over memory.

    For those who call ``prediction.backward(gradient)`` themselves. Weights of 1 / B make it the
    gradient of the mean. Neither result has a gradient of its own.

    Returns:
        (B,) float32 losses, and the gradient with the shape and dtype of ``prediction``.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    losses, slope = torch.ops.cil_kernels.square_error_and_grad(
        *_checked_errors(prediction, target, weight, layout)
    )
    return losses, slope.transpose(1, 2) if layout == "bcfhw" else slope


def no_moments(shape: tuple[int, ...], device: torch.device | str = "cpu") -> Moments:
    """Return the moments of no clip, for clips of the shape (F, C, H, W)."""
    zero = torch.zeros(shape, dtype=torch.float64, device=device)
    count = torch.zeros((), dtype=torch.int64, device=device)
    return Moments(count=count, mean=zero, m2=zero.clone())


def update_moments(moments: Moments, latents: Tensor, std: Tensor | None = None) -> Moments:
    """Add clips to moments at each position; ``cil.moments.LatentMoments`` on a device.

    Args:
        moments: so far; start with `no_moments`. ``{"count", "mean", "m2"}`` of a
            ``LatentMoments.state_dict()`` are its fields.
        latents: (N, F, C, H, W) clean latents in the scale of training, or posterior means.
        std: the same shape: posterior standard deviations, whose mean square joins the variance.

    Returns:
        New moments, without a gradient. Not finite values stay visible in them; nothing is
        checked on the device.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    count, mean, m2 = moments.count, moments.mean, moments.m2
    check_floats("latents", latents, 5)
    require(
        tuple(latents.shape[1:]) == tuple(mean.shape) and mean.shape == m2.shape,
        f"latents must have the shape (N, *{tuple(mean.shape)}) of the moments, "
        f"got {tuple(latents.shape)}",
    )
    require(count.ndim == 0, f"count must be one number, got the shape {tuple(count.shape)}")
    require(mean.numel() < INT32 - 1024, "one clip must have fewer than 2**31 elements")
    for name, tensor, dtype in (
        ("count", count, torch.int64),
        ("mean", mean, torch.float64),
        ("m2", m2, torch.float64),
    ):
        require(tensor.dtype == dtype, f"{name} must be {dtype}, got {tensor.dtype}")
        check_device(name, tensor, latents)
    if std is not None:
        require(
            std.shape == latents.shape,
            f"std must have the shape {tuple(latents.shape)} of the latents, "
            f"got {tuple(std.shape)}",
        )
        check_floats("std", std, 5)
        check_device("std", std, latents)
        std = std.contiguous()
    count, mean, m2 = torch.ops.cil_kernels.update_moments(
        count, mean.contiguous(), m2.contiguous(), latents.contiguous(), std
    )
    return Moments(count=count, mean=mean, m2=m2)
