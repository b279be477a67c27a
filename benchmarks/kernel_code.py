"""What the compilers make of the kernels, without a GPU: registers, spills, widths, loop lengths.

python -m benchmarks.kernel_code            prints the table of docs/kernels.md

Triton brings ptxas, cuobjdump and nvdisasm, and LLVM for AMD, so that this needs no device. A count
of instructions is of what stands in the loop, not of what a GPU executed.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import input_triton, launch, loss_triton, moments_triton

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
FLOATS = {"sigma_cond_ptr", "keep_ptr", "scales_ptr", "level_ptr", "weight_ptr", "upstream_ptr"}
FLOATS |= {"sums_ptr", "loss_ptr"}
DOUBLES = {"mean_ptr", "m2_ptr", "new_mean_ptr", "new_m2_ptr"}
WHOLE = {"key_ptr", "ids_ptr", "count_ptr", "new_count_ptr"}
REAL = {"beta_m", "logit_scale", "dropout", "two_over_count", "one_over_count"}
SMALL = {"frames", "channels", "width", "num_sums"}
"""Integers of which nothing is known; the others are multiples of 16, as in the paper's shapes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One kernel with one choice of dtype and constants."""

    name: str
    kernel: Any
    dtype: str
    lanes: int
    """Elements that one thread makes in one turn of the loop, or in all."""
    constants: dict[str, Any]
    threads: int = 128

    def per_element(self, code: "Code") -> float:
        """Return the instructions for one element: of the loop over frames, or all."""
        return (code.loop if "FRAMES" in self.constants else code.length) / self.lanes


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """What was compiled."""

    registers: int
    spills: int
    """Registers kept in memory."""
    stack: int
    """Bytes of stack or scratch memory per thread."""
    shared: int
    """Bytes of memory that threads share."""
    load_bits: int
    """Widest load of one thread."""
    store_bits: int
    """Widest store of one thread."""
    barriers: int
    loop: int
    """Instructions in the longest loop."""
    length: int
    """Instructions in all."""


def input_variant(name: str, dtype: str, noise: int, *, approx: bool, spatial: int = 16) -> Variant:
    lanes = next(n for n in ((8, 4, 1) if dtype != "fp32" else (4, 1)) if spatial % n == 0)
    constants = {
        "clean_w": 1,
        "cond_w": 1,
        "NOISE": noise,
        "DRAW_LEVEL": True,
        "TARGET": True,
        "REPEAT": True,
        "FLAT": True,
        "FRAMES": 4,
        "BLOCK": 128 * lanes,
        "LANES": lanes,
        "APPROX": approx,
    }
    kernel = input_triton.training_input_kernel
    return Variant(name=name, kernel=kernel, dtype=dtype, lanes=lanes, constants=constants)


def variants(target: str) -> Iterator[Variant]:
    """Yield the kernels as they are launched on a target."""
    nvidia = target.startswith("sm")
    for dtype in ("bf16", "fp32"):
        for noise in ("shared", "per_frame"):
            yield input_variant(
                f"input, {noise}, {dtype}",
                dtype,
                input_triton.NOISE_CODES[noise],
                approx=nvidia and dtype == "bf16",
            )
    corrupt = {"values_w": 1, "STREAM": 7, "FLAT": True, "BLOCK": 1024, "LANES": 8}
    yield Variant(
        name="corrupt, bf16",
        kernel=input_triton.corrupt_kernel,
        dtype="bf16",
        lanes=8,
        constants={**corrupt, "APPROX": nvidia},
    )
    error = {"prediction_w": 1, "target_w": 1, "FLAT": True, "BLOCK": loss_triton.BLOCK}
    yield Variant(
        name="square error and gradient, bf16",
        kernel=loss_triton.square_error_kernel,
        dtype="bf16",
        lanes=8,
        constants={**error, "LOSS": True, "GRAD": True, "UPSTREAM": False},
    )
    yield Variant(
        name="finish",
        kernel=loss_triton.finish_kernel,
        dtype="fp32",
        lanes=4 * 8,
        constants={"TRIPS": 4, "BLOCK": loss_triton.BLOCK},
    )
    yield Variant(
        name="moments, fp32",
        kernel=moments_triton.moments_kernel,
        dtype="fp32",
        lanes=8 * 2,
        constants={"CLIPS": 8, "STD": False, "BLOCK": 256},
    )


def _type(name: str, variant: Variant) -> str:
    if name in variant.constants:
        return "constexpr"
    if name in REAL:
        return "fp32"
    if not name.endswith("_ptr"):
        return "i32"
    for names, kind in ((WHOLE, "i64"), (DOUBLES, "fp64"), (FLOATS, "fp32")):
        if name in names:
            return "*" + kind
    return "*" + variant.dtype


def compile_variant(variant: Variant, target: str) -> Any:
    """Compile as the launcher would for aligned tensors."""
    names = variant.kernel.arg_names
    types = {name: _type(name, variant) for name in names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if types[name].startswith("*") or (types[name] == "i32" and name not in SMALL)
    }
    source = ASTSource(
        fn=variant.kernel, signature=types, constexprs=variant.constants, attrs=aligned
    )
    gpu = TARGETS[target]
    options = launch.launch_options(variant.threads // gpu.warp_size)
    return triton.compile(source, target=gpu, options=options)


def _tool(name: str, *arguments: str) -> str:
    done = subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def _lengths(lines: list[str], instruction: str, label: str, branch: str) -> dict[str, int]:
    """Count the instructions, and those of the longest run that a branch jumps back over."""
    places: dict[str, int] = {}
    number, longest = 0, 0
    for line in lines:
        if found := re.match(label, line):
            places[found[1]] = number
        elif re.match(instruction, line):
            number += 1
            if (jump := re.search(branch, line)) and jump[1] in places:
                longest = max(longest, number - places[jump[1]])
    return {"loop": longest, "length": number}


def _nvidia(compiled: Any) -> Code:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        sass = _tool("nvdisasm", "-c", file.name)

    def number(name: str) -> int:
        return int(re.search(rf"\b{name}:(\d+)", usage)[1])  # type: ignore[index]

    def widest(letter: str) -> int:
        widths = re.findall(rf"\b{letter}\.E(?:\.[A-Z_]+)*(?:\.(\d+))?\b", sass)
        return max(int(width or 32) for width in widths)

    return Code(
        registers=number("REG"),
        spills=len(re.findall(r"\b(?:STL|LDL)\b", sass)),
        stack=number("STACK"),
        shared=number("SHARED"),
        load_bits=widest("LDG"),
        store_bits=widest("STG"),
        barriers=len(re.findall(r"\bBAR\.", sass)),
        **_lengths(
            sass.splitlines(),
            r"\s+/\*[0-9a-f]{4,}\*/\s+\S",
            r"\s*(\.L_\w+):",
            r"BRA.*`\((\.L_\w+)\)",
        ),
    )


def _amd(compiled: Any) -> Code:
    text = compiled.asm["amdgcn"]

    def number(name: str) -> int:
        return int(re.search(rf"\.{name}:\s*(\d+)", text)[1])  # type: ignore[index]

    def widest(verb: str) -> int:
        found = re.findall(rf"(?:global|buffer)_{verb}_(dword(?:x(\d))?|short|byte|ushort)", text)
        return max(32 * int(count or 1) if "dword" in name else 16 for name, count in found)

    return Code(
        registers=number("vgpr_count"),
        spills=number("vgpr_spill_count") + number("sgpr_spill_count"),
        stack=number("private_segment_fixed_size"),
        shared=number("group_segment_fixed_size"),
        load_bits=widest("load"),
        store_bits=widest("store"),
        barriers=len(re.findall(r"\bs_barrier\b", text)),
        **_lengths(text.splitlines(), r"\t[a-z]\w+", r"(\.?L\w+):", r"s_c?branch\w*\s+(\.?L\w+)"),
    )


def inspect(variant: Variant, target: str) -> Code:
    """Compile a kernel and read its machine code."""
    compiled = compile_variant(variant, target)
    return _nvidia(compiled) if target.startswith("sm") else _amd(compiled)


def table() -> str:
    """Return the Markdown table of all kernels on all targets."""
    lines = [
        "| kernel | target | registers | spills | stack | load | store | instructions | "
        "per element |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for target in TARGETS:
        for variant in variants(target):
            code = inspect(variant, target)
            lines.append(
                f"| {variant.name} | {target} | {code.registers} | {code.spills} | {code.stack} | "
                f"{code.load_bits} | {code.store_bits} | {code.length} | "
                f"{variant.per_element(code):.1f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(f"Triton {triton.__version__}\n\n{table()}\n")
