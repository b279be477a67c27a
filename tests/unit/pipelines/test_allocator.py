"""Memory that is freed is reused: measured by the page faults of a process of its own."""

import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys
from pipelines.allocator import keep_freed_memory
if sys.argv[1] != "returned":
    keep_freed_memory(all_of_it=sys.argv[1] == "all kept")
size = int(sys.argv[2]) << 20

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    for _ in range(20):
        first, second = bytearray(b"x") * size, bytearray(b"x") * size
work()
before = faults()
work()
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_buffers_are_not_faulted_in_again():
    def faults(mode, mebibytes):
        command = [sys.executable, "-c", _FAULTS, mode, str(mebibytes)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("returned", 24) > 20_000
    assert faults("kept", 24) < 1_000
    assert faults("kept", 48) > 20_000
    assert faults("all kept", 48) < 1_000
