import numpy as np
import pytest

from cil.errors import DataError
from pipelines.selection import fps_id, motion_bucket_id


def test_the_frame_rate_less_one():
    assert fps_id(7.0) == 6.0
    assert fps_id(29.97) == pytest.approx(28.97)
    assert fps_id(0.5) == 0.0


def test_an_ordinary_clip_gets_the_default():
    assert motion_bucket_id(2.0) == 127
    assert motion_bucket_id(0.0) == 0


def test_more_motion_never_gets_a_smaller_id():
    ids = [motion_bucket_id(value) for value in np.linspace(0, 200, 5001)]
    assert ids == sorted(ids)
    assert all(isinstance(item, int) for item in ids)
    assert max(ids) <= 255
    assert motion_bucket_id(1e300) == 254


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(DataError, match="motion score"):
        motion_bucket_id(value)
    with pytest.raises(DataError, match="frames per second"):
        fps_id(value)
