"""The clips that the report shows as the ends of each measure, with their pictures."""

import base64
import io

import pytest
from PIL import Image

from cil.errors import DataError
from pipelines.shards import tar_name
from tests.unit.pipelines.dataset_report.drawn_data_sets import (
    LONG,
    SMALL,
    data_set,
    picture,
    video,
    write,
)
from tests.unit.pipelines.dataset_report.page_reader import Page, shown_red


def test_extremes_are_the_clips_at_the_ends_with_their_own_pictures(reported):
    made = reported.made
    lost = {("good/05.mp4", SMALL), ("good/06.mp4", SMALL), ("good/06.mp4", LONG)}
    clips = [
        (clip, made.source.videos[sha].name)
        for sha, chosen in made.source.selection.kept.items()
        for clip in chosen
        if (made.source.videos[sha].name, clip.bucket) not in lost
    ]
    galleries = {gallery["title"]: gallery["clips"] for gallery in reported.details["extremes"]}
    for title, score, largest in [
        ("Least motion", "motion", False),
        ("Most motion", "motion", True),
        ("Darkest", "luma_mean", False),
        ("Brightest", "luma_mean", True),
    ]:
        best = {}
        for clip, name in clips:
            value = getattr(clip.scores, score)
            best[name] = (max if largest else min)(value, best.get(name, value))
        values = sorted(best.values(), reverse=largest)
        assert [clip["value"] for clip in galleries[title]] == values[:4]
    for shown in (clip for gallery in galleries.values() for clip in gallery):
        (luma,) = [
            clip.scores.luma_mean
            for clip, name in clips
            if (name, clip.start_s) == (shown["name"], shown["start_s"])
        ]
        name = shown["name"].replace("\n", "\\n").replace("\u202e", "\\u202e")
        alt = f"Conditioning frame of {name}, {shown['start_s']:.3g} s into the video"
        assert abs(shown_red(reported.page, alt) - int(luma)) <= 6


def test_the_ends_of_a_small_data_set_do_not_meet(tmp_path):
    records = [video(f"{n}.mp4", [(SMALL, n, 90.0), (SMALL, n + 0.1, 90.0)]) for n in (1, 2, 3)]
    raw, _ = write(data_set(tmp_path, records))
    values = [[clip["value"] for clip in each["clips"]] for each in raw["details"]["extremes"]]
    assert values == [[1], [3.1], [90.0], [90.0]]


def test_large_pictures_are_made_small(tmp_path):
    def thumbnail(clip):
        return picture(50, size=(1280, 720))

    _, page = write(data_set(tmp_path, [video("a.mp4", [(SMALL, 1.0, 90.0)])], thumbnail=thumbnail))
    (source,) = {attributes["src"] for tag, attributes in Page(page).tags if tag == "img"}
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as opened:
        assert (opened.format, opened.size) == ("WEBP", (320, 180))


def test_only_the_shards_with_extreme_clips_are_opened(tmp_path, monkeypatch):
    records = [video(f"{n}.mp4", [(SMALL, 1.0 + n, 50.0 + n)]) for n in range(24)]
    made = data_set(tmp_path, records, per_shard=1)
    opened = []
    real = type(made.store).own_file
    monkeypatch.setattr(
        type(made.store),
        "own_file",
        lambda self, name, *rest: opened.append(name) or real(self, name, *rest),
    )
    write(made)
    # both scales rise with the number: four shards at each end
    assert len(set(opened)) == 8 < len(made.sidecars)


def test_a_damaged_shard_is_reported(tmp_path):
    made = data_set(tmp_path, [video("a.mp4", [(SMALL, 1.0, 90.0)])])
    name = tar_name(made.sidecars[0].name)
    made.store.write(name, made.store.read(name)[:-1] + b"x")
    with pytest.raises(DataError, match="is damaged"):
        write(made)
