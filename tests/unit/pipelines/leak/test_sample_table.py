"""Videos as numbers per clip."""

import math

import pytest

from pipelines.leak.evidence import compared_start
from pipelines.leak.sample_table import Start, sample_table


def row(arm, clip, motion, *, seed=0, start=1.0, gaussian=False, **more):
    return {
        "arm": arm,
        "start_time": start,
        "analytic_init": gaussian,
        "clip_key": clip,
        "seed": seed,
        "motion_consistent": motion,
        "motion_real_consistent": 2.0,
        "alignment_mse": 0.1,
        "ssim": 0.9,
        "flags": "",
        "flags_real": "",
        **more,
    }


def test_the_videos_of_a_clip_are_one_number():
    rows = [row("a", "x", 1.0), row("a", "x", 4.0, seed=1), row("a", "y", 2.0)]
    table = sample_table(rows)
    own = table.values["a", Start(time=1.0, analytic_init=False)]
    assert table.keys == ("x", "y")
    assert own["motion"].tolist() == [2.5, 2.0]
    # each video's own distance, not that of the mean
    assert own["motion_error"].tolist() == [pytest.approx(1.5), 0.0]


@pytest.mark.parametrize(
    "bad",
    [
        {"motion_consistent": None, "flags": "not_finite"},
        {"motion_consistent": math.nan},
        {"flags": "black"},
        {"flags_real": "black"},
    ],
)
def test_a_broken_video_takes_its_clip_out_of_all_arms(bad):
    good = [row(arm, clip, 1.0) for arm in ("a", "b") for clip in ("x", "y")]
    table = sample_table(
        [{**each, **bad} if index == 3 else each for index, each in enumerate(good)]
    )
    assert table.keys == ("x",)
    assert table.left_out == ("y",)
    assert all(len(own["motion"]) == 1 for own in table.values.values())


def test_a_jump_is_counted_and_stays():
    table = sample_table([row("a", "x", 1.0, flags="jump inconsistent"), row("a", "y", 1.0)])
    assert table.keys == ("x", "y")
    assert table.flags == {
        ("a", Start(time=1.0, analytic_init=False)): {"jump": 1, "inconsistent": 1}
    }


def test_arms_are_compared_at_the_largest_start_without_analytic_init():
    rows = [
        row("a", "x", 1.0, start=start, gaussian=gaussian)
        for start, gaussian in ((0.8, False), (0.9, True), (0.9, False), (0.8, True))
    ]
    assert compared_start(sample_table(rows)) == Start(time=0.9, analytic_init=False)
    assert compared_start(sample_table([])) is None
    assert compared_start(None) is None
