"""Conditional image leakage in image-to-video diffusion: its measures and its cures, in pure torch.

Noise on the condition: `TimeNoiseConfig`, `TimeNoise`. Start of sampling: `LatentMoments`,
`AnalyticInit`. Training: `draw_training`, `denoising_loss`. Sampling: `euler`. Video tensors are
(B, F, C, H, W), frames before channels.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cil.analytic_init import AnalyticInit
    from cil.baselines import (
        ConstantNoise,
        LogNormalNoise,
        NoiseLaw,
        ShuffledNoise,
        VideoLevelNoise,
        constant_like,
    )
    from cil.conditioning import corrupt_elements, corrupt_latents
    from cil.errors import CilError, ConfigError, DataError, StageError
    from cil.guidance import LowPass, frame_guidance_scale, guide
    from cil.init_quality import gaussian_kl, kl_curve, marginal_kl
    from cil.losses import (
        LossResult,
        NetworkInputs,
        TrainingDraws,
        denoising_loss,
        draw_training,
        loss_by_quantile,
    )
    from cil.moments import LatentMoments, jackknife, merged
    from cil.noise_schedule import EDMSchedule, FlowSchedule, NoiseSchedule, VPSchedule
    from cil.parameterization import Denoiser, Parameterization, as_denoiser
    from cil.rng import Stream
    from cil.sampling import ddim, ddim_timesteps, euler, flow_times, karras_sigmas
    from cil.time_noise import PRESETS, Corruption, TimeNoise, TimeNoiseConfig

__all__ = [
    "PRESETS",
    "AnalyticInit",
    "CilError",
    "ConfigError",
    "ConstantNoise",
    "Corruption",
    "DataError",
    "Denoiser",
    "EDMSchedule",
    "FlowSchedule",
    "LatentMoments",
    "LogNormalNoise",
    "LossResult",
    "LowPass",
    "NetworkInputs",
    "NoiseLaw",
    "NoiseSchedule",
    "Parameterization",
    "ShuffledNoise",
    "StageError",
    "Stream",
    "TimeNoise",
    "TimeNoiseConfig",
    "TrainingDraws",
    "VPSchedule",
    "VideoLevelNoise",
    "as_denoiser",
    "constant_like",
    "corrupt_elements",
    "corrupt_latents",
    "ddim",
    "ddim_timesteps",
    "denoising_loss",
    "draw_training",
    "euler",
    "flow_times",
    "frame_guidance_scale",
    "gaussian_kl",
    "guide",
    "jackknife",
    "karras_sigmas",
    "kl_curve",
    "loss_by_quantile",
    "marginal_kl",
    "merged",
]

_HOMES = {
    "cil.analytic_init": "AnalyticInit",
    "cil.baselines": "ConstantNoise LogNormalNoise NoiseLaw ShuffledNoise "
    "VideoLevelNoise constant_like",
    "cil.conditioning": "corrupt_elements corrupt_latents",
    "cil.errors": "CilError ConfigError DataError StageError",
    "cil.guidance": "LowPass frame_guidance_scale guide",
    "cil.init_quality": "gaussian_kl kl_curve marginal_kl",
    "cil.losses": "LossResult NetworkInputs TrainingDraws denoising_loss "
    "draw_training loss_by_quantile",
    "cil.moments": "LatentMoments jackknife merged",
    "cil.noise_schedule": "EDMSchedule FlowSchedule NoiseSchedule VPSchedule",
    "cil.parameterization": "Denoiser Parameterization as_denoiser",
    "cil.rng": "Stream",
    "cil.sampling": "ddim ddim_timesteps euler flow_times karras_sigmas",
    "cil.time_noise": "PRESETS Corruption TimeNoise TimeNoiseConfig",
}
"""Public names by the module that defines them."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: a process that decodes videos needs no torch."""
    for module, names in _HOMES.items():
        if name in names.split():
            value = getattr(importlib.import_module(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'cil' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
