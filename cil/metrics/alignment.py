"""How well a video keeps to its conditioning image and to itself.

In: frames and the image, or their embeddings by a network that the user supplies (see
`cil.metrics.embeddings`). Out: one number for each clip or frame.

Without weights: `ssim`, `histogram_overlap` and `alignment_mse` compare every frame with the image.
They fall where a picture collapses, but also where a video moves as it should: read them beside the
motion.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from cil.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    Values = npt.NDArray[np.float64]
    Pixels = npt.NDArray[np.uint8]

__all__ = [
    "alignment_mse",
    "histogram_overlap",
    "image_alignment",
    "image_subject_consistency",
    "ssim",
    "subject_consistency",
    "temporal_consistency",
    "temporal_flickering",
]

_WINDOW, _WINDOW_SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_BINS = 32


def image_alignment(frames: Any, image: Any) -> "Values":
    """Return the mean cosine between the frames of a clip and its conditioning image.

    Args:
        frames: (B, F, D) embeddings of the frames.
        image: (B, D) embeddings of the conditioning images.

    Returns:
        (B,) float64 in [-1, 1]; CLIP's lies between about 0.5 and 1.

    Raises:
        DataError: shapes that do not fit, a value that is not finite, or an embedding of length 0.
    """
    unit, own = _units(frames, 3), _units(image, 2)
    _check_pair(unit, own)
    return _mean_of_frames(_cosines(unit, own[:, None]))


def temporal_consistency(frames: Any) -> "Values":
    """Return the mean cosine of adjacent frames, (B,) float64, from (B, F, D) embeddings, F >= 2.

    Raises:
        DataError: as `image_alignment`.
    """
    unit = _videos(frames)
    return _mean_of_frames(_cosines(unit[:, 1:], unit[:, :-1]))


def subject_consistency(frames: Any) -> "Values":
    """Return the mean of the cosines to the frame before and to the first frame, as VBench does.

    Args:
        frames: (B, F, D) embeddings, F >= 2.

    Returns:
        (B,) float64: mean over frames after the first of (cos(f, f - 1) + cos(f, 0)) / 2. VBench
        also clips negative cosines to 0, which is not done here.

    Raises:
        DataError: as `image_alignment`.
    """
    unit = _videos(frames)
    before = _cosines(unit[:, 1:], unit[:, :-1])
    return _mean_of_frames((before + _cosines(unit[:, 1:], unit[:, :1])) / 2)


def image_subject_consistency(frames: Any, image: Any) -> "Values":
    """Return half the best cosine of a frame to the image and half `temporal_consistency`.

    Args:
        frames: (B, F, D) embeddings, F >= 2.
        image: (B, D) embeddings of the conditioning images.

    Returns:
        (B,) float64. The best frame counts, so a video that leaves its image is hardly punished.

    Raises:
        DataError: as `image_alignment`.

    Source: the "i2v subject" of VBench++, arXiv 2411.13503.
    """
    unit, own = _videos(frames), _units(image, 2)
    _check_pair(unit, own)
    best: Values = _cosines(unit, own[:, None]).max(axis=1)
    return (best + temporal_consistency(unit)) / 2


def ssim(image: "Pixels", frames: "Pixels") -> "Values":
    """Return the structural similarity of each frame to the conditioning image.

    Args:
        image: (H, W, 3) uint8 RGB, at least 11 x 11 pixels.
        frames: (F, H, W, 3) uint8 RGB of the same size.

    Returns:
        (F,) float64 in [-1, 1], 1 for the image itself; grey levels, Gaussian window of 11 pixels
        and standard deviation 1.5, population covariance, windows within the picture only.

    Raises:
        DataError: other shapes or dtypes, or a picture smaller than the window.

    Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural
        Similarity", 2004.
    """
    import cv2

    _check_pictures(image, frames)
    if min(image.shape[:2]) < _WINDOW:
        raise DataError(f"ssim needs {_WINDOW} x {_WINDOW} pixels, got {image.shape[:2]}")
    edge = _WINDOW // 2

    def blur(picture: Any) -> Any:
        window = cv2.GaussianBlur(picture, (_WINDOW, _WINDOW), _WINDOW_SIGMA)
        return window[edge:-edge, edge:-edge]

    def grey(picture: Any) -> Any:
        return cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY).astype(np.float64)

    x = grey(image)
    mean_x, square_x = blur(x), blur(x * x)
    values = []
    for frame in frames:
        y = grey(frame)
        mean_y = blur(y)
        both = 2 * (blur(x * y) - mean_x * mean_y) + _C2
        spread = square_x - mean_x**2 + blur(y * y) - mean_y**2 + _C2
        level = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
        values.append(float((level * both / spread).mean()))
    return np.array(values)


def histogram_overlap(image: "Pixels", frames: "Pixels") -> "Values":
    """Return how much of the colours of each frame are those of the conditioning image.

    Args:
        image: (H, W, 3) uint8 RGB.
        frames: (F, H, W, 3) uint8 RGB; may be of another size.

    Returns:
        (F,) float64 in [0, 1], 1 for the same colours in any order: the mean over L, a and b of
        CIELAB of the overlap of histograms with 32 bins.

    Raises:
        DataError: other shapes or dtypes.
    """
    _check_pictures(image, frames, same_size=False)
    own = _colours(image)
    return np.array([float(np.minimum(own, _colours(frame)).sum() / 3) for frame in frames])


def alignment_mse(image: "Pixels", frames: "Pixels") -> "Values":
    """Return the mean squared difference of each frame to the image, pixels in [0, 1]; (F,)."""
    _check_pictures(image, frames)
    gaps = (frames.astype(np.float64) - image.astype(np.float64)) / 255
    result: Values = np.square(gaps).mean(axis=(1, 2, 3))
    return result


def temporal_flickering(frames: "Pixels") -> float:
    """Return how little adjacent frames differ, in [0, 1], 1 is no change at all.

    (255 - mean absolute difference of adjacent frames) / 255. It is meant for clips that should not
    move (where `dynamic_degree` is false): on others it rewards stillness.

    Args:
        frames: (F, H, W, 3) uint8 RGB, F >= 2.

    Raises:
        DataError: another shape or dtype, or one frame.

    Source: VBench, arXiv 2311.17982.
    """
    _check_pictures(frames[0] if len(frames) else frames, frames)
    if len(frames) < 2:
        raise DataError("flickering needs at least 2 frames, got 1; give a longer video")
    wide = frames.astype(np.int16)
    return 1.0 - float(np.abs(np.diff(wide, axis=0)).mean()) / 255


def _units(embeddings: Any, ndim: int) -> "Values":
    if hasattr(embeddings, "detach"):
        embeddings = embeddings.detach().cpu().double().numpy()
    values: Values = np.asarray(embeddings, dtype=np.float64)
    if values.ndim != ndim or 0 in values.shape[1:]:
        wanted = "(B, F, D)" if ndim == 3 else "(B, D)"
        raise DataError(f"embeddings must be {wanted}, got {values.shape}")
    lengths = np.linalg.norm(values, axis=-1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise DataError(
            "embeddings must be finite and not zero, got NaN, Inf or a row of zeros; find the "
            "broken clip or the wrong weights"
        )
    units: Values = values / lengths
    return units


def _videos(frames: Any) -> "Values":
    unit = _units(frames, 3)
    if unit.shape[1] < 2:
        raise DataError("consistency needs at least 2 frames, got 1; give a longer video")
    return unit


def _check_pair(frames: "Values", image: "Values") -> None:
    if (frames.shape[0], frames.shape[2]) != image.shape:
        raise DataError(
            f"embeddings of frames {frames.shape} and images {image.shape} do not fit each other"
        )


def _mean_of_frames(values: "Values") -> "Values":
    means: Values = values.mean(axis=1)
    return means


def _cosines(one: "Values", other: "Values") -> "Values":
    result: Values = (one * other).sum(axis=-1)
    return result


def _check_pictures(image: Any, frames: Any, *, same_size: bool = True) -> None:
    for name, value, ndim in (("the image", image, 3), ("frames", frames, 4)):
        wrong = value.ndim != ndim or value.shape[-1] != 3 or value.dtype != np.uint8
        if wrong or not value.size:
            wanted = "(H, W, 3)" if ndim == 3 else "(F, H, W, 3)"
            raise DataError(f"{name} must be {wanted} uint8, got {value.shape} {value.dtype}")
    if same_size and image.shape != frames.shape[1:]:
        raise DataError(
            f"the image {image.shape[:2]} and the frames {frames.shape[1:3]} differ in size; "
            "resize the image as the model was given it"
        )


def _colours(picture: "Pixels") -> Any:
    import cv2

    lab = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2LAB).reshape(-1, 3)
    places = lab.astype(np.int64) * _BINS // 256
    counts = np.stack([np.bincount(column, minlength=_BINS) for column in places.T])
    return counts / len(lab)
