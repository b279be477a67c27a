"""The C library's memory, kept between clips.

A process that works on one clip after another asks for the same large buffers again and again.
glibc hands large buffers back to the kernel when they are freed, and the next ones come page by
page, each a fault, which can take as long as the work on them.
"""

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_REUSED = 32 << 20
"""Bytes of a buffer; glibc allows no more. Larger ones go back as before."""
_KEPT = 512 << 20
"""Bytes of free memory that the process may hold on to."""


def keep_freed_memory() -> None:
    """Reuse what is freed in this process; does nothing where the C library is not glibc."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_REUSED)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
