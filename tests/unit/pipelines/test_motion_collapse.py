"""The rule of motion collapse, on series that do and do not collapse."""

import math
import random

import pytest

from pipelines.motion_collapse import motion_collapse
from pipelines.settings import ValidateConfig

SETTINGS = ValidateConfig()
NUM_CLIPS = 8


def record(number, motion, transfer):
    return {
        "step": 100 * (number + 1),
        "videos": [{"motion_ratio": value} for value in motion],
        "motion_transfer_per_clip": list(transfer),
    }


def history(motions, transfers, *, noise=0.02, seed=0):
    """Make one validation per pair; clips differ from each other, the same way each time."""
    chance = random.Random(seed)
    own = [chance.uniform(0.8, 1.2) for _ in range(NUM_CLIPS)]

    def clips(mean):
        return [mean * factor + chance.gauss(0, noise) for factor in own]

    pairs = zip(motions, transfers, strict=True)
    return [record(n, clips(m), clips(t)) for n, (m, t) in enumerate(pairs)]


def found(motions, transfers, settings=SETTINGS, **more):
    return motion_collapse(history(motions, transfers, **more), settings)


def test_a_collapse_is_announced_with_what_to_do():
    text = found([0.8, 0.8, 0.5, 0.3], [0.7, 0.7, 0.4, 0.2])
    assert text.startswith("motion collapse: by step 400 the motion of samples fell from 0.8")
    assert "train/best" in text
    assert "time_noise" in text


def test_a_slow_collapse_is_announced_too():
    means = [0.9, 0.85, 0.78, 0.7, 0.6, 0.5]
    assert found(means, means) is not None
    assert found(means[:4], means[:4]) is None


@pytest.mark.parametrize(
    ("motions", "transfers"),
    [
        ([0.8, 0.8, 0.8, 0.8], [0.7, 0.7, 0.7, 0.7]),  # nothing happens
        ([0.3, 0.5, 0.7, 0.8], [0.2, 0.4, 0.6, 0.7]),  # learns to move
        ([0.8, 0.7, 0.5, 0.3], [0.7, 0.7, 0.7, 0.7]),  # samples alone
        ([0.8, 0.8, 0.8, 0.8], [0.7, 0.6, 0.3, 0.2]),  # the measure alone
        ([0.8, 0.8, 0.3, 0.8], [0.7, 0.7, 0.2, 0.7]),  # one bad validation
        ([0.8, 0.8, 0.8, 0.3], [0.7, 0.7, 0.7, 0.2]),  # one bad validation, just now
        ([0.8, 0.3, 0.35, 0.5], [0.7, 0.2, 0.25, 0.4]),  # recovers
        ([0.80, 0.75, 0.70, 0.68], [0.7, 0.65, 0.6, 0.58]),  # falls, by less than a quarter
        ([5.0, 3.0, 1.5, 1.2], [0.7, 0.6, 0.3, 0.2]),  # noise becomes a picture that moves
        ([0.3], [0.2]),
        ([0.8, 0.3], [0.7, 0.2]),
    ],
)
def test_everything_else_is_not(motions, transfers):
    assert found(motions, transfers) is None


def test_a_fall_within_the_noise_between_clips_is_none():
    """The same means, but the clips disagree about them."""
    means = [0.8, 0.8, 0.5, 0.5]
    assert found(means, means, noise=0.02) is not None
    quiet = [found(means, means, noise=0.9, seed=seed) for seed in range(40)]
    assert sum(text is not None for text in quiet) <= 4


def test_noise_alone_hardly_ever_warns():
    warned = [found([0.6] * 5, [0.5] * 5, noise=0.3, seed=seed) is not None for seed in range(200)]
    assert sum(warned) <= 2


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, True),
        ({"collapse_drop": 0.5}, False),
        ({"collapse_validations": 1}, True),
        ({"collapse_validations": 3}, False),
        ({"collapse_z": 500.0}, False),
    ],
)
def test_each_setting_counts(settings, expected):
    means = [0.8, 0.8, 0.5, 0.5]
    assert (found(means, means, ValidateConfig(**settings)) is not None) is expected


def test_clips_without_a_number_are_left_out():
    rows = history([0.8, 0.8, 0.3, 0.2], [0.7, 0.7, 0.3, 0.2])
    for row in rows:
        row["videos"][0]["motion_ratio"] = None
    rows[1]["motion_transfer_per_clip"][3] = None
    assert motion_collapse(rows, SETTINGS) is not None
    for row in rows:
        for video in row["videos"][1:]:
            video["motion_ratio"] = None
    assert motion_collapse(rows, SETTINGS) is None


def test_without_videos_or_leak_nothing_is_said():
    rows = history([0.8, 0.8, 0.3, 0.2], [0.7, 0.7, 0.3, 0.2])
    assert motion_collapse([{**row, "videos": []} for row in rows], SETTINGS) is None
    none = [{**row, "motion_transfer_per_clip": []} for row in rows]
    assert motion_collapse(none, SETTINGS) is None


def test_another_number_of_clips_is_no_series():
    rows = history([0.8, 0.8, 0.3, 0.2], [0.7, 0.7, 0.3, 0.2])
    rows[0]["videos"].pop()
    assert motion_collapse(rows, SETTINGS) is None
    assert not math.isnan(rows[1]["videos"][0]["motion_ratio"])
