import importlib.util
import os
from pathlib import Path

import pytest

# Those need a process that has chosen the interpreter; test_interpreter.py starts it
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]


@pytest.fixture(scope="session")
def statistics():
    """The module of assertions on noise; test folders are no packages."""
    path = Path(__file__).parent / "noise_statistics.py"
    spec = importlib.util.spec_from_file_location("noise_statistics", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
