"""Sources in a store: a server that speaks S3 over HTTP, read through s3fs and as a web server."""

import io
import json
import os
import tarfile

import pytest

from cil.errors import ConfigError, DataError
from pipelines.sources import SourceOptions, SourceVideo, check_source, list_videos, local_file
from pipelines.sources.video import VIDEO_SUFFIXES


def listed(source, **options):
    return list_videos(source, options=SourceOptions(**options))


def names(listing):
    return [video.name for video in listing.videos]


def tar_of(**members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def scratch(tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def read(video, scratch):
    with local_file(video, scratch) as path:
        assert path.parent.parent == scratch
        assert path.suffix in VIDEO_SUFFIXES
        content = path.read_bytes()
    assert os.listdir(scratch) == []
    return content


ODD_KEYS = ["-rf.mp4", "two words.mp4", "café+plus%20.mp4", "tab\t.mp4", "a..b/c..d.mp4", "é#?.mp4"]


def test_a_bucket_is_a_folder(s3, scratch):
    for key in ("in/a.mp4", "in/deep/b.MKV", "in/notes.md", "in/.hid/c.mp4", "out.mp4"):
        s3.put(key, key.encode())
    s3.put("in/folder.mp4/")
    s3.put("in/a.txt", b"a dog")
    for source in (s3.url("in"), s3.url("in/"), s3.url("in/**")):
        check_source(source, SourceOptions())
        listing = listed(source)
        assert names(listing) == ["a.mp4", "deep/b.MKV"]
        assert [v.caption for v in listing.videos] == ["a dog", None]
        assert (listing.refused, listing.num_other_files) == ((), 1)
    video = listing.videos[1]
    assert (video.location, video.offset) == (s3.url("in/deep/b.MKV"), None)
    assert read(video, scratch) == b"in/deep/b.MKV"
    assert names(listed(s3.url())) == ["in/a.mp4", "in/deep/b.MKV", "out.mp4"]


def test_odd_keys(s3, scratch):
    for key in ODD_KEYS:
        s3.put(f"x/{key}", key.encode())
    listing = listed(s3.url("x"))
    assert all(name.isprintable() for name in names(listing))
    assert {read(video, scratch).decode() for video in listing.videos} == set(ODD_KEYS)
    for video in listing.videos:
        assert SourceVideo.from_json(json.loads(json.dumps(video.to_json()))) == video


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.mp4", ["top.mp4"]),
        ("x/**/*.mp4", ["a.mp4", "deep/b.mp4"]),
        ("[xy]/?.m*", ["x/a.mp4", "y/c.mkv"]),
        ("{x,y}/*.m*", ["x/a.mp4", "y/c.mkv"]),
        ("x/{a,gone}.mp4", ["a.mp4"]),
        ("x/a.mp4", ["a.mp4"]),
    ],
)
def test_patterns(s3, pattern, expected):
    for key in ("x/a.mp4", "x/deep/b.mp4", "y/c.mkv", "top.mp4", "x/notes.md"):
        s3.put(key, b"v")
    check_source(s3.url(pattern), SourceOptions())
    listing = listed(s3.url(pattern))
    assert names(listing) == expected
    assert [r.path for r in listing.refused] == (["gone.mp4"] if "gone" in pattern else [])


def test_the_version_changes_with_the_content(s3, scratch):
    s3.put("a.mp4", b"one")
    first = listed(s3.url()).videos
    assert listed(s3.url("a.mp4")).videos[0].version == first[0].version
    s3.put("a.mp4", b"two")
    assert listed(s3.url()).videos[0].version != first[0].version
    with pytest.raises(DataError, match=r"a\.mp4 changed"), local_file(first[0], scratch):
        pass
    assert os.listdir(scratch) == []


def test_tars_in_a_bucket(s3, scratch):
    big = os.urandom(200_000)  # more than is read ahead
    for number in range(2):
        videos = {"x_mp4": big, "y_mp4": bytes([number]) * 300_000}
        s3.put(f"t/{number}.tar", tar_of(**videos, y_txt=b"a cat"))
    s3.put("t/2.tar", tar_of(x_mp4=big)[:150_000])
    for source in (s3.url("t"), s3.url("t/{0..2}.tar"), s3.url("t/*.tar")):
        check_source(source, SourceOptions())
        listing = listed(source)
        assert names(listing) == ["0.tar/x.mp4", "0.tar/y.mp4", "1.tar/x.mp4", "1.tar/y.mp4"]
        assert [v.caption for v in listing.videos] == [None, "a cat"] * 2
        assert [r.path for r in listing.refused] == ["2.tar"]
    assert [read(video, scratch) for video in listing.videos] == [
        big,
        b"\0" * 300_000,
        big,
        b"\1" * 300_000,
    ]


def test_a_long_member_is_read_in_parts(s3, scratch, monkeypatch):
    content = os.urandom(1000)
    s3.put("a.tar", tar_of(a_txt=b"x", b_mp4=content))
    monkeypatch.setattr("pipelines.sources.local_copy._CHUNK_BYTES", 64)
    assert read(listed(s3.url("a.tar")).videos[0], scratch) == content


def test_a_table_in_a_bucket(s3, scratch):
    s3.put("m/v/a.mp4", b"a")
    s3.put("m/b.mp4", b"b")
    s3.put("secret.mp4", b"secret")
    rows = ["v/a.mp4", s3.url("m/b.mp4"), "gone.mp4", "../secret.mp4", "v", s3.url("m/b.mp4")]
    s3.put("m/t.csv", ("path,text\n" + "".join(f"{r},c{n}\n" for n, r in enumerate(rows))).encode())
    check_source(s3.url("m/t.csv"), SourceOptions())
    listing = listed(s3.url("m/t.csv"))
    assert [(v.name, v.caption) for v in listing.videos] == [("b.mp4", "c1"), ("v/a.mp4", "c0")]
    assert sorted(r.message.split(":")[0] for r in listing.refused) == [
        f"line {line} of t.csv" for line in (4, 5, 6, 7)
    ]
    assert read(listing.videos[1], scratch) == b"a"
    (other,) = listed(s3.url("m/t.csv"), video_root=s3.url("m/v")).refused[:1]
    assert "bucket" not in other.exception


def test_a_local_table_of_addresses(s3, s3_endpoint, tmp_path, scratch):
    s3.put("a.mp4", b"by s3")
    s3.put("b.mp4", b"by http")
    web = f"{s3_endpoint}/{s3.bucket}/b.mp4"
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"url": url}) + "\n" for url in (s3.url("a.mp4"), web, web + "x"))
    )
    listing = listed(str(tmp_path / "t.jsonl"))
    host = s3_endpoint.removeprefix("http://")
    assert names(listing) == [f"http/{host}/{s3.bucket}/b.mp4", f"s3/{s3.bucket}/a.mp4"]
    assert [read(video, scratch) for video in listing.videos] == [b"by http", b"by s3"]
    assert [r.path for r in listing.refused] == [f"http/{host}/{s3.bucket}/b.mp4x"]


def test_a_video_a_tar_and_a_table_on_a_web_server(s3, s3_endpoint, scratch):
    web = f"{s3_endpoint}/{s3.bucket}"
    s3.put("a.mp4", b"video")
    s3.put("b.tar", tar_of(x_mp4=b"member"))
    s3.put("c.csv", b"path\na.mp4\n")
    for source, name, content in [
        (f"{web}/a.mp4", "a.mp4", b"video"),
        (f"{web}/b.tar", "b.tar/x.mp4", b"member"),
        (f"{web}/{{b,gone}}.tar", "b.tar/x.mp4", b"member"),
        (f"{web}/c.csv", "a.mp4", b"video"),
    ]:
        check_source(source, SourceOptions())
        (video,) = listed(source).videos
        assert video.name == name
        assert read(video, scratch) == content
    with pytest.raises(ConfigError, match="cannot list folders"):
        listed(web)


@pytest.fixture
def plain_web(tmp_path):
    """A web server that gives whole files only, as Python's own does; URL and its folder."""
    import functools
    import http.server
    import threading

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_HEAD(self):
            if self.path.startswith("/closed"):
                self.send_error(403)
            else:
                super().do_HEAD()

        def do_GET(self):
            if self.path.startswith("/closed"):
                self.send_error(403)
            else:
                super().do_GET()

        def log_message(self, *_):
            pass

    folder = tmp_path / "web"
    folder.mkdir()
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()
        thread.join()


def test_a_web_server_that_gives_whole_files_only(plain_web, scratch):
    """Videos and tables can be had of it; a tar would have to be read by position."""
    web, folder = plain_web
    (folder / "a.mp4").write_bytes(b"video")
    (folder / "t.csv").write_text("path\na.mp4\nclosed.mp4\ngone.mp4\nhttp://127.0.0.1:1/x.mp4\n")
    (folder / "b.tar").write_bytes(tar_of(x_mp4=b"x" * 200_000))
    (video,) = listed(f"{web}/a.mp4?token=hunter2").videos
    assert "hunter2" not in video.name
    assert read(video, scratch) == b"video"
    listing = listed(f"{web}/t.csv")
    assert names(listing) == ["a.mp4"]
    told = {record.path: record.message.split(": ", 1)[1] for record in listing.refused}
    assert told["closed.mp4"].startswith("access is denied")
    assert told["gone.mp4"].startswith("it does not exist")
    assert told["http/127.0.0.1:1/x.mp4"].startswith("the server cannot be reached")
    with pytest.raises(ConfigError, match=r"b\.tar: OSError: .*range requests"):
        listed(f"{web}/b.tar")


def test_a_signed_address_keeps_its_secret(s3, scratch):
    """The query is needed to read the file; it is in the location and nowhere else."""
    s3.put("a.mp4", b"signed")
    url = s3.client.generate_presigned_url("get_object", {"Bucket": s3.bucket, "Key": "a.mp4"})
    from pipelines.sources.listing import _name
    from pipelines.sources.rows import place_of

    place = place_of(url.rpartition("/")[0])
    shown = _name(place, url.rpartition("/")[2])
    assert shown.startswith("a.mp4~")
    assert "Signature" not in shown
    with pytest.raises(ConfigError, match=r"^data\.videos") as caught:
        listed(url.replace("a.mp4", "gone.mp4"))
    for secret in url.partition("?")[2].replace("&", "=").split("=")[1::2]:
        assert secret not in str(caught.value)


# -- stores that cannot be used -------------------------------------------------------------------


@pytest.mark.parametrize("look", [check_source, list_videos])
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("s3://no-such-bucket-here/x", "does not exist"),
        ("s3://no-such-bucket-here/*.mp4", "does not exist"),
        ("s3://no-such-bucket-here/{0..3}.tar", "does not exist"),
        ("s3://no-such-bucket-here/t.csv", "does not exist"),
        ("{bucket}/nothing", "does not exist"),
        ("{bucket}/nothing/*.mp4", "matches no video files"),
        ("s3://", "names no bucket"),
        ("s3://key:hunter2@bucket/x", "holds a user name or password"),
        ("s3://key:hunt/er2@bucket/x", "holds a user name or password"),
        ("https://user:hunter2@host/x.mp4", "holds a user name or password"),
        ("nonsense://x/y", "nonsense"),
        ("zip://a.mp4::s3://bucket/x.zip", "chains"),
    ],
)
def test_a_store_that_cannot_be_used_is_a_config_error(s3, source, words, look):
    with pytest.raises(ConfigError, match=words) as caught:
        look(source.replace("{bucket}", s3.url()), options=SourceOptions())
    assert str(caught.value).startswith("data.videos")
    assert "hunt" not in str(caught.value)
    assert "not-a-secret" not in str(caught.value)


def test_an_object_that_is_gone_is_a_data_error(s3, scratch):
    s3.put("a.mp4", b"v")
    (video,) = listed(s3.url()).videos
    s3.client.delete_object(Bucket=s3.bucket, Key="a.mp4")
    with pytest.raises(DataError, match=r"cannot read a\.mp4"), local_file(video, scratch):
        pass
    assert os.listdir(scratch) == []


def test_denied_access_is_explained(s3, own_s3fs, monkeypatch):
    """The server here denies nothing, so s3fs's own error for it is injected."""

    async def denied(*_, **__):
        raise PermissionError("Access Denied: secret=hunter2")

    s3.put("a.mp4", b"v")
    monkeypatch.setattr(own_s3fs, "_call_s3", denied)
    for source in (s3.url(), s3.url("*.mp4"), s3.url("a.mp4")):
        with pytest.raises(ConfigError, match="access is denied; check the credentials") as caught:
            listed(source)
        assert "hunter2" not in str(caught.value)


def test_an_unreachable_server_is_explained(no_s3):
    for source in ("s3://bucket/x", "s3://bucket/*.mp4", "s3://bucket/a.mp4", "s3://bucket/t.csv"):
        with pytest.raises(ConfigError, match=r"cannot be reached.*AWS_ENDPOINT_URL"):
            check_source(source, SourceOptions())
