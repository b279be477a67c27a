"""Reading published files: formats, shards, refusals, and what is left of a file in memory."""

import json
import re
import traceback
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cil.errors import ConfigError, DataError
from cil.models.checkpoint_files import read_checkpoint, write_checkpoint
from cil.models.strict_loading import load_strict, looks_like


def weights():
    generator = torch.Generator().manual_seed(4)
    return {
        "z.weight": torch.randn(40, 30, generator=generator),
        "a.bias": torch.randn(7, generator=generator).half(),
        "m.weight": torch.randn(3, 5, generator=generator).bfloat16(),
        "count": torch.tensor(5),
    }


def same(found, wanted, *, order=True):
    assert (list(found) == list(wanted)) if order else (sorted(found) == sorted(wanted))
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".anything"])
def test_a_file_of_torch_is_read_in_its_order(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    torch.save(OrderedDict(weights()), path)
    same(read_checkpoint(path), weights())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "global_step": 3, "callbacks": {}, "epoch": 1},
        lambda s: {
            "module": {f"_forward_module.{k}": v for k, v in s.items()},
            "lr_scheduler": None,
        },
        lambda s: {"model_state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {"state_dict": {f"_orig_mod.{k}": v for k, v in s.items()}},
    ],
    ids=["lightning", "deepspeed", "ddp", "compiled"],
)
def test_what_is_wrapped_is_taken_out(tmp_path, wrap):
    torch.save(wrap(weights()), tmp_path / "model.ckpt")
    same(read_checkpoint(tmp_path / "model.ckpt"), weights())


def test_a_file_of_old_torch(tmp_path):
    torch.save(weights(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    same(read_checkpoint(tmp_path / "old.pt"), weights())


def test_safetensors_by_content_not_by_name(tmp_path):
    save_file(weights(), tmp_path / "model.ckpt")
    same(read_checkpoint(tmp_path / "model.ckpt"), weights(), order=False)


@pytest.mark.parametrize("length", [0x180, 0x3C20, 0x227B, 0x480])
def test_lengths_of_headers_that_look_like_another_kind_of_file(tmp_path, length):
    header = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    content = length.to_bytes(8, "little") + header + b"\0\0\x80\x3f"
    (tmp_path / "x.safetensors").write_bytes(content)
    same(read_checkpoint(tmp_path / "x.safetensors"), {"x": torch.ones(1)})


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_tensors_are_private_maps_of_the_file(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    write_checkpoint(path, weights())
    before = path.read_bytes()
    state = read_checkpoint(path)
    assert str(path) in Path("/proc/self/maps").read_text()
    state["z.weight"].zero_()
    assert path.read_bytes() == before
    write_checkpoint(path, state)  # over the file that backs the tensors
    again = read_checkpoint(path)
    same(state, again, order=False)
    assert not again["z.weight"].any()
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]


def test_written_ckpt_is_one_of_lightning_and_keeps_the_order(tmp_path):
    path = tmp_path / "out.ckpt"
    base = torch.randn(6, 4)
    state = {"b": base[:3], "a": base, "c": base.T}  # views of one storage
    write_checkpoint(path, state)
    loaded = torch.load(path, weights_only=True)
    assert list(loaded) == ["state_dict"]
    same(loaded["state_dict"], state)
    assert path.stat().st_size < 4000
    with pytest.raises(ConfigError, match=r"got out.bin"):
        write_checkpoint(tmp_path / "out.bin", state)


def shards(folder, suffix="safetensors", stem="model"):
    folder.mkdir()
    parts = [{"z.weight", "count"}, {"a.bias", "m.weight"}]
    placed = {}
    for number, names in enumerate(parts):
        name = f"{stem}-{number + 1:05d}-of-00002.{suffix}"
        part = {key: value for key, value in weights().items() if key in names}
        save_file(part, folder / name) if suffix == "safetensors" else torch.save(
            part, folder / name
        )
        placed |= dict.fromkeys(sorted(part), name)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return index


@pytest.mark.parametrize(
    ("suffix", "stem"), [("safetensors", "diffusion_pytorch_model"), ("bin", "pytorch_model")]
)
def test_shards(tmp_path, suffix, stem):
    index = shards(tmp_path / "model", suffix, stem)
    same(read_checkpoint(tmp_path / "model"), weights(), order=False)
    same(read_checkpoint(index), weights(), order=False)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a\\b", "..", 3, "sub/x"])
def test_shard_names_are_not_paths(tmp_path, name):
    save_file(weights(), tmp_path / "other.safetensors")
    index = shards(tmp_path / "model")
    index.write_text(json.dumps({"weight_map": {"z.weight": name}}))
    with pytest.raises(DataError, match="no file beside it"):
        read_checkpoint(tmp_path / "model")


def test_shards_that_are_missing_or_of_another_version(tmp_path):
    index = shards(tmp_path / "model")
    values = json.loads(index.read_text())
    shard = values["weight_map"]["z.weight"]
    index.write_text(json.dumps({"weight_map": values["weight_map"] | {"more": shard}}))
    with pytest.raises(DataError, match=r"1 tensors that are not in their shards \(more\)"):
        read_checkpoint(tmp_path / "model")
    (tmp_path / "model" / shard).unlink()
    with pytest.raises(DataError, match="is missing; download it as well"):
        read_checkpoint(tmp_path / "model")
    index.write_text("{}")
    with pytest.raises(DataError, match="has no weight_map"):
        read_checkpoint(tmp_path / "model")


def test_folders(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    with pytest.raises(DataError, match="give one of its folders: unet"):
        read_checkpoint(tmp_path)
    save_file(weights(), tmp_path / "anyname.safetensors")
    same(read_checkpoint(tmp_path), weights(), order=False)
    save_file(weights(), tmp_path / "another.safetensors")
    with pytest.raises(DataError, match="name one of them"):
        read_checkpoint(tmp_path)
    save_file({"x": torch.ones(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    assert list(read_checkpoint(tmp_path)) == ["x"]


class Payload:
    """Would make a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_objects_are_refused_and_not_run(tmp_path, zipped):
    path, trace = tmp_path / "evil.ckpt", tmp_path / "trace"
    torch.save(
        {"state_dict": weights(), "callbacks": Payload(trace)},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(DataError, match="is refused") as caught:
        read_checkpoint(path)
    said = str(caught.value)
    assert re.search(r"\b(io|_io|builtins)\.open", said), said
    assert "weights_only" not in said
    assert "safetensors" in said
    # torch's own text advises how to run it
    assert "weights_only=" not in "".join(traceback.format_exception(caught.value))
    assert not trace.exists()


def broken_files(folder):
    torch.save({"state_dict": weights()}, folder / "whole.ckpt")
    save_file(weights(), folder / "whole.safetensors")
    zipped, plain = ((folder / f"whole.{s}").read_bytes() for s in ("ckpt", "safetensors"))
    with zipfile.ZipFile(folder / "zip.ckpt", "w") as archive:
        archive.writestr("readme.txt", "no weights")
    yield "half.ckpt", zipped[: len(zipped) // 2], "is cut short"
    yield "half.safetensors", plain[:-100], "is cut short"
    yield "head.safetensors", plain[:50], "cut short|neither safetensors"
    yield "empty.ckpt", b"", "is empty"
    yield "page.ckpt", b"\n<!DOCTYPE html><html>log in</html>" * 9, "is a web page"
    yield "answer.ckpt", b'{"error":"Repository not found"}', "is JSON text"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"
    yield "lfs.safetensors", pointer, "is a git-lfs pointer"
    yield "noise.ckpt", bytes(range(1, 251)) * 8, "neither safetensors nor"
    yield "zip.ckpt", (folder / "zip.ckpt").read_bytes(), "not one that torch.save wrote"


def test_what_is_not_weights(tmp_path):
    for name, content, wanted in list(broken_files(tmp_path)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=wanted):
            read_checkpoint(tmp_path / name)
    with pytest.raises(DataError, match="there is no such file"):
        read_checkpoint(tmp_path / "nothing.ckpt")
    torch.save({"optimizer": {"lr": 3}, "step": 1}, tmp_path / "other.pt")
    with pytest.raises(DataError, match=r"entries that are no tensors \(optimizer, step\)"):
        read_checkpoint(tmp_path / "other.pt")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(DataError, match="holds list and no tensors by name"):
        read_checkpoint(tmp_path / "list.pt")


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_eight_bit_floats_are_refused(tmp_path, suffix):
    state = weights() | {"q.weight": torch.ones(4, 4).to(torch.float8_e4m3fn)}
    path = tmp_path / f"model.{suffix}"
    torch.save(state, path) if suffix == "ckpt" else save_file(state, path)
    with pytest.raises(DataError, match=r"1 tensors of a type .*q\.weight: float8_e4m3fn"):
        read_checkpoint(path)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def test_load_strict_takes_the_tensors_themselves():
    state = Small().state_dict()
    with torch.device("meta"):
        network = Small()
    network.second.weight.requires_grad_(requires_grad=False)
    load_strict(network, state, source="x")
    assert network.first.weight.data_ptr() == state["first.weight"].data_ptr()
    assert network.first.weight.requires_grad
    assert not network.second.weight.requires_grad
    same(network.state_dict(), state)


@pytest.mark.parametrize("given", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("wanted", [None, torch.float32, torch.bfloat16])
def test_load_strict_casts(given, wanted):
    state = {
        name: value.to(given) if value.is_floating_point() else value
        for name, value in Small().state_dict().items()
    }
    with torch.device("meta"):
        network = Small()
    load_strict(network, state, source="x", dtype=wanted)
    assert network.first.weight.dtype == (wanted or torch.float32)
    assert network.count.dtype == torch.int64
    assert torch.equal(network.first.weight, state["first.weight"].to(network.first.weight.dtype))


def test_load_strict_says_all_that_differs_at_once():
    network, state = Small(), Small().state_dict()
    kept = network.state_dict()["first.weight"].clone()
    state["second.bias"] = torch.zeros(5)
    state["first.bias"] = torch.zeros(3, dtype=torch.uint8)
    del state["count"]
    state |= {f"mid_block.{n}.temporal_transformer_blocks.0": torch.ones(1) for n in "abcd"}
    with pytest.raises(DataError) as caught:
        load_strict(network, state, source="some.ckpt")
    said = str(caught.value)
    assert "some.ckpt does not fit Small (5 tensors wanted, 8 given" in said
    assert "Stable Video Diffusion UNet of diffusers" in said
    assert "1 missing (count)" in said
    assert "4 unexpected (mid_block.a.temporal_transformer_blocks.0, " in said
    assert "mid_block.d." not in said
    assert ", ...)" in said
    assert "1 of another shape (second.bias (5,) in place of (2,))" in said
    assert "1 of another type (first.bias torch.uint8 in place of torch.float32)" in said
    assert torch.equal(network.state_dict()["first.weight"], kept)


def test_load_strict_leaves_no_buffer_without_values():
    with torch.device("meta"):
        network = nn.Linear(2, 2)
        network.register_buffer("steps", torch.arange(3), persistent=False)
    with pytest.raises(DataError, match=r"buffers that no checkpoint holds \(steps\)"):
        load_strict(network, nn.Linear(2, 2).state_dict(), source="x")


def test_kinds_of_checkpoint():
    assert looks_like(["a.weight"]) is None
    assert looks_like(["x.lora_A.weight"]) == "LoRA adapter"
    unet = ["input_blocks.0.0.weight", "init_attn.0.norm.weight"]
    assert looks_like(unet) == "LVDM (DynamiCrafter or VideoCrafter1) UNet"
    whole = [f"model.diffusion_model.{name}" for name in unet]
    assert looks_like(whole) == "whole LVDM (DynamiCrafter or VideoCrafter1) checkpoint"
    assert looks_like([whole[0], "cond_stage_model.x"]) == "Stable Diffusion checkpoint"
