"""Moments of image patches: all that fitting a patch codec needs, exact under any partition.

moments = PatchMoments(patch_size=4)
moments.update(frames)
moments.merge(another_workers_moments)
"""

from typing import Any

import torch

from cil.errors import ConfigError, DataError
from cil.models.frames import as_frames, to_patches

__all__ = ["PatchMoments"]


class PatchMoments:
    """Count, sum and second moment of patches, in bytes: integers that float64 holds exactly.

    Exact below 1e11 patches, hence equal under any partition, order and thread count.

    Attributes:
        patch_size: side of a patch in pixels.
        count: number of patches seen.
        total: (D,) float64, sum of the patches, D = patch_size * patch_size * 3.
        second: (D, D) float64, sum of their outer products.
    """

    def __init__(self, *, patch_size: int) -> None:
        if patch_size < 1:
            raise ConfigError(f"patch_size must be >= 1 pixel, got {patch_size}; 4 is usual")
        self.patch_size = patch_size
        size = patch_size * patch_size * 3
        self.count = 0
        self.total = torch.zeros(size, dtype=torch.float64)
        self.second = torch.zeros(size, size, dtype=torch.float64)

    def update(self, frames: Any) -> None:
        """Add all patches of some frames.

        Args:
            frames: (F, H, W, 3) uint8 RGB, a torch tensor or a numpy array.

        Raises:
            DataError: another dtype or shape, or a size that ``patch_size`` does not divide.
        """
        checked = as_frames(frames, divisor=self.patch_size)
        patches = to_patches(checked, self.patch_size).flatten(0, 2).double()
        self.count += patches.shape[0]
        self.total += patches.sum(0)
        self.second += patches.T @ patches

    def merge(self, other: "PatchMoments") -> None:
        """Add the patches that another worker has seen.

        Raises:
            DataError: the patch sizes differ.
        """
        if other.patch_size != self.patch_size:
            raise DataError(
                f"cannot merge moments of patch_size {self.patch_size} and {other.patch_size}; "
                "use one patch size"
            )
        self.count += other.count
        self.total += other.total
        self.second += other.second
