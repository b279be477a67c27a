import json
import mmap

import pytest
import torch
from safetensors.torch import load, save

from cil.errors import DataError
from pipelines.tensor_views import tensor_views

TENSORS = {
    "mean": torch.randn(3, 4, 5).to(torch.bfloat16),
    "half": torch.randn(7).to(torch.float16),
    "single": torch.randn(2, 1, 2),
    "double": torch.randn(1, 3, dtype=torch.float64),
    "scalar": torch.tensor(2.5),
}


@pytest.mark.parametrize("before", [0, 8, 512, 513])
def test_views_are_what_the_library_reads(tmp_path, before):
    """Also at odd places, where a tar file would not put it."""
    content = save(TENSORS, metadata={"made": "here"})
    (tmp_path / "file").write_bytes(bytes(before) + content + b"rest")
    with (tmp_path / "file").open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    expected = load(content)
    found = tensor_views(memory, before, len(content))
    del memory
    assert sorted(found) == sorted(expected)
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])


def made(header, data=bytes(16)):
    raw = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return len(raw).to_bytes(8, "little") + raw + data


def one(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


DAMAGED = {
    "empty": b"",
    "too short": b"\1\0\0",
    "header longer than the file": (10**6).to_bytes(8, "little") + b"{}",
    "huge header": b"\xff" * 16,
    "no JSON": made(b"{nothing"),
    "a list": made(b"[]"),
    "unknown type": made(one(dtype="U64")),
    "wrong size": made(one(shape=(3,))),
    "beyond the end": made(one(offsets=(16, 32))),
    "before the start": made(one(offsets=(-16, 0))),
    "negative shape": made(one(shape=(-2, -2))),
    "no offsets": made({"a": {"dtype": "F32", "shape": [4]}}),
    "text for a shape": made({"a": {"dtype": "F32", "shape": "ab", "data_offsets": [0, 16]}}),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_file_is_refused(how):
    content = DAMAGED[how]
    with pytest.raises(DataError, match="a safetensors file"):
        tensor_views(content + bytes(64), 0, len(content))


def test_a_file_made_by_hand_is_read():
    content = made(one(), torch.arange(4.0).numpy().tobytes())
    assert tensor_views(content, 0, len(content))["a"].tolist() == [0, 1, 2, 3]
