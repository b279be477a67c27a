"""The report of made-up arms without a browser: the page, its plots, JSON and CSV."""

import base64
import csv
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from pipelines.config import RunConfig
from pipelines.leak.config import DECISION_TIMES
from pipelines.leak.look import DARK, LIGHT, looks_of
from pipelines.leak.page import render_page
from pipelines.leak.words import MEANINGS, TITLES, UNITS

PLOTS = {
    "motion-transfer": ("rank t of the noise level", "(ratio)"),
    "condition-dominance": ("rank t of the noise level", "(ratio)"),
    "one-step-error": ("rank t of the noise level", "(latent units squared)"),
    "one-step-motion": ("rank t of the noise level", "(ratio)"),
    "frame-difference": ("rank t of the noise level", "(ratio)"),
    "motion-in-out": ("motion of the real clip (px/frame)", "motion of the video (px/frame)"),
    "motion-error-by-start": ("start time M", "(px/frame)"),
    "alignment-motion": ("(squared error, 0..1 scale)", "(px/frame)"),
    "noise-density": ("sigma_cond (std of noise", "density (1 / sigma_cond)"),
}
"""What the axes of each plot must say."""
VOID = {"meta", "link", "img", "br", "source", "hr", "input"}


class Reader(html.parser.HTMLParser):
    """Checks that tags are closed in order, and collects what a test looks at."""

    def __init__(self):
        super().__init__()
        self.open, self.images, self.texts, self.wrong, self.figures = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "figure":
            self.figures.append("")
        if tag in ("img", "source"):
            self.images.append(values.get("src") or values.get("srcset"))
            if tag == "img" and not values.get("alt"):
                self.wrong.append("an image without a text")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> closes nothing")

    def handle_data(self, data):
        self.texts.append(data)
        if "figure" in self.open and self.figures:
            self.figures[-1] += data


@pytest.fixture(scope="module")
def page(written):
    return (written / "report.html").read_text()


@pytest.fixture(scope="module")
def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def svgs(read):
    """SVG texts of the page, light then dark for each plot."""
    head = "data:image/svg+xml;base64,"
    found = [uri for uri in read.images if uri.startswith(head)]
    return [base64.b64decode(uri.removeprefix(head)).decode() for uri in found]


def test_the_page_is_well_formed(read):
    assert not read.wrong
    assert read.open == []


def test_the_page_needs_no_network_and_no_script(page, read):
    assert all(uri.startswith("data:image/") for uri in read.images)
    text = re.sub(r"data:image/[^\"]*", "", page)
    assert not re.findall(r"https?://|//[a-z]|url\(|@import|<script|javascript:|\son\w+=", text)
    assert "default-src 'none'; img-src data:" in page


def test_names_from_outside_are_escaped(page, read):
    assert "/data/<b>clips</b>" in "".join(read.texts)
    assert "&lt;b&gt;clips&lt;/b&gt;" in page


def test_every_plot_has_axes_with_units_on_both_papers(read, written):
    """Matplotlib leaves the text of each label as a comment beside its letters."""
    texts = svgs(read)
    assert len(texts) == 2 * len(PLOTS)
    assert {path.stem for path in (written / "plots").iterdir()} == set(PLOTS)
    for number, (name, labels) in enumerate(PLOTS.items()):
        for svg, theme in zip(texts[2 * number : 2 * number + 2], (DARK, LIGHT), strict=True):
            comments = " | ".join(re.findall(r"<!-- (.*?) -->", svg))
            for label in labels:
                assert label in comments, (name, label)
            assert theme.paper in svg, name


def test_every_plot_says_how_many_clips_it_is_of(read):
    plots = [text for text in read.figures if "clips" in text or "Noise on" in text]
    assert len(plots) == len(PLOTS)
    for text in plots:
        if "Noise on the condition" not in text:  # a formula, of no clips
            assert re.search(r"n (24|12) clips", text), text
    assert sum("n 24 clips" in text for text in plots) == 5


def test_pictures_are_pictures(written):
    for path in (written / "plots").iterdir():
        with Image.open(path) as picture:
            shade = np.asarray(picture.convert("RGB"))
        assert min(shade.shape[:2]) > 400
        assert len(np.unique(shade.reshape(-1, 3), axis=0)) > 20


def test_arms_have_one_colour_everywhere_and_differ_without_colour(read):
    looks = looks_of(["none", "constant", "shuffled", "timenoise"])
    for theme, offset in ((DARK, 0), (LIGHT, 1)):
        for svg in svgs(read)[offset::2]:
            assert all(look.colour(theme) in svg for look in looks.values())
    assert len({look.mark for look in looks.values()}) == 4
    seeds = looks_of(["a/seed-0", "a/seed-1", "b/seed-0"])
    assert seeds["a/seed-0"].light == seeds["a/seed-1"].light != seeds["b/seed-0"].light
    assert seeds["a/seed-0"].line != seeds["a/seed-1"].line


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_lines_stand_out_from_the_paper(theme):
    """WCAG's contrast of 3 for parts of pictures; 4.5 for what is read."""

    def luminance(colour):
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(colour):
        one, other = sorted((luminance(colour), luminance(theme.paper)))
        return (other + 0.05) / (one + 0.05)

    looks = looks_of([f"arm{number}" for number in range(8)])
    assert min(contrast(look.colour(theme)) for look in looks.values()) >= 3
    assert contrast(theme.ink) >= 4.5
    assert contrast(theme.soft) >= 4.5


def test_videos_are_sorted_by_the_worst_alignment(study, read):
    worst = [row.worst for row in study.videos]
    assert worst == sorted(worst, reverse=True)
    assert study.videos_left_out == 8
    head = "data:image/gif;base64,"
    gifs = [uri for uri in read.images if uri.startswith(head)]
    assert len(gifs) == 3 * 5  # three of the clips have videos; the real clip and four arms
    for uri in gifs[:5]:
        with Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(head)))) as picture:
            assert picture.n_frames == 8
            assert max(picture.size) == 160
    shown = [text for text in read.figures if "px/frame" in text and "n 12" not in text]
    assert len(shown) == 4 * 5


def test_the_table_has_every_number(written, study):
    with (written / "leak.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * (5 * 10 + 4) + 4 * 5 * 5
    row = next(
        r
        for r in rows
        if (r["arm"], r["measure"], r["t"]) == ("timenoise", "motion_transfer_ratio", "0.8")
    )
    assert float(row["low"]) < float(row["value"]) < float(row["high"])
    assert 0 < float(row["difference_low"]) < float(row["difference"])
    assert row["reference"] == "none"
    assert int(row["n"]) == 24
    assert {r["measure"] for r in rows} <= set(UNITS)
    reference = next(r for r in rows if r["arm"] == "none")
    assert reference["difference"] == reference["p"] == ""


def test_the_data_says_what_the_page_says(written, study, read):
    data = json.loads((written / "leak.json").read_text())
    assert data["headline"] == study.headline
    text = " ".join("".join(read.texts).split())
    for verdict in data["verdicts"]:
        for finding in verdict["findings"]:
            assert " ".join(finding["text"].split()) in text
    for line in (*data["limits"], *data["warnings"]):
        assert line in text
    assert set(TITLES) == set(UNITS) == set(MEANINGS) == set(data["measures"])
    controls = {arm["name"]: arm["controls"] for arm in data["arms"]}
    assert controls == {
        "none": [],
        "constant": [],
        "shuffled": [],
        "timenoise": ["constant", "shuffled"],
    }
    (flagged,) = [line for line in data["warnings"] if "flagged" in line]
    assert flagged.startswith("none: 1 of its videos")
    assert all(f"t {time:g}" in text for time in DECISION_TIMES)


def test_the_same_study_gives_the_same_bytes(written, study):
    from pipelines.leak.drawing import png_of, svg_of
    from pipelines.leak.plots import plots_of
    from pipelines.leak.report import details

    assert json.loads(json.dumps(details(study))) == json.loads((written / "leak.json").read_text())
    plot = plots_of(
        probe=study.probe,
        sampled=study.sampled,
        samples=study.samples,
        start=study.start,
        densities=study.densities,
        looks=looks_of([arm.name for arm in study.arms]),
    )[0]
    assert png_of(plot) == (written / "plots" / f"{plot.name}.png").read_bytes()
    assert svg_of(plot, DARK) == svg_of(plot, DARK)


def test_one_arm_alone_is_described_and_not_judged(make_study, arm_folders, tmp_path):
    study = make_study(arm_folders, RunConfig(), tmp_path, names=("none",))
    text = render_page(study, [], files={})
    assert study.verdicts == []
    assert "One arm alone is described here" in text
    assert "leak: " not in text


def test_seeds_of_one_arm_stand_side_by_side(make_study, arm_folders, tmp_path):
    names = ("none/seed-0", "timenoise/seed-0", "none/seed-1", "timenoise/seed-1")
    study = make_study(arm_folders, RunConfig(), tmp_path, names=names)
    text = render_page(study, [], files={})
    reader = Reader()
    reader.feed(text)
    assert not reader.wrong
    assert re.search(r"\.arm-none-2f-seed-2d-0 \{ background: #", text)
    assert "2 seeds, which are shown one by one" in text
