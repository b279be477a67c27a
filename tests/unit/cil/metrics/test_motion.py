import cv2
import numpy as np
import pytest

from cil.errors import DataError
from cil.metrics.motion import (
    FlowMeter,
    MotionAccumulator,
    MotionScore,
    Transition,
    motion_frame,
    motion_score,
)


def texture(seed=0, height=256, width=320):
    """A smooth texture that wraps around, as float."""
    rng = np.random.default_rng(seed)
    tall, wide = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    low = np.exp(-(tall**2 + wide**2) / (2 * 0.03**2))
    smooth = np.fft.ifft2(np.fft.fft2(rng.normal(size=(height, width))) * low).real
    return 128 + 40 * smooth / smooth.std()


def shifted(picture, dx, dy=0.0):
    """Shift by parts of a pixel, exactly, on the torus."""
    tall = np.fft.fftfreq(picture.shape[0])[:, None]
    wide = np.fft.fftfreq(picture.shape[1])[None]
    phase = np.exp(-2j * np.pi * (wide * dx + tall * dy))
    return np.fft.ifft2(np.fft.fft2(picture) * phase).real


def as_video(pictures):
    grey = np.clip(np.round(np.stack(list(pictures))), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


@pytest.mark.parametrize(("dx", "dy"), [(1.0, 0.0), (0.0, 2.5), (3.0, -4.0), (0.5, 0.0)])
def test_known_shifts(dx, dy):
    picture = texture()
    score = motion_score(as_video(shifted(picture, k * dx, k * dy) for k in range(4)))
    truth = np.hypot(dx, dy)
    assert score.value == pytest.approx(truth, rel=0.02, abs=0.06)
    assert score.consistent == pytest.approx(truth, rel=0.02, abs=0.06)
    assert score.consistent_share > 0.95
    assert score.per_transition == pytest.approx([truth] * 3, rel=0.02, abs=0.06)


@pytest.mark.parametrize("factor", [0.5, 2, 3.5])
def test_motion_does_not_depend_on_the_size_of_the_video(factor):
    picture = texture()
    pictures = [shifted(picture, 3.0 * k) for k in range(3)]
    size = (round(320 * factor), round(256 * factor))
    resized = [cv2.resize(item, size, interpolation=cv2.INTER_AREA) for item in pictures]
    assert motion_score(as_video(resized)).value == pytest.approx(3.0, rel=0.03)


def test_a_portrait_moves_like_a_landscape():
    wide = as_video(shifted(texture(), 3.0 * k) for k in range(3))
    tall = wide.transpose(0, 2, 1, 3)
    assert motion_score(tall).value == pytest.approx(motion_score(wide).value, rel=0.01)


def test_unrelated_pictures_are_inconsistent():
    score = motion_score(as_video([texture(1), texture(2), texture(3)]))
    assert score.consistent_share < 0.3
    assert score.consistent < 0.3 * score.value


def test_a_stream_scores_as_the_whole():
    frames = as_video(shifted(texture(), 2.0 * k, k * k) for k in range(5))
    accumulator = MotionAccumulator()
    for frame in frames:
        accumulator.add(frame)
    assert accumulator.score() == motion_score(frames)


def test_flow_does_not_depend_on_what_was_measured_before():
    one, two, other = (motion_frame(frame) for frame in as_video(texture(s) for s in (1, 2, 3)))
    used = FlowMeter()
    used.between(other, one)
    assert used.between(one, two) == FlowMeter().between(one, two)


def test_flow_does_not_depend_on_the_number_of_threads():
    frames = as_video(shifted(texture(), 5.0 * k, 2.0) for k in range(3))
    before = cv2.getNumThreads()
    try:
        scores = []
        for number in (1, 3, 8):
            cv2.setNumThreads(number)
            scores.append(motion_score(frames))
    finally:
        cv2.setNumThreads(before)
    assert scores[0] == scores[1] == scores[2]


def moves(*magnitudes):
    return MotionScore(
        transitions=tuple(
            Transition(magnitude=m, consistent=m / 2, consistent_share=0.75) for m in magnitudes
        )
    )


def test_statistics_of_the_transitions():
    score = moves(6.0, 1.0, 2.0)
    assert score.value == 3.0
    assert score.consistent == 1.5
    assert score.consistent_share == 0.75
    assert score.median == 2.0
    assert score.jump == 3.0
    assert score.first_transition == 6.0


@pytest.mark.parametrize(("magnitudes", "jump"), [((0, 0, 0), 1), ((0, 0, 5), 50), ((0.05,), 1)])
def test_noise_is_no_jump(magnitudes, jump):
    assert moves(*magnitudes).jump == pytest.approx(jump)


def test_one_frame_has_no_motion():
    with pytest.raises(DataError, match="at least 2 frames"):
        motion_score(as_video([texture()]))


@pytest.mark.parametrize(
    ("frames", "complaint"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), "uint8"),
        (np.zeros((2, 8, 8), np.uint8), "uint8"),
        (np.zeros((2, 8, 8, 4), np.uint8), "uint8"),
        (np.zeros((2, 0, 8, 3), np.uint8), "uint8"),
        (np.zeros((2, 1, 100000, 3), np.uint8), "aspect ratio"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], "differ in size"),
    ],
)
def test_what_is_no_video_is_refused(frames, complaint):
    with pytest.raises(DataError, match=complaint):
        motion_score(frames)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 9), (7, 7), (15, 240)])
def test_tiny_pictures_are_measured(height, width):
    frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    assert motion_score(frames).value >= 0
