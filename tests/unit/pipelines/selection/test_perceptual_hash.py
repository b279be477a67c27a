import cv2
import numpy as np
import pytest

from pipelines.selection.duplicates import hamming
from pipelines.selection.perceptual_hash import perceptual_hash


def grey(videos, seed, **size):
    return cv2.cvtColor(videos.texture(seed, **size), cv2.COLOR_RGB2GRAY)


@pytest.mark.parametrize("seed", range(5))
def test_the_definition(videos, seed):
    picture = grey(videos, seed, height=32, width=32)
    coefficients = cv2.dct(picture.astype(np.float64)) * 16  # orthonormal; undo its scales
    coefficients[0] *= np.sqrt(2)
    coefficients[:, 0] *= np.sqrt(2)
    low = coefficients[:8, :8]
    bits = "".join("1" if value > np.median(low) else "0" for value in low.ravel())
    assert perceptual_hash(picture) == f"{int(bits, 2):016x}"


def test_copies_are_near_and_others_far(videos):
    rng = np.random.default_rng(0)
    near, far = [], []
    for seed in range(20):
        picture = grey(videos, seed, height=256, width=384)
        one = perceptual_hash(picture)
        small = cv2.resize(picture, (90, 60), interpolation=cv2.INTER_AREA)
        packed = cv2.imdecode(
            cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_GRAYSCALE
        )
        noisy = np.clip(picture + rng.normal(0, 5, picture.shape), 0, 255).astype(np.uint8)
        bright = cv2.convertScaleAbs(picture, alpha=0.9, beta=10)
        near += [hamming(one, perceptual_hash(it)) for it in (small, packed, noisy, bright)]
        far.append(hamming(one, perceptual_hash(grey(videos, seed + 100, height=256, width=384))))
    assert max(near) <= 4
    assert min(far) > 12
    assert 26 < np.mean(far) < 38


def test_flat_pictures_hash_alike():
    flat = {perceptual_hash(np.full((50, 70), level, np.uint8)) for level in (1, 30, 77, 254, 255)}
    assert flat == {"8000000000000000"}
