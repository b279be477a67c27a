"""Run by test_interpreter.py in a process of its own, with TRITON_INTERPRET=1 from the start."""

import importlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import kernels

assert os.environ.get("TRITON_INTERPRET") == "1", "the decorators have to see it"

from triton.runtime import interpreter  # noqa: E402

torch.set_num_threads(1)
DTYPES = {
    "bf16": (torch.bfloat16, np.uint16),
    "fp16": (torch.float16, np.uint16),
    "fp32": (torch.float32, np.uint32),
    "fp64": (torch.float64, np.uint64),
}
convert_inexactly = interpreter._convert_float


def convert(values, source, result, rounding):
    """Convert as a GPU does, to the nearest number: the interpreter cuts bfloat16 off."""
    if source.name not in DTYPES or result.name not in DTYPES:
        return convert_inexactly(values, source, result, rounding)
    bits = np.ascontiguousarray(values).view(DTYPES[source.name][1]).copy()
    tensor = torch.from_numpy(bits).view(DTYPES[source.name][0]).to(DTYPES[result.name][0])
    unsigned = DTYPES[result.name][1]
    return tensor.view(getattr(torch, unsigned.__name__)).numpy().reshape(values.shape)


interpreter._convert_float = convert


MODULES = (
    "__init__",
    "launch",
    "input_torch",
    "rng_torch",
    "input_triton",
    "rng_triton",
    "loss_triton",
)


@pytest.fixture
def mutant(tmp_path, monkeypatch):
    """Make a copy of the kernels with one text replaced, and return its modules by name."""

    def make(file, old, new):
        name = f"mutant_{abs(hash((file, old, new)))}"
        folder = tmp_path / name
        folder.mkdir()
        for module in MODULES:
            text = (Path(kernels.__file__).parent / f"{module}.py").read_text()
            if module == file:
                assert text.count(old) >= 1, f"nothing to replace in {file}: {old}"
                text = text.replace(old, new)
            (folder / f"{module}.py").write_text(text.replace("from kernels", f"from {name}"))
        monkeypatch.syspath_prepend(tmp_path)
        return {module: importlib.import_module(f"{name}.{module}") for module in MODULES[1:]}

    return make
