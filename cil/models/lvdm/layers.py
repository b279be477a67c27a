"""Convolutional parts of the LVDM UNet: norms, residual blocks, temporal convolutions, resizing.

Spatial layers see frames as a batch, (B*F, C, H, W) with the clip outermost; temporal ones see
(B, C, F, H, W).
"""

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = [
    "Downsample",
    "GroupNorm32",
    "ResBlock",
    "TemporalConvBlock",
    "Upsample",
    "as_clips",
    "as_frames",
    "timestep_embedding",
    "zeroed",
]

_GROUPS = 32
_TEMPORAL_DROPOUT = 0.1
_LONGEST_PERIOD = 10_000.0

Module = TypeVar("Module", bound=nn.Module)


def zeroed(module: Module) -> Module:
    """Set all parameters of a module to zero, so that its branch begins silent."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def timestep_embedding(values: Tensor, dim: int) -> Tensor:
    """Embed numbers by sinusoids, cosines first.

    Args:
        values: (B,) timesteps, frame strides or frame rates.
        dim: width of the embedding.

    Returns:
        (B, dim) float32.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = values[:, None].float() * torch.exp(-math.log(_LONGEST_PERIOD) * exponents)
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return nn.functional.pad(embedding, (0, dim % 2))


def as_frames(clips: Tensor) -> Tensor:
    """(B, C, F, H, W) to (B*F, C, H, W)."""
    return clips.transpose(1, 2).flatten(0, 1)


def as_clips(frames: Tensor, batch: int) -> Tensor:
    """(B*F, C, H, W) to (B, C, F, H, W)."""
    return frames.reshape(batch, -1, *frames.shape[1:]).transpose(1, 2)


class GroupNorm32(nn.GroupNorm):
    """Group norm over 32 groups that computes in float32 and returns the type it was given."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(_GROUPS, channels, eps=eps)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, ...)."""
        weight, bias = self.weight.float(), self.bias.float()
        normal = nn.functional.group_norm(input.float(), self.num_groups, weight, bias, self.eps)
        return normal.to(input.dtype)


class ResBlock(nn.Module):
    """Two convolutions with a bias from the embedding, then a convolution over time."""

    def __init__(
        self,
        channels: int,
        embedding: int,
        dropout: float,
        out_channels: int,
        *,
        temporal_conv: bool,
    ) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            GroupNorm32(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out_channels))
        self.out_layers = nn.Sequential(
            GroupNorm32(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = (
            nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        )
        # the name is misspelt in all published checkpoints
        self.temopral_conv = TemporalConvBlock(out_channels) if temporal_conv else None

    def forward(self, frames: Tensor, embedding: Tensor, batch: int) -> Tensor:
        """Transform frames.

        Args:
            frames: (B*F, C, H, W).
            embedding: (B*F, D).
            batch: B, number of clips.

        Returns:
            (B*F, C', H, W).
        """
        hidden: Tensor = self.in_layers(frames)
        hidden = hidden + self.emb_layers(embedding).to(hidden.dtype)[..., None, None]
        hidden = self.skip_connection(frames) + self.out_layers(hidden)
        if self.temopral_conv is not None:
            hidden = as_frames(self.temopral_conv(as_clips(hidden, batch)))
        return hidden


class TemporalConvBlock(nn.Module):
    """Four convolutions over three frames with a residual; statistics of the norms span time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.GroupNorm(_GROUPS, channels), nn.SiLU(), _over_time(channels))
        self.conv2 = self._later(channels)
        self.conv3 = self._later(channels)
        self.conv4 = self._later(channels)
        zeroed(self.conv4[-1])

    @staticmethod
    def _later(channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.GroupNorm(_GROUPS, channels),
            nn.SiLU(),
            nn.Dropout(_TEMPORAL_DROPOUT),
            _over_time(channels),
        )

    def forward(self, clips: Tensor) -> Tensor:
        """Transform (B, C, F, H, W)."""
        change: Tensor = self.conv4(self.conv3(self.conv2(self.conv1(clips))))
        return clips + change


def _over_time(channels: int) -> nn.Conv3d:
    return nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))


class Downsample(nn.Module):
    """Halves height and width by a convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, frames: Tensor) -> Tensor:
        """(B*F, C, H, W) to (B*F, C, H/2, W/2)."""
        return self.op(frames)  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Doubles height and width by repetition and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, frames: Tensor) -> Tensor:
        """(B*F, C, H, W) to (B*F, C, 2H, 2W)."""
        doubled = nn.functional.interpolate(frames, scale_factor=2, mode="nearest")
        return self.conv(doubled)  # type: ignore[no-any-return]
