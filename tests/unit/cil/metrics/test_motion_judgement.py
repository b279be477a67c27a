import math

import cv2
import numpy as np
import pytest

from cil.errors import DataError
from cil.metrics.motion import MotionScore, Transition, motion_score
from cil.metrics.motion_judgement import (
    dynamic_degree,
    luminance,
    motion_error,
    motion_flags,
)


def picture(seed=0, width=420, height=256):
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def pan(step, frames=5):
    wide = picture()
    return np.stack([wide[:, step * k : step * k + 256] for k in range(frames)])


def scored(*fastest):
    return MotionScore(
        transitions=tuple(
            Transition(magnitude=f / 2, consistent=f / 2, consistent_share=1.0, fastest=f)
            for f in fastest
        )
    )


def test_the_fastest_pixels_of_a_moving_object():
    still = picture()[:, :256]
    frames = np.repeat(still[None], 2, axis=0)
    frames[0, 60:140, 60:140] = picture(3)[:80, :80]
    frames[1, 60:140, 68:148] = picture(3)[:80, :80]
    transition = motion_score(frames).transitions[0]
    assert transition.fastest == pytest.approx(8, rel=0.25)
    assert transition.magnitude < 0.3 * transition.fastest


@pytest.mark.parametrize(("step", "moves"), [(9, True), (3, False), (0, False)])
def test_dynamic_degree(step, moves):
    found = dynamic_degree(pan(step), fps=8)
    assert found.moves is moves
    assert (found.name, found.threshold, found.needed) == ("dynamic_degree_dis", 6.0, 1)
    assert found.fastest == pytest.approx([step] * 4, rel=0.15)


def test_dynamic_degree_is_judged_at_8_fps():
    video = pan(3, frames=9)
    assert not dynamic_degree(video, fps=8).moves
    fast = dynamic_degree(video, fps=24)
    assert fast.moves
    assert fast.fastest == pytest.approx([9, 9], rel=0.1)
    slow = dynamic_degree(pan(9), fps=3)
    assert (slow.threshold, slow.moves) == (16.0, False)
    assert not dynamic_degree(video, fps=8, score=motion_score(video)).moves
    assert dynamic_degree(video, fps=24, score=motion_score(video)).moves


@pytest.mark.parametrize(("fast", "moves"), [(3, False), (4, True)])
def test_a_quarter_of_the_transitions_must_be_fast(fast, moves):
    score = scored(*[7.0] * fast, *[5.0] * (15 - fast))
    assert dynamic_degree(np.zeros((16, 8, 8, 3), np.uint8), fps=8, score=score).moves is moves


def test_a_still_pair_does_not_move():
    assert not dynamic_degree(pan(0, frames=2), fps=8).moves


@pytest.mark.parametrize(("fps", "frames"), [(0, 4), (math.nan, 4), (-1, 4), (80, 4), (8, 1)])
def test_a_dynamic_degree_needs_frames_and_a_rate(fps, frames):
    with pytest.raises(DataError, match=r"fps must be|at least 2 frames"):
        dynamic_degree(pan(1, frames=frames), fps=fps)


def test_motion_error_of_one_clip_and_of_still_clips():
    one = motion_error([2.0], [3.0])
    assert (one.mean, one.sem, one.pearson, one.ratio_of_means) == (1.0, None, None, 1.5)
    still = motion_error([0.0, 0.0], [1.0, 3.0])
    assert (still.mean, still.ratio_of_means, still.pearson) == (2.0, None, None)
    crossed = motion_error([1.0, 3.0], [3.0, 1.0])
    assert (crossed.mean, crossed.mean_absolute, crossed.pearson) == (0, 2, pytest.approx(-1))


@pytest.mark.parametrize(
    ("real", "made", "complaint"),
    [
        ([1.0], [1.0, 2.0], "same clips"),
        ([], [], "same clips"),
        ([[1.0]], [[1.0]], "same clips"),
        ([1.0, math.nan], [1.0, 2.0], "finite"),
        ([1.0, 2.0], [1.0, math.inf], "finite"),
    ],
)
def test_motion_that_cannot_be_compared_is_refused(real, made, complaint):
    with pytest.raises(DataError, match=complaint):
        motion_error(real, made)


def flags_of(video):
    return motion_flags(motion_score(video), video)


def test_a_good_clip_has_no_flag():
    assert flags_of(pan(4)) == ()


def test_bad_clips_are_flagged():
    cut = np.concatenate([np.repeat(pan(0)[:1], 4, axis=0), picture(5)[None, :, :256]])
    assert "jump" in flags_of(cut)
    unrelated = np.stack([picture(seed)[:, :256] for seed in range(3)])
    assert flags_of(unrelated) == ("inconsistent",)
    dark = np.random.default_rng(0).integers(0, 14, (4, 64, 64, 3), np.uint8)
    assert "black" in flags_of(dark)
    assert flags_of(np.zeros((3, 32, 32, 3), np.uint8)) == ("black", "flat")
    assert flags_of(np.full((3, 32, 32, 3), 200, np.uint8)) == ("flat",)


def test_luminance_is_grey():
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    frames[0, ..., 1] = 200
    assert luminance(frames) == pytest.approx(0.587 * 100)
    assert luminance(np.full((1, 2, 2, 3), 255, np.uint8)) == pytest.approx(255)
