"""Validation of a checkpoint, on the encoded run: what it measures and writes."""

import dataclasses
import json

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cil.errors import DataError
from pipelines.dataset import open_training_data
from pipelines.validation import read_history, step_folder, validate


@pytest.fixture(scope="module")
def config(encoded_run):
    """The encoded run with about half of its videos held out."""
    own = dataclasses.replace(
        encoded_run.config.validate,
        held_out_fraction=0.5,
        num_clips=3,
        num_videos=2,
        num_steps=2,
        num_bins=3,
    )
    return dataclasses.replace(encoded_run.config, validate=own)


@pytest.fixture(scope="module")
def checkpoint(config, tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    state = tiny_model.network.state_dict()
    names = [name for name, _ in tiny_model.network.named_parameters()]
    save_file({name: state[name].contiguous() for name in names}, folder / "ema.safetensors")
    (folder / "train_state.json").write_text(json.dumps({"num_steps": 12}))
    return folder


@pytest.fixture(scope="module")
def validated(config, checkpoint, tmp_path_factory):
    train_folder = tmp_path_factory.mktemp("train")
    record = validate(
        config, checkpoint=checkpoint, identity="i" * 64, folder=step_folder(train_folder, 12)
    )
    return train_folder, record


def test_files(validated, config):
    train_folder, record = validated
    print(json.dumps(record, indent=1))
    import os
    print(os.listdir(step_folder(train_folder, 12)), train_folder)
