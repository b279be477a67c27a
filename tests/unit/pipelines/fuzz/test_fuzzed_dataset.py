"""Manifests, sidecars, shards and the first stage of a small real data set, damaged in every way.

Read by the reader of training and checked by `cil verify`. Three judgements need no schema: what is
read without an error is bit for bit what was written; a change of a tar file, of moments, of a
tensor of the first stage or of what the fingerprint covers is a fault to `cil verify`; and all that
is raised is ours. A *sealed* damage has its hashes made to fit, so that it gets past them.
"""

import hashlib
import json
import math
import shutil
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cil.errors import CilError
from pipelines.config import content_hash
from pipelines.dataset import open_training_data

QUICK, SLOW = 60, 2000
VALUES = [None, "", "x", "../../x", "\x00", -1, 0, 1, 1.5, 10**30, 2**63, True, math.nan, [], {}]
VALUES += [[[]], {"a": 1}, "y" * 10_000, [-1, -1], [10**20, 1], "32x32x8"]
DEEP = b"[" * 100_000
COVERED = {"format_version", "fingerprint", "identity", "identity_hash", "buckets", "shards"}
COUNTED = {("totals", "clips"), ("totals", "shards"), ("totals", "bytes")}
IN_SIDECAR = {"sha256", "num_bytes", "count", "keys", "members", "identity_hash", "name"}
IN_SIDECAR |= {"generation", "bucket", "format_version"}


def profile(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class Dataset:
    """A copy of a data set, what it holds, and what its clips are."""

    def __init__(self, run, folder):
        self.folder = folder / "dataset"
        shutil.copytree(run.dataset, self.folder)
        output = replace(run.config.output, dir=str(folder))
        self.config = replace(run.config, output=output)
        files = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        self.content = {str(path.relative_to(self.folder)): path.read_bytes() for path in files}
        self.read_files = [
            name
            for name in self.content
            if name.startswith(("shards/", "first_stage/")) or name == "manifest.json"
        ]
        self.clips = self.read()

    def read(self):
        data = open_training_data(self.config)
        data.check_all()
        clips = []
        for reader in data.readers.values():
            assert len(reader) <= 1000
            reader.first_stage()
            clips += [(reader.clip(index), reader.thumbnail(index)) for index in range(len(reader))]
        return clips

    @contextmanager
    def damaged(self, changes):
        """Write other content into files, None for no file at all, and take it back."""
        for name, content in changes.items():
            path = self.folder / name
            path.unlink() if content is None else path.write_bytes(content)
        try:
            yield
        finally:
            for name in changes:
                (self.folder / name).write_bytes(self.content[name])

    def sealed(self, changes):
        """Make the hashes in sidecars and manifest fit to changed tar files, sidecars, manifest."""
        changes = dict(changes)
        try:
            manifest = json.loads(changes.get("manifest.json", self.content["manifest.json"]))
            for entry in manifest["shards"]:
                stem = f"shards/{entry['name']}"
                tar = changes.get(f"{stem}.tar", self.content[f"{stem}.tar"])
                sidecar = json.loads(changes.get(f"{stem}.json", self.content[f"{stem}.json"]))
                sealed = {"sha256": hashlib.sha256(tar).hexdigest(), "num_bytes": len(tar)}
                entry.update(sealed)
                sidecar.update(sealed)
                moments = f"{stem}.moments.safetensors"
                found = hashlib.sha256(changes.get(moments, self.content[moments])).hexdigest()
                sidecar["moments"]["sha256"] = found
                changes[f"{stem}.json"] = json.dumps(sidecar).encode()
            identity, shards = manifest["identity"], manifest["shards"]
            manifest["identity_hash"] = content_hash(identity)
            manifest["fingerprint"] = content_hash({"identity": identity, "shards": shards})
            changes["manifest.json"] = json.dumps(manifest).encode()
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            pass  # too damaged to be sealed; it is read as it is
        return changes


@pytest.fixture(scope="session")
def dataset(encoded_run, tmp_path_factory):
    return Dataset(encoded_run, tmp_path_factory.mktemp("fuzzed"))


def places(value, path=()):
    """Every place in plain data, as a path."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    if isinstance(value, list):
        for index, inner in enumerate(value[:3]):
            yield from places(inner, (*path, index))


@st.composite
def other_json(draw, content):
    """JSON with one place changed: (bytes, path of the place)."""
    raw = json.loads(content)
    path = draw(st.sampled_from(list(places(raw))))
    how = draw(st.sampled_from(["replace", "replace", "replace", "drop", "add", "deep"]))
    if how == "deep":
        text = json.dumps(raw).encode()
        return text.replace(b"1", DEEP, 1), ("deep",)
    if not path:
        return json.dumps(draw(st.sampled_from(VALUES))).encode(), ("root",)
    owner = raw
    for name in path[:-1]:
        owner = owner[name]
    if how == "drop":
        del owner[path[-1]]
    elif how == "add" and isinstance(owner, dict):
        owner[draw(st.text(max_size=5)) + "?"] = draw(st.sampled_from(VALUES))
    else:
        value = draw(st.one_of(st.sampled_from(VALUES), st.integers(), st.text(max_size=5)))
        if json.dumps(value) == json.dumps(owner[path[-1]]):
            value = ["other"]
        owner[path[-1]] = value
    return json.dumps(raw).encode(), path


@st.composite
def other_bytes(draw, content):
    """Bytes that differ from the file's."""
    how = draw(st.sampled_from(["flip", "flip", "cut", "drop", "insert", "zero", "empty"]))
    at = draw(st.integers(0, len(content) - 1))
    length = draw(st.sampled_from([1, 2, 8, 100, 512, 5000]))
    if how == "flip":
        other = bytearray(content)
        for _ in range(draw(st.integers(1, 3))):
            other[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
        return bytes(other)
    noise = draw(st.binary(min_size=1, max_size=8))
    return {
        "cut": content[:at],
        "drop": content[:at] + content[at + length :],
        "insert": content[:at] + noise + content[at:],
        "zero": content[:at] + bytes(len(content[at : at + length])) + content[at + length :],
        "empty": b"",
    }[how]


@st.composite
def damages(draw, dataset):
    """Some damage: (changed files, whether cil verify must find it)."""
    name = draw(st.sampled_from(dataset.read_files))
    content = dataset.content[name]
    path = ()
    if name.endswith(".json") and draw(st.integers(0, 2)):
        other, path = draw(other_json(content))
    elif draw(st.integers(0, 30)) == 0:
        other = draw(st.sampled_from([None, *dataset.content.values()]))
    else:
        other = draw(other_bytes(content))
    if other == content:
        other = content + b"?"
    changes = {name: other}
    if draw(st.integers(0, 3)) == 0:
        sealed = dataset.sealed({k: v for k, v in changes.items() if v is not None})
        return {**changes, **sealed}, False
    return changes, must_be_found(name, other, path)


def must_be_found(name, other, path):
    """Judge by the name of the file and the place of the change, as docs/data_format.md says."""
    if other is None or name.endswith((".tar", ".safetensors")):
        return True
    if not path or path[0] in ("root", "deep"):
        return False  # bytes of JSON: a changed blank is no damage
    if name == "manifest.json":
        return path[0] in COVERED or path[:2] in COUNTED
    if name.startswith("shards/"):
        return path[0] in IN_SIDECAR or path == ("moments", "sha256")
    return False


def same(one, other):
    """Compare clips bit for bit."""
    (clip, picture), (old, old_picture) = one, other
    names = ("mean", "std", "image_embeds")
    return (
        picture == old_picture
        and clip.record == old.record
        and all(torch.equal(getattr(clip, name), getattr(old, name)) for name in names)
    )


def check(dataset, runs, in_time, damage):
    changes, must_find = damage
    sealed = len(changes) > 1
    with dataset.damaged(changes):
        try:
            with in_time():
                clips = dataset.read()
        except CilError:
            clips = None
        code, _, err = runs("verify", dataset.folder)
        assert code in (0, 1), err
        assert not must_find or code == 1, (list(changes), err)
    if clips is not None and not sealed:
        assert len(clips) == len(dataset.clips)
        assert all(map(same, clips, dataset.clips)), list(changes)


@pytest.fixture
def examples(dataset, runs, in_time):
    return lambda count: profile(count)(
        given(damages(dataset))(lambda damage: check(dataset, runs, in_time, damage))
    )()


def test_damage_is_an_error_or_changes_nothing(examples, runs):
    examples(QUICK)
    assert runs.total >= QUICK
    assert runs.codes[1] > QUICK / 2


def test_the_data_set_itself_is_whole(dataset, runs):
    assert runs("verify", dataset.folder)[0] == 0
    assert len(dataset.clips) == 10
    assert all(map(same, dataset.read(), dataset.clips))


@pytest.mark.slow
def test_much_damage(examples, runs):
    examples(SLOW)
    assert runs.total >= SLOW
