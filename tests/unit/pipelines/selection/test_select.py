import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cil.errors import DataError
from pipelines.selection import (
    CandidateClip,
    ClipScores,
    DroppedClip,
    SelectionConfig,
    VideoScan,
    select,
)
from pipelines.selection.config import contradictions
from pipelines.selection.duplicates import hamming

_ORDINARY = {
    "motion": 4.0,
    "motion_consistent": 3.5,
    "consistent_share": 0.9,
    "jump": 2.0,
    "luma_mean": 100.0,
    "luma_max": 250.0,
    "contrast": 50.0,
}


def digits(value):
    return f"{value:016x}"


def spread_hash(place):
    """Hashes of which any two differ in many bits."""
    rng = np.random.default_rng(place)
    return digits(int(rng.integers(0, 2**64, dtype=np.uint64)))


def clip(place, perceptual_hash=None, **scores):
    return CandidateClip(
        bucket="32x48x8",
        shot=0,
        start_s=float(place),
        end_s=place + 1.0,
        frames=[place],
        crc32=[place],
        scores=ClipScores(
            **{**_ORDINARY, **scores},
            perceptual_hash=perceptual_hash or spread_hash(place),
        ),
    )


def video(*clips, **more):
    return VideoScan(
        **{
            "clips": list(clips),
            "reason": None,
            "num_frames": 100,
            "duration_s": 10.0,
            "width": 640,
            "height": 360,
            "source_fps": 25.0,
            "shots": [0.0],
            "leftover_s": 0.0,
            **more,
        }
    )


def starts(selection):
    return {sha: [clip.start_s for clip in clips] for sha, clips in selection.kept.items()}


def reasons(selection):
    return {(it.content_sha256, it.start_s): it.reason for it in selection.dropped}


def test_nothing_is_dropped_unless_asked():
    dull = clip(0, "0" * 16, motion=0.0, luma_mean=0.0, contrast=0.0, jump=99.0,
                consistent_share=0.0)  # fmt: skip
    scans = {"b": video(dull, dataclasses.replace(dull, start_s=1.0)), "a": video(dull)}
    found = select(scans, SelectionConfig())
    assert list(found.kept) == ["a", "b"]
    assert starts(found) == {"a": [0.0], "b": [0.0, 1.0]}
    assert found.num_kept == 3
    assert found.dropped == found.flagged == []


@pytest.mark.parametrize(
    ("rule", "threshold", "good", "bad"),
    [
        ("min_motion", 0.5, 0.5, 0.49),
        ("max_motion", 9.0, 9.0, 9.01),
        ("min_luma", 16.0, 16.0, 15.9),
        ("min_contrast", 5.0, 5.0, 4.9),
        ("max_jump", 3.0, 3.0, 3.1),
        ("min_consistent_share", 0.7, 0.7, 0.69),
    ],
)
def test_rules_on_clips(rule, threshold, good, bad):
    score = {"min_luma": "luma_mean", "max_jump": "jump"}.get(rule, rule.partition("_")[2])
    scans = {"a": video(clip(0, **{score: good}), clip(1, **{score: bad}))}
    found = select(scans, SelectionConfig(**{rule: threshold}))
    assert starts(found) == {"a": [0.0]}
    (dropped,) = found.dropped
    assert (dropped.reason, dropped.value, dropped.threshold) == (rule, bad, threshold)
    assert (dropped.content_sha256, dropped.start_s, dropped.end_s) == ("a", 1.0, 2.0)


@pytest.mark.parametrize(
    ("rule", "threshold", "field"),
    [("min_width", 320, "width"), ("min_height", 320, "height"),
     ("min_source_fps", 24.0, "source_fps")],
)  # fmt: skip
def test_rules_on_videos(rule, threshold, field):
    scans = {"a": video(clip(0), **{field: threshold}), "b": video(clip(0), **{field: 23})}
    found = select(scans, SelectionConfig(**{rule: threshold}))
    assert starts(found) == {"a": [0.0], "b": []}
    assert found.dropped[0].value == 23.0


def test_score_only_keeps_all_and_says_what_it_would_have_dropped():
    same = spread_hash(7)
    scans = {
        "a": video(clip(0), clip(1, motion=0.0), clip(2, same), clip(3)),
        "b": video(clip(0, same)),
    }
    strict = SelectionConfig(min_motion=1.0, max_duplicate_distance=0, max_clips_per_video=2)
    dropping = select(scans, strict)
    scoring = select(scans, dataclasses.replace(strict, score_only=True))
    assert starts(scoring) == {"a": [0.0, 1.0, 2.0, 3.0], "b": [0.0]}
    assert scoring.dropped == []
    assert scoring.flagged == dropping.dropped
    assert reasons(dropping) == {
        ("a", 1.0): "min_motion",
        ("a", 3.0): "max_clips_per_video",
        ("b", 0.0): "max_duplicate_distance",
    }


@pytest.mark.parametrize(
    ("sampling", "expected"), [("first", [0, 1, 2]), ("spread", [1, 5, 8]), ("random", None)]
)
def test_at_most_so_many_clips(sampling, expected):
    scans = {"a": video(*(clip(place) for place in range(10)))}
    config = SelectionConfig(max_clips_per_video=3, clip_sampling=sampling)
    found = select(scans, config)
    kept = starts(found)["a"]
    assert len(kept) == 3
    assert kept == sorted(kept)
    if expected:
        assert kept == expected
    assert all((it.value, it.threshold) == (10, 3) for it in found.dropped)
    assert len(found.dropped) == 7


def test_a_random_choice_depends_on_content_and_seed():
    def kept(sha, seed):
        scans = {sha: video(*(clip(place) for place in range(40)))}
        config = SelectionConfig(max_clips_per_video=5, clip_sampling="random", sampling_seed=seed)
        return tuple(starts(select(scans, config))[sha])

    assert kept("a", 0) == kept("a", 0)
    assert len({kept(sha, seed) for sha in "abc" for seed in range(3)}) == 9
    counts = np.bincount([int(s) for seed in range(400) for s in kept("a", seed)], minlength=40)
    assert counts.min() > 20  # 50 expected, standard deviation 6.6
    assert counts.max() < 80


def test_of_clips_that_look_the_same_the_first_is_kept():
    base = 0x0123456789ABCDEF
    near, far = digits(base ^ 0b111), digits(base ^ 0x1F00)
    scans = {
        "b": video(clip(0, digits(base)), clip(5, far)),
        "a": video(clip(3, near), clip(4, near)),
    }
    found = select(scans, SelectionConfig(max_duplicate_distance=3))
    assert starts(found) == {"a": [3.0], "b": [5.0]}
    by_place = {(it.content_sha256, it.start_s): it for it in found.dropped}
    assert by_place["a", 4.0].repeats == "a@3"
    assert by_place["b", 0.0].repeats == "a@3"
    assert (by_place["b", 0.0].value, by_place["b", 0.0].threshold) == (3.0, 3.0)


def test_a_clip_that_is_dropped_otherwise_takes_no_other_with_it():
    same = spread_hash(99)
    scans = {
        "a": video(clip(0, same, motion=0.0), clip(1), clip(2, same)),
        "b": video(clip(0, same)),
    }
    config = SelectionConfig(min_motion=1.0, max_clips_per_video=1, max_duplicate_distance=2)
    assert starts(select(scans, config)) == {"a": [1.0], "b": [0.0]}


def test_repetitions_within_a_video_do_not_use_up_its_places():
    same = spread_hash(1)
    scans = {"a": video(clip(0, same), clip(1, same), clip(2))}
    config = SelectionConfig(max_clips_per_video=2, max_duplicate_distance=2)
    assert starts(select(scans, config)) == {"a": [0.0, 2.0]}


def test_a_settled_video_stays_as_it_is():
    same = spread_hash(1)
    config = SelectionConfig(max_duplicate_distance=2)
    old = {"m": video(clip(0, same), clip(1, same), clip(2))}
    first = select(old, config)
    assert starts(first) == {"m": [0.0, 2.0]}
    new = {**old, "a": video(clip(0, same), clip(9))}
    second = select(new, config, settled=starts(first))
    assert starts(second) == {"a": [9.0], "m": [0.0, 2.0]}
    assert second.dropped[0].repeats == "m@0"
    # without that, the smaller hash would win
    assert starts(select(new, config)) == {"a": [0.0, 9.0], "m": [2.0]}


def test_a_settled_video_gets_no_clips_that_it_did_not_have():
    scans = {"a": video(clip(0), clip(1))}
    found = select(scans, SelectionConfig(), settled={"a": [1.0]})
    assert starts(found) == {"a": [1.0]}
    assert reasons(found) == {("a", 0.0): "settled"}
    assert starts(select(scans, SelectionConfig(score_only=True), settled={"a": []})) == {"a": []}


def test_only_the_clips_that_a_settled_video_has_take_others_away():
    scans = {"b": video(clip(0), clip(1)), "c": video(clip(0), clip(1))}
    config = SelectionConfig(max_duplicate_distance=2)
    found = select(scans, config, settled={"b": [1.0]})
    assert starts(found) == {"b": [1.0], "c": [0.0]}
    assert reasons(found) == {("b", 0.0): "settled", ("c", 1.0): "max_duplicate_distance"}


def test_a_settled_clip_that_no_scan_finds_is_refused():
    with pytest.raises(DataError, match=r"video a at 0\.5 s"):
        select({"a": video(clip(0))}, SelectionConfig(), settled={"a": [0.5]})
    # a video that is gone is no concern
    assert starts(select({}, SelectionConfig(), settled={"a": [0.5]})) == {}


hashes = st.integers(0, 15).map(lambda value: digits(value * 0x1111))
clips_of_a_video = st.lists(st.tuples(hashes, st.sampled_from([0.0, 4.0])), max_size=5)


@settings(max_examples=150)
@given(
    generations=st.lists(
        st.dictionaries(st.text("abcdef", min_size=1, max_size=2), clips_of_a_video, max_size=4),
        min_size=1,
        max_size=3,
    ),
    distance=st.none() | st.integers(0, 8),
    most=st.none() | st.integers(1, 3),
    sampling=st.sampled_from(["first", "spread", "random"]),
)
def test_a_data_set_that_grows_keeps_what_it_has(generations, distance, most, sampling):
    config = SelectionConfig(
        min_motion=1.0,
        max_duplicate_distance=distance,
        max_clips_per_video=most,
        clip_sampling=sampling,
    )
    scans, settled = {}, {}
    for generation in generations:
        for sha, clips in generation.items():
            scans.setdefault(sha, video(*(clip(i, h, motion=m) for i, (h, m) in enumerate(clips))))
        found = select(scans, config, settled=settled)
        kept = starts(found)
        assert {sha: kept[sha] for sha in settled} == settled
        assert kept == starts(select(dict(reversed(scans.items())), config, settled=settled))
        total = sum(len(scan.clips) for scan in scans.values())
        assert found.num_kept + len(found.dropped) == total
        assert found.flagged == []
        assert all(most is None or len(clips) <= most for clips in kept.values())
        if distance is not None:
            alive = [c.scores.perceptual_hash for clips in found.kept.values() for c in clips]
            for place, one in enumerate(alive):
                assert all(hamming(one, other) > distance for other in alive[:place])
        settled = kept


def test_what_was_dropped_is_plain_data():
    found = select({"a": video(clip(0, motion=0.0))}, SelectionConfig(min_motion=1.0))
    raw = json.loads(json.dumps(found.dropped[0].to_json()))
    assert DroppedClip.from_json(raw) == found.dropped[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_motion": -1},
        {"max_jump": 0.5},
        {"min_luma": 256},
        {"min_consistent_share": 1.1},
        {"max_duplicate_distance": 11},
        {"max_clips_per_video": 0},
        {"clip_sampling": "last"},
        {"shot_threshold": 0},
        {"sampling_seed": -1},
        {"min_beauty": 1},
        {"min_contrast": float("nan")},
    ],
)
def test_wrong_settings_are_refused(wrong):
    import pydantic

    adapter = pydantic.TypeAdapter(SelectionConfig)
    assert adapter.validate_python({}) == SelectionConfig()
    with pytest.raises(pydantic.ValidationError):
        adapter.validate_python(wrong)


def test_bounds_that_exclude_each_other_are_mistakes():
    assert list(contradictions(SelectionConfig(min_motion=1.0, max_motion=1.0))) == []
    (line,) = contradictions(SelectionConfig(min_motion=2.0, max_motion=1.0))
    assert line == "max_motion must be >= min_motion = 2, got 1"
