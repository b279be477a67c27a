import json
import os
import stat

import pytest

from cil.errors import ConfigError, DataError
from pipelines.storage import (
    check_writable,
    commit,
    read_json,
    remove_temporaries,
    replace_folder,
    sha256_of_file,
    temporary_beside,
    write_atomic,
    write_json,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_whole_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    write_atomic(path, b"content")
    assert path.read_bytes() == b"content"
    write_atomic(path, b"other")
    assert path.read_bytes() == b"other"
    assert names(path.parent) == ["file.bin"]


@pytest.mark.parametrize("failing", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing, error):
    path = tmp_path / "file.json"
    write_json(path, {"old": 1})

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(failing, fail)
        with pytest.raises(type(error)):
            write_json(path, {"new": 2})
    assert names(tmp_path) == ["file.json"]
    assert read_json(path) == {"old": 1}


def test_json_is_sorted_and_never_holds_nan(tmp_path):
    write_json(tmp_path / "one.json", {"b": 1, "a": [1, 2]})
    write_json(tmp_path / "two.json", {"a": [1, 2], "b": 1})
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "three.json", {"loss": float("nan")})
    assert names(tmp_path) == ["one.json", "two.json"]


@pytest.mark.parametrize("content", [b"", b'{"cut": ', b"\xff\xfe", b"text"])
def test_json_that_is_damaged_is_named(tmp_path, content):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(DataError, match=r"file\.json is damaged, it is not JSON: .*; delete it"):
        read_json(tmp_path / "file.json")


def test_any_text_survives_json(tmp_path):
    """File names can hold bytes that are no UTF-8; Python passes them as lone surrogates."""
    text = "caf\u00e9 \udcff\ud83c \n\t\"'\u2028"
    write_json(tmp_path / "text.json", {text: [text]})
    assert read_json(tmp_path / "text.json") == {text: [text]}
    assert json.loads((tmp_path / "text.json").read_bytes().decode("ascii")) == {text: [text]}


def test_a_folder_replaces_a_folder(tmp_path):
    target = tmp_path / "model"
    for content in ("old", "new"):
        temporary = temporary_beside(target)
        temporary.mkdir()
        (temporary / f"{content}.txt").write_text(content)
        replace_folder(temporary, target)
        assert names(tmp_path) == ["model"]
        assert names(target) == [f"{content}.txt"]


def test_temporaries_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    temporary = temporary_beside(tmp_path / "shard-000000.tar")
    assert temporary.parent == tmp_path
    assert temporary.name.startswith(".")
    temporary.write_bytes(b"half")
    temporary_beside(tmp_path / "model").mkdir()
    (temporary_beside(tmp_path / "model") / "file").write_text("half")
    (tmp_path / "keep.tmp").write_text("not hidden: not ours")
    (tmp_path / ".keep").write_text("no suffix: not ours")
    (tmp_path / "sub").mkdir()
    temporary_beside(tmp_path / "sub" / "x").write_text("not in this folder")
    remove_temporaries(tmp_path)
    assert names(tmp_path) == [".keep", "keep.tmp", "sub"]
    assert len(names(tmp_path / "sub")) == 1
    remove_temporaries(tmp_path / "missing")
    remove_temporaries(tmp_path / "keep.tmp")


def test_a_link_to_a_folder_is_removed_not_followed(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("content")
    (tmp_path / "work").mkdir()
    temporary_beside(tmp_path / "work" / "model").symlink_to(tmp_path / "precious")
    remove_temporaries(tmp_path / "work")
    assert names(tmp_path / "work") == []
    assert names(tmp_path / "precious") == ["file"]


def test_commit_moves_the_file(tmp_path):
    temporary = temporary_beside(tmp_path / "file")
    temporary.write_bytes(b"content")
    commit(temporary, tmp_path / "file")
    assert names(tmp_path) == ["file"]


def test_hashes_are_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_writable_places_are_left_as_they_were(tmp_path):
    check_writable(tmp_path, "output.dir")
    check_writable(tmp_path / "new" / "folders", "output.dir")
    assert names(tmp_path) == []


@pytest.mark.parametrize("place", ["file", "file/below", "link", "link/below", "x" * 300])
def test_a_place_that_cannot_be_written_is_a_config_error(tmp_path, place):
    (tmp_path / "file").write_text("content")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "at all")
    before = names(tmp_path)
    with pytest.raises(ConfigError, match=r"^output\.dir: cannot write to .*; choose a folder"):
        check_writable(tmp_path / place, "output.dir")
    assert names(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_a_config_error(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(ConfigError, match="Permission denied"):
            check_writable(tmp_path / "new", "output.dir")
    finally:
        tmp_path.chmod(stat.S_IRWXU)
