"""The machine code of the kernels, compiled here for GPUs that are not here.

The bounds are what `python -m benchmarks.kernel_code` printed, with a little room: a change of the
compiler or of a kernel that costs registers, spills, width or instructions has to be looked at.
"""

import dataclasses
import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest

assert os.environ.get("TRITON_INTERPRET") != "1", "an interpreted kernel cannot be compiled"

ROOT = Path(__file__).parents[3]

# registers, instructions for one element (in the loop, where the kernel has one)
BOUNDS = {
    ("input, shared, bf16", "sm_80"): (50, 33),
    ("input, per_frame, bf16", "sm_80"): (66, 53),
    ("input, shared, fp32", "sm_80"): (52, 51),
    ("input, shared, bf16", "sm_90"): (50, 33),
    ("input, per_frame, bf16", "sm_90"): (66, 53),
    ("input, shared, fp32", "sm_90"): (52, 51),
    ("input, per_frame, fp32", "sm_90"): (60, 87),
    ("corrupt, bf16", "sm_90"): (34, 37),
    ("square error and gradient, bf16", "sm_90"): (34, 51),
    ("moments, fp32", "sm_90"): (52, 24),
    ("input, shared, bf16", "gfx942"): (60, 60),
    ("input, per_frame, bf16", "gfx942"): (78, 108),
    ("input, shared, fp32", "gfx942"): (56, 53),
    ("square error and gradient, bf16", "gfx942"): (140, 63),
}


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """The benchmark that compiles and reads machine code, with a compiler cache of its own."""
    spec = importlib.util.spec_from_file_location(
        "kernel_code", ROOT / "benchmarks" / "kernel_code.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["kernel_code"] = module  # its dataclasses look themselves up
    before = os.environ.get("TRITON_CACHE_DIR")
    os.environ["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    spec.loader.exec_module(module)
    yield module
    del sys.modules["kernel_code"]
    os.environ.pop("TRITON_CACHE_DIR")
    if before is not None:
        os.environ["TRITON_CACHE_DIR"] = before


@pytest.mark.parametrize(("name", "target"), BOUNDS)
def test_machine_code_stays_within_its_bounds(name, target, code):
    (variant,) = (v for v in code.variants(target) if v.name == name)
    found = code.inspect(variant, target)
    registers, per_element = BOUNDS[name, target]
    assert (found.spills, found.stack) == (0, 0)
    assert (found.load_bits, found.store_bits) == (128, 128)
    assert found.registers <= registers
    assert 0 < variant.per_element(found) <= per_element
    if "square" not in name:  # the one that adds over threads
        assert (found.shared, found.barriers) == (0, 0)


def variant_of(name, target, code):
    return next(variant for variant in code.variants(target) if variant.name == name)


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
@pytest.mark.parametrize("name", ["square error and gradient, bf16", "finish"])
def test_a_loss_is_added_by_an_order_that_no_register_layout_changes(name, target, code):
    """`tl.sum` follows the layout, and that follows how wide loads can be; only max may reduce."""
    variant = variant_of(name, target, code)
    ttir = code.compile_variant(variant, target).asm["ttir"]
    assert ttir.count("tt.split") == 10  # 1024 numbers
    (reduction,) = re.findall(r"\"tt\.reduce\".*?\}\)", ttir, re.DOTALL)
    assert "arith.maxnumf" in reduction
    assert "addf" not in reduction
    found = code.inspect(variant, target)
    assert (found.spills, found.stack) == (0, 0)


def test_the_bounds_see_a_worse_kernel(code):
    """A counter for each element instead of one for four."""
    good = next(v for v in code.variants("sm_90") if v.name == "input, shared, bf16")
    constants = {**good.constants, "LANES": 1, "APPROX": False}
    found = code.inspect(dataclasses.replace(good, constants=constants), "sm_90")
    assert good.per_element(found) > 3 * BOUNDS["input, shared, bf16", "sm_90"][1]


def test_the_path_for_odd_sizes_neither_spills_nor_needs_a_stack(code):
    variant = code.input_variant("odd", "bf16", 2, approx=True, spatial=35)
    constants = {**variant.constants, "FLAT": False, "REPEAT": False}
    for name in ("clean_w", "cond_w"):
        del constants[name]
    found = code.inspect(dataclasses.replace(variant, constants=constants), "sm_90")
    assert (found.spills, found.stack, found.shared) == (0, 0, 0)
