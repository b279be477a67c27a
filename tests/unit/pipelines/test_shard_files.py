"""Shards on disk and in a bucket: limits, hashes that are remembered, damage."""

import gc
import json
import os
import subprocess
import sys

import pytest
import torch

from cil.errors import ConfigError, DataError
from pipelines import shard_files
from pipelines.config import content_hash
from pipelines.read_config import ReadConfig
from pipelines.shard_cache import GIB
from pipelines.shard_files import ShardFiles
from pipelines.shard_reader import ShardReader
from pipelines.shards import sidecar_name, tar_name
from pipelines.store import open_store


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that are hashed."""
    names = []
    real = shard_files.sha256_of_file
    real_of_cache = shard_files._sha256_of

    def sha256_of(file):
        names.append("cached")
        return real_of_cache(file)

    monkeypatch.setattr(shard_files, "_sha256_of", sha256_of)

    def sha256_of_file(path):
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(shard_files, "sha256_of_file", sha256_of_file)
    return names


def read(dataset, cache, *, num_sharers=1, **settings):
    """Open a reader and what it reads shards by."""
    config = ReadConfig(**settings)
    files = ShardFiles(open_store(dataset), folder=cache, settings=config, num_sharers=num_sharers)
    return ShardReader(dataset, cache=cache, files=files), files


def check_clips(reader, small_shards, indices):
    for index in indices:
        clip, written = reader.clip(index), small_shards.clip(index)
        assert clip.record == written.record
        assert torch.equal(clip.mean, written.mean.to(torch.float32))
        assert torch.equal(clip.std, written.std.to(torch.float32))


# -- on disk --------------------------------------------------------------------------------------


def test_a_bounded_number_of_shards_is_open(small_shards, tmp_path, hashed):
    small_shards.dataset(tmp_path, counts=(2,) * 12)
    reader, files = read(tmp_path, tmp_path / "cache", max_open_shards=3)
    before = len(os.listdir("/proc/self/fd"))
    check_clips(reader, small_shards, [*range(24), *range(0, 24, 5), 1, 0])
    assert files.num_open == 3
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 3
    # a shard that is opened again is not hashed again, unless it changed
    assert sorted(hashed) == [f"shard-{number:06d}.tar" for number in range(12)]


def test_a_shard_that_changes_while_it_is_closed_is_hashed_again(small_shards, tmp_path):
    small_shards.dataset(tmp_path, counts=(2, 2))
    reader, _ = read(tmp_path, tmp_path / "cache", max_open_shards=1)
    check_clips(reader, small_shards, [0, 2])
    damaged = bytearray((tmp_path / tar_name("shard-000000")).read_bytes())
    damaged[700] ^= 1
    (tmp_path / tar_name("shard-000000")).write_bytes(damaged)
    with pytest.raises(DataError, match=r"shard-000000\.tar is damaged: its sha256 is"):
        reader.clip(1)


def test_hashes_are_taken_by_every_process_unless_they_are_remembered(
    small_shards, tmp_path, hashed
):
    small_shards.dataset(tmp_path, counts=(2, 2))
    for _ in range(2):
        read(tmp_path, tmp_path / "cache")[0].check_all()
    assert len(hashed) == 4
    assert not (tmp_path / "cache").exists()
    hashed.clear()
    for _ in range(3):
        read(tmp_path, tmp_path / "cache", verify="remember")[0].check_all()
    assert sorted(hashed) == ["shard-000000.tar", "shard-000001.tar"]
    read(tmp_path, tmp_path / "cache")[0].check_all()  # who does not trust it may hash
    assert len(hashed) == 4


@pytest.mark.parametrize("change", ["touched", "longer", "manifest"])
def test_what_is_remembered_is_not_believed_of_another_file(small_shards, tmp_path, hashed, change):
    small_shards.dataset(tmp_path, counts=(2, 2))
    read(tmp_path, tmp_path / "cache", verify="remember")[0].check_all()
    hashed.clear()
    path = tmp_path / tar_name("shard-000001")
    if change == "touched":
        os.utime(path)
    elif change == "longer":
        state = path.stat()
        path.write_bytes(path.read_bytes() + b"\0")
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    else:  # the data set was encoded again: the manifest and the sidecar state other hashes
        for name in ("manifest.json", sidecar_name("shard-000001")):
            file = tmp_path / name
            sha256 = json.loads((tmp_path / "manifest.json").read_bytes())["shards"][-1]["sha256"]
            file.write_text(file.read_text().replace(sha256, "0" * 64))
        raw = json.loads((tmp_path / "manifest.json").read_bytes())
        sealed = {"identity": raw["identity"], "shards": raw["shards"]}
        (tmp_path / "manifest.json").write_text(
            json.dumps({**raw, "fingerprint": content_hash(sealed)})
        )
    reader, _ = read(tmp_path, tmp_path / "cache", verify="remember")
    if change == "touched":
        reader.check_all()
    else:
        with pytest.raises(DataError, match="is damaged"):
            reader.check_all()
    assert hashed == ["shard-000001.tar"]


def test_a_torn_memory_of_hashes_is_used_as_far_as_it_goes(small_shards, tmp_path, hashed):
    small_shards.dataset(tmp_path, counts=(2, 2))
    read(tmp_path, tmp_path / "cache", verify="remember")[0].check_all()
    memory = tmp_path / "cache" / "verified.jsonl"
    memory.write_bytes(memory.read_bytes()[:-20] + b'\n[]\n7\n{"path": 1}\n\xff\n{"pa')
    for _ in range(2):
        hashed.clear()
        read(tmp_path, tmp_path / "cache", verify="remember")[0].check_all()
        if not hashed:
            break
        assert hashed == ["shard-000001.tar"]
    assert hashed == []


MISPLACED = {
    "outside": lambda sidecar: {**sidecar, "members": moved(sidecar, 10**9)},
    "negative": lambda sidecar: {**sidecar, "members": moved(sidecar, -(10**9))},
    "huge": lambda sidecar: {**sidecar, "members": moved(sidecar, 10**30)},
    "none": lambda sidecar: {**sidecar, "members": {}},
    "of another kind": lambda sidecar: {**sidecar, "members": [1, 2]},
    "too few": lambda sidecar: {**sidecar, "keys": sidecar["keys"][1:]},
}


def moved(sidecar, by):
    return {
        key: {suffix: [offset + by, size] for suffix, (offset, size) in members.items()}
        for key, members in sidecar["members"].items()
    }


@pytest.mark.parametrize("how", MISPLACED)
def test_places_that_are_not_in_the_file_are_refused(small_shards, tmp_path, how):
    small_shards.dataset(tmp_path)
    path = tmp_path / sidecar_name("shard-000000")
    path.write_text(json.dumps(MISPLACED[how](json.loads(path.read_bytes()))))
    with pytest.raises(DataError, match=r"shard-000000\.json.*is damaged.*encode"):
        ShardReader(tmp_path).clip(0)


def exchanged(sidecar):
    first, second = sidecar["keys"][:2]
    members = sidecar["members"]
    return {**sidecar, "members": {**members, first: members[second], second: members[first]}}


def swapped_inside(sidecar):
    first = sidecar["keys"][0]
    own = sidecar["members"][first]
    own = {
        **own,
        "latents.safetensors": own["cond.safetensors"],
        "cond.safetensors": own["latents.safetensors"],
    }
    return {**sidecar, "members": {**sidecar["members"], first: own}}


@pytest.mark.parametrize("change", [exchanged, swapped_inside])
def test_places_of_another_member_are_refused(small_shards, tmp_path, change):
    """All offsets are those of members; only the tar's own headers tell whose."""
    small_shards.dataset(tmp_path)
    path = tmp_path / sidecar_name("shard-000000")
    path.write_text(json.dumps(change(json.loads(path.read_bytes()))))
    key = small_shards.clip(0).record.key
    reader = ShardReader(tmp_path)
    refused = rf"shard-000000\.json is damaged: it places {key}\..*shard-000000\.tar.*encode again"
    with pytest.raises(DataError, match=refused):
        reader.clip(0)
    check_clips(reader, small_shards, [2, 3])


def test_a_view_outlives_its_shard(small_shards, tmp_path):
    """What somebody still looks at stays in memory when its shard makes room."""
    small_shards.dataset(tmp_path, counts=(1,) * 6)
    reader, files = read(tmp_path, tmp_path / "cache", max_open_shards=1)
    views = [reader.stored_clip(index) for index in range(6)]
    assert files.num_open == 1
    files.close()
    del reader, files
    gc.collect()
    for index, view in enumerate(views):
        assert torch.equal(view.mean, small_shards.clip(index).mean)


# -- in a bucket ----------------------------------------------------------------------------------

COUNTS = (2, 2, 2, 2, 2, 2)


@pytest.fixture
def remote(small_shards, s3, tmp_path):
    """A data set in a bucket: its URL, and the size of its largest shard in bytes."""
    small_shards.dataset(tmp_path / "made", counts=COUNTS)
    for path in sorted((tmp_path / "made").rglob("*")):
        if path.is_file():
            s3.put(f"set/{path.relative_to(tmp_path / 'made').as_posix()}", path.read_bytes())
    sizes = [path.stat().st_size for path in (tmp_path / "made").glob("shards/*.tar")]
    return s3.url("set"), max(sizes)


def cached(cache):
    return len(list((cache / "shards").glob("*.tar")))


def test_remote_shards_pass_through_a_bounded_cache(remote, small_shards, tmp_path, hashed):
    url, size = remote
    cache = tmp_path / "cache"
    reader, files = read(url, cache, cache_gib=2.5 * size / GIB)
    for _ in range(2):
        for index in range(12):
            check_clips(reader, small_shards, [index])
            assert cached(cache) <= 2
    assert files.num_open == 2
    assert len(hashed) == 12  # each download once
    # what is there needs no bucket, and another process hashes it once, or trusts the first one
    again = {"cache_gib": 2.5 * size / GIB}
    check_clips(read(url, cache, verify="remember", **again)[0], small_shards, [11])
    assert len(hashed) == 12
    other, _ = read(url, cache, max_open_shards=1, **again)
    check_clips(other, small_shards, [11, 9, 11, 9])
    assert hashed[12:] == ["cached", "cached"]


def test_a_flipped_bit_in_the_cache_is_downloaded_again(remote, s3, small_shards, tmp_path, hashed):
    url, _ = remote
    cache = tmp_path / "cache"
    check_clips(read(url, cache)[0], small_shards, [0])
    (path,) = (cache / "shards").glob("*.tar")
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    hashed.clear()
    check_clips(read(url, cache)[0], small_shards, [0, 1])
    assert path.read_bytes() == whole
    assert len(hashed) == 3  # as it was found, once more under the lock, and as it arrived
    # the bucket has the same damage
    path.write_bytes(damaged)
    s3.put("set/shards/shard-000000.tar", bytes(damaged))
    with pytest.raises(DataError, match=r"set/shards/shard-000000\.tar is damaged: its sha256"):
        read(url, cache)[0].clip(0)
    assert cached(cache) == 0


def test_workers_share_the_room(remote, small_shards, tmp_path):
    """Each holds at most its part open, so there is always room for the next shard of any."""
    url, size = remote
    readers = [
        read(url, tmp_path / "cache", num_sharers=2, cache_gib=2 * size / GIB) for _ in range(2)
    ]
    for step in range(12):
        for number, (reader, files) in enumerate(readers):
            check_clips(reader, small_shards, [(step * (3 + 2 * number)) % 12])
            assert files.num_open == 1
    assert cached(tmp_path / "cache") == 2
    with pytest.raises(ConfigError, match="3 workers share it, and the shard shard-000000 alone"):
        read(url, tmp_path / "cache", num_sharers=3, cache_gib=2 * size / GIB)[0].check_all()


def test_checking_a_remote_data_set_downloads_nothing(remote, s3, tmp_path):
    url, _ = remote
    reader, _ = read(url, tmp_path / "cache")
    reader.check_all()
    assert not (tmp_path / "cache").exists()
    content = s3.get("set/shards/shard-000003.tar")
    s3.put("set/shards/shard-000003.tar", content[:-512])
    with pytest.raises(
        DataError, match=rf"shard-000003\.tar is damaged: it has {len(content) - 512}"
    ):
        reader.check_all()
    s3.client.delete_object(Bucket=s3.bucket, Key="set/shards/shard-000003.tar")
    with pytest.raises(DataError, match=r"shard-000003\.tar is missing; run encode again"):
        reader.check_all()


def test_a_flipped_bit_in_the_bucket_is_found_when_it_arrives(remote, s3, small_shards, tmp_path):
    url, _ = remote
    whole = s3.get("set/shards/shard-000001.tar")
    damaged = bytearray(whole)
    damaged[-1] ^= 1
    s3.put("set/shards/shard-000001.tar", bytes(damaged))
    reader, _ = read(url, tmp_path / "cache")
    check_clips(reader, small_shards, [0])
    with pytest.raises(DataError, match=r"set/shards/shard-000001\.tar is damaged: its sha256"):
        reader.clip(2)
    assert cached(tmp_path / "cache") == 1  # the damaged one is not kept
    s3.put("set/shards/shard-000001.tar", whole)
    check_clips(reader, small_shards, [2])


def test_a_shard_that_is_missing_in_the_bucket_is_named(remote, s3, tmp_path):
    url, _ = remote
    s3.client.delete_object(Bucket=s3.bucket, Key="set/shards/shard-000002.tar")
    with pytest.raises(DataError, match=r"set/shards/shard-000002\.tar is missing; run encode"):
        read(url, tmp_path / "cache")[0].clip(4)


def test_processes_read_one_bucket_through_one_cache(remote, tmp_path):
    url, size = remote
    program = """
import sys, hashlib
from pathlib import Path
from pipelines.config import content_hash
from pipelines.read_config import ReadConfig
from pipelines.shard_files import ShardFiles
from pipelines.shard_reader import ShardReader
from pipelines.store import open_store
url, cache, gib, first = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
settings = ReadConfig(cache_gib=gib)
files = ShardFiles(open_store(url), folder=cache, settings=settings, num_sharers=2)
reader = ShardReader(url, cache=cache, files=files)
found = {}
for step in range(48):
    index = (first + 5 * step) % 12
    found[index] = hashlib.sha256(reader.clip(index).mean.numpy().tobytes()).hexdigest()
print(*(found[index] for index in range(12)))
"""
    command = [sys.executable, "-c", program, url, str(tmp_path / "cache"), str(3 * size / GIB)]
    running = [
        subprocess.Popen(
            [*command, str(first)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for first in (0, 7)
    ]
    results = [one.communicate(timeout=120)[0] for one in running]
    assert [one.returncode for one in running] == [0, 0]
    assert results[0] == results[1]
    assert len(results[0].split()) == 12
    assert cached(tmp_path / "cache") <= 3
    assert list((tmp_path / "cache" / "shards").glob(".*.tmp")) == []
