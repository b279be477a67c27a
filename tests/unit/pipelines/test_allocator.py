"""Memory that is freed is reused: measured by the page faults of a process of its own."""

import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys
from pipelines.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    for _ in range(20):
        first, second = bytearray(b"x") * (24 << 20), bytearray(b"x") * (24 << 20)
work()
before = faults()
work()
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_buffers_are_not_faulted_in_again():
    def faults(mode):
        command = [sys.executable, "-c", _FAULTS, mode]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("returned") > 20_000
    assert faults("kept") < 1_000
