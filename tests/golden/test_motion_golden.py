"""The motion section of golden/metrics: known shifts, and videos that fool a mean."""

import json

import numpy as np
import pytest

from cil.metrics.motion import motion_score


@pytest.fixture(scope="module")
def clips(golden):
    with np.load(golden / "metrics" / "arrays.npz") as arrays:
        expected = json.loads((golden / "metrics" / "expected.json").read_text())["motion"]
        return {
            name: (np.repeat(arrays[f"clip_{name}"][..., None], 3, axis=-1), item)
            for name, item in expected.items()
        }


@pytest.mark.parametrize(
    ("name", "tolerance"), [("pan_0.5", 0.01), ("pan_1.5", 0.01), ("object_2px", 0.15)]
)
def test_known_motion(clips, name, tolerance):
    frames, expected = clips[name]
    score = motion_score(frames)
    truth = expected["normalised_to_short_side_256"]
    assert score.value == pytest.approx(truth, rel=tolerance)
    assert score.consistent == pytest.approx(truth, rel=tolerance)
    assert score.consistent_share > 0.97
    assert score.jump < 1.1


def test_a_still_video_does_not_move(clips):
    score = motion_score(clips["static"][0])
    assert (score.value, score.consistent, score.consistent_share, score.jump) == (0, 0, 1, 1)


def test_noise_is_hardly_motion(clips):
    score = motion_score(clips["static_noise2"][0])
    assert score.value < 0.15
    assert score.jump < 1.5


def test_a_jump_is_told_from_motion(clips):
    score = motion_score(clips["jump_then_static"][0])
    assert score.value > 3
    assert score.consistent < 0.3 * score.value
    assert score.median == 0
    assert score.jump > 100
