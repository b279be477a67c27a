"""Buckets: the sizes and lengths that clips are cut to, and which of them fits a video.

A bucket is written HxWxF, height and width in pixels and frames, for example 320x512x16.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from cil.errors import ConfigError

__all__ = ["Bucket", "choose"]

_PATTERN = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", re.ASCII)
_EQUAL = 9
"""Decimals to which log aspect ratios are compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """Clips of one shape.

    Raises:
        ConfigError: a number is below 1.
    """

    height: int
    """Height in pixels."""
    width: int
    """Width in pixels."""
    num_frames: int
    """Frames per clip."""

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.num_frames) < 1:
            raise ConfigError(f"a bucket's numbers must be at least 1, got {self.name}")

    @property
    def name(self) -> str:
        """HxWxF, as it is written in settings and records."""
        return f"{self.height}x{self.width}x{self.num_frames}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read HxWxF.

        Raises:
            ConfigError: the text is something else.
        """
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise ConfigError(
                "a bucket must be HEIGHTxWIDTHxFRAMES with numbers from 1 to 99999, for example "
                f"320x512x16, got {text!r}"
            )
        height, width, num_frames = (int(part) for part in match.groups())
        return cls(height=height, width=width, num_frames=num_frames)


def choose(buckets: Iterable[Bucket], width: int, height: int) -> tuple[Bucket, ...]:
    """Return the buckets of the one size that fits a video best.

    The nearest aspect ratio wins, as a ratio: 1:2 is as far from 1:1 as 2:1 is. Of several sizes
    it is the largest that does not enlarge the video, or the smallest if all do.

    Args:
        buckets: what there is; several may have the same size and different lengths.
        width: width of the upright video in pixels.
        height: its height in pixels.

    Returns:
        The buckets of that size, the longest first.

    Raises:
        ConfigError: there are no buckets.
    """
    given = set(buckets)
    if not given:
        raise ConfigError("at least one bucket is needed, got none; write 320x512x16 for example")
    sizes = {(bucket.height, bucket.width) for bucket in given}
    shape = math.log(width / height)
    distances = {size: round(abs(math.log(size[1] / size[0]) - shape), _EQUAL) for size in sizes}
    nearest = [size for size in sizes if distances[size] == min(distances.values())]
    covered = [size for size in nearest if size[0] <= height and size[1] <= width]

    if covered:
        best = max(covered, key=lambda size: (size[0] * size[1], size[1]))
    else:
        best = min(nearest, key=lambda size: (size[0] * size[1], -size[1]))
    lengths = sorted((b.num_frames for b in given if (b.height, b.width) == best), reverse=True)
    return tuple(Bucket(height=best[0], width=best[1], num_frames=length) for length in lengths)
