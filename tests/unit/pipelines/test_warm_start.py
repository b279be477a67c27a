"""Training of a tiny model that begins with the network of another one."""

import dataclasses
import shutil

import pytest
import torch

from cil.errors import ConfigError
from cil.models.patch_moments import PatchMoments
from cil.models.patch_pca import PatchPCA
from pipelines import stages
from pipelines.check_conditions import check_conditions
from pipelines.dataset import open_dataset, open_training_data
from pipelines.model_folder import build_model
from pipelines.pretrained_parts import with_pretrained_parts
from pipelines.train import train_identity


def beginning_with(config, folder, **settings):
    model = dataclasses.replace(config.model, pretrained=str(folder), **settings)
    return with_pretrained_parts(dataclasses.replace(config, model=model))


@pytest.fixture
def trained(tiny_model, model_folder, tmp_path):
    """A model folder with other weights than the seed of the run gives."""
    folder = tmp_path / "trained"
    weights = tiny_model.network.state_dict()
    tiny_model.save(folder, state_dict={name: value + 0.125 for name, value in weights.items()})
    return folder


def test_the_network_begins_with_the_folders_weights(encoded_run, tiny_model, trained):
    config = beginning_with(encoded_run.config, trained)
    stages._check_model(config)
    check_conditions(config, open_training_data(config))
    model = build_model(config, open_dataset(config))
    fresh = tiny_model.network.state_dict()
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, fresh[name] + 0.125), name
    assert model.first_stage.fingerprint() == tiny_model.first_stage.fingerprint()


def test_other_weights_are_another_training_wherever_they_lie(encoded_run, trained, tmp_path):
    plain = train_identity(encoded_run.config, "f" * 64)
    begun = train_identity(beginning_with(encoded_run.config, trained), "f" * 64)
    copy = shutil.copytree(trained, tmp_path / "copy")
    assert begun != plain
    assert train_identity(beginning_with(encoded_run.config, copy), "f" * 64) == begun


def test_a_network_of_other_sizes_is_refused_before_training(encoded_run, trained):
    config = beginning_with(encoded_run.config, trained, cross_attention_dim=64)
    with pytest.raises(ConfigError, match=r"pretrained.*cross_attention_dim = 32.*for 64"):
        stages._check_model(config)


def test_a_network_for_another_first_stage_is_refused(encoded_run, tiny_model, trained):
    own = tiny_model.first_stage
    moments = PatchMoments(patch_size=own.downsampling)
    generator = torch.Generator().manual_seed(3)
    pictures = torch.randint(0, 256, (4, 32, 32, 3), generator=generator, dtype=torch.uint8)
    moments.update(pictures)
    other = PatchPCA.fit(moments, latent_channels=own.latent_channels)
    shutil.rmtree(trained / "first_stage")
    other.save(trained / "first_stage")
    config = beginning_with(encoded_run.config, trained)
    with pytest.raises(ConfigError, match=r"was encoded with .* encode again into"):
        check_conditions(config, open_training_data(config))
