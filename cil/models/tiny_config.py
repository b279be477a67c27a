"""Settings of the ``tiny`` family, and the network they mean to diffusers."""

from dataclasses import dataclass
from typing import Any

from cil.errors import ConfigError
from cil.models.clip_sizes import ClipSizes
from cil.noise_schedule import EDMSchedule

__all__ = ["TinyConfig"]

_GROUPS = 32  # groups of every normalisation in SVD's residual blocks; diffusers has no setting


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyConfig(ClipSizes):
    """Every setting of a tiny model; ``model.json`` holds the same names."""

    num_frames: int = 8
    """Frames of a clip, >= 1."""
    height: int = 32
    """Frame height in pixels, a multiple of ``downsampling``."""
    width: int = 32
    """Frame width in pixels, a multiple of ``downsampling``."""
    fps: float = 8.0
    """Frames per second of a clip, > 0; the network is told."""
    motion_bucket_id: float = 127.0
    """Motion the network is told, 0..255; constant in training."""
    latent_channels: int = 4
    """Channels of the latents, >= 1; the first stage must agree."""
    downsampling: int = 4
    """Pixels per latent, each way; the first stage must agree."""
    block_out_channels: tuple[int, ...] = (32, 64)
    """Channels by level, outermost first: multiples of 32, at least one >= 64."""
    layers_per_block: int = 1
    """Residual blocks by level, >= 1."""
    num_attention_heads: tuple[int, ...] = (1, 2)
    """Heads by level; only the innermost level has attention."""
    cross_attention_dim: int = 32
    """Width of the image token."""
    addition_time_embed_dim: int = 32
    """Width of the embedding of fps, motion bucket and sigma_cond, each; even."""
    p_mean: float = 1.0
    """Mean of ln sigma in training."""
    p_std: float = 1.4
    """Standard deviation of ln sigma in training, > 0."""
    sigma_min: float = 0.02
    """Smallest sigma of sampling, > 0."""
    sigma_max: float = 100.0
    """Largest sigma of sampling, > sigma_min."""

    def __post_init__(self) -> None:
        """Check the ranges that diffusers does not."""
        _ = self.schedule
        self.check_sizes()
        if self.layers_per_block < 1:
            raise ConfigError(f"model.layers_per_block must be > 0, got {self.layers_per_block}")
        channels = self.block_out_channels
        if len(channels) < 1 or any(width < 1 or width % _GROUPS for width in channels):
            raise ConfigError(
                f"model.block_out_channels must be multiples of {_GROUPS}, got {channels}; "
                "(32, 64) is the smallest that works"
            )
        if max(channels) < 2 * _GROUPS:
            raise ConfigError(
                f"model.block_out_channels must have a level of at least {2 * _GROUPS} channels, "
                f"got {channels}: SVD's residual blocks normalise in {_GROUPS} groups, and a group "
                "of one channel erases what the network is told of sigma, fps, motion and "
                "sigma_cond; use (32, 64)"
            )
        if len(self.num_attention_heads) != len(channels):
            raise ConfigError(
                f"model.num_attention_heads must have one entry for each of block_out_channels = "
                f"{channels}, got {self.num_attention_heads}"
            )

    @property
    def schedule(self) -> EDMSchedule:
        """Noise levels of training and sampling; scaled latents have unit RMS."""
        return EDMSchedule(
            p_mean=self.p_mean,
            p_std=self.p_std,
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
        )

    def network_config(self) -> dict[str, Any]:
        """Return the arguments of diffusers' UNetSpatioTemporalConditionModel."""
        levels = len(self.block_out_channels)
        plain = [f"{way}BlockSpatioTemporal" for way in ("Down", "Up")]
        attentive = [f"CrossAttn{name}" for name in plain]
        return {
            "in_channels": 2 * self.latent_channels,
            "out_channels": self.latent_channels,
            "down_block_types": [plain[0]] * (levels - 1) + [attentive[0]],
            "up_block_types": [attentive[1]] + [plain[1]] * (levels - 1),
            "block_out_channels": list(self.block_out_channels),
            "addition_time_embed_dim": self.addition_time_embed_dim,
            "projection_class_embeddings_input_dim": 3 * self.addition_time_embed_dim,
            "layers_per_block": self.layers_per_block,
            "cross_attention_dim": self.cross_attention_dim,
            "num_attention_heads": list(self.num_attention_heads),
            "num_frames": self.num_frames,
            "sample_size": max(self.latents_shape[2:]),
        }
