"""Clips that the encode stage leaves out, and runs in which none is left."""

import pytest

from cil.errors import StageError
from pipelines.shards import load_manifest
from tests.unit.pipelines.encode.data_set_files import (
    assert_counts_add_up,
    inventory,
    lines,
    quarantined,
    records,
)


def test_clips_below_a_threshold_are_dropped_with_what_was_measured(encode_two, two_videos):
    scored = encode_two("scored", select={"score_only": True, "min_motion": 1000.0})
    motions = {(r.content_sha256, r.start_s): r.scores["motion"] for r in records(scored)}
    assert len(motions) == 4  # all are kept
    assert lines(scored, "dropped.jsonl") == []
    threshold = sorted(motions.values())[1]
    dataset = encode_two("chosen", select={"min_motion": threshold})
    kept = {(r.content_sha256, r.start_s) for r in records(dataset)}
    assert kept == {key for key, motion in motions.items() if motion >= threshold}
    assert len(kept) == 3
    (dropped,) = lines(dataset, "dropped.jsonl")
    key = (dropped["content_sha256"], dropped["start_s"])
    assert (dropped["reason"], dropped["threshold"]) == ("min_motion", threshold)
    assert dropped["value"] == motions[key] < threshold
    assert (dropped["bucket"], dropped["end_s"] - dropped["start_s"]) == ("32x32x8", 1.0)
    manifest = load_manifest(dataset)
    assert manifest.dropped_by_reason == {"min_motion": 1}
    assert manifest.totals["clips_dropped"] == 1
    assert_counts_add_up(dataset)
    assert_counts_add_up(scored)


def test_a_video_may_keep_no_clip_and_others_at_most_some(encode_two, two_videos):
    dataset = encode_two(select={"max_clips_per_video": 1, "min_motion": 0.0})
    found = records(dataset)
    assert [record.start_s for record in found] == [0.0, 0.0]
    assert {item["start_s"] for item in lines(dataset, "dropped.jsonl")} == {1.0}
    assert load_manifest(dataset).dropped_by_reason == {"max_clips_per_video": 2}
    assert_counts_add_up(dataset)


def test_a_video_without_a_clip_is_counted_and_not_in_quarantine(encode_two, encoded_run):
    motions = {}
    for record in inventory(encoded_run.dataset):
        if record.name in ("a.mp4", "b.mp4"):
            clips = record.scan["clips"]
            motions[record.name] = [clip["scores"]["motion"] for clip in clips]
    less, more = sorted(motions, key=lambda name: max(motions[name]))
    threshold = max(motions[less]) + 1e-6
    assert max(motions[more]) > threshold
    dataset = encode_two(select={"min_motion": threshold})
    totals = assert_counts_add_up(dataset)
    assert (totals["videos_encoded"], totals["videos_without_clips"]) == (1, 1)
    assert quarantined(dataset) == []
    assert {record.path for record in records(dataset)} == {more}


def test_if_no_clip_is_chosen_the_run_ends_and_says_so(encode_two, tmp_path):
    with pytest.raises(StageError, match=r"no clip to encode.*selection dropped 4 clips"):
        encode_two(select={"min_motion": 1000.0})
    dropped = lines(tmp_path / "run" / "dataset", "dropped.jsonl")
    assert [item["reason"] for item in dropped] == ["min_motion"] * 4
    assert not (tmp_path / "run" / "dataset" / "manifest.json").exists()
