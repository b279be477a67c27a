import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from cil.errors import DataError
from cil.models import load
from cil.models.tiny_config import TinyConfig
from pipelines.dataset import open_dataset
from pipelines.model_folder import build_model, save_model


@pytest.fixture
def weights(tiny_model, tmp_path):
    """A file with the weights of the model, each plus one."""
    state = {name: value + 1 for name, value in tiny_model.network.state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def test_the_model_fits_the_data_set(encoded_run, tiny_model):
    assert tiny_model.latents_shape == (8, 4, 8, 8)
    assert tiny_model.config.fps == encoded_run.config.data.fps
    assert tiny_model.config.sigma_max == TinyConfig().sigma_max, "null is the family's own"
    assert tiny_model.first_stage.latent_channels == 4


def test_the_seed_decides_the_weights(encoded_run, tiny_model):
    dataset = open_dataset(encoded_run.config)
    again = build_model(encoded_run.config, dataset).network.state_dict()
    reseeded = dataclasses.replace(encoded_run.config, seed=1)
    other = build_model(reseeded, dataset).network.state_dict()
    states = tiny_model.network.state_dict()
    assert all(torch.equal(again[name], value) for name, value in states.items())
    assert any(not torch.equal(other[name], value) for name, value in states.items())


def test_a_folder_gets_the_given_weights_and_replaces_an_older_one(
    encoded_run, tiny_model, weights, tmp_path
):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("of an earlier training")
    save_model(encoded_run.config, open_dataset(encoded_run.config), folder, weights=weights)
    loaded = load("tiny", folder).network.state_dict()
    for name, value in tiny_model.network.state_dict().items():
        assert torch.equal(loaded[name], value + 1), name
    assert not (folder / "old").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "weights.safetensors"]


def test_wrong_weights_leave_the_older_folder(encoded_run, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("of an earlier training")
    save_file({"other": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(DataError, match="must hold the parameters that are trained; 425 are"):
        save_model(
            encoded_run.config,
            open_dataset(encoded_run.config),
            folder,
            weights=tmp_path / "weights.safetensors",
        )
    assert (folder / "old").exists()


def test_the_exported_network_opens_with_diffusers(model_folder, tiny_model):
    from diffusers import UNetSpatioTemporalConditionModel

    network = UNetSpatioTemporalConditionModel.from_pretrained(model_folder / "unet")
    found = network.state_dict()
    for name, value in tiny_model.network.state_dict().items():
        assert torch.equal(found[name], value), name
