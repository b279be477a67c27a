"""The program that writes docs/decoding.md, and what it measured here."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[4] / "docs" / "decoding_table.py"


@pytest.fixture(scope="session")
def table():
    """Module docs/decoding_table.py."""
    spec = importlib.util.spec_from_file_location("decoding_table", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def rows(table):
    """Everything measured once, in a process of its own in which torchcodec finds FFmpeg."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    return [table.Row(**{**row, "random_access": tuple(row["random_access"])}) for row in found]
