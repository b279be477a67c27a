"""Peak memory of loading a file of more than 2 GB, whole process, measured by the kernel."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
WIDTH, LAYERS = 4096, 36
PARAMETERS = LAYERS * WIDTH * WIDTH
CHILD = f"""
import sys
import torch
from torch import nn
from cil.models.checkpoint_files import read_checkpoint, write_checkpoint
from cil.models.strict_loading import load_strict

def now(what):
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(what))
    return int(line.split()[1]) * 1024

path, dtype, out = sys.argv[1], getattr(torch, sys.argv[2]), sys.argv[3:]
base = now("VmHWM")
with torch.device("meta"):
    network = nn.Sequential(*(nn.Linear({WIDTH}, {WIDTH}, bias=False) for _ in range({LAYERS})))
load_strict(network, read_checkpoint(path), source=path, dtype=dtype)
for value in network.parameters():
    assert not value.sum().item()   # every page is read
loaded = now("VmHWM"), now("RssAnon")
with torch.no_grad():
    for value in network.parameters():
        value.add_(1)                # and then every page is written, as a training does
print(base, *loaded, now("VmHWM"), now("RssAnon"))
if out:
    write_checkpoint(out[0], network.state_dict())
"""


def write_sparse(path, kind, size):
    """Write zeros as safetensors, a hole in the disk."""
    header = {
        f"{n}.weight": {
            "dtype": kind,
            "shape": [WIDTH, WIDTH],
            "data_offsets": [n * size * WIDTH**2, (n + 1) * size * WIDTH**2],
        }
        for n in range(LAYERS)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size * PARAMETERS)


def measured(path, dtype="float32", *out):
    """Return bytes: peak before, peak and anonymous when read, the same when written to."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), dtype, *map(str, out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [int(number) for number in done.stdout.split()]
    print(f"{path.name} as {dtype}: {[f'{number / 1e9:.2f} GB' for number in found]}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
def test_peak_of_loading_is_below_1_3_times_the_file(tmp_path, kind):
    path = tmp_path / f"model.{kind}"
    source = tmp_path / "zeros.safetensors"
    write_sparse(source, "F32", 4)
    if kind == "ckpt":
        copy = (
            "import sys; from cil.models.checkpoint_files import read_checkpoint, write_checkpoint;"
            "write_checkpoint(sys.argv[2], read_checkpoint(sys.argv[1]))"
        )
        subprocess.run([sys.executable, "-c", copy, str(source), str(path)], cwd=ROOT, check=True)
    else:
        source.rename(path)
    size = path.stat().st_size
    assert size > 2e9
    base, peak, anonymous, peak_written, _ = measured(path)
    # the peak is of all that is resident: memory of its own and maps of the file
    assert base < 0.3 * size
    assert peak < 1.3 * size
    assert anonymous < base + 0.1 * size
    assert peak_written < 1.3 * size


@pytest.mark.slow
def test_a_cast_takes_the_memory_of_the_network_and_no_more(tmp_path):
    path = tmp_path / "half.safetensors"
    write_sparse(path, "F16", 2)
    size, network = path.stat().st_size, 4 * PARAMETERS
    base, peak, anonymous, _, _ = measured(path)
    # a float32 network of a float16 file is twice the file; the file's pages can be dropped
    assert anonymous < base + 1.05 * network
    assert peak < base + 1.05 * network + size
