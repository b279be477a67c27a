"""A toy model of the wan family, whole."""

import numpy as np
import pytest
import torch

import cil.models
from tests.unit.cil.models.wan.toy import SIZE


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(toy_wan):
    return cil.models.load("wan", toy_wan, **SIZE)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(3).integers(0, 255, (32, 48, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan") / "saved"
    model.save(folder)
    return folder
