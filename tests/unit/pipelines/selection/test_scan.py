import gc
import itertools
import json
import types
import weakref
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cil.errors import ConfigError, DataError
from cil.metrics.motion import motion_score
from pipelines.decode.frame import SourceFrame, cover_and_crop
from pipelines.selection import Bucket, ScanSettings, VideoScan, scan_frames
from pipelines.selection.perceptual_hash import perceptual_hash

BUCKET = "32x48x4"


def scan(videos, pictures, *, buckets=BUCKET, fps=8.0, source_fps=8.0, times=None, start_s=0.0,
         **more):  # fmt: skip
    settings = ScanSettings(
        buckets=tuple(Bucket.parse(name) for name in buckets.split()), fps=fps, **more
    )
    frames = videos.source(pictures, fps=source_fps, times=times, start_s=start_s)
    return scan_frames(frames, videos.probe(pictures, fps=source_fps), settings)


def frames_of(found):
    return [clip.frames for clip in found.clips]


def test_clips_follow_each_other(videos):
    found = scan(videos, videos.pan(10))
    assert frames_of(found) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [(clip.start_s, clip.end_s) for clip in found.clips] == [(0.0, 0.5), (0.5, 1.0)]
    assert [clip.bucket for clip in found.clips] == [BUCKET] * 2
    assert found.leftover_s == 2 / 8
    assert found.reason is None
    assert (found.num_frames, found.duration_s, found.source_fps) == (10, 1.25, 8.0)
    assert (found.width, found.height) == (160, 96)
    assert found.shots == [0.0]


def test_times_count_from_the_first_frame(videos):
    pictures = videos.pan(8)
    late = scan(videos, pictures, start_s=1000.0)
    assert late == scan(videos, pictures)


@pytest.mark.parametrize(
    ("source_fps", "expected"),
    [
        (16.0, [[0, 2, 4, 6], [8, 10, 12, 14]]),
        (4.0, [[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5], [6, 6, 7, 7], [8, 8, 9, 9],
               [10, 10, 11, 11], [12, 12, 13, 13], [14, 14, 15, 15]]),
        (6.0, [[0, 0, 1, 2], [3, 3, 4, 5], [6, 6, 7, 8], [9, 9, 10, 11], [12, 12, 13, 14]]),
    ],
)  # fmt: skip
def test_the_frame_on_screen(videos, source_fps, expected):
    assert frames_of(scan(videos, videos.pan(16), source_fps=source_fps)) == expected


def test_the_frame_on_screen_at_uneven_times(videos):
    # wanted at 0, .125, .25, .375, .5, .625, .75, .875
    times = [5.0, 5.1, 5.1, 5.3, 5.37496, 5.6, 5.9]
    found = scan(videos, videos.pan(7), times=times)
    assert frames_of(found) == [[0, 2, 2, 4], [4, 5, 5, 5]]
    # the last frame stays for the median of the gaps
    assert found.duration_s == pytest.approx(0.9 + np.median(np.diff(times)))


def test_no_clip_crosses_a_cut_and_the_grid_begins_anew(videos):
    first, second = videos.pan(14, seed=1, step=1), videos.pan(17, seed=2, step=1)
    found = scan(videos, first + second, source_fps=16.0, shot_threshold=27.0)
    assert found.shots == [0.0, 14 / 16]
    assert frames_of(found) == [[0, 2, 4, 6], [14, 16, 18, 20], [22, 24, 26, 28]]
    assert [clip.shot for clip in found.clips] == [0, 1, 1]
    assert found.clips[1].start_s == 14 / 16
    # 7 wanted frames in the first shot, 9 in the second
    assert found.leftover_s == (3 + 1) / 8
    whole = scan(videos, first + second, source_fps=16.0, shot_threshold=None)
    assert whole.shots == [0.0]
    assert frames_of(whole)[1] == [8, 10, 12, 14]


def test_the_longest_bucket_that_fits(videos):
    found = scan(videos, videos.pan(15), buckets="32x48x8 32x48x2 32x48x4 512x320x3")
    assert [clip.bucket for clip in found.clips] == ["32x48x8", "32x48x4", "32x48x2"]
    assert frames_of(found) == [[*range(8)], [8, 9, 10, 11], [12, 13]]


def test_overlapping_clips(videos):
    found = scan(videos, videos.pan(9), clip_stride=2)
    assert frames_of(found) == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]
    one_by_one = scan(videos, videos.pan(9)[2:], start_s=0.0)
    assert found.clips[1].scores == one_by_one.clips[0].scores


def test_checksums_are_of_the_frames_as_they_are_encoded(videos):
    pictures = videos.pan(8)
    (clip, _) = scan(videos, pictures, source_fps=8.0).clips
    expected = [zlib.crc32(cover_and_crop(picture, 32, 48).tobytes()) for picture in pictures[:4]]
    assert clip.crc32 == expected
    assert len(set(expected)) == 4
    repeated = scan(videos, pictures, source_fps=4.0).clips[0]
    assert repeated.crc32 == [expected[0], expected[0], expected[1], expected[1]]


def test_scores_are_those_of_what_the_clip_shows(videos):
    # the left and right ends are cut off: 96 x 144 of 96 x 160
    pictures = videos.pan(4, step=3)
    (clip,) = scan(videos, pictures).clips
    seen = [cover_and_crop(picture, 256, 384) for picture in pictures]
    grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in seen]
    motion = motion_score(seen)
    scores = clip.scores
    assert scores.motion == motion.value == pytest.approx(3 * 256 / 96, rel=0.05)
    assert scores.motion_consistent == motion.consistent
    assert scores.consistent_share == motion.consistent_share > 0.8
    assert scores.jump == motion.jump
    assert scores.luma_mean == pytest.approx(np.mean(grey))
    assert scores.luma_max == np.max(grey)
    assert scores.contrast == pytest.approx(np.mean([picture.std() for picture in grey]))
    assert scores.perceptual_hash == perceptual_hash(grey[2])


def test_scores_do_not_depend_on_the_size_of_the_clip(videos):
    pictures = videos.pan(4)
    small, large = (
        scan(videos, pictures, buckets=name).clips[0].scores for name in ("8x12x4", "64x96x4")
    )
    assert small == large


def test_repeated_frames_are_no_jump(videos):
    (clip, *_) = scan(videos, videos.pan(8, step=3), source_fps=4.0).clips
    assert clip.scores.jump < 1.2
    assert clip.scores.motion == pytest.approx(3 * 256 / 96 / 3, rel=0.05)


def test_motion_does_not_reach_over_a_cut(videos):
    still = [[videos.texture(seed)] * 8 for seed in (1, 2)]
    found = scan(videos, still[0] + still[1])
    assert found.shots == [0.0, 1.0]
    assert [clip.scores.motion for clip in found.clips] == [0.0] * 4
    assert [clip.scores.jump for clip in found.clips] == [1.0] * 4


def test_images(videos):
    found = scan(videos, videos.pan(1), buckets="32x48x1", source_fps=25.0)
    assert frames_of(found) == [[0]]
    assert found.clips[0].scores.motion == 0.0
    assert found.clips[0].scores.consistent_share == 1.0


def test_a_short_video_says_why_it_gives_no_clip(videos):
    found = scan(videos, videos.pan(10), buckets="32x48x8 32x48x16", source_fps=25.0)
    assert found.clips == []
    assert found.reason == (
        "too short: 0.40 s in its longest shot, and one clip of 8 frames at 8 Hz needs 1.00 s"
    )
    assert found.leftover_s == 4 / 8
    cut = scan(videos, videos.pan(6, seed=1) + videos.pan(7, seed=2), buckets="32x48x8")
    assert cut.clips == []
    assert "0.88 s in its longest shot" in cut.reason


def test_a_frame_that_stays_for_minutes_is_refused(videos):
    with pytest.raises(DataError, match=r"after 0\.12 s comes 61 s later") as caught:
        scan(videos, videos.pan(3), times=[0.0, 0.125, 61.2])
    assert caught.value.exception == "LongGap"
    assert caught.value.stage == "select"
    assert scan(videos, videos.pan(3), times=[0.0, 0.125, 60.1]).num_frames == 3


def test_no_frames_are_refused(videos):
    probe = types.SimpleNamespace(width=4, height=4, average_fps=8.0, time_base_s=0.0)
    settings = ScanSettings(buckets=(Bucket.parse(BUCKET),), fps=8.0)
    with pytest.raises(DataError, match="no frame"):
        scan_frames(iter(()), probe, settings)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"buckets": ()}, "at least one bucket"),
        ({"fps": 0.0}, "fps"),
        ({"fps": float("nan")}, "fps"),
        ({"clip_stride": 0}, "clip_stride"),
    ],
)
def test_wrong_settings_are_refused(wrong, complaint):
    with pytest.raises(ConfigError, match=complaint):
        ScanSettings(**{"buckets": (Bucket.parse(BUCKET),), "fps": 8.0, **wrong})
    with pytest.raises(ConfigError, match="at least 1, got 0x4x4"):
        Bucket(height=0, width=4, num_frames=4)


def test_a_scan_is_read_back_from_json(videos):
    found = scan(videos, videos.pan(10))
    assert VideoScan.from_json(json.loads(json.dumps(found.to_json()))) == found
    raw = found.to_json()
    raw["clips"][0]["scores"]["beauty"] = 1
    with pytest.raises(DataError, match="beauty"):
        VideoScan.from_json(raw)


@pytest.mark.parametrize("threshold", [None, 27.0])
def test_few_frames_are_held_at_a_time(videos, threshold):
    picture = videos.texture()
    alive = most = 0

    def gone():
        nonlocal alive
        alive -= 1

    def source():
        nonlocal alive, most
        for number in range(300):
            pixels = np.roll(picture, number, axis=1).copy()
            weakref.finalize(pixels, gone)
            alive += 1
            most = max(most, alive)
            yield SourceFrame(number=number, time_s=number / 30, pixels=pixels)
            del pixels

    settings = ScanSettings(buckets=(Bucket.parse("96x160x64"),), fps=8.0, shot_threshold=threshold)
    gc.disable()
    try:
        found = scan_frames(source(), videos.probe([picture], fps=30.0), settings)
    finally:
        gc.enable()
    assert len(found.clips) == 1
    assert 1 < most <= 5
    assert alive == 0


_SMALL = [np.full((8, 12, 3), level, np.uint8) for level in (20, 235)]


@settings(max_examples=60, deadline=None)
@given(
    runs=st.lists(st.integers(6, 25), min_size=1, max_size=4),
    lengths=st.sets(st.integers(1, 7), min_size=1, max_size=3),
    stride=st.none() | st.integers(1, 9),
    fps=st.sampled_from([3.0, 8.0, 11.0]),
    source_fps=st.sampled_from([8.0, 10.0, 29.97]),
)
def test_every_wanted_frame_is_in_a_clip_or_left_over(runs, lengths, stride, fps, source_fps):
    shot_of = [shot for shot, length in enumerate(runs) for _ in range(length)]
    frames = [
        SourceFrame(number=number, time_s=3 + number / source_fps, pixels=_SMALL[shot % 2])
        for number, shot in enumerate(shot_of)
    ]
    buckets = tuple(Bucket(height=8, width=12, num_frames=length) for length in lengths)
    probe = types.SimpleNamespace(width=12, height=8, average_fps=source_fps, time_base_s=0.0)
    found = scan_frames(
        iter(frames), probe, ScanSettings(buckets=buckets, fps=fps, clip_stride=stride)
    )
    starts = np.cumsum([0, *runs]) / source_fps
    assert found.shots == pytest.approx(starts[:-1])
    wanted, covered = 0, 0
    for shot, (begin, end) in enumerate(itertools.pairwise(starts)):
        grid = [begin + k / fps for k in range(400) if begin + k / fps < end - 1e-4]
        on_screen = [int((time + 1e-4) * source_fps) for time in grid]
        wanted += len(grid)
        places = set()
        for clip in (clip for clip in found.clips if clip.shot == shot):
            first = round((clip.start_s - begin) * fps)
            place = range(first, first + len(clip.frames))
            assert clip.frames == [on_screen[index] for index in place]
            assert all(shot_of[number] == shot for number in clip.frames)
            assert clip.end_s - clip.start_s == pytest.approx(len(clip.frames) / fps)
            assert clip.bucket == f"8x12x{len(clip.frames)}"
            places |= set(place)
        covered += len(places)
    assert found.leftover_s * fps == pytest.approx(wanted - covered)
    times = [clip.start_s for clip in found.clips]
    assert times == sorted(times)
    assert (found.reason is None) == bool(found.clips)


@pytest.mark.parametrize("rate", [24, 30, 60])
def test_times_in_milliseconds_do_not_repeat_or_skip_frames(videos, rate):
    """Matroska rounds times to milliseconds; at the source's own rate every frame is shown once."""
    frames = [
        SourceFrame(number=number, time_s=round(number / rate, 3), pixels=pixels)
        for number, pixels in enumerate(videos.pan(48))
    ]
    probe = types.SimpleNamespace(width=160, height=96, average_fps=rate, time_base_s=1e-3)
    settings = ScanSettings(
        buckets=(Bucket.parse("32x32x8"),), fps=float(rate), shot_threshold=None
    )
    scan = scan_frames(iter(frames), probe, settings)
    shown = [number for clip in scan.clips for number in clip.frames]
    assert shown == list(range(48))
