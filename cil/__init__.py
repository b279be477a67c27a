"""Conditional image leakage in image-to-video diffusion: its measures and its cures, in pure torch.

Noise on the condition: `TimeNoiseConfig`, `TimeNoise`. Start of sampling: `LatentMoments`,
`AnalyticInit`. Training: `draw_training`, `denoising_loss`. Sampling: `euler`. Video tensors are
(B, F, C, H, W), frames before channels.
"""

from cil.analytic_init import AnalyticInit, LatentMoments
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
from cil.losses import (
    LossResult,
    NetworkInputs,
    TrainingDraws,
    denoising_loss,
    draw_training,
    loss_by_quantile,
)
from cil.noise_schedule import EDMSchedule, NoiseSchedule
from cil.parameterization import Denoiser, Parameterization, as_denoiser
from cil.rng import Stream
from cil.sampling import euler, karras_sigmas
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
    "LatentMoments",
    "LogNormalNoise",
    "LossResult",
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
    "VideoLevelNoise",
    "as_denoiser",
    "constant_like",
    "corrupt_elements",
    "corrupt_latents",
    "denoising_loss",
    "draw_training",
    "euler",
    "karras_sigmas",
    "loss_by_quantile",
]
