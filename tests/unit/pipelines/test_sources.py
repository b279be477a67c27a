"""Listing local sources: folders, patterns, single files; see test_source_*.py for the others."""

import json
import os
import socket

import pytest

from cil.errors import ConfigError
from pipelines.sources import VIDEO_SUFFIXES, SourceOptions, SourceVideo, check_source, list_videos

ODD_NAMES = [
    b"-rf.mp4",
    b"--help.mp4",
    b"two words.mp4",
    b"new\nline.mp4",
    b"caf\xc3\xa9.mp4",
    b"not utf-8 \xff\xfe.mp4",
    b"not utf-8 \xff\xfd.mp4",
    b"a.b.c.mp4",
    b"a..mp4.mp4",
    b"%d %s {} $HOME `ls` 'q\".mp4",
    b"x" * 251 + b".mp4",
    b"CAPITAL.MP4",
    b"tab\tand\x07bell.mkv",
    b"back\\slash.mp4",
    b"back\\nslash.mp4",
    b"{0..3}.mp4",
    b"[a]*?.mp4",
    b"what?query.mp4",
    b"s3:__b.mp4",
    b"<script>alert(1)<script>.mp4",
]


def put(folder, names):
    """Make files whose content is their name."""
    for name in names:
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))


def listed(source, **options):
    return list_videos(str(source), options=SourceOptions(**options))


def names(listing):
    return [video.name for video in listing.videos]


def reasons(listing):
    return [(record.path, record.stage, record.exception) for record in listing.refused]


# -- folders --------------------------------------------------------------------------------------


def test_videos_are_found_in_sub_folders_and_sorted_by_name(tmp_path):
    found = ["b.mp4", "a/c.mkv", "a/b/d.WebM", "e.avi"]
    put(tmp_path, [*found, "notes.md", "a/b/picture.jpg", "mp4", "f.mp4.part"])
    listing = listed(tmp_path)
    assert names(listing) == sorted(found)
    for video in listing.videos:
        status = os.stat(tmp_path / video.name)
        assert video == SourceVideo(
            name=video.name,
            location=str(tmp_path / video.name),
            offset=None,
            num_bytes=len(video.name),
            version=f"{status.st_size}:{status.st_mtime_ns}",
            caption=None,
        )
    assert (listing.refused, listing.num_other_files) == ((), 4)


@pytest.mark.parametrize("suffix", sorted(VIDEO_SUFFIXES))
def test_every_suffix_counts_in_any_case(tmp_path, suffix):
    put(tmp_path, [f"a{suffix}", f"b{suffix.upper()}"])
    assert len(listed(tmp_path).videos) == 2


def test_hidden_files_are_left_alone(tmp_path):
    put(tmp_path, [".hidden.mp4", "._resource.mp4", ".mp4", ".trash/gone.mp4", "seen.mp4"])
    listing = listed(tmp_path)
    assert (names(listing), listing.num_other_files) == (["seen.mp4"], 0)


def test_odd_names_are_shown_safely_and_still_open_the_file(tmp_path):
    put(tmp_path, ODD_NAMES)
    listing = listed(tmp_path)
    assert listing.refused == ()
    assert all(name.isprintable() for name in names(listing))
    assert len(set(names(listing))) == len(ODD_NAMES) == len(listing.videos)
    for video in listing.videos:
        raw = json.loads(json.dumps(video.to_json()))
        assert SourceVideo.from_json(raw) == video
        with open(raw["location"], "rb") as file:
            assert file.read() == os.fsencode(os.path.basename(video.location))
    assert r"new\nline.mp4" in names(listing)
    assert r"not utf-8 \xff\xfe.mp4" in names(listing)


def test_the_location_is_absolute_as_workers_have_other_folders(tmp_path, monkeypatch):
    put(tmp_path, ["in/a.mp4"])
    monkeypatch.chdir(tmp_path)
    for source in ("in", "./in/", "in/*.mp4", "in/a.mp4", f"file://{tmp_path}/in"):
        (video,) = listed(source).videos
        assert (video.name, video.location) == ("a.mp4", str(tmp_path / "in" / "a.mp4"))


def test_the_version_changes_with_size_and_with_time(tmp_path):
    put(tmp_path, ["a.mp4"])
    versions = {listed(tmp_path).videos[0].version}
    status = (tmp_path / "a.mp4").stat()
    os.utime(tmp_path / "a.mp4", ns=(0, status.st_mtime_ns + 1))
    versions.add(listed(tmp_path).videos[0].version)
    (tmp_path / "a.mp4").write_bytes(b"longer than before")
    os.utime(tmp_path / "a.mp4", ns=(0, status.st_mtime_ns))
    versions.add(listed(tmp_path).videos[0].version)
    assert len(versions) == 3


# -- links ----------------------------------------------------------------------------------------


def test_links_to_files_count_and_broken_ones_are_refused(tmp_path):
    put(tmp_path, ["elsewhere/real.bin"])
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "link.mp4").symlink_to(tmp_path / "elsewhere" / "real.bin")
    (tmp_path / "videos" / "broken.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (tmp_path / "videos" / "loop.mp4").symlink_to(tmp_path / "videos" / "loop.mp4")
    listing = listed(tmp_path / "videos")
    assert names(listing) == ["link.mp4"]
    assert reasons(listing) == [
        ("broken.mp4", "read", "FileNotFoundError"),
        ("loop.mp4", "read", "OSError"),
    ]
    assert all(record.sha256 is None and record.message for record in listing.refused)


def test_a_link_to_a_folder_is_followed(tmp_path):
    put(tmp_path, ["elsewhere/deep/a.mp4", "videos/b.mp4"])
    (tmp_path / "videos" / "link").symlink_to(tmp_path / "elsewhere")
    assert names(listed(tmp_path / "videos")) == ["b.mp4", "link/deep/a.mp4"]


def test_a_loop_of_folders_ends_with_a_reason(tmp_path):
    put(tmp_path, ["root/a/b/video.mp4"])
    root = tmp_path / "root"
    (root / "a" / "b" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    (root / "a" / "above").symlink_to(tmp_path)
    listing = listed(root)
    assert names(listing) == ["a/b/video.mp4"]
    assert reasons(listing) == [
        ("a/above", "read", "LinkLoop"),
        ("a/b/up", "read", "LinkLoop"),
        ("a/self", "read", "LinkLoop"),
    ]


def test_two_folders_that_link_to_each_other_end(tmp_path):
    put(tmp_path, ["x/one.mp4", "y/two.mp4", "root/three.mp4"])
    (tmp_path / "x" / "y").symlink_to(tmp_path / "y")
    (tmp_path / "y" / "x").symlink_to(tmp_path / "x")
    (tmp_path / "root" / "x").symlink_to(tmp_path / "x")
    listing = listed(tmp_path / "root")
    assert names(listing) == ["three.mp4", "x/one.mp4", "x/y/two.mp4"]
    assert [record.path for record in listing.refused] == ["x/y/x"]


def test_a_folder_is_listed_once_and_under_its_real_name(tmp_path):
    put(tmp_path, ["real/a.mp4", "other/b.mp4"])
    (tmp_path / "early").symlink_to(tmp_path / "real")
    (tmp_path / "other" / "c").symlink_to(tmp_path / "real")
    listing = listed(tmp_path)
    assert names(listing) == ["other/b.mp4", "real/a.mp4"]
    assert [(r.path, r.message) for r in listing.refused] == [
        ("early", "the same folder as real, which is listed already"),
        ("other/c", "the same folder as real, which is listed already"),
    ]


def test_of_two_links_to_one_folder_the_first_by_name_counts(tmp_path):
    put(tmp_path, ["elsewhere/a.mp4"])
    (tmp_path / "videos").mkdir()
    for name in ("b", "a", "c"):
        (tmp_path / "videos" / name).symlink_to(tmp_path / "elsewhere")
    listing = listed(tmp_path / "videos")
    assert names(listing) == ["a/a.mp4"]
    assert reasons(listing) == [("b", "read", "Duplicate"), ("c", "read", "Duplicate")]


# -- what cannot be read --------------------------------------------------------------------------


def test_pipes_sockets_and_devices_are_refused_without_waiting(tmp_path, monkeypatch):
    """Opening a pipe would wait for a writer for ever."""
    put(tmp_path, ["real.mp4"])
    os.mkfifo(tmp_path / "pipe.mp4")
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.mp4")
        (tmp_path / "zero.mp4").symlink_to("/dev/zero")
        listing = listed(tmp_path)
    assert names(listing) == ["real.mp4"]
    assert reasons(listing) == [
        (name, "read", "NotAFile") for name in ("pipe.mp4", "socket.mp4", "zero.mp4")
    ]


def test_a_folder_with_a_videos_name_is_searched_and_refused_only_if_empty(tmp_path):
    put(tmp_path, ["folder.mp4/inside.mp4", "other.mp4/notes.md"])
    listing = listed(tmp_path)
    assert names(listing) == ["folder.mp4/inside.mp4"]
    assert reasons(listing) == [("other.mp4", "read", "IsADirectoryError")]


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch):
    """The error is injected: these tests may run as root, whom chmod does not stop."""
    put(tmp_path, ["closed.mp4", "open.mp4"])
    real = os.open

    def guarded(path, *rest, **options):
        if os.fspath(path).endswith("closed.mp4"):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *rest, **options)

    monkeypatch.setattr(os, "open", guarded)
    listing = listed(tmp_path)
    assert names(listing) == ["open.mp4"]
    assert reasons(listing) == [("closed.mp4", "read", "PermissionError")]
    assert listing.refused[0].message == "Permission denied"


def test_a_folder_that_cannot_be_listed_is_refused_not_forgotten(tmp_path, monkeypatch):
    """The error is injected: these tests may run as root, whom chmod does not stop."""
    put(tmp_path, ["a/one.mp4", "b/two.mp4"])
    real = os.scandir

    def guarded(path):
        if os.fspath(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", guarded)
    listing = listed(tmp_path)
    assert names(listing) == ["a/one.mp4"]
    assert reasons(listing) == [("b", "read", "PermissionError")]


# -- captions -------------------------------------------------------------------------------------


def test_captions_beside_the_videos(tmp_path):
    put(tmp_path, ["a.mp4", "b.mkv", "c.mp4", "d.mp4", "e.mp4", "sub/a.mp4", "f.mp4", "g.mp4"])
    (tmp_path / "a.txt").write_text("  a dog\nruns \t fast\x07\n")
    (tmp_path / "b.json").write_text('{"text": "a cat", "fps": 8}')
    (tmp_path / "c.txt").write_text("   \n")
    (tmp_path / "c.json").write_text('{"text": "no", "caption": "a bird"}')
    (tmp_path / "d.json").write_text("not JSON")
    (tmp_path / "e.json").write_text("[" * 100_000)
    (tmp_path / "f.txt").write_bytes(b"latin \xe9")
    os.mkfifo(tmp_path / "g.txt")
    (tmp_path / "unrelated.txt").write_text("x")
    listing = listed(tmp_path)
    assert {video.name: video.caption for video in listing.videos} == {
        "a.mp4": "a dog runs fast",
        "b.mkv": "a cat",
        "c.mp4": "a bird",
        "d.mp4": None,
        "e.mp4": None,
        "f.mp4": "latin \ufffd",
        "g.mp4": None,
        "sub/a.mp4": None,
    }
    assert listing.num_other_files == 2  # the pipe and the unrelated one


def test_of_an_endless_caption_only_the_beginning_is_read(tmp_path):
    put(tmp_path, ["a.mp4"])
    (tmp_path / "a.txt").write_bytes(b"x" * 10_000_000)
    assert listed(tmp_path).videos[0].caption == "x" * 2**16


# -- patterns and single files --------------------------------------------------------------------

TREE = ["x/a.mp4", "x/deep/b.mp4", "y/c.mkv", "y/.d.mp4", "top.mp4", "x/notes.md"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**", ["top.mp4", "x/a.mp4", "x/deep/b.mp4", "y/c.mkv"]),
        ("**/*.mp4", ["top.mp4", "x/a.mp4", "x/deep/b.mp4"]),
        ("*.mp4", ["top.mp4"]),
        ("*/*", ["x/a.mp4", "y/c.mkv"]),
        ("x/**/*.mp4", ["a.mp4", "deep/b.mp4"]),
        ("[xy]/?.m*", ["x/a.mp4", "y/c.mkv"]),
        ("{x,y}/*.m*", ["x/a.mp4", "y/c.mkv"]),
        ("{top,x/a}.mp4", ["top.mp4", "x/a.mp4"]),
        ("{top,missing}.mp4", ["top.mp4"]),
        ("x/a.mp4", ["a.mp4"]),
        ("x//a.mp4", ["a.mp4"]),
    ],
)
def test_patterns(tmp_path, pattern, expected):
    put(tmp_path, TREE)
    listing = listed(f"{tmp_path}/{pattern}")
    assert names(listing) == expected
    assert {os.path.basename(v.location) for v in listing.videos} == {
        os.path.basename(name) for name in expected
    }


def test_a_pattern_reads_captions_that_it_does_not_match(tmp_path):
    put(tmp_path, TREE)
    (tmp_path / "x" / "a.txt").write_text("found")
    assert [v.caption for v in listed(f"{tmp_path}/x/*.mp4").videos] == ["found"]
    assert [v.caption for v in listed(f"{tmp_path}/x/a.mp4").videos] == ["found"]


def test_a_pattern_enters_only_folders_that_can_match(tmp_path, monkeypatch):
    put(tmp_path, ["yes-1/a.mp4", "no-1/b.mp4", "yes-1/deeper/c.mp4"])
    entered = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: entered.append(path) or real(path))
    assert names(listed(f"{tmp_path}/yes-*/*.mp4")) == ["yes-1/a.mp4"]
    assert entered == [f"{tmp_path}/", f"{tmp_path}/yes-1"]


def test_what_exists_is_no_pattern(tmp_path):
    put(tmp_path, ["[ab]/x.mp4", "a/y.mp4", "{0..1}.mp4"])
    assert names(listed(tmp_path / "[ab]")) == ["x.mp4"]
    assert names(listed(tmp_path / "{0..1}.mp4")) == ["{0..1}.mp4"]


def test_a_brace_list_refuses_what_is_missing(tmp_path):
    put(tmp_path, ["00.mp4", "02.mp4"])
    listing = listed(f"{tmp_path}/{{00..02}}.mp4")
    assert names(listing) == ["00.mp4", "02.mp4"]
    assert reasons(listing) == [("01.mp4", "read", "FileNotFoundError")]


# -- sources that cannot be right -----------------------------------------------------------------


def test_a_good_source_passes_the_check(tmp_path):
    put(tmp_path, ["deep/down/video.mkv"])
    for source in (tmp_path, tmp_path / "**/*.mkv", tmp_path / "deep/down/video.mkv"):
        assert check_source(str(source), SourceOptions()) is None


@pytest.mark.parametrize("look", [check_source, list_videos])
@pytest.mark.parametrize(
    "source",
    [
        *("missing", "missing/*.mp4", "file", "empty", "x" * 300, "nul\0byte", "*.nothing"),
        *("pipe.mp4", "packed.tar.gz", "folder/**/*.avi", "{1..3}.mp4", "{0..99999999}.mp4"),
    ],
)
def test_a_source_that_cannot_be_right_is_a_config_error(tmp_path, source, look):
    put(tmp_path, ["file", "empty/notes.md", "empty/.hidden.mp4", "packed.tar.gz", "folder/a.mp4"])
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(ConfigError, match=r"^data\.videos") as caught:
        look(f"{tmp_path}/{source}", options=SourceOptions())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("look", [check_source, list_videos])
def test_no_source_says_what_to_do(look):
    with pytest.raises(ConfigError, match=r"--data\.videos FOLDER"):
        look("", options=SourceOptions())


def test_an_empty_folder_says_what_counts(tmp_path):
    put(tmp_path, ["notes.md"])
    with pytest.raises(ConfigError, match=r"1 other files, for example notes\.md.*\.webm"):
        check_source(str(tmp_path), SourceOptions())


def test_if_all_is_refused_the_error_names_the_first_reason(tmp_path):
    (tmp_path / "a.mp4").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"a\.mp4: No such file"):
        listed(tmp_path)
