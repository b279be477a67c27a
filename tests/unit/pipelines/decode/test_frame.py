import numpy as np
import pytest

from pipelines.decode import cover_and_crop


@pytest.fixture
def picture():
    """96 x 48 with red edges, black next to them, and a green middle from column 28 to 68."""
    picture = np.zeros((48, 96, 3), np.uint8)
    picture[:, :20] = picture[:, -20:] = (255, 0, 0)
    picture[:, 28:68] = (0, 255, 0)
    return picture


def test_a_square_from_the_middle_shows_no_edges(picture):
    found = cover_and_crop(picture, 24, 24)
    assert found.shape == (24, 24, 3)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert found[..., 0].max() == 0
    # 28..68 of 96 columns, halved, minus the 12 that are cropped on the left: 2..22
    assert (found[12, :, 1] > 128).nonzero()[0].tolist() == list(range(2, 22))


def test_the_own_size_changes_nothing(picture):
    assert np.array_equal(cover_and_crop(picture, 48, 96), picture)


@pytest.mark.parametrize(("height", "width"), [(31, 101), (200, 7), (7, 200), (1, 1), (47, 96)])
def test_any_size_is_covered(picture, height, width):
    assert cover_and_crop(picture, height, width).shape == (height, width, 3)


def test_a_frame_that_is_a_view_can_be_resized(picture):
    turned = np.rot90(picture)
    assert np.array_equal(
        cover_and_crop(turned, 40, 20), cover_and_crop(np.ascontiguousarray(turned), 40, 20)
    )
