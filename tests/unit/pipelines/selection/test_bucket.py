import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cil.errors import ConfigError
from pipelines.selection import Bucket, choose

sides = st.integers(1, 99999)
shapes = st.builds(Bucket, height=sides, width=sides, num_frames=st.integers(1, 300))


def names(found):
    return [bucket.name for bucket in found]


def pick(text, width, height):
    return names(choose([Bucket.parse(name) for name in text.split()], width, height))


@given(shapes)
def test_a_name_is_read_back(bucket):
    assert Bucket.parse(bucket.name) == bucket


@pytest.mark.parametrize(
    "text", ["", "320x512", "320x512x0", "0x1x1", "320X512X16", " 1x1x1", "1x1x1\n", "-1x1x1",
             "1.5x1x1", "010x1x1", "100000x1x1", "1x1x1x1", "٣x1x1"],
)  # fmt: skip
def test_what_is_no_bucket_is_refused(text):
    with pytest.raises(ConfigError, match="HEIGHTxWIDTHxFRAMES"):
        Bucket.parse(text)


@pytest.mark.parametrize(
    ("buckets", "width", "height", "expected"),
    [
        ("320x512x16 512x320x16 384x384x16", 1920, 1080, ["320x512x16"]),
        ("320x512x16 512x320x16 384x384x16", 1080, 1920, ["512x320x16"]),
        ("320x512x16 512x320x16 384x384x16", 500, 480, ["384x384x16"]),
        # of one aspect ratio: the largest that does not enlarge, else the smallest
        ("90x160x8 180x320x8 360x640x8", 640, 360, ["360x640x8"]),
        ("90x160x8 180x320x8 360x640x8", 639, 360, ["180x320x8"]),
        ("90x160x8 180x320x8 360x640x8", 100, 50, ["90x160x8"]),
        # the aspect ratio decides first, even where that size enlarges
        ("576x1024x8 64x64x8", 320, 180, ["576x1024x8"]),
        # the nearest ratio is so as a ratio: 1:1 is log 1.5 from 3:2 and 16:9 only log 1.19
        ("90x90x8 90x160x8", 300, 200, ["90x160x8"]),
        # the same size in several lengths, the longest first, once each
        ("64x64x8 64x64x16 64x64x1 64x64x8 32x32x99", 64, 64, ["64x64x16", "64x64x8", "64x64x1"]),
        # as far from 1:2 as from 2:1
        ("64x128x8 128x64x8", 100, 100, ["64x128x8"]),
    ],
)
def test_the_size_that_fits(buckets, width, height, expected):
    assert pick(buckets, width, height) == expected


@given(st.lists(shapes, min_size=1, max_size=8), st.integers(1, 8000), st.integers(1, 8000))
def test_no_other_size_fits_better(buckets, width, height):
    found = choose(buckets, width, height)

    def distance(bucket):
        return abs(math.log(bucket.width / bucket.height) - math.log(width / height))

    def enlarges(bucket):
        return bucket.width > width or bucket.height > height

    best = found[0]
    size = best.height * best.width
    assert all(distance(best) <= distance(other) + 1e-8 for other in buckets)
    for other in (other for other in buckets if distance(other) <= distance(best)):
        if enlarges(best):
            assert enlarges(other)
            assert size <= other.height * other.width
        elif not enlarges(other):
            assert size >= other.height * other.width
    expected = {b for b in buckets if (b.height, b.width) == (best.height, best.width)}
    assert set(found) == expected
    assert len(found) == len(expected)
    assert list(found) == sorted(found, key=lambda bucket: -bucket.num_frames)
    assert choose(list(reversed(buckets)), width, height) == found


def test_no_buckets_are_refused():
    with pytest.raises(ConfigError, match="at least one bucket"):
        choose([], 10, 10)
