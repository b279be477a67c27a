"""The speed of the disc: exact on rendered clips, blind to flicker, and None where it is lost."""

import csv
import json
import math

import numpy as np
import pytest

from pipelines.demo_stills import SPEED, Still, draw_still, render_still
from pipelines.experiments.discs import disc_speed, main


def clip(speed, direction=0.9, *, frames=4, size=16):
    waves = draw_still(np.random.default_rng(3), "still").waves
    still = Still(waves=waves, direction=direction, speed=speed)
    return np.stack([render_still(still, size=size, time_s=k / frames) for k in range(frames)])


@pytest.mark.parametrize("direction", [0.0, 0.9, 2.8, -2.0])
@pytest.mark.parametrize("speed", [0.0, 0.2, 0.6, 1.1])
def test_the_speed_is_that_of_the_world_also_around_the_edge(speed, direction):
    assert disc_speed(clip(speed, direction), fps=4.0) == pytest.approx(speed, abs=0.03)


def test_flicker_is_no_motion():
    frames = clip(0.0).astype(int)
    noise = np.random.default_rng(0).integers(-30, 31, frames.shape)
    assert disc_speed(np.clip(frames + noise, 0, 255).astype(np.uint8), fps=4.0) < 0.08


def test_a_disc_that_fades_is_lost():
    frames = clip(0.6)
    frames[2] //= 2
    assert disc_speed(frames, fps=4.0) is None


def test_the_report_counts_each_arm_and_the_real_clips(tmp_path, capsys):
    part = tmp_path / "samples" / "unit-noise"
    part.mkdir(parents=True)
    lost = clip(0.6)
    lost[1] = 0
    videos = {"still": clip(0.0), "moves": clip(SPEED), "lost": lost}
    for name, frames in videos.items():
        np.savez(part / f"{name}.npz", frames=frames)
    columns = ("arm", "start_time", "analytic_init", "clip_key", "fps", "video", "video_real")
    shown = {"none": ("still", "still", "lost"), "timenoise": ("moves", "still", "moves")}
    with (part / "per_clip.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(columns)
        for arm, names in shown.items():
            for key, name in enumerate(names):
                lines.writerow([arm, 1.0, False, key, 4.0, f"{name}.npz", "moves.npz"])
    assert main([str(tmp_path)]) == 0
    found = json.loads((tmp_path / "discs.json").read_text())
    assert [arm["name"] for arm in found["arms"]] == ["none", "real", "timenoise"]
    value = {(row["arm"], row["measure"]): row["value"] for row in found["values"]}
    assert value["none", "disc_moving"] == 0
    assert value["none", "disc_lost"] == pytest.approx(1 / 3)
    assert value["timenoise", "disc_moving"] == pytest.approx(2 / 3)
    assert value["timenoise", "disc_speed"] == pytest.approx(2 / 3 * SPEED, abs=0.03)
    assert value["real", "disc_speed"] == pytest.approx(SPEED, abs=0.03)
    assert all(math.isfinite(number) for number in value.values())
    capsys.readouterr()
    assert main([str(tmp_path / "nothing")]) == 1
    assert "no sampled videos" in capsys.readouterr().err
