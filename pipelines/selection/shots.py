"""Hard cuts between shots, found while the frames come in.

In: source frames in order. Out: the same frames, each with whether a shot starts with it.

It takes PySceneDetect's word: hue, saturation and brightness of a small copy of the frame change by
at least the threshold on average (`ContentDetector`). A shaking camera does that too, at every
other frame, so one of two more things must hold: the change is at least three times that of the
two frames before and after (`AdaptiveDetector`), or optical flow does not lead from one picture to
the other. And a flash of one or two frames is no cut, since the picture before it comes back.
Dissolves and fades are not found.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from cil.metrics.motion import FlowMeter
from pipelines.decode.frame import SourceFrame

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

__all__ = ["find_cuts", "with_cuts"]

_SIDE = 128
"""Long side of the small copies in pixels, at least half of it; real cuts score as at 256."""
_LAG = 2
"""Frames that must be seen after one before it is known whether a shot starts with it."""
_RATIO = 3.0
"""PySceneDetect's default: how far a cut must stand out from the frames around it."""
_CONNECTED = 0.6
"""Share of consistent pixels from which flow leads from one picture to the next. On shaky footage
it is 0.7 to 1, over cuts 0 to 0.6."""
_LEAST_FOR_FLOW = 24
"""Short side in pixels under which flow is not asked."""
_ANY_RATE = 25.0
"""PySceneDetect wants a frame rate, in Hz; only frame numbers are used here."""


def with_cuts(
    frames: Iterable[SourceFrame], threshold: float | None
) -> Iterator[tuple[SourceFrame, bool]]:
    """Yield each frame, in order, with whether a new shot starts with it.

    At most three frames are held; the first frame of a video starts no *new* shot.

    Args:
        frames: frames in order of presentation.
        threshold: mean change of hue, saturation and brightness, 0 to 255, that makes a cut;
            None finds no cuts.
    """
    if threshold is None:
        for frame in frames:
            yield frame, False
        return
    detector = _Detector(threshold)
    waiting: deque[SourceFrame] = deque()
    for frame in frames:
        waiting.append(frame)
        detector.add(frame.pixels)
        del frame
        if len(waiting) > _LAG:
            yield waiting.popleft(), detector.starts_shot()
    while waiting:
        detector.repeat_last()
        if detector.is_ready:
            yield waiting.popleft(), detector.starts_shot()


def find_cuts(frames: Iterable[SourceFrame], threshold: float = 27.0) -> list[int]:
    """Return the numbers of the frames that start a new shot."""
    return [frame.number for frame, starts in with_cuts(frames, threshold) if starts]


class _Detector:
    """Says of frame n whether it starts a shot, once frame n + 2 was added.

    PySceneDetect's window needs two frames on both sides, so the first and the last are repeated.
    """

    def __init__(self, threshold: float) -> None:
        from scenedetect.detectors import AdaptiveDetector, ContentDetector

        self._threshold = threshold
        self._content = ContentDetector(threshold=threshold, min_scene_len=0)
        self._adaptive = AdaptiveDetector(
            adaptive_threshold=_RATIO,
            min_scene_len=0,
            window_width=_LAG,
            min_content_val=threshold,
        )
        self._position = 0
        self._shape: tuple[int, int] | None = None
        self._meter = FlowMeter()
        self._small: deque[Pixels] = deque(maxlen=2 * _LAG + 2)
        self._changes: deque[bool] = deque(maxlen=_LAG + 1)
        self._stands_out = False

    def add(self, pixels: "Pixels") -> None:
        """Take the next frame, (H, W, 3) uint8 RGB."""
        small = self._shrink(pixels)
        if not self._small:
            for _ in range(_LAG):
                self._push(small)
        self._push(small)

    def repeat_last(self) -> None:
        """Take the last frame once more: there is no other after it."""
        self._push(self._small[-1])

    @property
    def is_ready(self) -> bool:
        """Whether two frames after the next one to be judged are there."""
        return self._position > 2 * _LAG

    def starts_shot(self) -> bool:
        """Judge the frame that was added two frames ago."""
        if not self._changes[0] or self._is_flash():
            return False
        return self._stands_out or not self._flows()

    def _push(self, small: "Pixels") -> None:
        self._small.append(small)
        self._changes.append(bool(_process(self._content, self._position, small)))
        self._stands_out = bool(_process(self._adaptive, self._position, small))
        self._position += 1

    def _is_flash(self) -> bool:
        """Whether the picture is soon as it was before, or is as it was a moment ago."""
        # b3 b2 b1 | n a1 a2, the judged frame is n
        *earlier, before, now, after, later = self._small
        starts = any(self._is_like(before, frame) for frame in (after, later))
        return starts or any(self._is_like(frame, now) for frame in earlier)

    def _flows(self) -> bool:
        """Whether optical flow leads to the judged frame from the one before."""
        import cv2

        pair = [self._small[place] for place in (-_LAG - 2, -_LAG - 1)]
        early, late = (cv2.cvtColor(small, cv2.COLOR_BGR2GRAY) for small in pair)
        if min(early.shape) < _LEAST_FOR_FLOW:
            return True
        return self._meter.between(early, late).consistent_share >= _CONNECTED

    def _is_like(self, early: "Pixels", late: "Pixels") -> bool:
        from scenedetect.detectors import ContentDetector

        detector = ContentDetector(threshold=self._threshold, min_scene_len=0)
        _process(detector, 0, early)
        return not _process(detector, 1, late)

    def _shrink(self, pixels: "Pixels") -> "Pixels":
        """Return a small BGR copy; whole numbers of pixels are averaged, which is fast."""
        import cv2
        import numpy as np

        rows, columns = pixels.shape[:2]
        factor = max(1, -(-max(rows, columns) // _SIDE))
        if self._shape is None:
            self._shape = max(1, rows // factor), max(1, columns // factor)
        height, width = self._shape
        if rows >= height * factor and columns >= width * factor:
            pixels = pixels[: height * factor, : width * factor]
        small = cv2.resize(
            np.ascontiguousarray(pixels), (width, height), interpolation=cv2.INTER_AREA
        )
        bgr: Pixels = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
        return bgr


def _process(detector: Any, position: int, small: "Pixels") -> list[Any]:
    from scenedetect import FrameTimecode

    found: list[Any] = detector.process_frame(FrameTimecode(position, _ANY_RATE), small)
    return found
