"""Bytes that changed in a file of full length, and weights that are no numbers."""

import zipfile

import pytest
import torch

from cil.errors import DataError
from cil.models.checkpoint_damage import check_finite, check_sums_inside
from cil.models.checkpoint_files import read_checkpoint, write_checkpoint

STATE = {"first": torch.arange(300_000.0), "second": torch.ones(3)}


@pytest.fixture
def file(tmp_path):
    write_checkpoint(tmp_path / "model.ckpt", STATE)
    return tmp_path / "model.ckpt"


def test_a_changed_bit_is_found_which_torch_does_not_see(file):
    check_sums_inside(file)
    with zipfile.ZipFile(file) as archive:
        member = max(archive.infolist(), key=lambda each: each.file_size)
    content = bytearray(file.read_bytes())
    content[content.index(STATE["first"].numpy().tobytes()) + 1_000_002] ^= 1
    file.write_bytes(content)
    assert not torch.equal(read_checkpoint(file)["first"], STATE["first"]), "read all the same"
    with pytest.raises(DataError, match=f"damaged inside: .*{member.filename}.*download it again"):
        check_sums_inside(file)


def test_files_without_sums_are_left_alone(tmp_path):
    write_checkpoint(tmp_path / "model.safetensors", STATE)
    check_sums_inside(tmp_path / "model.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_first_weight_that_is_no_number_is_named(value, dtype):
    long = torch.zeros(1 << 20, 2, dtype=dtype)
    check_finite({"a": long, "number": torch.tensor(3)}, source="x.ckpt")
    long[-1, -1] = long[3, 0] = value
    given = {"fine": torch.ones(2), "a": long, "b": long}
    with pytest.raises(DataError, match=r"x\.ckpt .*: a has 2 of them in 2097152;"):
        check_finite(given, source="x.ckpt")
