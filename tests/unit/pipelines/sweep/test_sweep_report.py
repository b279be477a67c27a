import base64
import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, ImageSequence

from pipelines.report import RunReport
from pipelines.sweep import report
from pipelines.sweep.curves import draw_curves
from pipelines.sweep.gallery import gallery
from pipelines.sweep.measures import MEASURES, measures_of
from pipelines.sweep.results import Result
from pipelines.validation_videos import SampledClip, read_pair, write_videos
from pipelines.video_io import read_gif, side_by_side, split_row, write_gif

ENCODED = RunReport(
    stage="encode",
    reused=False,
    inputs={},
    outputs={"dataset": "https://me:secret@host/clips", "fingerprint": "f" * 8},
    metrics={},
    seconds=1.0,
)
COLOURS = {"naive": (200, 30, 30), "base": (30, 30, 200), "<b>odd": (0, 0, 0)}


def still(colour, num_frames=3, size=32):
    return np.full((num_frames, size, size, 3), colour, np.uint8)


def validation(step):
    videos = [
        {"motion_real": 2.0, "motion_sample": 1.0 + k, "consistent_share": 0.9} for k in range(2)
    ]
    metrics = {name: 0.5 for name in MEASURES if name.startswith("val_")}
    metrics |= {"val_loss_error": 0.1, "val_loss_clean_error": 0.01 * step}
    counts = {"loss": 6, "leak": 6, "videos": 2}
    return {"step": step, "metrics": metrics, "n": counts, "videos": videos}


def finished(run):
    """A result with the files that validation and sampling leave."""
    colour = COLOURS[run.arm]
    samples = [
        SampledClip(key=str(k), seed=k, real=still((60, 160, 60)), sampled=still(colour))
        for k in range(2)
    ]
    folder = run.folder / "train" / "validation" / "step-000004"
    folder.mkdir(parents=True)
    write_videos(samples, folder, fps=8)
    shown = side_by_side([still((250, 250, 0)), *[still(colour)] * run.config.sample.num_videos])
    write_gif(run.folder / "sample" / "sample.gif", shown, fps=8)
    history = [validation(2), validation(4)]
    losses = [2.0, 1.5, 1.0, 0.75]
    return Result(
        run=run,
        state="finished",
        error=None,
        reused=False,
        measures=measures_of(run.config, losses, history[-1], ""),
        losses=losses,
        validations=history,
        train_seconds=12.0,
        clips=(20, 6),
    )


def unfinished(run, state, error=None):
    return Result(
        run=run,
        state=state,
        error=error,
        reused=False,
        measures={},
        losses=(),
        validations=(),
        train_seconds=None,
        clips=None,
    )


@pytest.fixture
def sweep(make_sweep):
    arms = {"naive": {"time_noise.preset": "none"}, "base": {}, "cdm": {"time_noise.preset": "cdm"}}
    return make_sweep(arms)


@pytest.fixture
def written(sweep):
    """A report of two arms that are finished and one that failed."""
    naive, base, cdm = sweep.runs
    results = [finished(naive), finished(base), unfinished(cdm, "failed", "StageError: <b>out</b>")]
    report.write(sweep, results, ENCODED)
    return sweep, results


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)


def test_the_numbers_are_in_json_and_csv(written):
    sweep, _ = written
    raw = json.loads((sweep.folder / "report.json").read_text())
    assert [arm["name"] for arm in raw["arms"]] == ["naive", "base", "cdm"]
    assert raw["arms"][0]["measures"]["val_loss_clean"]["error"] == 0.04
    assert raw["arms"][0]["runs"][0]["state"] == "finished"
    assert raw["arms"][2]["measures"] == {}
    assert raw["arms"][2]["runs"][0]["error"] == "StageError: <b>out</b>"
    assert raw["dataset"]["clips_held_out"] == 6
    assert "secret" not in (sweep.folder / "report.json").read_text()
    rows = list(csv.DictReader(io.StringIO((sweep.folder / "report.csv").read_text())))
    assert len(rows) == 3 * len(MEASURES)
    (ratio,) = [row for row in rows if (row["arm"], row["measure"]) == ("base", "val_motion_ratio")]
    assert (float(ratio["value"]), ratio["n"], ratio["over"]) == (0.5, "2", "videos")
    assert float(ratio["standard_error"]) > 0
    failed = [row for row in rows if row["arm"] == "cdm"]
    assert {(row["state"], row["value"], row["absent"]) for row in failed} == {
        ("failed", "", "StageError: <b>out</b>")
    }


def test_the_page_is_one_file_that_runs_nothing(written):
    sweep, _ = written
    text = (sweep.folder / "report.html").read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert all(source.startswith("data:image/") for source in page.sources)
    assert "<b>out</b>" not in text
    words = " ".join("".join(page.words).split())
    assert "2 of 3 trainings are finished" in words
    assert "cdm, seed 0 failed: StageError: <b>out</b>" in words
    assert "n 2 videos" in words
    for info in MEASURES.values():
        assert info.title in words
    # the arms' columns of losses, motion and leak, and no row for what failed
    assert text.count('<th scope="row"><b>cdm</b>') == 0


def picture(uri):
    kind, _, content = uri.partition(";base64,")
    assert kind == "data:image/gif"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        frames = [np.array(f.convert("RGB")) for f in ImageSequence.Iterator(image)]
    return np.stack(frames)


def test_each_column_shows_its_own_arm_beside_the_real_clip(written):
    _, results = written
    rows, left_out = gallery(results, ["naive", "base", "cdm"])
    assert [row.title for row in rows] == [
        "held-out clip 1, seed 0",
        "held-out clip 2, seed 1",
        "first clip of the data set, seed 0, noise 1",
        "first clip of the data set, seed 0, noise 2",
    ]
    assert left_out == 0
    for row in rows:
        assert row.arms[2] is None
        for uri, colour in zip(row.arms, ((200, 30, 30), (30, 30, 200)), strict=False):
            video = picture(uri)
            assert max(video.shape[1:3]) <= 128
            np.testing.assert_allclose(video[0].mean((0, 1)), colour, atol=8)
        start = (60, 160, 60) if row.title.startswith("held-out") else (250, 250, 0)
        np.testing.assert_allclose(picture(row.first)[0].mean((0, 1)), start, atol=8)


def test_seeds_have_rows_of_their_own(make_sweep):
    sweep = make_sweep({"naive": {"time_noise.preset": "none"}, "base": {}}, seeds=[0, 1])
    results = [finished(run) for run in sweep.runs]
    report.write(sweep, results, ENCODED)
    raw = json.loads((sweep.folder / "report.json").read_text())
    measure = raw["arms"][0]["measures"]["val_loss_clean"]
    assert (measure["n"], measure["over"], measure["error"]) == (2, "seeds", 0.0)
    text = (sweep.folder / "report.html").read_text()
    assert text.count('<th scope="row">seed 1</th>') == 2 * 3
    rows, _ = gallery(results, ["naive", "base"])
    assert {row.title.partition(", ")[2][:6] for row in rows} == {"seed 0", "seed 1", "seed 2"}


def test_a_sweep_of_which_nothing_is_finished_has_a_page(sweep):
    results = [unfinished(run, "not run") for run in sweep.runs]
    report.write(sweep, results, ENCODED)
    text = (sweep.folder / "report.html").read_text()
    assert "0 of 3 trainings are finished" in text
    assert "naive, seed 0 is not trained yet" in text
    assert "<img" not in text


def test_names_of_measures_that_are_absent_are_said_once(sweep):
    results = [finished(run) for run in sweep.runs[:2]]
    results.append(unfinished(sweep.runs[2], "not run"))
    report.write(sweep, results, ENCODED)
    text = (sweep.folder / "report.html").read_text()
    assert text.count("one ratio of sums over all clips") == 1


def test_curves_are_the_same_bytes_again(written):
    _, results = written
    names = ["naive", "base", "cdm"]
    first = draw_curves(results, names)
    assert first == draw_curves(results, names)
    assert re.search(r"<svg[^>]* viewBox=", first)
    # a line per finished arm in the first axes, and its legend
    assert first.count("#33658a") > 3
    assert "#2a9d5c" not in first


def test_a_pair_of_videos_is_read_as_it_was_written(tmp_path):
    generator = np.random.default_rng(0)
    real = np.repeat(generator.integers(0, 255, (4, 2, 2, 3), np.uint8), 16, 1).repeat(16, 2)
    sample = SampledClip(key="a", seed=3, real=real, sampled=still((9, 99, 199), 4))
    write_videos([sample], tmp_path, fps=8)
    first, second = read_pair(tmp_path, 0, fps=8)
    assert first.shape == second.shape == (4, 256, 256, 3)
    # block centres; the GIF has 96 colours
    centres = first[:, 64::128, 64::128].astype(int)
    assert np.abs(centres - real[:, 8::16, 8::16]).mean() < 12
    np.testing.assert_allclose(second.mean((0, 1, 2)), (9, 99, 199), atol=6)


def test_videos_in_a_row_come_apart_again(tmp_path):
    videos = [still((k * 50, 0, 0)) for k in range(4)]
    row = side_by_side(videos)
    for k, video in enumerate(split_row(row, 4)):
        assert video.shape == (3, 256, 256, 3)
        assert (video == (k * 50, 0, 0)).all()
    write_gif(tmp_path / "a.gif", row, fps=10)
    # all frames are alike, so the file has one
    assert read_gif(tmp_path / "a.gif", fps=10).shape == row.shape
    row[2:] = 255 - row[2:]
    write_gif(tmp_path / "a.gif", row, fps=30)
    frames = read_gif(tmp_path / "a.gif", fps=30)
    assert frames.shape == row.shape
    np.testing.assert_allclose(frames.astype(int), row, atol=4)
