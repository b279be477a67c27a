"""The commit of a checkout, by real repositories."""

import shutil
import subprocess

import pytest

from pipelines import source_commit as module
from pipelines.source_commit import source_commit


def git(folder, *words):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, timeout=60
    )
    return done.stdout.decode().strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "code.py").write_text("1")
    git(folder, "add", "code.py")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def test_a_clean_and_a_changed_checkout(checkout, monkeypatch):
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "notes.txt").write_text("not known to git")
    assert source_commit(checkout) == {"git_commit": commit, "git_dirty": "false"}
    (checkout / "code.py").write_text("2")
    assert source_commit(checkout) == {"git_commit": commit, "git_dirty": "true"}
    monkeypatch.setenv("GIT_DIR", str(checkout / "nowhere"))
    assert source_commit(checkout)["git_commit"] == commit, "a hook's repository is not ours"


def test_a_folder_inside_of_another_project_has_no_commit(checkout):
    (checkout / "installed").mkdir()
    assert source_commit(checkout / "installed") == {}


def test_nothing_is_known_where_git_cannot_say(checkout, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init", "-q")
    assert source_commit(tmp_path / "empty") == {}, "no commit yet"
    monkeypatch.setattr(module, "_PATIENCE_S", 0.0)
    assert source_commit(checkout) == {}
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert source_commit(checkout) == {}
