"""The numbers of the data set report: sums, histograms, quarantine and dropped clips."""

import json
from collections import Counter

import pytest

from pipelines.shards import tar_name
from tests.unit.pipelines.dataset_report.drawn_data_sets import (
    LONG,
    SMALL,
    TALL,
    data_set,
    video,
    write,
)
from tests.unit.pipelines.dataset_report.page_reader import Page, clips_of, number


def test_videos_and_clips_add_up_in_the_numbers(reported):
    videos, clips = reported.details["videos"], reported.details["clips"]
    assert videos["total"] == sum(videos[k] for k in ("encoded", "quarantined", "without_clips"))
    assert min(videos.values()) > 0, "the example has all kinds of videos"
    assert clips["candidates"] == clips["kept"] + clips["dropped"]
    assert clips["total"] == clips["kept"] - clips["lost"] + clips["of_gone_videos"]
    assert sum(group["count"] for group in reported.details["dropped"]) == clips["dropped"]
    assert sum(bucket["clips"] for bucket in reported.details["buckets"]) == clips["total"]


def test_every_sum_of_the_page_is_that_of_its_rows(reported):
    page = Page(reported.page)
    sums = [table for table in page.tables if "sum" in (table["class"] or "").split()]
    captions = [table["caption"] for table in sums]
    assert captions == ["Videos", "Clips of the data set", "Candidate clips"]
    totals = []
    for table in sums:
        *rows, last = [row for row in table["rows"] if len(row) > 1]
        assert sum(number(row[1]) for row in rows) == number(last[1])
        totals.append(number(last[1]))
    # 8 good, 6 others, a short one, a copy, 8 broken and one outside
    assert totals[0] == 25
    assert totals[1] == reported.made.manifest.totals["clips"]
    header, *rows, last = page.table("Buckets; a shard holds clips of one")
    for column in (header.index("clips"), header.index("shards")):
        assert sum(number(row[column]) for row in rows) == number(last[column])


def test_counts_of_videos_are_those_of_the_inputs(reported):
    records = reported.made.source.records
    videos = reported.details["videos"]
    readable = [record for record in records if record.scan]
    assert videos["readable"] == len(readable) == 16
    assert videos["hours"] == pytest.approx(sum(r.scan["duration_s"] for r in readable) / 3600)
    assert videos["num_bytes"] == 16 * 1000
    # good/06 fails as a whole, good/05 in one of its sizes only
    assert (videos["encoded"], videos["without_clips"], videos["gone"]) == (12, 1, 2)
    assert videos["quarantined"] == 12
    lines = reported.made.store.read("quarantine.jsonl").splitlines()
    assert reported.details["num_quarantine_records"] == len(lines) == 14


def test_counts_of_clips_are_those_of_the_inputs(reported):
    made, clips = reported.made, reported.details["clips"]
    distinct = {record.sha256: record for record in made.source.records if record.scan}
    assert clips["candidates"] == sum(len(clips_of(record)) for record in distinct.values())
    kept = [clip for chosen in made.source.selection.kept.values() for clip in chosen]
    assert clips["kept"] == len(kept)
    assert clips["dropped"] == len(made.store.read("dropped.jsonl").splitlines())
    assert (clips["lost"], clips["of_gone_videos"]) == (3, 4)
    assert clips["num_frames"] == sum(int(clip.bucket.split("x")[2]) for clip in kept)
    assert clips["num_repeated_frames"] == 2
    frames = sum(s.count * int(s.bucket.split("x")[2]) for s in made.sidecars)
    assert clips["hours"] == pytest.approx(frames / made.config.data.fps / 3600)


def test_buckets_are_those_of_the_shards(reported):
    shards = [sidecar for sidecar in reported.made.sidecars if sidecar.count]
    assert [bucket["name"] for bucket in reported.details["buckets"]] == [SMALL, LONG, TALL]
    for bucket in reported.details["buckets"]:
        mine = [sidecar for sidecar in shards if sidecar.bucket == bucket["name"]]
        assert bucket["clips"] == sum(len(sidecar.keys) for sidecar in mine)
        assert bucket["shards"] == len(mine)
        sizes = [reported.made.store.size(tar_name(sidecar.name)) for sidecar in mine]
        assert bucket["num_bytes"] == sum(sizes)
        size = [bucket["height"], bucket["width"], bucket["num_frames"]]
        assert size == [int(part) for part in bucket["name"].split("x")]
        assert bucket["latents_shape"] == [bucket["num_frames"], 2, 2, 2]


@pytest.mark.parametrize(("name", "score"), [("motion", "motion"), ("brightness", "luma_mean")])
def test_histograms_of_clips_count_each_candidate_once(reported, name, score):
    source, shown = reported.made.source, reported.details["histograms"][name]
    dropped = {(clip.content_sha256, clip.start_s) for clip in source.selection.dropped}
    values = {True: [], False: []}
    for sha, record in source.videos.items():
        for clip in clips_of(record):
            values[(sha, clip["start_s"]) in dropped].append(clip["scores"][score])
    for bar in shown["bins"]:
        high = float("inf") if bar["high"] is None else bar["high"]
        found = [sum(bar["low"] <= value < high for value in values[k]) for k in (False, True)]
        assert [bar["count"], bar["dropped"]] == found
    assert sum(bar["count"] for bar in shown["bins"]) == reported.details["clips"]["kept"]
    assert sum(bar["dropped"] for bar in shown["bins"]) == reported.details["clips"]["dropped"]


def test_a_threshold_is_the_edge_of_a_bar(reported):
    bins = reported.details["histograms"]["motion"]["bins"]
    assert {0.3, 25} <= {bar["low"] for bar in bins}
    assert all(bar["count"] == 0 for bar in bins if bar["low"] < 0.3 or bar["low"] >= 25)


def test_histograms_of_videos_count_each_readable_one_once(reported):
    scans = [record.scan for record in reported.made.source.records if record.scan]
    shown = reported.details["histograms"]
    for bar in shown["duration"]["bins"]:
        high = float("inf") if bar["high"] is None else bar["high"]
        assert bar["count"] == sum(bar["low"] <= scan["duration_s"] < high for scan in scans)
    sizes = Counter(f"{scan['width']} x {scan['height']}" for scan in scans)
    assert {bar["label"]: bar["count"] for bar in shown["resolution"]["bins"]} == sizes
    rates = [(bar["label"], bar["count"]) for bar in shown["source_fps"]["bins"]]
    assert rates == [("2", 1), ("25", 14), ("30", 1)]


def test_rare_sizes_are_counted_together(tmp_path):
    records = [video(f"{n}.mp4", [(SMALL, 1.0, 90.0)], size=(640 + n, 360)) for n in range(13)]
    records += [video(f"more {n}.mp4", [(SMALL, 2.0, 95.0)], size=(99, 50)) for n in range(2)]
    raw, _ = write(data_set(tmp_path, records, per_shard=16))
    bins = raw["details"]["histograms"]["resolution"]["bins"]
    assert (bins[0]["label"], bins[0]["count"]) == ("99 x 50", 2)
    assert (bins[-1]["label"], bins[-1]["count"]) == ("4 others", 4)
    assert sum(bar["count"] for bar in bins) == 15


def test_the_quarantine_is_grouped_by_stage_and_reason(reported):
    lines = reported.made.store.read("quarantine.jsonl").splitlines()
    records = [json.loads(line) for line in lines]
    expected = Counter((record["stage"], record["exception"]) for record in records)
    groups = reported.details["quarantine"]
    assert {(group["stage"], group["reason"]): group["count"] for group in groups} == expected
    assert groups[0]["count"] == 7
    assert [e["name"] for e in groups[0]["examples"]] == [f"noise {n}.mp4" for n in range(5)]
    assert "and 2 more" in reported.page
    assert "14 refusals, 12 videos" in reported.page


def test_dropped_clips_are_grouped_with_threshold_and_the_nearest_examples(reported):
    found = {group["reason"]: group for group in reported.details["dropped"]}
    dropped = reported.made.source.selection.dropped
    assert {name: group["count"] for name, group in found.items()} == Counter(
        clip.reason for clip in dropped
    )
    still = found["min_motion"]
    assert (still["threshold"], still["least"], still["most"]) == (0.3, 0.01, 0.05)
    assert [example["value"] for example in still["examples"]] == [0.05, 0.02]
    assert found["max_motion"]["examples"][0]["name"] == "partly.mp4"
    assert found["max_clips_per_video"]["count"] == 3


def test_a_repeated_clip_names_the_video_that_it_repeats(tmp_path):
    clips = [(SMALL, 1.0, 90.0), (SMALL, 1.0, 90.0)]
    settings = {"select": {"max_duplicate_distance": 0}}
    raw, page = write(data_set(tmp_path, [video("twice.mp4", clips)], settings=settings))
    (group,) = raw["details"]["dropped"]
    assert group["examples"][0]["repeats"] == "twice.mp4 @ 0 s"
    assert "like twice.mp4 @ 0 s" in page


def test_clips_that_are_only_flagged_are_told_apart_from_dropped_ones(tmp_path):
    clips = [(SMALL, 0.01, 90.0), (SMALL, 3.0, 90.0)]
    settings = {"select": {"score_only": True, "min_motion": 1.0}}
    raw, page = write(data_set(tmp_path, [video("a.mp4", clips)], settings=settings))
    assert raw["details"]["dropped"] == []
    assert (raw["details"]["clips"]["flagged"], raw["details"]["clips"]["dropped"]) == (1, 0)
    assert [group["reason"] for group in raw["details"]["flagged"]] == ["min_motion"]
    assert "1 clip was kept that would be dropped without it" in page
