"""Methods of optical flow between two frames of a video.

In: frames as `FlowMethod.prepare` makes them. Out: (H, W, 2) float32, columns then rows in pixels
of the prepared frame. `DISFlow` needs no weights; `cil.metrics.raft` reads a TorchScript file.
"""

from typing import TYPE_CHECKING, Any, Protocol

from cil.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

__all__ = ["SHORT_SIDE", "DISFlow", "FlowMethod", "motion_frame", "resized"]

SHORT_SIDE = 256
"""Short side of the frames that flow is measured on, in pixels."""

_MOST_ELONGATED = 16


class FlowMethod(Protocol):
    """Optical flow; for one thread at a time."""

    @property
    def name(self) -> str:
        """What numbers of this method are named by, such as ``dis``."""
        ...

    def prepare(self, frame: "Pixels") -> "Pixels":
        """Return a frame (H, W, 3) uint8 as ``flow`` takes it, with a short side of 256 pixels.

        Raises:
            DataError: not such a frame, or its sides differ by a factor above 16.
        """
        ...

    def flow(self, early: "Pixels", late: "Pixels") -> Any:
        """Return where each pixel of the early frame goes, (H, W, 2) float32, in pixels."""
        ...


class DISFlow:
    """OpenCV's DIS flow with the FAST preset (arXiv 1603.03590), on grey frames."""

    name = "dis"

    def __init__(self) -> None:
        import cv2

        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)

    def prepare(self, frame: "Pixels") -> "Pixels":
        """Return the frame grey, with a short side of 256 pixels."""
        return motion_frame(frame)

    def flow(self, early: "Pixels", late: "Pixels") -> Any:
        """Return the flow between two grey frames of one size."""
        return self._flow.calc(early, late, None)


def motion_frame(frame: "Pixels") -> "Pixels":
    """Return a frame as flow is measured on it.

    Args:
        frame: (H, W, 3) uint8 RGB.

    Returns:
        (256, W') or (H', 256) uint8 grey.

    Raises:
        DataError: not such a frame, or its sides differ by a factor above 16.
    """
    import cv2
    import numpy as np

    check_frame(frame)
    return resized(cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY))


def check_frame(frame: "Pixels") -> None:
    """Refuse what is no frame (H, W, 3) uint8 of sides that differ by a factor up to 16."""
    import numpy as np

    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or not frame.size:
        raise DataError(f"a frame must be (H, W, 3) uint8, got {frame.shape} {frame.dtype}")
    rows, columns = frame.shape[:2]
    if max(rows, columns) > _MOST_ELONGATED * min(rows, columns):
        raise DataError(
            f"motion is measured up to an aspect ratio of {_MOST_ELONGATED}, got {columns} x "
            f"{rows} pixels; crop the video"
        )


def resized(picture: "Pixels") -> "Pixels":
    """Resize a picture, grey or not, to a short side of 256: by area down, linearly up."""
    import cv2

    rows, columns = picture.shape[:2]
    scale = SHORT_SIDE / min(rows, columns)
    size = (round(columns * scale), round(rows * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    result: Pixels = picture if scale == 1 else cv2.resize(picture, size, interpolation=method)
    return result
