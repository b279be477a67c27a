"""Where clips lie in a shot, decided while its frames come in."""

from collections.abc import Sequence

__all__ = ["WindowCutter"]


class WindowCutter:
    """Cuts a shot into windows, greedily from its start.

    At each start the longest length that still fits is taken; the next start is ``stride`` frames
    later, or at the end of the window if there is none. A window that would end inside the one
    before it shows nothing new and is left out.

    Args:
        lengths: allowed lengths in frames.
        stride: frames from start to start; None takes the length of each window.
    """

    def __init__(self, lengths: Sequence[int], stride: int | None) -> None:
        self._lengths = sorted(set(lengths), reverse=True)
        self._stride = stride
        self._num_frames = 0
        self._covered_to = 0
        self.start = 0
        """First frame that a window to come may hold; those before it are no longer needed."""
        self.num_uncovered = 0
        """Frames before the end of the last window that are in no window."""

    def add(self) -> tuple[int, int] | None:
        """Count one more frame; return (start, length) of the window that it completes, if any."""
        self._num_frames += 1
        longest = self._lengths[0]
        return self._take(longest) if self._num_frames - self.start == longest else None

    def finish(self) -> list[tuple[int, int]]:
        """Return the windows that still fit when the shot is over."""
        found = []
        while self._num_frames - self.start >= self._lengths[-1]:
            left = self._num_frames - self.start
            length = next(length for length in self._lengths if length <= left)
            if (window := self._take(length)) is not None:
                found.append(window)
        self.num_uncovered += self._num_frames - self._covered_to
        return found

    def _take(self, length: int) -> tuple[int, int] | None:
        start, end = self.start, self.start + length
        self.start += self._stride or length
        if end <= self._covered_to:
            return None
        self.num_uncovered += max(start - self._covered_to, 0)
        self._covered_to = end
        return start, length
