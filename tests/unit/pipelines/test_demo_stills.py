"""The world of stillness: what moves, how fast, and that the first frame does not say so."""

import math

import numpy as np
import pytest

from pipelines.demo_data import main
from pipelines.demo_stills import SHARE_MOVING, SPEED, SPREAD, Still, draw_still, render_still
from tests.unit.pipelines.test_demo_data import decode

SIZE = 64


def draws(motion, count=1500):
    return [draw_still(np.random.default_rng([0, 0, index]), motion) for index in range(count)]


def centre(frame):
    """Centre of the bright pixels on the torus, in frame widths."""
    weight = np.clip(frame[..., 0].astype(float) - 190, 0, None)
    turns = np.exp(2j * np.pi * (np.arange(SIZE) + 0.5) / SIZE)
    return [np.angle((weight.sum(axis) * turns).sum()) / (2 * np.pi) % 1 for axis in (0, 1)]


def test_one_disc_in_four_moves_and_in_all_directions():
    stills = draws("still")
    moving = [still for still in stills if still.speed]
    assert len(moving) / len(stills) == pytest.approx(SHARE_MOVING, abs=0.04)
    assert {still.speed for still in moving} == {SPEED}
    directions = np.exp(1j * np.array([still.direction for still in moving]))
    assert abs(directions.mean()) < 0.16  # 3 / sqrt(375)


def test_velocities_of_the_moving_world_are_normal():
    moving = draws("moving")
    speeds = np.array([still.speed for still in moving])
    assert np.sqrt(np.square(speeds).mean() / 2) == pytest.approx(SPREAD, rel=0.05)
    assert speeds.mean() == pytest.approx(SPREAD * math.sqrt(math.pi / 2), rel=0.05)


def test_the_texture_says_nothing_of_the_motion():
    stills = draws("still")
    shown = np.stack([still.waves.ravel()[:40] for still in stills])
    hidden = np.array([still.speed for still in stills])
    correlations = np.corrcoef(shown.T, hidden)[:-1, -1]
    assert np.abs(correlations).max() < 0.12  # 4.5 / sqrt(1500)


@pytest.mark.parametrize("direction", [0.0, 0.7, 2.5, -1.9])
def test_the_disc_starts_in_the_centre_and_moves_as_drawn(direction):
    drawn = draws("still", 1)[0]
    still = Still(waves=drawn.waves, direction=direction, speed=0.6)
    for time_s in (0.0, 0.3, 1.1):
        x, y = centre(render_still(still, size=SIZE, time_s=time_s))
        for place, step in ((x, math.cos(direction)), (y, math.sin(direction))):
            assert (place - 0.5 - 0.6 * time_s * step + 0.5) % 1 - 0.5 == pytest.approx(0, abs=6e-3)


def test_the_texture_stays_where_it_is():
    still = Still(waves=draws("still", 1)[0].waves, direction=0.0, speed=0.6)
    first, last = (render_still(still, size=SIZE, time_s=time_s) for time_s in (0.0, 0.5))
    away = np.r_[0:14, 50:64]  # rows that the disc does not touch
    assert np.array_equal(first[away], last[away])
    assert not np.array_equal(first, last)
    assert 8 < first[away].std() < 40


def test_the_command_makes_videos_of_the_world(tmp_path):
    out = tmp_path / "videos"
    size = ["--num-videos", "3", "--num-frames", "4", "--fps", "8", "--size", "16"]
    assert main(["--out", str(out), "--world", "still", "--num-held-out", "1", *size]) == 0
    for index in range(3):
        frames, codec, fps = decode(out / f"sprite-{index:04d}.mp4")
        assert (codec, fps, frames.shape) == ("h264", 8.0, (4, 16, 16, 3))
        still = draw_still(np.random.default_rng([0, 0, index]), "still")
        drawn = np.stack([render_still(still, size=16, time_s=i / 8) for i in range(4)])
        assert np.abs(frames.astype(float) - drawn).mean() < 4


def test_an_unknown_world_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--out", str(tmp_path / "videos"), "--world", "sea"])
    assert stopped.value.code == 2
    assert "invalid choice: 'sea'" in capsys.readouterr().err
