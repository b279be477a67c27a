import hashlib
import os
import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cil.errors import ConfigError
from pipelines.records import ShardSpec, VideoFile
from pipelines.sources import VIDEO_SUFFIXES, check_source_folder, extend_plan, take_inventory
from pipelines.storage import write_json

ODD_NAMES = [
    b"-rf.mp4",
    b"two words.mp4",
    b"new\nline.mp4",
    b"caf\xc3\xa9.mp4",
    b"not utf-8 \xff\xfe.mp4",
    b"a.b.c.mp4",
    b"a..mp4.mp4",
    b"%d %s {} $HOME `ls` 'q\".mp4",
    b"x" * 196 + b".mp4",
    b"CAPITAL.MP4",
    b"tab\tand\x07bell.mkv",
]


def put(folder, names):
    """Make files whose content is their name."""
    for name in names:
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))


def sha(name):
    return hashlib.sha256(os.fsencode(name)).hexdigest()


def video(name, number=0):
    return VideoFile(path=name, sha256=sha(name), num_bytes=len(name), mtime_ns=number)


# -- inventory ------------------------------------------------------------------------------------


def test_videos_are_found_in_sub_folders_and_sorted_by_content(tmp_path):
    names = ["b.mp4", "a/c.mkv", "a/b/d.WebM", "e.avi"]
    put(tmp_path, [*names, "notes.txt", "a/b/picture.jpg", "mp4", "f.mp4.part"])
    inventory = take_inventory(tmp_path, {})
    assert [item.path for item in inventory.videos] == sorted(names, key=sha)
    assert [item.sha256 for item in inventory.videos] == sorted(map(sha, names))
    assert {item.path: item.num_bytes for item in inventory.videos} == {n: len(n) for n in names}
    assert inventory.refused == ()
    assert inventory.num_other_files == 4


@pytest.mark.parametrize("suffix", sorted(VIDEO_SUFFIXES))
def test_every_suffix_counts_in_any_case(tmp_path, suffix):
    put(tmp_path, [f"a{suffix}", f"b{suffix.upper()}"])
    assert len(take_inventory(tmp_path, {}).videos) == 2


def test_hidden_files_are_left_alone(tmp_path):
    put(tmp_path, [".hidden.mp4", "._resource.mp4", ".mp4", ".trash/gone.mp4", "seen.mp4"])
    inventory = take_inventory(tmp_path, {})
    assert [item.path for item in inventory.videos] == ["seen.mp4"]
    assert inventory.num_other_files == 0


def test_odd_names_are_kept_and_survive_json(tmp_path):
    put(tmp_path, ODD_NAMES)
    inventory = take_inventory(tmp_path, {})
    assert inventory.refused == ()
    assert {os.fsencode(item.path) for item in inventory.videos} == set(ODD_NAMES)
    assert {item.sha256 for item in inventory.videos} == set(map(sha, ODD_NAMES))
    for item in inventory.videos:
        write_json(tmp_path / "record.json", item.to_json())
    plan = extend_plan([], inventory.videos, 3)
    write_json(tmp_path / "plan.json", [spec.to_json() for spec in plan])


def test_copies_are_refused_and_name_the_first_one(tmp_path):
    for name in ("z.mp4", "a/copy.mp4", "b.mkv"):
        put(tmp_path, [name])
        (tmp_path / name).write_bytes(b"same")
    inventory = take_inventory(tmp_path, {})
    assert [item.path for item in inventory.videos] == ["a/copy.mp4"]
    assert [(item.path, item.stage, item.message) for item in inventory.refused] == [
        ("b.mkv", "duplicate", "same content as a/copy.mp4"),
        ("z.mp4", "duplicate", "same content as a/copy.mp4"),
    ]
    assert {item.sha256 for item in inventory.refused} == {hashlib.sha256(b"same").hexdigest()}


def test_links_to_files_count_and_broken_ones_are_refused(tmp_path):
    put(tmp_path, ["elsewhere/real.bin"])
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "link.mp4").symlink_to(tmp_path / "elsewhere" / "real.bin")
    (tmp_path / "videos" / "broken.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (tmp_path / "videos" / "loop.mp4").symlink_to(tmp_path / "videos" / "loop.mp4")
    inventory = take_inventory(tmp_path / "videos", {})
    assert [item.path for item in inventory.videos] == ["link.mp4"]
    assert [(item.path, item.stage) for item in inventory.refused] == [
        ("broken.mp4", "read"),
        ("loop.mp4", "read"),
    ]
    assert all(item.sha256 is None and item.message for item in inventory.refused)


def test_a_loop_of_folders_ends(tmp_path):
    put(tmp_path, ["a/b/video.mp4"])
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")
    assert [item.path for item in take_inventory(tmp_path, {}).videos] == ["a/b/video.mp4"]


def test_a_pipe_with_a_videos_name_is_refused_without_waiting(tmp_path):
    """Reading it would wait for a writer for ever."""
    put(tmp_path, ["real.mp4"])
    os.mkfifo(tmp_path / "pipe.mp4")
    inventory = take_inventory(tmp_path, {})
    assert [item.path for item in inventory.videos] == ["real.mp4"]
    (refused,) = inventory.refused
    assert (refused.path, refused.stage) == ("pipe.mp4", "read")
    assert refused.message == "not a regular file"


def test_a_folder_with_a_videos_name_is_searched_not_read(tmp_path):
    put(tmp_path, ["folder.mp4/inside.mp4"])
    inventory = take_inventory(tmp_path, {})
    assert [item.path for item in inventory.videos] == ["folder.mp4/inside.mp4"]
    assert inventory.refused == ()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_cannot_be_read_is_refused(tmp_path):
    put(tmp_path, ["closed.mp4", "open.mp4", "locked/inside.mp4"])
    (tmp_path / "closed.mp4").chmod(0)
    (tmp_path / "locked").chmod(0)
    try:
        inventory = take_inventory(tmp_path, {})
    finally:
        (tmp_path / "locked").chmod(0o700)
    assert [item.path for item in inventory.videos] == ["open.mp4"]
    assert {item.path for item in inventory.refused} == {"closed.mp4", "locked"}
    assert {item.exception for item in inventory.refused} == {"PermissionError"}


def test_a_folder_that_cannot_be_listed_is_refused_not_forgotten(tmp_path, monkeypatch):
    put(tmp_path, ["a/one.mp4", "b/two.mp4"])
    real = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    inventory = take_inventory(tmp_path, {})
    assert [item.path for item in inventory.videos] == ["a/one.mp4"]
    (refused,) = inventory.refused
    assert (refused.path, refused.stage) == ("b", "read")
    assert (refused.exception, refused.message) == ("PermissionError", "Permission denied")


# -- known hashes ---------------------------------------------------------------------------------


def known_of(folder):
    return {item.path: item for item in take_inventory(folder, {}).videos}


def test_a_known_hash_is_used_while_size_and_time_agree(tmp_path, monkeypatch):
    put(tmp_path, ["a.mp4", "b.mp4"])
    known = known_of(tmp_path)
    monkeypatch.setattr("pipelines.sources.sha256_of_file", lambda path: pytest.fail("was read"))
    assert take_inventory(tmp_path, known).videos == tuple(
        sorted(known.values(), key=lambda item: item.sha256)
    )


def test_a_changed_file_is_hashed_again(tmp_path):
    put(tmp_path, ["a.mp4"])
    known = known_of(tmp_path)
    before = (tmp_path / "a.mp4").stat()
    (tmp_path / "a.mp4").write_bytes(b"longer than before")
    os.utime(tmp_path / "a.mp4", ns=(before.st_atime_ns, before.st_mtime_ns))
    (found,) = take_inventory(tmp_path, known).videos
    assert found.sha256 == hashlib.sha256(b"longer than before").hexdigest()
    known = known_of(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"LONGER THAN BEFORE")
    os.utime(tmp_path / "a.mp4", ns=(0, before.st_mtime_ns + 1))
    (found,) = take_inventory(tmp_path, known).videos
    assert found.sha256 == hashlib.sha256(b"LONGER THAN BEFORE").hexdigest()


def test_a_renamed_file_is_hashed_and_keeps_its_identity(tmp_path):
    put(tmp_path, ["a.mp4"])
    known = known_of(tmp_path)
    (tmp_path / "a.mp4").rename(tmp_path / "b.mp4")
    (found,) = take_inventory(tmp_path, known).videos
    assert (found.path, found.sha256) == ("b.mp4", known["a.mp4"].sha256)


# -- the source folder ----------------------------------------------------------------------------


def test_a_good_folder_passes(tmp_path):
    put(tmp_path, ["deep/down/video.mkv"])
    assert check_source_folder(str(tmp_path)) is None


@pytest.mark.parametrize("folder", ["", "missing", "file", "empty", "x" * 300, "nul\0byte"])
def test_a_folder_that_cannot_be_right_is_a_config_error(tmp_path, folder):
    put(tmp_path, ["file", "empty/notes.txt", "empty/.hidden.mp4"])
    with pytest.raises(ConfigError, match=r"^data\.videos"):
        check_source_folder(str(tmp_path / folder) if folder else "")


# -- the plan -------------------------------------------------------------------------------------


def contents(specs):
    return [item["sha256"] for spec in specs for item in spec.inputs]


def test_a_plan_fills_shards_in_the_order_of_the_hashes():
    videos = tuple(sorted((video(f"{n}.mp4") for n in range(7)), key=lambda item: item.sha256))
    plan = extend_plan([], videos, 3)
    assert [(spec.name, spec.generation, len(spec.inputs)) for spec in plan] == [
        ("shard-000000", 0, 3),
        ("shard-000001", 0, 3),
        ("shard-000002", 0, 1),
    ]
    assert contents(plan) == [item.sha256 for item in videos]
    assert extend_plan(plan, videos, 3) == plan
    assert extend_plan([], (), 3) == []


def test_later_videos_get_new_shards_and_old_ones_stay():
    first = tuple(sorted((video(f"{n}.mp4") for n in range(4)), key=lambda item: item.sha256))
    more = tuple(sorted((video(f"{n}.mp4") for n in range(6)), key=lambda item: item.sha256))
    plan = extend_plan([], first, 3)
    longer = extend_plan(plan, more, 3)
    assert longer[:2] == plan
    assert [(spec.name, spec.generation) for spec in longer[2:]] == [("shard-000002", 1)]
    assert sorted(contents(longer)) == sorted(item.sha256 for item in more)
    assert extend_plan(longer, first, 3) == longer  # a video that is gone leaves its shard


def test_a_renamed_video_changes_no_plan():
    plan = extend_plan([], (video("a.mp4"),), 3)
    renamed = VideoFile(path="b.mp4", sha256=sha("a.mp4"), num_bytes=5, mtime_ns=9)
    assert extend_plan(plan, (renamed,), 3) == plan


names = st.lists(
    st.text(string.ascii_lowercase, min_size=1, max_size=6), min_size=1, max_size=20, unique=True
)


@settings(max_examples=60, deadline=None)
@given(names=names, size=st.integers(1, 5), seed=st.integers(0, 9), cuts=st.integers(1, 4))
def test_a_plan_grows_only_and_depends_on_content_only(names, size, seed, cuts):
    """Whatever arrives in whatever portions: each video once, old shards unchanged."""
    shuffled = names.copy()
    random.Random(seed).shuffle(shuffled)
    plan: list[ShardSpec] = []
    for end in range(1, cuts + 1):
        there = shuffled[: len(shuffled) * end // cuts]
        videos = tuple(sorted((video(name, seed) for name in there), key=lambda v: v.sha256))
        longer = extend_plan(plan, videos, size)
        assert longer[: len(plan)] == plan
        assert extend_plan(longer, videos, size) == longer
        assert sorted(contents(longer)) == sorted(map(sha, there))
        assert all(1 <= len(spec.inputs) <= size for spec in longer)
        assert [spec.name for spec in longer] == [f"shard-{n:06d}" for n in range(len(longer))]
        plan = longer
    if cuts == 1:
        assert contents(plan) == sorted(map(sha, names))
