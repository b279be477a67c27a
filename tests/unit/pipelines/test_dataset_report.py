import base64
import dataclasses
import hashlib
import io
import itertools
import json
import re
from collections import Counter
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from cil.errors import DataError
from pipelines import dataset_report
from pipelines.config import content_hash, redact_uri, validate_config
from pipelines.planning import extend_plan, without_copies
from pipelines.records import (
    FORMAT_VERSION,
    ClipRecord,
    Manifest,
    QuarantineRecord,
    VideoRecord,
)
from pipelines.report import RunReport, versions
from pipelines.selection.bucket import Bucket
from pipelines.selection.candidates import CandidateClip, ClipScores, VideoScan
from pipelines.selection.select import select
from pipelines.shards import EncodedClip, entry_of, tar_name, write_shard
from pipelines.source_state import SourceState, save_refusals
from pipelines.sources import Listing, SourceVideo
from pipelines.store import open_store

SMALL, LONG, TALL = "32x48x4", "32x48x8", "48x32x4"
EVIL = '<script>alert(1)</script> & "quoted"\nsecond line\u202e.mp4'


def scores(motion, luma):
    return ClipScores(
        motion=motion,
        motion_consistent=motion,
        consistent_share=1.0,
        jump=1.0,
        luma_mean=luma,
        luma_max=min(luma + 30.0, 255.0),
        contrast=20.0,
        perceptual_hash=hashlib.sha256(f"{motion} {luma}".encode()).hexdigest()[:16],
    )


def video(name, clips, *, fps=25.0, size=(640, 360), seconds=None, content=None, version="1"):
    """Make the record of a scanned video; clips are (bucket, motion, brightness[, frames])."""
    found, start = [], 0.0
    for bucket, motion, luma, *frames in clips:
        count = Bucket.parse(bucket).num_frames
        found.append(
            CandidateClip(
                bucket=bucket,
                shot=0,
                start_s=start,
                end_s=start + count / 8,
                frames=frames[0] if frames else list(range(count)),
                crc32=[0] * count,
                scores=scores(motion, luma),
            )
        )
        start += count / 8
    scan = VideoScan(
        clips=found,
        reason=None if found else "the video lasts 0.3 s, a clip 0.5 s",
        num_frames=100,
        duration_s=start + 0.25 if seconds is None else seconds,
        width=size[0],
        height=size[1],
        source_fps=fps,
        shots=[0.0],
        leftover_s=0.25,
    )
    return VideoRecord(
        name=name,
        version=version,
        num_bytes=1000,
        sha256=hashlib.sha256((content or name).encode(errors="replace")).hexdigest(),
        caption=None,
        probe={"container": "mp4", "codec": "h264", "decoder": "pyav"},
        scan=json.loads(json.dumps(scan.to_json())),
        refused=None,
    )


def refusal(name, *, stage="scan", exception="InvalidDataError", message="damaged", sha256=None):
    return QuarantineRecord(
        path=name,
        sha256=sha256,
        stage=stage,
        decoder=None,
        exception=exception,
        message=message,
        attempts=1,
    )


def broken(name, **why):
    return VideoRecord(
        name=name,
        version="1",
        num_bytes=10,
        sha256=None,
        caption=None,
        probe=None,
        scan=None,
        refused=refusal(name, **why).to_json(),
    )


def picture(red, size=(48, 32)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (red, 40, 90)).save(buffer, format="WEBP")
    return buffer.getvalue()


def encoded(spec, item, clip, thumbnail):
    bucket = Bucket.parse(spec.bucket)
    clip_id = f"{item['sha256']} {clip['start_s']} {spec.bucket}"
    record = ClipRecord(
        key=hashlib.sha256(clip_id.encode()).hexdigest()[:32],
        path=item["path"],
        content_sha256=item["sha256"],
        bucket=spec.bucket,
        shot=0,
        start_s=clip["start_s"],
        end_s=clip["end_s"],
        fps=8.0,
        source_fps=25.0,
        num_frames=bucket.num_frames,
        frames=clip["frames"],
        height=bucket.height,
        width=bucket.width,
        decoder="pyav",
        scores=clip["scores"],
        fps_id=7,
        motion_bucket_id=0,
    )
    latents = torch.zeros(bucket.num_frames, 2, 2, 2)
    return EncodedClip(
        record=record,
        mean=latents,
        std=torch.ones_like(latents),
        condition={"image_embeds": torch.zeros(1, 4)},
        thumbnail=thumbnail(clip),
    )


def selected(config, videos, specs):
    settled = {}
    for spec in specs:
        for item in spec.inputs:
            starts = [clip["start_s"] for clip in item["clips"]]
            settled.setdefault(item["sha256"], []).extend(starts)
    scans = {sha: VideoScan.from_json(record.scan) for sha, record in videos.items()}
    return select(scans, config.select, settled=settled)


def data_set(
    folder,
    records,
    *,
    before=None,
    listed=(),
    late=(),
    settings=None,
    per_shard=2,
    seconds=20.0,
    reused=False,
    thumbnail=lambda clip: picture(int(clip["scores"]["luma_mean"])),
):
    """Write a data set of scanned videos and return what the report is made of.

    ``before`` are the records of an earlier run, ``late`` pairs of (name, bucket) that fail when
    they are encoded.
    """
    store = open_store(str(folder))
    config = validate_config(
        {"data": {"videos": "clips <b>", "buckets": [SMALL, LONG, TALL]}, **(settings or {})},
        source="the tests",
    )
    specs = []
    for now in [records] if before is None else [before, records]:
        videos, copies = without_copies(now, specs)
        selection = selected(config, videos, specs)
        specs = extend_plan(specs, videos, selection.kept, videos_per_shard=per_shard)
    plan = {"identity": {}, "shards": [spec.to_json() for spec in specs]}
    store.write("plan.json", json.dumps(plan).encode())
    sidecars = [written(store, spec, set(late), thumbnail) for spec in specs]
    short = {sha: record for sha, record in videos.items() if not record.scan["clips"]}
    source = SourceState(
        listing=Listing(
            videos=tuple(
                SourceVideo(
                    name=record.name,
                    location=f"/videos/{number}",
                    offset=None,
                    num_bytes=record.num_bytes,
                    version=record.version,
                    caption=None,
                )
                for number, record in enumerate(records)
            ),
            refused=tuple(listed),
            num_other_files=3,
        ),
        records=records,
        videos={sha: record for sha, record in videos.items() if sha not in short},
        refused=[
            *listed,
            *(QuarantineRecord.from_json(r.refused) for r in records if r.refused),
            *copies,
            *(
                refusal(
                    record.name,
                    stage="select",
                    exception="TooShort",
                    message=record.scan["reason"],
                    sha256=sha,
                )
                for sha, record in short.items()
            ),
        ],
        selection=selection,
    )
    manifest = manifest_of(sidecars, source)
    store.write("manifest.json", json.dumps(manifest.to_json()).encode())
    lost = [QuarantineRecord.from_json(raw) for each in sidecars for raw in each.quarantined]
    save_refusals(store, [*lost, *source.refused], selection)
    report = RunReport(
        stage="encode",
        reused=reused,
        inputs={
            "videos": redact_uri(config.data.videos),
            "other_files": 3,
            "warnings": dataset_report.warnings_of(store, config, source),
        },
        outputs={"dataset": store.url()},
        metrics={key: float(value) for key, value in manifest.totals.items()},
        seconds=seconds,
    )
    return SimpleNamespace(
        store=store,
        config=config,
        manifest=manifest,
        source=source,
        report=report,
        sidecars=sidecars,
    )


def written(store, spec, late, thumbnail):
    lost = [item for item in spec.inputs if (item["path"], spec.bucket) in late]
    return write_shard(
        store,
        spec,
        (
            encoded(spec, item, clip, thumbnail)
            for item in spec.inputs
            if item not in lost
            for clip in item["clips"]
        ),
        identity_hash="identity",
        quarantined=[
            refusal(item["path"], stage="decode", exception="Changed", sha256=item["sha256"])
            for item in lost
        ],
    )


def manifest_of(sidecars, source):
    inputs = [item for sidecar in sidecars for item in sidecar.inputs]
    there = {item["sha256"] for item in inputs if item["clips"]}
    lost = {raw["sha256"] for sidecar in sidecars for raw in sidecar.quarantined}
    now, full = set(source.videos), [sidecar for sidecar in sidecars if sidecar.count]
    buckets = Counter()
    for sidecar in full:
        buckets[sidecar.bucket] += sidecar.count
    return Manifest(
        format_version=FORMAT_VERSION,
        fingerprint=content_hash([sidecar.sha256 for sidecar in full]),
        identity={},
        identity_hash="identity",
        buckets={
            name: {"latents_shape": [Bucket.parse(name).num_frames, 2, 2, 2], "clips": count}
            for name, count in buckets.items()
        },
        shards=[entry_of(sidecar) for sidecar in full],
        totals={
            "videos": len(source.listing.videos) + len(source.listing.refused),
            "videos_encoded": len(there & now),
            "videos_quarantined": len(source.refused) + len((lost & now) - there),
            "videos_without_clips": len(now - there - lost),
            "videos_gone": len(there - now),
            "clips": sum(buckets.values()),
            "clips_dropped": len(source.selection.dropped),
            "shards": len(full),
            "bytes": sum(sidecar.num_bytes for sidecar in full),
        },
    )


def rich(folder, **more):
    """Every kind of video: good, copied, short, refused, all dropped, late, gone and changed."""
    good = [
        video(
            f"good/{n:02d}.mp4", [(SMALL, 1.0 + n, 60.0 + 10 * n), (LONG, 2.5 + n, 65.0 + 10 * n)]
        )
        for n in range(8)
    ]
    records = [
        *good,
        video(EVIL, [(TALL, 0.31, 3.0)], size=(360, 640), fps=29.97),
        video("x" * 300 + ".mp4", [(SMALL, 0.01, 120.0), (SMALL, 0.05, 2.0)], size=(1920, 1080)),
        video("partly.mp4", [(SMALL, 0.5, 140.0), (SMALL, 0.02, 141.0), (LONG, 30.0, 255.0)]),
        video("slow.mp4", [(SMALL, 0.6, 5.0, [0, 0, 0, 1])], fps=2.4),
        video("many.mp4", [(SMALL, 4.0 + n / 10, 150.0 + n) for n in range(9)]),
        video("changed.mp4", [(SMALL, 5.0, 33.0)], content="new", version="2"),
        video("short.mp4", [], seconds=0.3),
        dataclasses.replace(good[3], name="good/copy of 03.mp4"),
        broken("broken <i>.mp4", message="cannot decode\nframe 3"),
        *(broken(f"noise {n}.mp4", stage="probe", exception="NotAVideo") for n in range(7)),
    ]
    before = [
        *good[:2],
        video("gone.mp4", [(SMALL, 0.9, 90.0), (SMALL, 1.1, 91.0), (LONG, 1.2, 92.0)]),
        video("changed.mp4", [(SMALL, 5.5, 34.0)], content="old"),
    ]
    return data_set(
        folder,
        records,
        before=before,
        listed=[refusal("../secret.mp4", stage="list", exception="OutsideRoot")],
        late=[("good/05.mp4", SMALL), ("good/06.mp4", SMALL), ("good/06.mp4", LONG)],
        settings=dict(
            {"select": {"min_motion": 0.3, "max_motion": 25, "max_clips_per_video": 6}}, **more
        ),
    )


def write(made):
    dataset_report.write(made.store, made.config, made.manifest, made.source, made.report)
    raw = json.loads(made.store.read(dataset_report.DATA_NAME))
    return raw, made.store.read(dataset_report.PAGE_NAME).decode()


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    made = rich(tmp_path_factory.mktemp("reported") / "dataset")
    raw, page = write(made)
    return SimpleNamespace(made=made, raw=raw, details=raw["details"], page=page)


@pytest.fixture(scope="module")
def all_good(tmp_path_factory):
    records = [video(f"{n}.mp4", [(SMALL, 1.0 + n, 90.0), (SMALL, 2.5, 99.0)]) for n in range(3)]
    made = data_set(tmp_path_factory.mktemp("good") / "dataset", records)
    raw, page = write(made)
    return SimpleNamespace(made=made, raw=raw, details=raw["details"], page=page)


class Page(HTMLParser):
    """Reads the tables, tags and text of a page."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tables, self.tags, self.text = [], [], []
        self._cell = None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append({"caption": "", "class": dict(attributes).get("class"), "rows": []})
        elif tag == "tr":
            self.tables[-1]["rows"].append([])
        elif tag in ("td", "th"):
            self.tables[-1]["rows"][-1].append("")
            self._cell = tag
        elif tag == "caption":
            self._cell = tag

    def handle_endtag(self, tag):
        if tag in ("td", "th", "caption"):
            self._cell = None

    def handle_data(self, data):
        self.text.append(data)
        if self._cell == "caption":
            self.tables[-1]["caption"] += data
        elif self._cell:
            self.tables[-1]["rows"][-1][-1] += data

    def table(self, caption):
        (found,) = [table for table in self.tables if table["caption"] == caption]
        return found["rows"]


def number(text):
    return int(text.replace(",", "").replace("\N{MINUS SIGN}", "-").replace("+", ""))


def clips_of(record):
    return record.scan["clips"] if record.scan else []


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


def shown_red(page, alt):
    """Decode the picture with that alternative text and return its colour's red."""
    (image,) = {a["src"] for tag, a in Page(page).tags if tag == "img" and a["alt"] == alt}
    content = base64.b64decode(image.removeprefix("data:image/webp;base64,"))
    with Image.open(io.BytesIO(content)) as opened:
        return opened.convert("RGB").getpixel((20, 15))[0]


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


def test_names_from_outside_are_escaped(reported):
    page = Page(reported.page)
    assert "script" not in {tag for tag, _ in page.tags}
    assert all("class" in attributes for tag, attributes in page.tags if tag == "i")
    assert "&lt;script&gt;alert(1)" in reported.page
    assert "&#34;quoted&#34;\\nsecond line\\u202e" in reported.page
    assert "\u202e" not in reported.page
    assert "broken &lt;i&gt;.mp4" in reported.page
    assert "cannot decode\\nframe 3" in reported.page
    assert "clips &lt;b&gt;" in reported.page


def test_odd_bytes_of_a_name_do_not_stop_the_report(tmp_path):
    records = [video("odd \udcff.mp4", [(SMALL, 1.0, 90.0)]), broken("\ud800.mp4")]
    before = [video("gone \udcff\n\u202e.mp4", [(SMALL, 1.0, 80.0)])]
    raw, page = write(data_set(tmp_path, records, before=before))
    assert "odd \\udcff.mp4" in page
    assert "no longer has gone \\udcff\\n\\u202e.mp4" in page
    assert raw["details"]["quarantine"][0]["examples"][0]["name"] == "\ud800.mp4"


def test_long_names_are_short_on_the_page_and_whole_in_the_numbers(reported):
    examples = [e["name"] for group in reported.details["dropped"] for e in group["examples"]]
    assert "x" * 300 + ".mp4" in examples
    assert "x" * 65 not in reported.page
    assert "x" * 42 + "…" + "x" * 17 + ".mp4" in reported.page


def test_the_page_stands_alone(reported):
    page = Page(reported.page)
    assert not re.search(r"(?:src|href|action|url)\s*[=(]\s*[\"']?\s*(?:https?:)?//", reported.page)
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "form"} == set()
    policies = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_tables_have_captions_pictures_texts_and_headings_an_order(reported):
    page = Page(reported.page)
    assert all(table["caption"] for table in page.tables)
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_a_data_set_without_fault_says_so(all_good):
    assert all_good.details["headline"] == "All 3 videos gave 6 clips; nothing is in quarantine."
    text = " ".join("".join(Page(all_good.page).text).split())
    assert "Every video of the source could be used." in text
    assert "Every candidate clip was kept." in text
    assert "No frame of a clip repeats another." in text
    assert "Look at this before you train" not in text
    assert all_good.details["quarantine"] == all_good.details["dropped"] == []


def test_the_headline_says_what_happened(reported):
    assert reported.details["headline"] == (
        "12 of 25 videos gave 23 clips of 3 sizes; 12 are in quarantine and 1 gave no clip that "
        "was kept. The data set also holds 4 clips of 2 videos that the source no longer has."
    )
    here = Counter(sidecar.bucket for sidecar in reported.made.sidecars for _ in sidecar.keys)
    assert sum(here.values()) == 23 + 4
    assert reported.details["headline"] in reported.page


def test_the_same_data_set_gives_the_same_report(tmp_path):
    made = rich(tmp_path / "dataset")
    first = write(made)
    made = rich(tmp_path / "dataset")
    assert write(made) == first
    made.report = dataclasses.replace(made.report, seconds=40.0)
    slower, _ = write(made)
    assert slower["details"].pop("throughput") != first[0]["details"].pop("throughput")
    assert {**slower, "seconds": 20.0} == first[0]


def test_throughput_is_of_the_whole_stage(reported):
    videos, clips = reported.details["videos"], reported.details["clips"]
    assert reported.details["throughput"] == {
        "seconds": 20.0,
        "videos_per_s": videos["total"] / 20,
        "clips_per_s": clips["total"] / 20,
        "video_hours_per_hour": pytest.approx(videos["hours"] * 180),
    }


def test_a_run_that_did_nothing_states_no_throughput(tmp_path):
    raw, page = write(data_set(tmp_path, [video("a.mp4", [(SMALL, 1.0, 90.0)])], reused=True))
    assert raw["details"]["throughput"] is None
    assert "everything was there" in page


def test_the_numbers_are_a_run_report_with_versions(reported, tmp_path):
    path = "report.json"
    assert reported.raw["versions"] == versions()
    assert RunReport.load(reported.made.store.local(path, tmp_path)) == reported.made.report
    settings = reported.details["settings"]
    assert settings["select"]["min_motion"] == 0.3
    assert set(settings) == {
        "seed",
        "data",
        "select",
        "decode",
        "first_stage",
        "condition",
        "encode",
    }


def test_secrets_of_urls_are_not_shown(tmp_path):
    settings = {"data": {"videos": "https://me:hunter2@host/v?token=hunter2", "buckets": [SMALL]}}
    made = data_set(tmp_path, [video("a.mp4", [(SMALL, 1.0, 90.0)])], settings=settings)
    raw, page = write(made)
    assert "hunter2" not in page
    assert "hunter2" not in json.dumps(raw["details"])


def test_warnings_name_what_the_source_no_longer_has(reported):
    made = reported.made
    lines = dataset_report.warnings_of(made.store, made.config, made.source)
    assert "no longer has gone.mp4" in lines[0]
    assert "another content now for changed.mp4" in lines[1]
    assert all(line in reported.page for line in lines)


def test_warnings_are_about_the_clips_that_are_kept(tmp_path):
    records = [video("a.mp4", [(SMALL, 0.01, 90.0), (SMALL, 0.02, 91.0), (SMALL, 2.0, 92.0)])]
    everything = data_set(tmp_path / "all", records)
    assert "teaches a still video" in everything.report.inputs["warnings"][0]
    moving = data_set(tmp_path / "moving", records, settings={"select": {"min_motion": 0.1}})
    assert moving.report.inputs["warnings"] == []


@pytest.mark.parametrize(
    ("frames", "line"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], None),
        ([0, 1, 2, 3, 4, 5, 6, 6], "12% of the frames of the clips repeat the one before"),
        ([0, 0, 1, 1, 2, 2, 3, 3], "teaches jerky motion"),
    ],
)
def test_repeated_frames_are_worth_one_warning(tmp_path, frames, line):
    made = data_set(tmp_path, [video("a.mp4", [(LONG, 2.0, 90.0, frames)])])
    warnings = made.report.inputs["warnings"]
    assert len(warnings) == (line is not None)
    assert line is None or line in warnings[0]
