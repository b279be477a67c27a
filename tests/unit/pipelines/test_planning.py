import random

from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.planning import changes, extend_plan, planned_input, without_copies
from pipelines.records import ShardSpec, VideoRecord
from pipelines.selection.candidates import CandidateClip, ClipScores

BUCKETS = ("32x32x4", "32x32x8", "32x64x8")
SCORES = ClipScores(
    motion=1.0,
    motion_consistent=1.0,
    consistent_share=1.0,
    jump=1.0,
    luma_mean=1.0,
    luma_max=1.0,
    contrast=1.0,
    perceptual_hash="0" * 16,
)


def video(sha256, name=None, caption=None, scanned=True):
    return VideoRecord(
        name=name or f"{sha256[:6]}.mp4",
        version="1",
        num_bytes=1,
        sha256=sha256,
        caption=caption,
        probe={"container": "mp4", "codec": "h264", "decoder": "pyav"} if scanned else None,
        scan={"source_fps": 25.0} if scanned else None,
        refused=None,
    )


def clip(bucket, number):
    length = int(bucket.split("x")[2])
    return CandidateClip(
        bucket=bucket,
        shot=0,
        start_s=float(number),
        end_s=number + 1.0,
        frames=list(range(length)),
        crc32=[number] * length,
        scores=SCORES,
    )


hashes = st.integers(0, 10**9).map(lambda number: f"{number * 2654435761 % 2**256:064x}")
kept_clips = st.lists(st.sampled_from(BUCKETS), max_size=5).map(
    lambda names: [clip(name, number) for number, name in enumerate(names)]
)
sources = st.dictionaries(hashes, kept_clips, max_size=12)
growing_sources = st.lists(sources, min_size=1, max_size=4)
sizes = st.integers(1, 5)


def grown(steps, size):
    """Extend a plan step by step; yields it with all that was kept so far."""
    plan, kept = [], {}
    for step in steps:
        kept = step | kept  # what was chosen once stays chosen
        videos = {sha256: video(sha256) for sha256 in kept}
        plan = extend_plan(plan, videos, kept, videos_per_shard=size)
        yield plan, kept


def planned_clips(plan):
    return sorted(
        (item["sha256"], spec.bucket, planned["start_s"])
        for spec in plan
        for item in spec.inputs
        for planned in item["clips"]
    )


@given(growing_sources, sizes)
def test_every_kept_clip_is_in_exactly_one_shard(steps, size):
    for plan, kept in grown(steps, size):
        wanted = [(sha, c.bucket, c.start_s) for sha, clips in kept.items() for c in clips]
        assert planned_clips(plan) == sorted(wanted)


@given(growing_sources, sizes)
def test_growth_never_changes_what_is_planned(steps, size):
    before, generation = [], -1
    for plan, _ in grown(steps, size):
        assert plan[: len(before)] == before
        new = plan[len(before) :]
        assert [spec.name for spec in plan] == [f"shard-{n:06d}" for n in range(len(plan))]
        if new:
            assert {spec.generation for spec in new} == {generation + 1}
            generation += 1
        before = plan


@given(growing_sources, sizes)
def test_a_shard_holds_clips_of_one_bucket_of_at_most_so_many_videos(steps, size):
    for plan, _ in grown(steps, size):
        for spec in plan:
            found = {planned["bucket"] for item in spec.inputs for planned in item["clips"]}
            assert found == {spec.bucket}
            assert 1 <= len(spec.inputs) <= size
            shas = [item["sha256"] for item in spec.inputs]
            assert shas == sorted(set(shas))


@given(sources, sizes, st.randoms(use_true_random=False))
def test_the_plan_does_not_depend_on_the_order_of_videos(kept, size, rng):
    names = list(kept)
    rng.shuffle(names)
    shuffled = {name: kept[name] for name in names}
    records = {sha256: video(sha256) for sha256 in kept}
    reordered = {sha256: records[sha256] for sha256 in sorted(records, reverse=True)}
    plan = extend_plan([], records, kept, videos_per_shard=size)
    assert extend_plan([], reordered, shuffled, videos_per_shard=size) == plan


@given(sources, sizes)
def test_a_plan_that_has_all_videos_is_left_alone(kept, size):
    records = {sha256: video(sha256) for sha256 in kept}
    plan = extend_plan([], records, kept, videos_per_shard=size)
    assert extend_plan(plan, records, kept, videos_per_shard=size) == plan
    # not even when they have other names or captions now, or shards become larger
    renamed = {sha256: video(sha256, name="other", caption="new") for sha256 in kept}
    assert extend_plan(plan, renamed, kept, videos_per_shard=size + 1) == plan
    through_json = [ShardSpec.from_json(spec.to_json()) for spec in plan]
    assert extend_plan(through_json, records, kept, videos_per_shard=size) == plan


def test_a_video_without_kept_clips_is_in_no_shard():
    assert extend_plan([], {"a": video("a")}, {"a": []}, videos_per_shard=3) == []


def test_an_input_says_all_that_encoding_needs():
    wanted = clip("32x32x4", 3)
    found = planned_input(video("a" * 64, caption="boats"), [wanted])
    assert found == {
        "path": "aaaaaa.mp4",
        "sha256": "a" * 64,
        "caption": "boats",
        "source_fps": 25.0,
        "decoder": "pyav",
        "clips": [wanted.to_json()],
    }


# -- copies ---------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), unique=True), st.integers(0, 99))
def test_of_each_content_one_video_is_kept_in_whatever_order(found, seed):
    records = [video(f"{content}" * 64, name=f"{name}-{content}.mp4") for content, name in found]
    videos, copies = without_copies(records, [])
    assert list(videos) == sorted({record.sha256 for record in records})
    assert sorted([r.name for r in videos.values()] + [c.path for c in copies]) == sorted(
        record.name for record in records
    )
    for sha256, record in videos.items():
        same = [other.name for other in records if other.sha256 == sha256]
        assert record.name == min(same)
    for copy in copies:
        assert (copy.stage, copy.message) == (
            "duplicate",
            f"same content as {videos[copy.sha256].name}",
        )
    shuffled = random.Random(seed).sample(records, len(records))
    assert without_copies(shuffled, []) == (videos, copies)


def test_the_planned_one_of_two_copies_stays():
    """A copy that sorts before it must not move the clips to another name."""
    old, copy = video("a" * 64, name="old.mp4"), video("a" * 64, name="copy.mp4")
    plan = extend_plan([], {"a" * 64: old}, {"a" * 64: [clip("32x32x4", 0)]}, videos_per_shard=1)
    assert without_copies([copy, old], plan)[0] == {"a" * 64: old}
    assert without_copies([copy, old], [])[0] == {"a" * 64: copy}


def test_broken_videos_are_nobodys_copies():
    broken = [video("a" * 64, name=name, scanned=False) for name in ("x.mp4", "y.mp4")]
    assert without_copies(broken, []) == ({}, [])


# -- changes --------------------------------------------------------------------------------------


def test_what_is_gone_is_told_from_what_changed():
    shas = {name: name * 64 for name in "abcd"}
    records = {sha: video(sha, name=f"{name}.mp4") for name, sha in shas.items()}
    kept = {sha: [clip("32x32x4", 0), clip("32x32x8", 1)] for sha in records}
    plan = extend_plan([], records, kept, videos_per_shard=2)
    assert changes(plan, list(records.values())) == ([], [], [])
    now = [
        video("e" * 64, name="a.mp4"),  # another content
        video("b" * 64, name="renamed.mp4"),
        video("c" * 64, name="c.mp4", caption="new"),
        video("f" * 64, name="new.mp4"),
    ]
    assert changes(plan, now) == (["d.mp4"], ["a.mp4"], ["c.mp4"])
    assert changes([], now) == ([], [], [])
