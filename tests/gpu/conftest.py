import importlib.util
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def statistics():
    """The assertions on noise that the tests without a GPU use too."""
    path = Path(__file__).parents[1] / "unit" / "kernels" / "noise_statistics.py"
    spec = importlib.util.spec_from_file_location("noise_statistics", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def device():
    assert torch.cuda.is_available(), "these tests need a CUDA device; they are not skipped"
    return torch.device("cuda", torch.cuda.current_device())
