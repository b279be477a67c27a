"""Settings of the ``svd`` family besides those of its network, which lie with the weights."""

from dataclasses import dataclass, field, fields
from typing import Any

from cil.models.clip_sizes import ClipSizes
from cil.noise_schedule import EDMSchedule

__all__ = ["PUBLISHED_HEADS", "SVDConfig"]

PUBLISHED_HEADS = (5, 10, 20, 20)
"""Heads of each level of the published networks. All else of them is diffusers' default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SVDConfig(ClipSizes):
    """Every setting of a Stable Video Diffusion model; ``model.json`` holds the same names."""

    num_frames: int = 14
    """Frames of a clip, >= 1; 25 for the XT model."""
    height: int = 576
    """Frame height in pixels, a multiple of ``downsampling``."""
    width: int = 1024
    """Frame width in pixels, a multiple of ``downsampling``."""
    fps: float = 7.0
    """Frames per second of a sampled clip, > 0; the network is told one less."""
    motion_bucket_id: float = 127.0
    """Motion the network is told in sampling, 0..255."""
    latent_channels: int = 4
    """Channels of the latents; the first stage must agree."""
    downsampling: int = 8
    """Pixels per latent, each way; the first stage must agree."""
    p_mean: float = 0.7
    """Mean of ln sigma in training. The released fine-tuning code has -1.2, at which t of the
    ``sigma`` time map hardly moves."""
    p_std: float = 1.6
    """Standard deviation of ln sigma in training, > 0; 1.2 in the released fine-tuning code."""
    sigma_min: float = 0.002
    """Smallest sigma of sampling, > 0."""
    sigma_max: float = 700.0
    """Largest sigma of sampling, > sigma_min."""
    first_guidance_scale: float = 1.0
    """Guidance scale of the first frame, >= 0; 1 is off."""
    last_guidance_scale: float = 3.0
    """Guidance scale of the last frame."""
    network: dict[str, Any] = field(default_factory=dict)
    """Arguments of diffusers' ``UNetSpatioTemporalConditionModel``, as in its config.json."""

    def __post_init__(self) -> None:
        """Check the ranges that diffusers does not."""
        _ = self.schedule
        self.check_sizes()

    @classmethod
    def of(cls, given: dict[str, Any], network: dict[str, Any] | None = None) -> "SVDConfig":
        """Sort settings into those of the model and those of its network.

        Args:
            given: settings of either; those that the network has too are the model's.
            network: settings of the network that ``given`` may change.
        """
        own = {item.name for item in fields(cls)} - {"network"}
        inner = {**(network or {}), **{k: v for k, v in given.items() if k not in own}}
        taken = {name: value for name, value in given.items() if name in own}
        if "num_frames" in inner:
            taken.setdefault("num_frames", inner["num_frames"])
        return cls(**taken, network=inner)

    @property
    def schedule(self) -> EDMSchedule:
        """Noise levels of training and sampling; scaled latents have unit RMS."""
        return EDMSchedule(
            p_mean=self.p_mean,
            p_std=self.p_std,
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
        )
