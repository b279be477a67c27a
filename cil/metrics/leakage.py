"""How much of a one-step prediction comes from the condition and how much from the noisy video.

For a clip x0 with conditioning frame y, noisy latents x_t and a denoiser p, all with the same
noise:

    p   = p(x_t, y)                        the prediction
    ps  = p(x_t of the static video, y)    static: y repeated over frames
    py  = p(x_t, y of another clip)
    px  = p(x_t of another clip, y)

    motion transfer ratio  MTR = <p - ps, x0 - rep y> / |x0 - rep y|^2
    condition dominance    CD  = |py - p|^2 / (|py - p|^2 + |px - p|^2)

MTR 1: all motion in the noisy latents reaches the prediction; 0: none does. CD 1: the prediction
depends on the condition only. Both tend to MTR 0 and CD 1 for a *perfect* denoiser too as t nears
its end, since no information is left in x_t: compare models at the same t, never with an absolute
threshold, and never CD without the error or the alignment (a model that ignores the condition has
the lowest CD). The unsigned frame-difference ratio misleads where a model plays a motion it has
learned by heart.

Source: our own definitions; the idea of comparing one-step predictions over time is figure 5 of
arXiv 2406.15735.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cil.errors import DataError
from cil.noise_schedule import NoiseSchedule
from cil.parameterization import Denoiser
from cil.shapes import append_dims, check_shape

__all__ = [
    "LeakageProbe",
    "condition_dominance",
    "frame_difference_ratio",
    "motion_transfer_ratio",
    "probe_leakage",
    "reliance",
]


def _wide(name: str, value: Tensor, like: Tensor | None = None) -> Tensor:
    wide = torch.as_tensor(value).double()
    if like is not None and wide.shape != like.shape:
        raise DataError(f"{name} must have the shape {tuple(like.shape)}, got {tuple(wide.shape)}")
    return wide


def _sum(value: Tensor, per_clip: bool) -> Tensor:
    return value.flatten(1).sum(dim=1) if per_clip else value.sum()


def _counts(value: Tensor) -> Tensor:
    """Return the number of elements of each clip, (B,) float64."""
    return value.new_full((len(value),), float(value[0].numel()))


def motion_transfer_ratio(
    p: Tensor, p_static: Tensor, x0: Tensor, condition: Tensor, *, per_clip: bool = False
) -> Tensor:
    """Return the share of the motion in the noisy latents that reaches the prediction.

    Args:
        p: (B, F, ...) one-step prediction.
        p_static: (B, F, ...) prediction from the static video with the same noise and condition.
        x0: (B, F, ...) clean latents.
        condition: (B, ...) conditioning frame in the scale of ``x0``, or (B, 1, ...).
        per_clip: one number for each clip instead of one ratio of sums.

    Returns:
        () or (B,) float64; NaN where a clip does not move.

    Raises:
        DataError: the shapes do not fit each other.
    """
    x0 = _wide("x0", x0)
    p, p_static = _wide("p", p, x0), _wide("p_static", p_static, x0)
    frame = _wide("condition", condition)
    if frame.ndim == x0.ndim - 1:
        frame = frame.unsqueeze(1)
    motion = x0 - _wide("condition", frame, x0[:, :1])
    return _sum((p - p_static) * motion, per_clip) / _sum(motion.square(), per_clip)


def condition_dominance(
    p: Tensor, p_condition_swapped: Tensor, p_video_swapped: Tensor, *, per_clip: bool = False
) -> Tensor:
    """Return how much the condition moves the prediction against the noisy video, in [0, 1].

    Args:
        p: (B, F, ...) one-step prediction.
        p_condition_swapped: (B, F, ...) prediction with another clip's condition.
        p_video_swapped: (B, F, ...) prediction with another clip's video under the same noise.
        per_clip: one number for each clip instead of one ratio of sums.

    Returns:
        () or (B,) float64; NaN where the prediction depends on neither.

    Raises:
        DataError: the shapes differ.
    """
    p = _wide("p", p)
    by_condition = _wide("p_condition_swapped", p_condition_swapped, p) - p
    by_video = _wide("p_video_swapped", p_video_swapped, p) - p
    condition = _sum(by_condition.square(), per_clip)
    return condition / (condition + _sum(by_video.square(), per_clip))


def frame_difference_ratio(p: Tensor, x0: Tensor, *, per_clip: bool = False) -> Tensor:
    """Return the mean squared frame difference of the prediction over that of the clean latents.

    Args:
        p: (B, F, ...) one-step prediction.
        x0: (B, F, ...) clean latents, F >= 2.
        per_clip: one number for each clip instead of one ratio of sums.

    Returns:
        () or (B,) float64, >= 0; unsigned, so a motion in the wrong direction counts too.

    Raises:
        DataError: the shapes differ.
    """
    x0 = _wide("x0", x0)
    p = _wide("p", p, x0)
    return _sum(p.diff(dim=1).square(), per_clip) / _sum(x0.diff(dim=1).square(), per_clip)


def reliance(
    p: Tensor, posterior_mean: Tensor, condition_mean: Tensor, *, per_clip: bool = False
) -> Tensor:
    """Return the share of the information in the noisy latents that a prediction uses.

    Only for worlds with a known prior, where the Bayes answers can be computed:
    <p - m, b - m> / |b - m|^2 with b = E[x0 | x_t, y] and m = E[x0 | y].

    Args:
        p: (B, F, ...) one-step prediction.
        posterior_mean: (B, F, ...) E[x0 | x_t, y].
        condition_mean: (B, F, ...) E[x0 | y].
        per_clip: one number for each clip instead of one ratio of sums.

    Returns:
        () or (B,) float64; 1 for the Bayes answer, 0 for a prediction from the condition alone.

    Raises:
        DataError: the shapes differ.
    """
    p = _wide("p", p)
    mean = _wide("condition_mean", condition_mean, p)
    gain = _wide("posterior_mean", posterior_mean, p) - mean
    return _sum((p - mean) * gain, per_clip) / _sum(gain.square(), per_clip)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakageProbe:
    """The four one-step predictions and the measures made from them."""

    p: Tensor
    """(B, F, C, H, W) prediction."""
    p_static: Tensor
    """(B, F, C, H, W) prediction from the static video."""
    p_condition_swapped: Tensor
    """(B, F, C, H, W) prediction with another clip's condition."""
    p_video_swapped: Tensor
    """(B, F, C, H, W) prediction with another clip's video."""
    clean: Tensor
    """(B, F, C, H, W) clean latents, with the schedule's clean scale."""
    frame: Tensor
    """(B, 1, C, H, W) conditioning frame in that scale."""

    def sums(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return what each measure is a ratio of, clip by clip.

        A measure over any clips is the sum of their numerators over the sum of their denominators,
        so clips can be measured apart, put together again, and resampled.

        Returns:
            Numerator and denominator by name of the measure, (B,) float64 each:
            ``motion_transfer_ratio``, ``condition_dominance``, ``frame_difference_ratio``, and the
            squared errors ``one_step_mse`` of the prediction and ``frame_zero_mse`` of its first
            frame against the conditioning frame.
        """
        p, clean = self.p.double(), self.clean.double()
        frame = self.frame.double()
        motion = clean - frame
        by_condition = (self.p_condition_swapped.double() - p).square()
        by_video = (self.p_video_swapped.double() - p).square()
        error, drift = (p - clean).square(), (p[:, :1] - frame).square()
        dominance = _sum(by_condition, per_clip=True)
        return {
            "motion_transfer_ratio": (
                _sum((p - self.p_static.double()) * motion, per_clip=True),
                _sum(motion.square(), per_clip=True),
            ),
            "condition_dominance": (dominance, dominance + _sum(by_video, per_clip=True)),
            "frame_difference_ratio": (
                _sum(p.diff(dim=1).square(), per_clip=True),
                _sum(clean.diff(dim=1).square(), per_clip=True),
            ),
            "one_step_mse": (_sum(error, per_clip=True), _counts(error)),
            "frame_zero_mse": (_sum(drift, per_clip=True), _counts(drift)),
        }

    def measures(self) -> dict[str, float]:
        """Return each measure of `sums` over all clips, as one ratio of sums."""
        return {
            name: float(top.sum() / bottom.sum()) for name, (top, bottom) in self.sums().items()
        }


def probe_leakage(
    make_denoiser: Callable[[Tensor], Denoiser],
    clean: Tensor,
    frame: Tensor,
    noise: Tensor,
    *,
    schedule: NoiseSchedule,
    level: Tensor,
) -> LeakageProbe:
    """Make the four one-step predictions of the leakage measures, all with the same noise.

    Clip i is swapped with clip i + 1, the last with the first.

    Args:
        make_denoiser: gives the denoiser for conditions in the order ``clip_index`` (B,) int64,
            which is 0..B-1, or the swapped order. The caller looks up conditioning latents, tokens
            and whatever else belongs to a clip, clean as at inference.
        clean: (B, F, C, H, W) clean latents in the scale of training, B >= 2.
        frame: (B, 1, C, H, W) the conditioning frame in the scale of ``clean``.
        noise: (B, F, C, H, W) standard normal.
        schedule: noise schedule.
        level: (B,) noise level, for example one repeated.

    Returns:
        The predictions.

    Raises:
        DataError: the shapes do not fit, or there is only one clip.
    """
    check_shape("clean", clean, "B F C H W")
    batch, frames, channels, height, width = clean.shape
    sizes = {"B": batch, "C": channels, "H": height, "W": width}
    check_shape("noise", noise, "B F C H W", F=frames, **sizes)
    check_shape("frame", frame, "B F C H W", F=1, **sizes)
    check_shape("level", level, "B", B=batch)
    if batch < 2:
        raise DataError(f"the probe swaps clips and needs at least 2, got {batch}; give more clips")
    factor = append_dims(schedule.clean_scale(level), 5).to(clean.dtype)
    clean, frame = clean * factor, frame * factor
    alpha, sigma = (append_dims(value, 5).to(clean.dtype) for value in schedule.scales(level))
    own = torch.arange(batch, device=clean.device)
    swapped = own.roll(-1)
    denoise = make_denoiser(own)
    noisy = alpha * clean + sigma * noise
    return LeakageProbe(
        p=denoise(noisy, level),
        p_static=denoise(alpha * frame.expand_as(clean) + sigma * noise, level),
        p_condition_swapped=make_denoiser(swapped)(noisy, level),
        # Each clip keeps its own factor: levels may differ within the batch.
        p_video_swapped=denoise(alpha * (clean / factor)[swapped] * factor + sigma * noise, level),
        clean=clean,
        frame=frame,
    )
