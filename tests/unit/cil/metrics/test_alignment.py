import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage

from cil.errors import DataError
from cil.metrics.alignment import (
    alignment_mse,
    histogram_overlap,
    image_alignment,
    image_subject_consistency,
    ssim,
    subject_consistency,
    temporal_consistency,
    temporal_flickering,
)


def picture(seed=0, height=40, width=56):
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    smooth = ndimage.gaussian_filter(noise, (2, 2, 0))
    return np.clip(128 + 50 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def embeddings(*shape):
    return np.random.default_rng(0).normal(size=shape) + 0.5


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_cosines_by_their_definitions():
    frames, image = embeddings(2, 5, 7), embeddings(2, 7)
    for k in range(2):
        video, own = frames[k], image[k]
        to_image = [cosine(f, own) for f in video]
        adjacent = [cosine(video[f], video[f - 1]) for f in range(1, 5)]
        to_first = [cosine(video[f], video[0]) for f in range(1, 5)]
        assert image_alignment(frames, image)[k] == pytest.approx(np.mean(to_image))
        assert temporal_consistency(frames)[k] == pytest.approx(np.mean(adjacent))
        assert subject_consistency(frames)[k] == pytest.approx(
            (np.mean(adjacent) + np.mean(to_first)) / 2
        )
        assert image_subject_consistency(frames, image)[k] == pytest.approx(
            max(to_image) / 2 + np.mean(adjacent) / 2
        )


def test_cosines_do_not_depend_on_length_and_take_torch():
    frames, image = embeddings(2, 5, 7), embeddings(2, 7)
    scaled = torch.from_numpy(frames * np.array([0.1, 30.0])[:, None, None])
    assert image_alignment(scaled, torch.from_numpy(image)) == pytest.approx(
        image_alignment(frames, image)
    )


@pytest.mark.parametrize(
    ("frames", "image", "complaint"),
    [
        (embeddings(5, 7), embeddings(7), "must be"),
        (embeddings(2, 5, 7), embeddings(2, 6), "do not fit"),
        (embeddings(2, 5, 7), embeddings(3, 7), "do not fit"),
        (embeddings(2, 5, 7) * np.nan, embeddings(2, 7), "finite and not zero"),
        (embeddings(2, 5, 7), np.zeros((2, 7)), "finite and not zero"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(frames, image, complaint):
    with pytest.raises(DataError, match=complaint):
        image_alignment(frames, image)


def test_one_frame_is_not_consistent_with_anything():
    for measure in (temporal_consistency, subject_consistency):
        with pytest.raises(DataError, match="at least 2 frames"):
            measure(embeddings(2, 1, 7))


def by_scipy(image, frame):
    """SSIM with scipy's Gaussian, cropped to whole windows."""

    def blur(values):
        return ndimage.gaussian_filter(values, 1.5, truncate=3.5)[5:-5, 5:-5]

    x, y = (cv2.cvtColor(p, cv2.COLOR_RGB2GRAY).astype(np.float64) for p in (image, frame))
    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = 2.55**2, 7.65**2
    top = (2 * mx * my + c1) * (2 * vxy + c2)
    return (top / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


def test_ssim_agrees_with_another_implementation():
    image = picture()
    frames = np.stack([image, picture(1), 255 - image, image // 2, np.roll(image, 2, axis=1)])
    truth = [by_scipy(image, frame) for frame in frames]
    assert ssim(image, frames) == pytest.approx(truth, abs=1e-9)
    assert truth[0] == pytest.approx(1)
    assert ssim(image, frames)[2] < 0


def test_colours_overlap_wherever_they_are():
    image = picture()
    scrambled = image.reshape(-1, 3)[np.random.default_rng(0).permutation(40 * 56)]
    black, white = np.zeros_like(image), np.full_like(image, 255)
    frames = np.stack([image, scrambled.reshape(image.shape), black])
    assert histogram_overlap(image, frames)[:2] == pytest.approx([1, 1])
    assert histogram_overlap(image, frames)[2] < 0.4
    assert histogram_overlap(white, black[None]) == pytest.approx([2 / 3])
    red, blue = white.copy(), white.copy()
    red[..., 1:] = 0
    blue[..., :2] = 0
    assert histogram_overlap(red, blue[None]) == pytest.approx([0])
    double = image.repeat(2, axis=0).repeat(2, axis=1)
    assert histogram_overlap(image, double[None]) == pytest.approx([1])


def test_alignment_error_is_a_mean_square():
    image = np.full((4, 4, 3), 100, np.uint8)
    frames = np.stack([image, image + 51, image - 51])
    assert alignment_mse(image, frames) == pytest.approx([0, 0.04, 0.04])


def test_flickering():
    still = np.repeat(picture()[None], 3, axis=0)
    assert temporal_flickering(still) == 1
    steps = np.stack([np.full((4, 4, 3), level, np.uint8) for level in (100, 151, 100)])
    assert temporal_flickering(steps) == pytest.approx(0.8)
    with pytest.raises(DataError, match="at least 2 frames"):
        temporal_flickering(still[:1])


@pytest.mark.parametrize("measure", [ssim, histogram_overlap, alignment_mse])
def test_what_are_no_pictures_is_refused(measure):
    image = picture()
    for frames in (image, image[None].astype(np.float32), image[None, ..., :2], image[None][:0]):
        with pytest.raises(DataError, match="frames must be"):
            measure(image, frames)
    with pytest.raises(DataError, match="the image must be"):
        measure(image[..., 0], image[None])


def test_sizes_must_fit():
    for measure in (ssim, alignment_mse):
        with pytest.raises(DataError, match="differ in size"):
            measure(picture(), picture(width=60)[None])
    with pytest.raises(DataError, match="11 x 11 pixels"):
        ssim(picture(height=10), picture(height=10)[None])
