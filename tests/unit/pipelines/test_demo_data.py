"""The demo's videos: real H.264 that decodes, motion that is exact, bytes that repeat."""

import json
import math

import av
import numpy as np
import pytest
from PIL import Image

from pipelines.demo_data import main
from pipelines.demo_sprites import BACKGROUND, COLOURS, SHAPES, Sprite, draw_sprite, render

SMALL = ["--num-videos", "3", "--num-frames", "9", "--size", "64", "--num-held-out", "2"]


def make(folder, *extra):
    return main(["--out", str(folder / "videos"), *SMALL, *extra])


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.*")}


def decode(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), stream.codec_context.name, float(stream.average_rate)


def centre(frame):
    """Centre of what differs from the background on the torus, in frame widths."""
    weight = np.abs(frame.astype(float) - BACKGROUND).sum(-1)
    weight[weight < 30] = 0
    turns = np.exp(2j * np.pi * (np.arange(len(frame)) + 0.5) / len(frame))
    return [np.angle((weight.sum(axis) * turns).sum()) / (2 * np.pi) % 1 for axis in (0, 1)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    assert make(folder) == 0
    return folder


def test_videos_are_h264_and_show_what_was_drawn(made):
    names = sorted(p.name for p in (made / "videos").iterdir())
    assert names == ["sprite-0000.mp4", "sprite-0001.mp4", "sprite-0002.mp4"]
    for index, name in enumerate(names):
        frames, codec, fps = decode(made / "videos" / name)
        assert (codec, fps, frames.shape) == ("h264", 16.0, (9, 64, 64, 3))
        sprite = draw_sprite(np.random.default_rng([0, 0, index]))
        drawn = np.stack([render(sprite, size=64, time_s=i / 16) for i in range(9)])
        error = np.square(frames.astype(float) - drawn).mean()
        assert 10 * math.log10(255**2 / error) > 27  # the loss is in the halved colour planes
        assert b"elst" not in (made / "videos" / name).read_bytes()


@pytest.mark.parametrize("shape", SHAPES)
def test_motion_is_exact_and_wraps_around(shape):
    sprite = Sprite(shape=shape, colour="sky", radius=0.18, x=0.9, y=0.2, direction=2.5, speed=0.53)
    for time_s in (0.0, 0.3, 1.7):
        x, y = centre(render(sprite, size=64, time_s=time_s))
        travelled = 0.53 * time_s
        assert (x - 0.9 - travelled * math.cos(2.5) + 0.5) % 1 - 0.5 == pytest.approx(0, abs=2e-3)
        assert (y - 0.2 - travelled * math.sin(2.5) + 0.5) % 1 - 0.5 == pytest.approx(0, abs=2e-3)


def test_the_first_frame_does_not_tell_the_motion():
    sprites = [draw_sprite(np.random.default_rng([0, 0, index])) for index in range(2000)]
    assert {(s.shape, s.colour) for s in sprites} == {(s, c) for s in SHAPES for c in COLOURS}
    shown = np.stack(
        [
            [SHAPES.index(s.shape), list(COLOURS).index(s.colour), s.radius, s.x, s.y]
            for s in sprites
        ]
    )
    hidden = [[math.cos(s.direction), math.sin(s.direction), s.speed] for s in sprites]
    # Correlations of 2000 independent pairs stay below 4.5 / sqrt(2000) = 0.1.
    correlations = np.corrcoef(shown.T, np.stack(hidden).T)[:5, 5:]
    assert np.abs(correlations).max() < 0.1
    assert np.abs(np.mean(hidden, axis=0)[:2]).max() < 0.08


def test_held_out_images_belong_to_no_video(made):
    images = sorted((made / "held_out").iterdir())
    assert [image.name for image in images] == ["first-00.png", "first-01.png"]
    firsts = [decode(path)[0][0].astype(float) for path in sorted((made / "videos").iterdir())]
    for image in images:
        pixels = np.asarray(Image.open(image).convert("RGB"), dtype=float)
        assert pixels.shape == (64, 64, 3)
        assert min(np.square(pixels - first).mean() for first in firsts) > 50


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(made, tmp_path):
    assert make(tmp_path / "same") == 0
    assert content(tmp_path / "same") == content(made)
    assert make(tmp_path / "other", "--seed", "1") == 0
    assert content(tmp_path / "other")[next(iter(content(made)))] != next(
        iter(content(made).values())
    )


def test_a_complete_folder_is_left_alone_and_a_broken_one_made_good(tmp_path, capsys):
    assert make(tmp_path) == 0
    before = content(tmp_path)
    times = {path: (tmp_path / path).stat().st_mtime_ns for path in before}
    assert make(tmp_path) == 0
    assert "complete already" in capsys.readouterr().out
    assert {path: (tmp_path / path).stat().st_mtime_ns for path in before} == times
    (tmp_path / "videos" / "sprite-0001.mp4").write_bytes(b"cut short")
    (tmp_path / "held_out" / "first-00.png").unlink()
    (tmp_path / "videos" / "sprite-0007.mp4.part").write_bytes(b"left by a crash")
    assert make(tmp_path) == 0
    assert content(tmp_path) == before
    assert json.loads((tmp_path / "videos.json").read_text())["num_videos"] == 3


def test_fewer_videos_leave_no_old_ones(tmp_path):
    assert make(tmp_path) == 0
    first = (tmp_path / "videos" / "sprite-0000.mp4").read_bytes()
    assert make(tmp_path, "--num-videos", "1") == 0
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["sprite-0000.mp4"]
    assert (tmp_path / "videos" / "sprite-0000.mp4").read_bytes() == first


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--num-videos", "0"], "num_videos must be >= 1, got 0"),
        (["--size", "63"], "size must be even for H.264, got 63; use 64"),
        (["--seed", "-1"], "seed must be >= 0, got -1"),
        (["--held-out-dir", "{out}/videos/held_out"], "must not be among the videos"),
    ],
)
def test_wrong_arguments_exit_with_2_before_anything_is_made(tmp_path, capsys, extra, message):
    assert make(tmp_path, *(part.format(out=tmp_path) for part in extra)) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_somebody_elses_folder_is_not_touched(tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "holiday.mp4").write_bytes(b"precious")
    assert make(tmp_path) == 2
    assert "holds 'holiday.mp4', which is not ours; give an empty folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["holiday.mp4"]


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert make(tmp_path / "file") == 1
    assert "cannot write the demo videos" in capsys.readouterr().err
