"""What is measured on the frames of a clip, and the scores that come of it."""

import itertools
import statistics
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cil.metrics.motion import (
    NO_MOTION,
    SHORT_SIDE,
    FlowMeter,
    MotionScore,
    Transition,
    motion_frame,
)
from pipelines.decode.frame import SourceFrame, cover_and_crop
from pipelines.selection.bucket import Bucket
from pipelines.selection.candidates import ClipScores
from pipelines.selection.perceptual_hash import perceptual_hash

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


__all__ = ["FrameMeasures", "FrameMeter", "clip_scores"]

_STEADY = 1.0
"""Jump of a clip without any motion."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameMeasures:
    """What is remembered of the frame on screen at a wanted time."""

    number: int
    """Its place in the video."""
    crc32: int
    """CRC-32 of its bytes at the size of the bucket."""
    transition: Transition
    """Motion from the wanted frame before."""
    luma_mean: float
    """Mean brightness, 0 to 255."""
    luma_max: float
    """Brightest pixel, 0 to 255."""
    contrast: float
    """Standard deviation of the brightness, 0 to 255."""
    perceptual_hash: str
    """16 hex digits."""


class FrameMeter:
    """Makes a `FrameMeasures` of a frame; it holds one grey frame of 256 pixels."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        scale = SHORT_SIDE / min(bucket.height, bucket.width)
        self._seen = round(bucket.height * scale), round(bucket.width * scale)
        self._meter = FlowMeter()
        self._grey: npt.NDArray[np.uint8] | None = None

    def look(self, frame: SourceFrame, before: FrameMeasures | None) -> FrameMeasures:
        """Measure a frame; ``before`` is the wanted frame before it in its shot."""
        cropped = cover_and_crop(frame.pixels, self._bucket.height, self._bucket.width)
        grey = motion_frame(cover_and_crop(frame.pixels, *self._seen))
        transition = NO_MOTION
        if before is not None and self._grey is not None:
            transition = self._meter.between(self._grey, grey)
        self._grey = grey
        return FrameMeasures(
            number=frame.number,
            crc32=zlib.crc32(cropped.data),
            transition=transition,
            luma_mean=float(grey.mean()),
            luma_max=float(grey.max()),
            contrast=float(grey.std()),
            perceptual_hash=perceptual_hash(grey),
        )


def clip_scores(shown: Sequence[FrameMeasures]) -> ClipScores:
    """Return the scores of a clip from the measures of its frames, in order."""
    motion = MotionScore(transitions=tuple(item.transition for item in shown[1:]) or (NO_MOTION,))
    changes = tuple(
        late.transition for early, late in itertools.pairwise(shown) if late.number != early.number
    )
    return ClipScores(
        motion=motion.value,
        motion_consistent=motion.consistent,
        consistent_share=motion.consistent_share,
        jump=MotionScore(transitions=changes).jump if changes else _STEADY,
        luma_mean=statistics.fmean(item.luma_mean for item in shown),
        luma_max=max(item.luma_max for item in shown),
        contrast=statistics.fmean(item.contrast for item in shown),
        perceptual_hash=shown[len(shown) // 2].perceptual_hash,
    )
