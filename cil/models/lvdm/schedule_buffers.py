"""The tables that a published checkpoint carries beside the weights, made from a schedule.

    parts = parts.replace(schedule=schedule_buffers(VPSchedule(...), v_prediction=True))

For checkpoints that come from no published file. Nothing here is read back: the schedule is what
counts, and the released code wants these names to be there.
"""

import torch
from torch import Tensor

from cil.noise_schedule import VPSchedule

__all__ = ["schedule_buffers"]


def schedule_buffers(schedule: VPSchedule, *, v_prediction: bool) -> dict[str, Tensor]:
    """Return the buffers of the released code, by name, in its order.

    Args:
        schedule: of the model.
        v_prediction: DynamiCrafter's parameterisation, whose unused tables are zero.

    Returns:
        Each (num_train_timesteps,) float32; ``scale_arr``, longer by ``rescale_steps``, where the
        schedule rescales clean latents.
    """
    kept = schedule.alphas_cumprod
    before = torch.cat([torch.ones_like(kept[:1]), kept[:-1]])
    betas, noise = 1.0 - kept / before, 1.0 - kept
    zero = torch.zeros_like(kept)
    variance = betas * (1.0 - before) / noise
    buffers = {
        "betas": betas,
        "alphas_cumprod": kept,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": kept.sqrt(),
        "sqrt_one_minus_alphas_cumprod": noise.sqrt(),
        "log_one_minus_alphas_cumprod": noise.log(),
        "sqrt_recip_alphas_cumprod": zero if v_prediction else kept.rsqrt(),
        "sqrt_recipm1_alphas_cumprod": zero if v_prediction else (noise / kept).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / noise,
        "posterior_mean_coef2": (1.0 - before) * (1.0 - betas).sqrt() / noise,
    }
    if schedule.base_scale != 1.0:
        rising = schedule.clean_scales[: schedule.rescale_steps]
        buffers["scale_arr"] = torch.cat([rising, torch.full_like(kept, schedule.base_scale)])
    return {name: table.float().clone() for name, table in buffers.items()}
