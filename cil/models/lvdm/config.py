"""Settings of the LVDM UNet under the names of the published configuration files."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from cil.errors import ConfigError

__all__ = ["IMAGE_TOKENS_PER_FRAME", "PUBLISHED_NAMES", "TEXT_TOKENS", "LVDMConfig"]

TEXT_TOKENS = 77
"""Tokens of CLIP's text encoder, which come first in the context."""
IMAGE_TOKENS_PER_FRAME = 16
"""Image tokens of a frame, where each frame has its own."""

_ONLY = {
    "temporal_selfatt_only": True,
    "use_relative_position": False,
    "use_causal_attention": False,
    "image_cross_attention_scale_learnable": False,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "conv_resample": True,
    "dims": 2,
    "tempspatial_aware": False,
}
"""Options that no published model sets otherwise."""
PUBLISHED_NAMES = {"use_image_attention": "image_cross_attention", "fps_cond": "fps_condition"}
"""Other names of settings in published files, and ours."""
_COUNTS = (
    "in_channels",
    "out_channels",
    "model_channels",
    "num_res_blocks",
    "transformer_depth",
    "context_dim",
    "temporal_length",
)
_WITHOUT_MEANING = ("use_checkpoint", "use_fp16")


@dataclass(frozen=True, kw_only=True, slots=True)
class LVDMConfig:
    """Arguments of `LVDMUNet`."""

    in_channels: int = 8
    """Channels of the input: noisy latents, and conditioning latents where they are stacked."""
    out_channels: int = 4
    model_channels: int = 320
    """Width of the first level."""
    attention_resolutions: tuple[int, ...] = (4, 2, 1)
    """Downsampling factors at which there are transformers."""
    num_res_blocks: int = 2
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    """Width of each level over that of the first."""
    dropout: float = 0.0
    """In the spatial blocks. That of the temporal convolutions is 0.1, whatever this is."""
    num_heads: int = -1
    """Heads of every attention; -1 counts them by ``num_head_channels``."""
    num_head_channels: int = 64
    """Width of a head; -1 divides a level's width by ``num_heads``."""
    transformer_depth: int = 1
    context_dim: int = 1024
    """Width of the context tokens."""
    use_linear: bool = True
    """Project by linear layers in transformers, not by convolutions with kernel 1."""
    temporal_conv: bool = True
    temporal_attention: bool = True
    temporal_length: int = 16
    """Frames of the published model; others work as well."""
    addition_attention: bool = True
    """A temporal transformer right after the first convolution."""
    image_cross_attention: bool = True
    """Separate keys and values for image tokens."""
    fs_condition: bool = False
    """DynamiCrafter's condition on the frame stride."""
    default_fs: int = 4
    """Frame stride if none is given."""
    fps_condition: bool = False
    """VideoCrafter's condition on the frames per second; 16 if none is given."""

    @classmethod
    def published(cls, settings: Mapping[str, Any]) -> Self:
        """Take the settings of a published configuration file.

        Args:
            settings: ``unet_config.params``.

        Raises:
            ConfigError: a setting is unknown, or has a value that no published model has.
        """
        taken: dict[str, Any] = {}
        known = {field.name for field in fields(cls)}
        for given, value in settings.items():
            name = PUBLISHED_NAMES.get(given, given)
            if name in _ONLY:
                if value != _ONLY[name]:
                    raise ConfigError(
                        f"unet: {given} must be {_ONLY[name]}, got {value}; no published model of "
                        "this kind has it otherwise"
                    )
            elif name in known:
                taken[name] = tuple(value) if isinstance(value, list | tuple) else value
            elif name not in _WITHOUT_MEANING:
                raise ConfigError(
                    f"unet: unknown setting {given}; known: {', '.join(sorted(known))}"
                )
        return cls(**taken)

    def __post_init__(self) -> None:
        """Check what the layers would only trip over.

        Raises:
            ConfigError: the widths do not fit.
        """
        self._check_ranges()
        if self.model_channels % 32:
            raise ConfigError(
                f"unet: model_channels must be a multiple of 32, the groups of the norms, got "
                f"{self.model_channels}"
            )
        if (self.num_heads == -1) == (self.num_head_channels == -1):
            raise ConfigError(
                "unet: set one of num_heads and num_head_channels and leave the other -1, got "
                f"{self.num_heads} and {self.num_head_channels}"
            )
        if self.fs_condition and self.fps_condition:
            raise ConfigError("unet: fs_condition and fps_condition exclude each other, got both")

    def _check_ranges(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"unet: {name} must be >= 1, got {value}")
        for name in ("num_heads", "num_head_channels"):
            value = getattr(self, name)
            if value != -1 and value < 1:
                raise ConfigError(f"unet: {name} must be >= 1, or -1 for the other, got {value}")
        for name in ("channel_mult", "attention_resolutions"):
            values = getattr(self, name)
            if any(value < 1 for value in values):
                raise ConfigError(f"unet: every number of {name} must be >= 1, got {list(values)}")
        if not self.channel_mult or self.channel_mult[0] != 1:
            raise ConfigError(
                "unet: channel_mult must begin with 1, as the last layer has the width "
                f"model_channels = {self.model_channels}, got {list(self.channel_mult)}; multiply "
                "model_channels"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"unet: dropout must be in [0, 1), got {self.dropout}")

    @property
    def downsampling(self) -> int:
        """Side of the latents over that of the smallest level."""
        return int(2 ** (len(self.channel_mult) - 1))

    def heads(self, channels: int) -> tuple[int, int]:
        """Return number and width of the heads of an attention over so many channels."""
        if self.num_head_channels == -1:
            return self.num_heads, channels // self.num_heads
        return channels // self.num_head_channels, self.num_head_channels
