import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cil.errors import DataError
from cil.models.patch_moments import PatchMoments
from cil.models.patch_pca import PatchPCA
from cil.moments import LatentMoments
from pipelines import shards
from pipelines.__main__ import _main
from pipelines.config import content_hash
from pipelines.shards import load_manifest, write_shard
from pipelines.store import open_store
from pipelines.verify import verify


@pytest.fixture
def dataset(encoded_run, tmp_path):
    """A copy of the encoded data set that a test may damage."""
    shutil.copytree(encoded_run.dataset, tmp_path / "dataset")
    return tmp_path / "dataset"


@pytest.fixture
def faults(dataset, tmp_path):
    """Check the copy: (file, message) of each fault."""

    def check():
        report = verify(str(dataset), tmp_path / "cache")
        assert report.metrics["faults"] == len(report.outputs["faults"])
        return [tuple(text.split(": ", 1)) for text in report.outputs["faults"]]

    return check


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


def sealed(dataset, **changes):
    """Change the manifest and make its fingerprint fit again."""
    path = dataset / "manifest.json"
    raw = {**json.loads(path.read_bytes()), **changes}
    raw["fingerprint"] = content_hash({"identity": raw["identity"], "shards": raw["shards"]})
    path.write_text(json.dumps(raw))


def test_a_clean_data_set_has_no_faults(dataset, faults, tmp_path):
    before = {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    assert faults() == []
    report = verify(str(dataset), tmp_path)
    manifest = load_manifest(dataset)
    assert report.metrics == {"shards": 2.0, "clips": 10.0, "faults": 0.0}
    assert report.inputs["fingerprint"] == manifest.fingerprint
    assert {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()} == before


# -- tar files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 700, 5000, -1])
def test_a_flipped_bit_in_a_tar_is_found(dataset, faults, position):
    path = dataset / "shards" / "shard-000001.tar"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    ((place, message),) = faults()
    assert place == "shards/shard-000001.tar"
    assert hashlib.sha256(content).hexdigest() in message
    assert load_manifest(dataset).entries()[1].sha256 in message


@pytest.mark.parametrize("keep", [0, 1000, -512])
def test_a_cut_tar_is_found(dataset, faults, keep):
    path = dataset / "shards" / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[:keep])
    ((place, message),) = faults()
    assert place == "shards/shard-000000.tar"
    assert message.startswith("its sha256 is ")


def test_a_missing_tar_is_found(dataset, faults):
    (dataset / "shards" / "shard-000000.tar").unlink()
    assert faults() == [("shards/shard-000000.tar", "it is missing")]


def test_a_tar_that_nothing_lists_is_found(dataset, faults):
    shutil.copy(dataset / "shards" / "shard-000000.tar", dataset / "shards" / "shard-000009.tar")
    assert faults() == [("shards/shard-000009.tar", "the manifest does not list it")]


def test_every_fault_is_named_and_not_only_the_first(dataset, faults):
    (dataset / "shards" / "shard-000000.tar").unlink()
    (dataset / "shards" / "shard-000001.tar").write_bytes(b"x")
    assert [place for place, _ in faults()] == [
        "shards/shard-000000.tar",
        "shards/shard-000001.tar",
    ]


# -- manifest and sidecars ------------------------------------------------------------------------


def test_a_wrong_total_is_found(dataset, faults):
    totals = {**load_manifest(dataset).totals, "clips": 11}
    edit(dataset / "manifest.json", totals=totals)
    assert faults() == [("manifest.json", "the shards have 10 clips, the total is 11")]


def test_a_wrong_count_of_a_shard_is_found(dataset, faults):
    manifest = load_manifest(dataset)
    entries = [dict(entry) for entry in manifest.shards]
    entries[0]["count"] += 1
    totals = {**manifest.totals, "clips": 11}
    buckets = {"32x32x8": {**manifest.buckets["32x32x8"], "clips": 11}}
    sealed(dataset, shards=entries, totals=totals, buckets=buckets)
    assert faults() == [("shards/shard-000000.json", "the manifest states something else")]


@pytest.mark.parametrize("what", ["shards", "identity"])
def test_an_edited_manifest_is_found(dataset, faults, what):
    manifest = load_manifest(dataset)
    if what == "shards":
        entries = [dict(entry) for entry in manifest.shards]
        entries.reverse()
        edit(dataset / "manifest.json", shards=entries)
        expected = ["the fingerprint is not that of the identity and shards"]
    else:
        edit(dataset / "manifest.json", identity={**manifest.identity, "scaling_factor": 7.0})
        expected = [
            "the identity is not what its hash says",
            "the fingerprint is not that of the identity and shards",
        ]
    assert faults() == [("manifest.json", message) for message in expected]


@pytest.mark.parametrize("field", ["generation", "bucket"])
def test_a_shard_of_another_generation_or_bucket_is_found(dataset, faults, field):
    path = dataset / "shards" / "shard-000000.json"
    raw = json.loads(path.read_bytes())
    edit(path, **{field: raw["generation"] + 3 if field == "generation" else "64x64x8"})
    assert faults() == [("shards/shard-000000.json", "the manifest states something else")]


@pytest.mark.parametrize("name", ["shards", "bytes"])
def test_other_wrong_totals_are_found(dataset, faults, name):
    totals = load_manifest(dataset).totals
    edit(dataset / "manifest.json", totals={**totals, name: totals[name] + 1})
    message = f"the shards have {totals[name]} {name}, the total is {totals[name] + 1}"
    assert faults() == [("manifest.json", message)]


def test_a_bucket_with_another_number_of_clips_is_found(dataset, faults):
    bucket = load_manifest(dataset).buckets["32x32x8"]
    edit(dataset / "manifest.json", buckets={"32x32x8": {**bucket, "clips": 9}})
    message = "the shards of 32x32x8 have 10 clips, the bucket 9"
    assert faults() == [("manifest.json", message)]


def test_a_video_with_another_number_of_clips_is_found(dataset, faults):
    path = dataset / "shards" / "shard-000000.json"
    inputs = json.loads(path.read_bytes())["inputs"]
    edit(path, inputs=[{**inputs[0], "clips": inputs[0]["clips"] + 1}, *inputs[1:]])
    message = "its videos have another number of clips"
    assert faults() == [("shards/shard-000000.json", message)]


def other_offset(raw):
    members = json.loads(json.dumps(raw["members"]))
    members[raw["keys"][0]]["json"][0] += 1
    return {"members": members}


SIDECARS = {
    "other count": (lambda raw: {"count": raw["count"] - 1}, "the manifest states something else"),
    "other hash": (lambda raw: {"sha256": "0" * 64}, "the manifest states something else"),
    "other identity": (lambda raw: {"identity_hash": "x"}, "the manifest states something else"),
    "a key twice": (
        lambda raw: {"keys": [raw["keys"][0], *raw["keys"][:-1]]},
        "keys are missing or stand twice",
    ),
    "a key less": (lambda raw: {"keys": raw["keys"][1:]}, "keys are missing or stand twice"),
    "other order": (lambda raw: {"keys": raw["keys"][::-1]}, "the index is not that of the tar"),
    "other offset": (other_offset, "the index is not that of the tar"),
}


@pytest.mark.parametrize("how", SIDECARS)
def test_an_edited_sidecar_is_found(dataset, faults, how):
    change, message = SIDECARS[how]
    path = dataset / "shards" / "shard-000000.json"
    edit(path, **change(json.loads(path.read_bytes())))
    found = faults()
    assert ("shards/shard-000000.json", message) in found
    assert {place for place, _ in found} == {"shards/shard-000000.json"}


@pytest.mark.parametrize("content", [None, "", "{}", '{"format_version": 99}'])
def test_a_sidecar_that_cannot_be_read_is_a_fault_of_its_shard(dataset, faults, content):
    path = dataset / "shards" / "shard-000001.json"
    path.unlink() if content is None else path.write_text(content)
    ((place, message),) = faults()
    assert place == "shards/shard-000001.tar"
    assert message.startswith("cannot be read: ")
    assert "shard-000001.json" in message


# -- moments --------------------------------------------------------------------------------------


def test_moments_of_another_shard_are_found(dataset, faults):
    one, other = (dataset / "shards" / f"shard-00000{n}.moments.safetensors" for n in (0, 1))
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)
    found = faults()
    assert [place for place, _ in found] == ["shards/shard-000000.tar", "shards/shard-000001.tar"]
    assert all("not what its sidecar states" in message for _, message in found)


@pytest.mark.parametrize("key", ["mean", "m2"])
def test_moments_that_are_not_those_of_the_clips_are_found(dataset, faults, key):
    """The file is what the sidecar states, but other clips made it."""
    path = dataset / "shards" / "shard-000000.moments.safetensors"
    tensors = load_file(path)
    tensors[key] = tensors[key] * (1 + 1e-9)
    save_file(tensors, path)
    sidecar = dataset / "shards" / "shard-000000.json"
    stated = json.loads(sidecar.read_bytes())["moments"]
    edit(sidecar, moments={**stated, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    message = f"the stored moments are not those of the clips: {key}"
    assert faults() == [("shards/shard-000000.tar", message)]


# -- what the clips hold --------------------------------------------------------------------------


@pytest.fixture
def rewritten(small_shards, tmp_path):
    """Write a data set with a strange clip by the real writer: faults of its shard."""

    def write(change, **spec):
        good, strange = small_shards.clip(0), change(small_shards.clip(1))
        folder = tmp_path / "small"
        small_shards.dataset(folder, counts=(2,))
        store = open_store(folder)
        old = load_manifest(folder)
        sidecar = write_shard(
            store,
            small_shards.spec(**spec),
            iter([good, strange]),
            identity_hash=old.identity_hash,
            quarantined=[],
        )
        entry = {**old.shards[0], "sha256": sidecar.sha256, "num_bytes": sidecar.num_bytes}
        sealed(folder, shards=[entry])
        report = verify(str(folder), tmp_path)
        found = [text.split(": ", 1) for text in report.outputs["faults"]]
        assert [place for place, _ in found if not place.startswith("shards/")] == ["first_stage"]
        return [message for place, message in found if place.startswith("shards/")]

    return write


def of_clip(small_shards, message):
    return f"clip {small_shards.clip(1).record.key}: {message}"


def test_a_good_shard_of_the_small_writer_has_no_faults(rewritten):
    assert rewritten(lambda clip: clip) == []


def unchecked(monkeypatch):
    """Let the writer write latents that it would refuse."""

    class Unchecked(LatentMoments):
        def update(self, mean, std):
            if mean.isfinite().all() and std.isfinite().all() and (std >= 0).all():
                super().update(mean, std)

    monkeypatch.setattr(shards, "LatentMoments", Unchecked)


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_are_found(rewritten, small_shards, monkeypatch, name, value):
    """The writer itself refuses them, so its check is taken away."""

    def spoil(clip):
        tensor = getattr(clip, name).clone()
        tensor[0, 0, 0, 0] = value
        return dataclasses.replace(clip, **{name: tensor})

    unchecked(monkeypatch)
    assert of_clip(small_shards, f"{name} is not finite") in rewritten(spoil)


def test_a_negative_std_is_found(rewritten, small_shards, monkeypatch):
    unchecked(monkeypatch)
    found = rewritten(lambda clip: dataclasses.replace(clip, std=-clip.std))
    assert of_clip(small_shards, "std is negative") in found


def test_a_condition_that_is_not_finite_is_found(rewritten, small_shards):
    def spoil(clip):
        return dataclasses.replace(clip, condition={"image_embeds": torch.full((1, 8), torch.nan)})

    assert rewritten(spoil) == [of_clip(small_shards, "image_embeds is not finite")]


@pytest.mark.parametrize(("frames", "faults"), [(2, 0), (1, 1)])
def test_conditioning_latents_of_another_shape_are_found(rewritten, small_shards, frames, faults):
    def spoil(clip):
        shown = torch.zeros(frames, *clip.mean.shape[1:])
        return dataclasses.replace(
            clip, condition={**clip.condition, "conditioning_latents": shown}
        )

    shape = "conditioning_latents has shape [1, 3, 4, 4], the bucket [2, 3, 4, 4]"
    assert rewritten(spoil) == [of_clip(small_shards, shape)] * faults


def test_a_thumbnail_of_another_kind_is_found(rewritten, small_shards):
    def spoil(clip):
        return dataclasses.replace(clip, thumbnail=b"GIF89a")

    assert rewritten(spoil) == [of_clip(small_shards, "its thumbnail is not a WebP image")]


def test_latents_of_another_shape_are_found(dataset, faults):
    manifest = load_manifest(dataset)
    edit(
        dataset / "manifest.json",
        buckets={"32x32x8": {**manifest.buckets["32x32x8"], "latents_shape": [8, 4, 8, 16]}},
    )
    found = [message for place, message in faults() if "mean has shape [8, 4, 8, 8]" in message]
    assert len(found) == 10


# -- first stage ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["another", "damaged", "missing"])
def test_another_first_stage_is_found(dataset, faults, how):
    folder = dataset / "first_stage"
    if how == "damaged":
        (path,) = folder.glob("*.safetensors")
        save_file({name: tensor * 1.001 for name, tensor in load_file(path).items()}, path)
    else:
        shutil.rmtree(folder)
    if how == "another":
        moments = PatchMoments(patch_size=4)
        moments.update(np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), np.uint8))
        PatchPCA.fit(moments, latent_channels=4).save(folder)
    ((place, message),) = faults()
    assert place == "first_stage"
    expected = {"another": "it is not the one that made the latents", "damaged": "is damaged"}
    assert expected.get(how, "first_stage") in message


# -- command line ---------------------------------------------------------------------------------


def test_the_exit_code_says_whether_anything_is_wrong(dataset, capsys):
    assert _main(["verify", str(dataset)]) == 0
    (dataset / "shards" / "shard-000000.tar").unlink()
    capsys.readouterr()
    assert _main(["verify", str(dataset), "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["verify"]["outputs"]["faults"] == [
        "shards/shard-000000.tar: it is missing"
    ]
    assert err.endswith("error: 1 faults:\n  shards/shard-000000.tar: it is missing\n")


def test_a_folder_without_a_data_set_is_no_clean_one(tmp_path, capsys):
    with pytest.raises(DataError, match="no data set in"):
        verify(str(tmp_path), tmp_path)
    assert _main(["verify", str(tmp_path / "nowhere")]) == 1
    assert "no data set in" in capsys.readouterr().err
