import hashlib
import io
import itertools
import json
import subprocess
import tarfile

import pytest
import torch
from PIL import Image
from safetensors.torch import load as load_tensors

from cil.analytic_init import LatentMoments
from cil.errors import ConfigError, DataError
from pipelines.records import FORMAT_VERSION, QuarantineRecord
from pipelines.shard_reader import ShardReader
from pipelines.shards import (
    load_manifest,
    moments_name,
    moments_of,
    read_moments,
    read_sidecar,
    sidecar_name,
    tar_name,
)

NAMES = ("shard-000000.tar", "shard-000000.moments.safetensors", "shard-000000.json")


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def content(folder):
    return {path.name: path.read_bytes() for path in (folder / "shards").iterdir()}


def same(one, other):
    return torch.equal(one.to(torch.float32), other.to(torch.float32))


def test_the_same_clips_give_the_same_bytes(small_shards, tmp_path):
    for folder in ("one", "two"):
        small_shards.write(tmp_path / folder, [small_shards.clip(seed) for seed in range(4)])
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    assert sorted(one) == sorted(NAMES)
    assert one == two
    small_shards.write(tmp_path / "two", [small_shards.clip(seed) for seed in (0, 1, 3, 2)])
    assert content(tmp_path / "two")["shard-000000.tar"] != one["shard-000000.tar"]


def test_the_sidecar_states_what_is_on_disk(small_shards, tmp_path):
    sidecar = small_shards.write(tmp_path, [small_shards.clip(seed) for seed in range(3)])
    tar = (tmp_path / tar_name(sidecar.name)).read_bytes()
    moments = (tmp_path / moments_name(sidecar.name)).read_bytes()
    assert sidecar == read_sidecar(tmp_path, sidecar.name)
    assert sidecar.sha256 == hashlib.sha256(tar).hexdigest()
    assert (sidecar.num_bytes, sidecar.count) == (len(tar), 3)
    assert sidecar.keys == [small_shards.clip(seed).record.key for seed in range(3)]
    assert sidecar.moments["sha256"] == hashlib.sha256(moments).hexdigest()
    assert sidecar.inputs == [{"path": "aaaa.mp4", "sha256": "a" * 64, "clips": 3}]
    for key, members in sidecar.members.items():
        assert sorted(members) == ["cond.safetensors", "json", "latents.safetensors", "webp"]
        offset, size = members["json"]
        assert json.loads(tar[offset : offset + size])["key"] == key
        offset, size = members["latents.safetensors"]
        assert sorted(load_tensors(tar[offset : offset + size])) == ["mean", "std"]


def test_the_tar_opens_with_tarfile_and_its_members_are_plain(small_shards, tmp_path):
    sidecar = small_shards.write(tmp_path, [small_shards.clip(seed) for seed in range(2)])
    with tarfile.open(tmp_path / tar_name(sidecar.name)) as tar:
        members = tar.getmembers()
        assert {(m.mtime, m.mode, m.uname, m.gname) for m in members} == {(0, 0o644, "cil", "cil")}
        assert all(member.isreg() for member in members)
        names = [member.name.partition(".") for member in members]
        assert [key for key, _, _ in names] == [key for key in sidecar.keys for _ in range(4)]
        for key, _, suffix in names:
            assert len(key) == 32
            int(key, 16)
            expected = sidecar.members[key][suffix]
            member = tar.getmember(f"{key}.{suffix}")
            assert [member.offset_data, member.size] == expected
    listed = subprocess.run(
        ["tar", "tf", tmp_path / tar_name(sidecar.name)], capture_output=True, text=True, check=True
    )
    assert len(listed.stdout.splitlines()) == 8


def test_the_tar_opens_with_the_webdataset_library(small_shards, tmp_path):
    import webdataset

    clips = [small_shards.clip(seed) for seed in range(3)]
    sidecar = small_shards.write(tmp_path, clips)
    dataset = webdataset.WebDataset(str(tmp_path / tar_name(sidecar.name)), shardshuffle=False)
    samples = list(dataset)
    assert [sample["__key__"] for sample in samples] == sidecar.keys
    for sample, clip in zip(samples, clips, strict=True):
        latents = load_tensors(sample["latents.safetensors"])
        assert latents["mean"].dtype == torch.bfloat16
        assert same(latents["mean"], clip.mean)
        assert same(latents["std"], clip.std)
        condition = load_tensors(sample["cond.safetensors"])
        assert same(condition["image_embeds"], clip.condition["image_embeds"])
        assert json.loads(sample["json"]) == clip.record.to_json()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_reader_gives_back_what_was_written(small_shards, tmp_path, dtype):
    manifest = small_shards.dataset(tmp_path, counts=(3, 1, 2), dtype=dtype)
    reader = ShardReader(tmp_path)
    assert len(reader) == 6
    assert reader.manifest == manifest == load_manifest(tmp_path)
    for index in (5, 0, 3, 2, 4, 1):
        clip, written = reader.clip(index), small_shards.clip(index, dtype=dtype)
        assert clip.record == written.record
        assert reader.key(index) == written.record.key
        assert clip.mean.dtype == clip.std.dtype == torch.float32
        assert same(clip.mean, written.mean)
        assert same(clip.std, written.std)
        with Image.open(io.BytesIO(reader.thumbnail(index))) as image:
            image.load()
            assert (image.format, image.size) == ("WEBP", (8, 8))


def test_the_reader_hands_out_its_own_memory(small_shards, tmp_path):
    """Writing into a clip must not change the shard or the next reading of it."""
    small_shards.dataset(tmp_path, dtype=torch.float32)
    reader = ShardReader(tmp_path)
    reader.clip(0).mean.zero_()
    assert same(reader.clip(0).mean, small_shards.clip(0, dtype=torch.float32).mean)
    ShardReader(tmp_path).check_all()


def interrupted(clips, error):
    yield from clips
    raise error


@pytest.mark.parametrize("error", [RuntimeError("decoder died"), KeyboardInterrupt()])
def test_a_failure_half_way_leaves_nothing(small_shards, tmp_path, error):
    clips = [small_shards.clip(0), small_shards.clip(1)]
    with pytest.raises(type(error)):
        small_shards.write(tmp_path, interrupted(clips, error))
    assert files(tmp_path) == []


def test_latents_that_are_not_finite_are_refused_and_leave_nothing(small_shards, tmp_path):
    clip = small_shards.clip(0)
    clip.mean[0, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match="finite"):
        small_shards.write(tmp_path, [small_shards.clip(1), clip])
    assert files(tmp_path) == []


def test_a_shard_without_clips_is_a_sidecar_only(small_shards, tmp_path):
    refused = QuarantineRecord(
        path="aaaa.mp4",
        sha256="a" * 64,
        stage="decode",
        decoder="pyav",
        exception="InvalidDataError",
        message="broken",
        attempts=1,
    )
    sidecar = small_shards.write(tmp_path, [], quarantined=[refused])
    assert sorted(content(tmp_path)) == ["shard-000000.json"]
    assert (sidecar.count, sidecar.sha256, sidecar.num_bytes) == (0, None, 0)
    assert sidecar.inputs[0]["clips"] == 0
    assert [QuarantineRecord.from_json(item) for item in sidecar.quarantined] == [refused]
    assert small_shards.complete(tmp_path) == sidecar


def test_a_rewritten_shard_that_lost_its_clips_leaves_no_old_files(small_shards, tmp_path):
    small_shards.write(tmp_path, [small_shards.clip(0)])
    small_shards.write(tmp_path, [])
    assert sorted(content(tmp_path)) == ["shard-000000.json"]


# -- damage ---------------------------------------------------------------------------------------


def flip(path, position=-1):
    damaged = bytearray(path.read_bytes())
    damaged[position] ^= 1
    path.write_bytes(damaged)


def test_a_damaged_tar_is_refused_with_both_hashes(small_shards, tmp_path):
    manifest = small_shards.dataset(tmp_path)
    path = tmp_path / tar_name("shard-000001")
    flip(path, 700)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    stated = manifest.entries()[1].sha256
    reader = ShardReader(tmp_path)
    assert reader.clip(0).record.start_s == 0  # the other shard is still good
    assert reader.key(4) == small_shards.clip(4).record.key  # from the sidecar, which is whole
    for action in (lambda: reader.clip(3), lambda: reader.thumbnail(4), reader.check_all):
        with pytest.raises(DataError) as caught:
            action()
        message = str(caught.value)
        assert found in message
        assert stated in message
        assert "shard-000001.json and run encode again" in message


def test_a_missing_tar_says_what_to_do(small_shards, tmp_path):
    small_shards.dataset(tmp_path)
    (tmp_path / tar_name("shard-000000")).unlink()
    with pytest.raises(DataError, match=r"shard-000000\.tar is missing; run encode again"):
        ShardReader(tmp_path).check_all()


def test_a_sidecar_of_another_shard_is_refused(small_shards, tmp_path):
    """Its offsets would cut the tar file at the wrong places."""
    small_shards.dataset(tmp_path, counts=(2, 2))
    first, second = (tmp_path / sidecar_name(f"shard-00000{number}") for number in (0, 1))
    first.write_bytes(second.read_bytes())
    with pytest.raises(DataError, match=r"shard-000000.json.*run encode again"):
        ShardReader(tmp_path).clip(0)


@pytest.mark.parametrize("index", [-1, 5, 100])
def test_a_clip_number_out_of_range_is_caught(small_shards, tmp_path, index):
    small_shards.dataset(tmp_path)
    with pytest.raises((AssertionError, IndexError)):
        ShardReader(tmp_path).clip(index)


def test_a_folder_without_manifest_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"manifest\.json is missing.*run encode first"):
        ShardReader(tmp_path)


MANGLED = {
    "empty": b"",
    "cut off": b'{"count": 3, "for',
    "a list": b"[]",
    "null": b"null",
    "a number": b"7",
    "not UTF-8": b'{"format_version": "\xff\xfe"}',
    "no fields": b"{}",
    "odd version": b'{"format_version": "one"}',
    "null version": b'{"format_version": null}',
}


@pytest.mark.parametrize("how", MANGLED)
def test_a_mangled_sidecar_or_manifest_is_refused_by_name(small_shards, tmp_path, how):
    small_shards.dataset(tmp_path)
    path = tmp_path / sidecar_name("shard-000000")
    path.write_bytes(MANGLED[how])
    with pytest.raises(DataError, match=r"shard-000000\.json"):
        read_sidecar(tmp_path, "shard-000000")
    assert small_shards.complete(tmp_path) is None
    (tmp_path / "manifest.json").write_bytes(MANGLED[how])
    with pytest.raises(DataError, match=r"manifest\.json"):
        load_manifest(tmp_path)


def newer(path):
    raw = json.loads(path.read_bytes())
    path.write_text(json.dumps({**raw, "format_version": FORMAT_VERSION + 1, "new_field": 1}))


def test_a_newer_format_is_refused_and_never_overwritten(small_shards, tmp_path):
    small_shards.dataset(tmp_path)
    path = tmp_path / sidecar_name("shard-000000")
    newer(path)
    words = f"format version {FORMAT_VERSION + 1}, this program reads up to {FORMAT_VERSION}"
    with pytest.raises(DataError, match=words):
        read_sidecar(tmp_path, "shard-000000")
    # None would mean: write the shard again
    with pytest.raises(DataError, match=words):
        small_shards.complete(tmp_path)
    newer(tmp_path / "manifest.json")
    with pytest.raises(DataError, match=words):
        load_manifest(tmp_path)


def damage_sidecar(dataset, **changes):
    path = dataset / sidecar_name("shard-000000")
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


def cut_tar(dataset):
    path = dataset / tar_name("shard-000000")
    path.write_bytes(path.read_bytes()[:-512])


INCOMPLETE = {
    "no sidecar": lambda folder: (folder / sidecar_name("shard-000000")).unlink(),
    "no tar": lambda folder: (folder / tar_name("shard-000000")).unlink(),
    "no moments": lambda folder: (folder / moments_name("shard-000000")).unlink(),
    "tar cut off": cut_tar,
    "empty tar": lambda folder: (folder / tar_name("shard-000000")).write_bytes(b""),
    "other identity": lambda folder: damage_sidecar(folder, identity_hash="other"),
    "other inputs": lambda folder: damage_sidecar(folder, inputs=[]),
    "inputs of another kind": lambda folder: damage_sidecar(folder, inputs=5),
    "inputs without hash": lambda folder: damage_sidecar(folder, inputs=[{"path": "aaaa.mp4"}]),
    "field missing": lambda folder: (folder / sidecar_name("shard-000000")).write_text(
        '{"format_version": 1}'
    ),
}


@pytest.mark.parametrize("damage", INCOMPLETE)
def test_a_shard_is_complete_only_with_all_its_parts(small_shards, tmp_path, damage):
    sidecar = small_shards.write(tmp_path, [small_shards.clip(0), small_shards.clip(1)])
    assert small_shards.complete(tmp_path) == sidecar
    INCOMPLETE[damage](tmp_path)
    assert small_shards.complete(tmp_path) is None
    # what was written again is complete again
    again = small_shards.write(tmp_path, [small_shards.clip(0), small_shards.clip(1)])
    assert again == sidecar
    assert small_shards.complete(tmp_path) == sidecar


def test_an_older_format_is_refused_and_written_again(small_shards, tmp_path):
    """Version 1 had no buckets; its contents cannot be read as these."""
    small_shards.dataset(tmp_path)
    for path in (tmp_path / sidecar_name("shard-000000"), tmp_path / "manifest.json"):
        raw = json.loads(path.read_bytes())
        path.write_text(json.dumps({**raw, "format_version": FORMAT_VERSION - 1}))
    words = f"it has format version {FORMAT_VERSION - 1}, this program writes {FORMAT_VERSION}"
    with pytest.raises(DataError, match=words):
        read_sidecar(tmp_path, "shard-000000")
    with pytest.raises(DataError, match=words):
        load_manifest(tmp_path)
    assert small_shards.complete(tmp_path) is None
    small_shards.write(tmp_path, [small_shards.clip(seed) for seed in range(3)])
    assert small_shards.complete(tmp_path).count == 3


# -- buckets --------------------------------------------------------------------------------------


def test_a_reader_reads_the_clips_of_one_bucket(small_shards, tmp_path):
    """Shards 0 and 2 hold clips of two frames, shards 1 and 3 of three."""
    shapes = ((2, 3, 4, 4), (3, 3, 4, 4))
    manifest = small_shards.dataset(tmp_path, counts=(2, 1, 3, 4), shapes=shapes)
    assert manifest.buckets == {
        "16x16x2": {"latents_shape": [2, 3, 4, 4], "clips": 5},
        "16x16x3": {"latents_shape": [3, 3, 4, 4], "clips": 5},
    }
    expected = {"16x16x2": [0, 1, 3, 4, 5], "16x16x3": [2, 6, 7, 8, 9]}
    for number, (bucket, seeds) in enumerate(expected.items()):
        reader = ShardReader(tmp_path, bucket=bucket)
        assert (reader.bucket, len(reader)) == (bucket, 5)
        assert reader.latents_shape == shapes[number]
        assert [entry.bucket for entry in reader.entries] == [bucket, bucket]
        for index, seed in enumerate(seeds):
            clip = reader.clip(index)
            assert clip.record == small_shards.clip(seed, shape=shapes[number]).record
            assert tuple(clip.mean.shape) == shapes[number]
        with pytest.raises((AssertionError, IndexError)):
            reader.clip(5)


def test_one_of_several_buckets_must_be_chosen(small_shards, tmp_path):
    small_shards.dataset(tmp_path, shapes=((2, 3, 4, 4), (3, 3, 4, 4)))
    words = r"train.bucket must be one of the data set's buckets \(16x16x2, 16x16x3\), "
    with pytest.raises(ConfigError, match=words + "none was named"):
        ShardReader(tmp_path)
    with pytest.raises(ConfigError, match=words + "got 16x16x4"):
        ShardReader(tmp_path, bucket="16x16x4")


def test_damage_in_another_bucket_does_not_matter(small_shards, tmp_path):
    small_shards.dataset(tmp_path, shapes=((2, 3, 4, 4), (3, 3, 4, 4)))
    flip(tmp_path / tar_name("shard-000001"), 700)
    ShardReader(tmp_path, bucket="16x16x2").check_all()
    with pytest.raises(DataError, match="is damaged"):
        ShardReader(tmp_path, bucket="16x16x3").check_all()


# -- moments --------------------------------------------------------------------------------------


def test_the_moments_are_those_of_the_clips(small_shards, tmp_path):
    small_shards.dataset(tmp_path, counts=(3, 2))
    parts = {name: read_moments(tmp_path, name) for name in ("shard-000001", "shard-000000")}
    total = moments_of(parts)
    clips = [small_shards.clip(seed) for seed in range(5)]
    means = torch.stack([clip.mean.double() for clip in clips])
    stds = torch.stack([clip.std.double() for clip in clips])
    assert total.count == 5
    assert torch.allclose(total.mean, means.mean(0), rtol=0, atol=1e-12)
    variance = means.var(0, correction=0).mean() + stds.square().mean()
    assert total.variance == pytest.approx(float(variance), rel=1e-12)


def test_moments_are_the_same_to_the_last_bit_in_whatever_order_shards_finish(
    small_shards, tmp_path
):
    small_shards.dataset(tmp_path, counts=(3, 1, 4, 2, 5))
    names = [f"shard-{number:06d}" for number in range(5)]
    results = set()
    for order in itertools.permutations(names):
        total = moments_of({name: read_moments(tmp_path, name) for name in order})
        results.add((total.mean.numpy().tobytes(), total.variance))
    assert len(results) == 1


def test_moments_of_nothing_are_empty():
    assert moments_of({}).count == LatentMoments().count == 0


@pytest.mark.parametrize("damage", ["flipped", "missing", "of another shard"])
def test_other_moments_than_the_sidecar_states_are_refused(small_shards, tmp_path, damage):
    small_shards.dataset(tmp_path)
    path = tmp_path / moments_name("shard-000000")
    if damage == "flipped":
        flip(path)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes((tmp_path / moments_name("shard-000001")).read_bytes())
    with pytest.raises(DataError, match=r"not what its sidecar states; delete .*000000\.json"):
        read_moments(tmp_path, "shard-000000")
