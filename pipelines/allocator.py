"""The C library's memory, kept between clips and between steps.

A process that works on one clip after another asks for the same large buffers again and again.
glibc hands large buffers back to the kernel when they are freed, and the next ones come page by
page, each a fault, which can take as long as the work on them.
"""

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_REUSED = 32 << 20
"""Bytes of a buffer of a process that works on clips. Larger ones go back as before."""
_KEPT = 512 << 20
"""Bytes of free memory that such a process may hold on to."""
_ALL = 2**31 - 1


def keep_freed_memory(*, all_of_it: bool = False) -> None:
    """Reuse what is freed in this process; does nothing where the C library is not glibc.

    Args:
        all_of_it: buffers of any size up to 2 GiB, and without bound: for training, whose every
            step needs what the one before needed. glibc before 2.35 may refuse this.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _ALL if all_of_it else _LARGEST_REUSED)
        mallopt(_M_TRIM_THRESHOLD, _ALL if all_of_it else _KEPT)
