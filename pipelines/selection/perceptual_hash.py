"""A 64-bit hash that is nearly the same for pictures that look the same.

In: a grey picture. Out: 16 hex digits; the number of bits in which two hashes differ (their
Hamming distance) is 0 to about 10 for copies in another size or compression, and 32 +- 4 for
pictures that have nothing in common. Pictures without any texture all hash alike.

Definition: the `phash` of the Python package ImageHash, after C. Zauner, Implementation and
benchmarking of perceptual image hash functions, 2010: the 8 x 8 lowest coefficients of the
two-dimensional DCT-II of the picture at 32 x 32, each compared with their median, row by row. The
picture is shrunk by area, where ImageHash takes a Lanczos filter.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["perceptual_hash"]

_SIDE = 32
_LOW = 8
_ROUNDING = 1e-6
"""Far above the rounding of the transform, far below a grey level: flat pictures hash alike."""


def perceptual_hash(grey: "npt.NDArray[np.uint8]") -> str:
    """Return the hash of a picture.

    Args:
        grey: (H, W) uint8.

    Returns:
        16 hex digits, the bit of the mean first.
    """
    import cv2
    import numpy as np

    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float64)
    positions = (np.arange(_SIDE) + 0.5) * (np.pi / _SIDE)
    basis = np.cos(np.outer(np.arange(_LOW), positions))
    low = basis @ small @ basis.T
    bits = low.ravel() > np.median(low) + _ROUNDING
    return np.packbits(bits).tobytes().hex()
