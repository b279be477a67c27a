"""Noise on the condition, and dropping the condition for guidance.

`corrupt_latents` is the reference of every noise mode; `AddsNoise` gives it to each noise law.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from cil.errors import DataError
from cil.shapes import append_dims, check_shape

__all__ = [
    "AddsNoise",
    "NoiseMode",
    "Target",
    "corrupt_elements",
    "corrupt_latents",
    "drop",
    "keep_mask",
    "keep_text_and_image",
    "noise_shape",
    "replace_by_noise",
]

NoiseMode = Literal["shared", "per_frame", "scalar"]
"""``shared``: noise one image, then repeat it over frames. ``per_frame``: repeat, then noise each
frame. ``scalar``: one number per clip, as the released SVD code; a constant shift, not noise."""

Target = Literal["latents", "tokens", "both", "pixels"]
"""What is noised: conditioning latents, image tokens, both, or the image before it is encoded."""


def noise_shape(mode: NoiseMode, latents_shape: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the shape of one clip's noise.

    Args:
        mode: noise mode.
        latents_shape: (F, C, H, W).

    Returns:
        (F, C, H, W) for ``per_frame``, (1, C, H, W) for ``shared``, (1, 1, 1, 1) for ``scalar``.
    """
    frames, channels, height, width = latents_shape
    if mode == "per_frame":
        return frames, channels, height, width
    if mode == "shared":
        return 1, channels, height, width
    return 1, 1, 1, 1


def corrupt_latents(latents: Tensor, scale: Tensor, noise: Tensor, mode: NoiseMode) -> Tensor:
    """Add noise to conditioning latents: latents + scale * noise.

    Args:
        latents: (B, F, C, H, W) conditioning latents, repeated over frames; F = 1 with frames in
            ``noise`` repeats them here (``per_frame``).
        scale: (B,) standard deviation, >= 0.
        noise: standard normal, of the shape that `noise_shape` gives, or (B, F, C, H, W), of which
            ``shared`` takes the first frame and ``scalar`` the first number. ``shared`` also takes
            (B, C, H, W).
        mode: noise mode.

    Returns:
        (B, F, C, H, W) with the dtype of ``latents``.

    Raises:
        DataError: the shapes do not fit each other.
    """
    check_shape("conditioning latents", latents, "B F C H W")
    check_shape("sigma_cond", scale, "B", B=latents.shape[0])
    batch, frames, channels, height, width = latents.shape
    if mode == "scalar":
        if noise.shape[:1] != (batch,):
            raise DataError(
                f"scalar noise must have the shape (B, 1, 1, 1, 1) with B = {batch}, "
                f"got {tuple(noise.shape)}; draw one number per clip"
            )
        noise = noise.reshape(batch, -1)[:, :1]
    elif mode == "shared":
        noise = noise.unsqueeze(1) if noise.ndim == 4 else noise
        check_shape("noise", noise, "B F C H W", B=batch, C=channels, H=height, W=width)
        noise = noise[:, :1]
    else:
        check_shape("noise", noise, "B F C H W", B=batch, C=channels, H=height, W=width)
        if frames not in (1, noise.shape[1]):
            raise DataError(
                f"per_frame noise must have F = {frames} frames, got {noise.shape[1]}; "
                "draw noise for every frame, or use noise='shared'"
            )
    noised = latents + append_dims(scale, 5) * append_dims(noise, 5)
    return noised.to(latents.dtype)


def corrupt_elements(values: Tensor, scale: Tensor, noise: Tensor) -> Tensor:
    """Add noise to every element of image tokens, or of an image: values + scale * noise.

    Args:
        values: (B, L, D) image tokens, or (B, C, H, W) pixels.
        scale: (B,) standard deviation, >= 0.
        noise: standard normal of the shape of ``values``.

    Returns:
        Noised values, shape and dtype of ``values``.

    Raises:
        DataError: the shapes do not fit each other.
    """
    check_shape("sigma_cond", scale, "B", B=values.shape[0])
    if noise.shape != values.shape:
        raise DataError(
            f"noise must have the shape {tuple(values.shape)} of what it is added to, "
            f"got {tuple(noise.shape)}"
        )
    return (values + append_dims(scale, values.ndim) * noise).to(values.dtype)


class AddsNoise:
    """A noise law's ``corrupt``; the law says with which noise mode."""

    __slots__ = ()

    noise: NoiseMode

    def corrupt(self, latents: Tensor, sigma_cond: Tensor, noise: Tensor) -> Tensor:
        """Noise conditioning latents: latents + sigma_cond * noise.

        Args:
            latents: (B, F, C, H, W) conditioning latents, in the scale that the network gets.
            sigma_cond: (B,) standard deviation of the noise, in the unit of ``latents``, >= 0.
            noise: standard normal. ``shared``: (B, 1, C, H, W); ``per_frame``: (B, F, C, H, W);
                ``scalar``: (B, 1, 1, 1, 1). From more noise than that, the first frame or the
                first number of each clip is used.

        Returns:
            (B, F, C, H, W) noised conditioning latents, dtype of ``latents``.

        Raises:
            DataError: the shapes do not fit each other.
        """
        return corrupt_latents(latents, sigma_cond, noise, self.noise)


def keep_mask(uniform: Tensor, probability: float) -> Tensor:
    """Decide which conditions are kept in training, so that guidance has a network without one.

    Args:
        uniform: (B,) uniform numbers; one number repeated drops whole batches, as the released
            SVD code does.
        probability: of dropping, in [0, 1].

    Returns:
        (B,) float: 1 where the condition is kept, 0 where it is dropped.
    """
    return (uniform >= probability).to(uniform.dtype)


def drop(values: Tensor, keep: Tensor) -> Tensor:
    """Set the conditions that are not kept to zero.

    Args:
        values: (B, ...) conditioning latents or tokens.
        keep: (B,) ones and zeros.

    Returns:
        Shape and dtype of ``values``. A dropped value is 0 even where it was not finite.
    """
    kept = append_dims(keep, values.ndim) > 0
    return torch.where(kept, values, torch.zeros_like(values))


def keep_text_and_image(uniform: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """Drop text alone, text and image, or the image alone, each with one probability.

    With u in [0, p) the text is dropped, in [p, 2p) both, in [2p, 3p) the image.

    Args:
        uniform: (B,) uniform numbers u.
        probability: p of each case, in [0, 1/3]. DynamiCrafter and VideoCrafter have 0.05.

    Returns:
        (B,) float for the text and for the image: 1 where kept, 0 where dropped.

    Source: released DynamiCrafter code.
    """
    drop_text = uniform < 2.0 * probability
    drop_image = (uniform >= probability) & (uniform < 3.0 * probability)
    return (~drop_text).to(uniform.dtype), (~drop_image).to(uniform.dtype)


def replace_by_noise(
    values: Tensor, noise: Tensor, uniform: Tensor, probability: float = 0.95
) -> Tensor:
    """Replace image tokens by noise altogether, as the published DynamiCrafter training does.

    Args:
        values: (B, L, D) image tokens.
        noise: (B, L, D) standard normal.
        uniform: (B,) uniform numbers; the release has one number for the whole batch.
        probability: of replacing, in [0, 1].

    Returns:
        (B, L, D), dtype of ``values``.

    Raises:
        DataError: noise of another shape than the tokens.

    Source: released DynamiCrafter code, clip_type 2.
    """
    if noise.shape != values.shape:
        raise DataError(
            f"noise must have the shape {tuple(values.shape)} of the tokens, "
            f"got {tuple(noise.shape)}"
        )
    replaced = append_dims(uniform, values.ndim) < probability
    return torch.where(replaced, noise.to(values.dtype), values)
