"""Both stores keep the same promises; the remote one is a server that speaks S3 over HTTP."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from cil.errors import ConfigError, DataError
from pipelines.store import LocalStore, RemoteStore, open_store

BIG = os.urandom(300_000)


@pytest.fixture(params=["local", "remote"])
def store(request, tmp_path):
    if request.param == "local":
        return open_store(str(tmp_path / "run" / "dataset"))
    return open_store(request.getfixturevalue("s3").url("run/dataset"))


@pytest.fixture
def made(tmp_path):
    """Maker of finished local files."""

    def make(name, content):
        path = tmp_path / "made" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return make


class TestEveryStore:
    def test_it_is_opened_without_anything_being_there(self, store):
        assert store.list() == store.list("shards") == []
        assert not store.exists("manifest.json")
        assert store.size("manifest.json") is None
        assert store.remove("manifest.json") is None

    def test_what_is_written_is_read(self, store):
        for content in (b"", b"first", BIG, b"last"):
            store.write("a/b.json", content)
            assert store.read("a/b.json") == content
            assert store.size("a/b.json") == len(content)
        assert store.exists("a/b.json")
        assert not store.exists("a")  # a folder is no file
        assert store.size("a") is None
        assert store.list() == ["a/b.json"]
        store.remove("a/b.json")
        assert not store.exists("a/b.json")

    def test_a_file_is_downloaded(self, store, tmp_path):
        target = tmp_path / "copy"
        for content in (BIG, b"short", b""):
            store.write("shards/a.tar", content)
            store.download("shards/a.tar", target)
            assert target.read_bytes() == content
        with pytest.raises(DataError, match=r"shards/b\.tar.*does not exist"):
            store.download("shards/b.tar", target)

    def test_only_a_folder_has_files_of_its_own(self, store):
        store.write("a.json", b"{}")
        own = store.own_file("a.json")
        assert own is None if isinstance(store, RemoteStore) else own.read_bytes() == b"{}"
        for name in ("../a.json", "/a.json", ""):
            with pytest.raises(DataError, match="no name of a file"):
                store.own_file(name)

    def test_a_finished_file_is_moved(self, store, made):
        for content in (BIG, b"again", b""):
            path = made("shard.tmp", content)
            store.put(path, "shards/shard-000000.tar")
            assert not path.exists()
            assert store.read("shards/shard-000000.tar") == content
        assert store.list() == ["shards/shard-000000.tar"]

    def test_a_file_is_made_in_scratch_and_put(self, store):
        scratch = store.scratch()
        path = scratch / ".shard-000001.tar.1234.tmp"
        path.write_bytes(BIG)
        assert store.list() == []  # what is not finished is not listed
        store.put(path, "shards/shard-000001.tar")
        assert store.list("shards") == ["shards/shard-000001.tar"]
        assert not path.exists()

    def test_a_folder_replaces_the_one_before(self, store, made):
        for files in ({"a.bin": b"1", "sub/b.bin": BIG}, {"a.bin": b"2", "c.bin": b"3"}):
            for name, content in files.items():
                folder = made(f"folder/{name}", content)
            folder = store_folder(folder)
            store.put_folder(folder, "first_stage")
            assert not folder.exists()
            found = {name: store.read(name) for name in store.list("first_stage")}
            assert found == {f"first_stage/{name}": content for name, content in files.items()}

    def test_a_folder_is_listed_and_no_name_that_begins_alike(self, store):
        for name in ("shards/b", "shards/a/c", "shards-2/d", "shards.json", "e"):
            store.write(name, b"x")
        assert store.list("shards") == ["shards/a/c", "shards/b"]
        assert store.list() == ["e", "shards-2/d", "shards.json", "shards/a/c", "shards/b"]
        assert store.list("nothing") == []

    def test_a_local_path_has_the_newest_content(self, store, tmp_path):
        cache = tmp_path / "cache"
        for content in (BIG, b"newer", b"other"):  # the last two have the same size
            store.write("shards/a.tar", content)
            path = store.local("shards/a.tar", cache)
            assert (path.name, path.read_bytes()) == ("a.tar", content)
            assert store.local("shards/a.tar", cache) == path

    def test_what_is_missing_is_a_data_error_that_says_where(self, store, tmp_path):
        for act in (store.read, lambda name: store.local(name, tmp_path / "cache")):
            with pytest.raises(DataError, match=r"run/dataset/gone\.json.*does not exist"):
                act("gone.json")

    @pytest.mark.parametrize(
        "name",
        [
            *("", "/etc/passwd", "../x", "a/../../x", "a/..", "./a", "a//b", "a/", ".", ".."),
            *("a\0b", "a\nb", "a\\b", "a\udcffb"),
        ],
    )
    def test_a_name_cannot_leave_the_store(self, store, made, tmp_path, name):
        file = made("file", b"x")
        for act in (
            store.read,
            store.exists,
            store.size,
            store.remove,
            lambda name: store.write(name, b"x"),
            lambda name: store.put(file, name),
            lambda name: store.put_folder(file.parent, name),
            lambda name: store.local(name, tmp_path / "cache"),
        ):
            with pytest.raises(DataError, match="no name of a file"):
                act(name)
        assert file.exists()
        assert store.list() == []

    def test_dots_and_dashes_in_names_are_fine(self, store):
        names = ["-rf", "..a", "a..b/...", ".hidden", "two words+%20é&#?.json"]
        for name in names:
            store.write(name, name.encode())
        assert store.list() == sorted(names)
        assert [store.read(name).decode() for name in names] == names

    def test_it_can_be_made_again_from_its_location_or_a_pickle(self, store):
        store.write("a", b"content")
        for other in (
            pickle.loads(pickle.dumps(store)),
            copy.deepcopy(store),
            open_store(store.location),
        ):
            assert other == store
            assert other.read("a") == b"content"

    def test_the_check_leaves_nothing_behind(self, store):
        store.check_writable("output.dir")
        assert store.list() == []
        store.write("a", b"x")
        store.check_writable("output.dir")
        assert store.list() == ["a"]

    def test_where_a_file_is_for_people(self, store):
        assert store.url().endswith("run/dataset")
        assert store.url("a/b") == f"{store.url()}/a/b"


def store_folder(file):
    """Return the folder that `made` put a file into."""
    return next(parent for parent in file.parents if parent.name == "folder")


# -- local ----------------------------------------------------------------------------------------


def test_a_local_path_is_the_file_itself_and_nothing_is_cached(tmp_path):
    store = LocalStore(str(tmp_path / "data"))
    store.write("a/b", b"x")
    assert store.local("a/b", tmp_path / "cache") == tmp_path / "data" / "a" / "b"
    assert not (tmp_path / "cache").exists()


def test_a_local_location_is_absolute_as_workers_have_other_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in ("build/run", "./build/run/", f"file://{tmp_path}/build/run"):
        assert open_store(given) == LocalStore(str(tmp_path / "build" / "run"))


def test_a_local_put_is_a_rename(tmp_path):
    store = LocalStore(str(tmp_path / "data"))
    path = store.scratch() / ".x.tmp"
    path.write_bytes(b"x")
    inode = path.stat().st_ino
    store.put(path, "shards/x.tar")
    assert (tmp_path / "data" / "shards" / "x.tar").stat().st_ino == inode


def test_a_put_from_another_file_system_is_a_copy_that_appears_whole(tmp_path):
    """/dev/shm is another file system than the temporary folder, or this test shows nothing."""
    import tempfile

    store = LocalStore(str(tmp_path / "data"))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        assert os.stat(elsewhere).st_dev != tmp_path.stat().st_dev
        file, folder = Path(elsewhere, "file"), Path(elsewhere, "folder")
        file.write_bytes(BIG)
        folder.mkdir()
        (folder / "inside").write_bytes(b"y")
        store.put(file, "a")
        store.put_folder(folder, "b")
        assert os.listdir(elsewhere) == []
    assert {name: store.read(name) for name in store.list()} == {"a": BIG, "b/inside": b"y"}
    assert sorted(os.listdir(tmp_path / "data")) == ["a", "b"]


def test_a_failed_local_write_keeps_what_was_there(tmp_path, monkeypatch):
    store = LocalStore(str(tmp_path / "data"))
    store.write("a", b"old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device; check the space"):
        store.write("a", b"new")
    monkeypatch.undo()
    assert store.read("a") == b"old"
    assert os.listdir(tmp_path / "data") == ["a"]


def test_a_local_folder_that_cannot_be_made_is_a_config_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"^output\.dir: cannot write"):
        open_store(str(tmp_path / "file" / "x")).check_writable("output.dir")


# -- remote ---------------------------------------------------------------------------------------


def test_objects_lie_under_the_prefix_and_others_are_not_touched(s3):
    s3.put("run/datasets", b"beside")
    s3.put("run/dataset-2/a", b"beside")
    store = open_store(s3.url("run/dataset/"))
    store.write("a/b.json", b"x")
    assert s3.keys() == ["run/dataset-2/a", "run/dataset/a/b.json", "run/datasets"]
    assert s3.get("run/dataset/a/b.json") == b"x"
    assert store.list() == ["a/b.json"]
    whole = open_store(s3.url())
    assert whole.list() == s3.keys()


def test_what_others_write_is_seen_at_once(s3):
    """A listing that is kept would hide what a worker wrote since."""
    store = open_store(s3.url("x"))
    assert (store.list(), store.exists("a")) == ([], False)
    s3.put("x/a", b"1")
    assert (store.list(), store.exists("a"), store.size("a")) == (["a"], True, 1)
    s3.put("x/a", b"22")
    assert store.size("a") == 2
    s3.client.delete_object(Bucket=s3.bucket, Key="x/a")
    assert (store.list(), store.exists("a")) == ([], False)


def test_a_file_is_downloaded_once(s3, tmp_path):
    store = open_store(s3.url("x"))
    s3.put("x/a.tar", b"content")
    path = store.local("a.tar", tmp_path)
    before = path.stat().st_ino
    assert store.local("a.tar", tmp_path).stat().st_ino == before
    path.write_bytes(b"cut")  # a disk that lost some
    assert store.local("a.tar", tmp_path).read_bytes() == b"content"


def test_a_broken_download_leaves_nothing(s3, own_s3fs, tmp_path, monkeypatch):
    s3.put("x/a.tar", b"content")

    async def cut(self, remote, local, **_):
        Path(local).write_bytes(b"cont")

    monkeypatch.setattr(own_s3fs, "_get_file", cut)
    with pytest.raises(DataError, match="gave 4 bytes, 7 were stated"):
        open_store(s3.url("x")).local("a.tar", tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_broken_upload_keeps_the_file(s3, own_s3fs, made, monkeypatch):
    path = made("a", b"content")

    async def cut(self, local, remote, **_):
        s3.put("x/a", b"cont")

    monkeypatch.setattr(own_s3fs, "_put_file", cut)
    with pytest.raises(DataError, match="has 4 bytes after the upload, 7 were sent"):
        open_store(s3.url("x")).put(path, "a")
    assert path.read_bytes() == b"content"


def test_another_process_makes_the_store_again_and_leaves_no_scratch_folder(s3):
    code = """
import sys
from pipelines.store import open_store
store = open_store(sys.argv[1])
path = store.scratch() / "file"
path.write_bytes(store.read("a") + b" seen")
store.put(path, "b")
path.write_text("left")
print(path.parent)
"""
    store = open_store(s3.url("x"))
    store.write("a", b"content")
    done = subprocess.run(
        [sys.executable, "-c", code, store.location],
        check=True,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert store.read("b") == b"content seen"
    scratch = Path(done.stdout.strip())
    assert scratch.is_absolute()
    assert not scratch.exists()


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("", r"output\.dir is not set"),
        ("https://host/x", "web server"),
        ("s3://", "names no bucket"),
        ("s3://key:hunter2@bucket/x", "user name or password"),
        ("nonsense://bucket/x", "nonsense"),
        ("zip://x::s3://bucket/x", "chains"),
    ],
)
def test_a_location_that_cannot_be_right(location, words):
    with pytest.raises(ConfigError, match=words) as caught:
        open_store(location)
    assert "hunter2" not in str(caught.value)


def everything(store, file, cache):
    """Name every operation that needs the server."""
    return {
        "read": lambda: store.read("a"),
        "exists": lambda: store.exists("a"),
        "size": lambda: store.size("a"),
        "write": lambda: store.write("a", b"x"),
        "put": lambda: store.put(file, "a"),
        "list": store.list,
        "remove": lambda: store.remove("a"),
        "local": lambda: store.local("a", cache),
    }


def test_a_bucket_that_is_missing(s3, made, tmp_path):
    store = open_store("s3://no-such-bucket-here/x")
    with pytest.raises(ConfigError, match=r"^output\.dir: cannot write to s3://no.*check the buck"):
        store.check_writable("output.dir")
    acts = everything(store, made("a", b"x"), tmp_path / "cache")
    for name in ("read", "write", "put", "local"):
        with pytest.raises(DataError, match="does not exist"):
            acts[name]()


def test_denied_access(s3, own_s3fs, made, tmp_path, monkeypatch):
    """The server here denies nothing, so the error that s3fs makes of a 403 is injected."""

    async def denied(*_, **__):
        raise PermissionError("Access Denied")

    store = open_store(s3.url("x"))
    s3.put("x/a", b"x")
    monkeypatch.setattr(own_s3fs, "_call_s3", denied)
    with pytest.raises(ConfigError, match=r"^output\.dir: .*access is denied; check the cred"):
        store.check_writable("output.dir")
    for name, act in everything(store, made("a", b"x"), tmp_path / "cache").items():
        with pytest.raises(DataError, match="access is denied"):
            pytest.fail(f"{name} gave {act()}")


def test_a_server_that_cannot_be_reached(no_s3, made, tmp_path):
    store = open_store("s3://bucket/x")
    with pytest.raises(ConfigError, match=r"^output\.dir: .*cannot be reached.*AWS_ENDPOINT_URL"):
        store.check_writable("output.dir")
    for name, act in everything(store, made("a", b"x"), tmp_path / "cache").items():
        with pytest.raises(DataError, match="cannot be reached"):
            pytest.fail(f"{name} gave {act()}")
