"""Videos inside tar files: where their bytes are, and what strangers may put into a tar."""

import io
import os
import tarfile

import pytest

from cil.errors import ConfigError, DataError
from pipelines.sources import SourceOptions, check_source, list_videos, local_file


def entry(name, content=b"", *, kind=tarfile.REGTYPE, **fields):
    """Make a member."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def tar_bytes(*entries, format=tarfile.PAX_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def listed(source):
    return list_videos(str(source), options=SourceOptions())


def contents(listing, scratch):
    """Read every video by `local_file`: name -> (bytes, suffix)."""
    found = {}
    for video in listing.videos:
        with local_file(video, scratch) as path:
            found[video.name] = (path.read_bytes(), path.suffix)
    return found


@pytest.fixture
def scratch(tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_videos_of_a_tar_are_found_where_they_lie(tmp_path, scratch, format):
    videos = {f"{'long' * 20}/00{n}.mp4": os.urandom(n * 700) for n in range(4)}
    content = tar_bytes(*(entry(name, data) for name, data in videos.items()), format=format)
    (tmp_path / "a.tar").write_bytes(content)
    listing = listed(tmp_path / "a.tar")
    assert {v.name.removeprefix("a.tar/") for v in listing.videos} == set(videos)
    for video in listing.videos:
        data = videos[video.name.removeprefix("a.tar/")]
        assert (video.location, video.num_bytes) == (str(tmp_path / "a.tar"), len(data))
        assert content[video.offset :][: video.num_bytes] == data
    read = contents(listing, scratch)
    assert read == {f"a.tar/{name}": (data, ".mp4") for name, data in videos.items()}
    assert os.listdir(scratch) == []


def test_captions_of_the_same_key(tmp_path):
    (tmp_path / "a.tar").write_bytes(
        tar_bytes(
            entry("000.txt", b"before the video"),
            entry("000.mp4"),
            entry("001.json", b'{"caption": "from json", "text": "no"}'),
            entry("001.mp4"),
            entry("sub/002.mp4"),
            entry("sub/002.txt", b"after the video"),
            entry("003.high.mp4"),
            entry("003.txt", b"of the key"),
            entry("004.mp4"),
            entry("004.json", b"broken"),
            entry("005.mp4"),
            entry("006.txt", b"of nothing"),
            entry("006.cls", b"1"),
        )
    )
    listing = listed(tmp_path / "a.tar")
    assert {v.name.removeprefix("a.tar/"): v.caption for v in listing.videos} == {
        "000.mp4": "before the video",
        "001.mp4": "from json",
        "003.high.mp4": "of the key",
        "004.mp4": None,
        "005.mp4": None,
        "sub/002.mp4": "after the video",
    }
    assert (listing.refused, listing.num_other_files) == ((), 2)


def test_names_never_become_paths(tmp_path, scratch):
    """Nothing is written anywhere but in the scratch folder, whatever a member is called."""
    evil = [
        "../../escaped.mp4",
        f"{tmp_path}/absolute.mp4",
        "a/../../../etc/x.mp4",
        "new\nline\x1b[31m.mp4",
        "-rf.mp4",
        "x" * 300 + ".mp4",
        "nul.mp4",
        "odd.mp4\t.mkv",
    ]
    (tmp_path / "a.tar").write_bytes(tar_bytes(*(entry(name, name.encode()) for name in evil)))
    before = sorted(tmp_path.rglob("*"))
    listing = listed(tmp_path / "a.tar")
    assert len(listing.videos) == len(evil)
    assert all(video.name.isprintable() for video in listing.videos)
    seen = set()
    for video in listing.videos:
        with local_file(video, scratch) as path:
            assert path.resolve().is_relative_to(scratch.resolve())
            assert path.name in ("video.mp4", "video.mkv")
            seen.add(path.read_bytes().decode())
            assert set(tmp_path.rglob("*")) - set(before) == {path, path.parent}
    assert seen == set(evil)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_no_file_is_refused_with_a_reason(tmp_path):
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (tmp_path / "a.tar").write_bytes(
        tar_bytes(
            entry("folder.mp4", kind=tarfile.DIRTYPE),
            entry("good.mp4", b"good"),
            entry("soft.mp4", kind=tarfile.SYMTYPE, linkname="secret.mp4"),
            entry("hard.mp4", kind=tarfile.LNKTYPE, linkname="/etc/passwd"),
            entry("null.mp4", kind=tarfile.CHRTYPE, devmajor=1, devminor=3),
            entry("pipe.mp4", kind=tarfile.FIFOTYPE),
            entry("._good.mp4", b"resource fork"),
            entry("good.mp4", b"again"),
        )
    )
    listing = listed(tmp_path / "a.tar")
    assert [(v.name, v.num_bytes) for v in listing.videos] == [("a.tar/good.mp4", 4)]
    assert [(r.path, r.exception) for r in listing.refused] == [
        ("a.tar/good.mp4", "Duplicate"),
        ("a.tar/hard.mp4", "NotAFile"),
        ("a.tar/null.mp4", "NotAFile"),
        ("a.tar/pipe.mp4", "NotAFile"),
        ("a.tar/soft.mp4", "NotAFile"),
    ]


GOOD = tar_bytes(*(entry(f"{n}.mp4", bytes([n]) * 1000) for n in range(1, 4)))
MEMBER = 512 + 1024
"""Bytes of a member of `GOOD`: header and padded content."""


def test_only_a_whole_tar_is_used(tmp_path):
    """Cut anywhere, also exactly between two members: refused, and the other tar is used."""
    (tmp_path / "good.tar").write_bytes(GOOD)
    for cut in (0, 100, 512, 600, MEMBER, MEMBER + 1, 2 * MEMBER + 512, 3 * MEMBER, 3 * MEMBER + 9):
        (tmp_path / "cut.tar").write_bytes(GOOD[:cut])
        listing = listed(tmp_path)
        assert [v.name for v in listing.videos] == [f"good.tar/{n}.mp4" for n in (1, 2, 3)], cut
        assert [r.path for r in listing.refused] == ["cut.tar"], cut
        assert listing.refused[0].message


def header_with(**fields):
    """Write a header whose size is not what the content says."""
    return entry("evil.mp4", **fields)[0].tobuf(tarfile.GNU_FORMAT)


DAMAGED = {
    "noise": os.urandom(4096),
    "a video": b"\0\0\0\x18ftypmp42" * 400,
    "damaged header": GOOD[:MEMBER] + b"\xff" * 512 + GOOD[MEMBER + 512 :],
    "negative size": header_with(size=-1024) + bytes(1024),
    "negative size later": GOOD[:MEMBER] + header_with(size=-MEMBER) + bytes(1024),
    "beyond the end": header_with(size=2**40) + bytes(1024),
    "beyond all": header_with(size=2**62) + bytes(1024),
    "endless name": header_with(type=tarfile.GNUTYPE_LONGNAME, size=2**40) + bytes(4096),
    "endless pax": header_with(type=tarfile.XHDTYPE, size=2**33) + bytes(4096),
    "negative pax": header_with(type=tarfile.XHDTYPE, size=-512) + bytes(4096),
    "nested pax": header_with(type=tarfile.XHDTYPE, size=0) * 3000 + bytes(1024),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_tar_is_refused_at_once(tmp_path, content):
    (tmp_path / "bad.tar").write_bytes(content)
    (tmp_path / "good.tar").write_bytes(GOOD)
    listing = listed(tmp_path)
    assert [v.name for v in listing.videos] == [f"good.tar/{n}.mp4" for n in (1, 2, 3)]
    assert [r.path for r in listing.refused] == ["bad.tar"]
    (tmp_path / "good.tar").unlink()
    with pytest.raises(ConfigError, match=r"^data\.videos.*bad\.tar"):
        listed(tmp_path)


def test_tars_by_brace_list_pattern_and_folder(tmp_path):
    for number in (0, 1, 3):
        (tmp_path / f"s-{number:03d}.tar").write_bytes(tar_bytes(entry("k.mp4", b"v")))
    expected = [f"s-{number:03d}.tar/k.mp4" for number in (0, 1, 3)]
    for source in ("s-{000..003}.tar", "s-*.tar", "", "**/*.tar"):
        check_source(f"{tmp_path}/{source}", SourceOptions())
        assert [v.name for v in listed(f"{tmp_path}/{source}").videos] == expected
    listing = listed(f"{tmp_path}/s-{{000..003}}.tar")
    assert [(r.path, r.exception) for r in listing.refused] == [("s-002.tar", "FileNotFoundError")]


def test_tars_beside_videos_are_other_files(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"v")
    (tmp_path / "a.tar").write_bytes(GOOD)
    listing = listed(tmp_path)
    assert ([v.name for v in listing.videos], listing.num_other_files) == (["a.mp4"], 1)


def test_a_tar_without_videos_is_empty(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_bytes(entry("a.jpg", b"x"), entry("a.txt", b"x")))
    with pytest.raises(ConfigError, match=r"^data\.videos: .*no video files \(2 other files"):
        listed(tmp_path / "a.tar")


def test_a_tar_that_changed_after_the_listing_is_not_read(tmp_path, scratch):
    (tmp_path / "a.tar").write_bytes(GOOD)
    video = listed(tmp_path).videos[0]
    os.utime(tmp_path / "a.tar", ns=(0, 1))
    with pytest.raises(DataError, match=r"a\.tar/1\.mp4 changed"), local_file(video, scratch):
        pass
    assert os.listdir(scratch) == []


def test_the_copy_is_removed_when_the_work_on_it_fails(tmp_path, scratch):
    (tmp_path / "a.tar").write_bytes(GOOD)
    video = listed(tmp_path).videos[1]

    def work():
        with local_file(video, scratch) as path:
            assert path.read_bytes() == b"\x02" * 1000
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert os.listdir(scratch) == []


def test_a_full_disk_is_not_the_fault_of_the_video(tmp_path, scratch, monkeypatch):
    """Else a full scratch folder would put every video into quarantine."""
    (tmp_path / "a.tar").write_bytes(GOOD)
    video = listed(tmp_path).videos[0]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.sources.local_copy._copy", full)
    with pytest.raises(OSError, match="No space") as caught, local_file(video, scratch):
        pass
    assert not isinstance(caught.value, DataError)
    assert os.listdir(scratch) == []


def test_a_whole_local_file_is_not_copied(tmp_path, scratch):
    (tmp_path / "a.mp4").write_bytes(b"v")
    with local_file(listed(tmp_path).videos[0], scratch) as path:
        assert path == tmp_path / "a.mp4"
    assert path.exists()


def test_tars_that_were_joined_are_refused_and_not_read_in_part(tmp_path):
    import io
    import tarfile

    from cil.errors import ConfigError
    from pipelines.sources import SourceOptions, list_videos

    def one(name):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            info = tarfile.TarInfo(name)
            info.size = 5
            tar.addfile(info, io.BytesIO(b"video"))
        return buffer.getvalue()

    (tmp_path / "whole.tar").write_bytes(one("a.mp4"))
    assert len(list_videos(str(tmp_path / "whole.tar"), options=SourceOptions()).videos) == 1
    (tmp_path / "joined.tar").write_bytes(one("a.mp4") + one("b.mp4"))
    with pytest.raises(ConfigError, match="more follows its end"):
        list_videos(str(tmp_path / "joined.tar"), options=SourceOptions())
