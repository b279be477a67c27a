"""The picture of the first batch against what training computes and an independent decode."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.batches import BatchReader
from pipelines.dataset import open_training_data
from pipelines.first_batch import TIMES, first_batch_picture, grid_of, step_inputs
from pipelines.train_step import TrainStep


@pytest.fixture(scope="module")
def config(encoded_run):
    return encoded_run.config


@pytest.fixture(scope="module")
def batch(config):
    data = open_training_data(config)
    return BatchReader(data.readers, global_batch_size=4, seed=config.seed).batch(0)


class Spy(torch.nn.Module):
    """A network that notes what it gets."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, latents, time, tokens, ids, return_dict=False):
        self.seen.append((latents, time, tokens, ids))
        return (torch.zeros_like(latents[:, :, : latents.shape[2] // 2]),)


@pytest.mark.parametrize("step", [0, 3])
def test_it_is_bit_for_bit_what_the_network_gets_in_that_step(config, tiny_model, batch, step):
    spy = Spy()
    take = TrainStep(config, tiny_model, None, spy, world_size=1)
    take._loss(batch, step)
    found = step_inputs(config, tiny_model, batch, step=step).inputs
    ((latents, time, tokens, ids),) = spy.seen
    assert torch.equal(latents, torch.cat([found.noisy, found.conditioning_latents], dim=2))
    assert torch.equal(time, found.time)
    assert torch.equal(tokens, found.tokens)
    assert torch.equal(ids[:, 2], found.sigma_cond)


def test_another_level_keeps_the_noise(config, tiny_model, batch):
    own = step_inputs(config, tiny_model, batch, step=0)
    other = step_inputs(config, tiny_model, batch, step=0, level=2.0)
    assert torch.equal(own.clean, other.clean)

    def noise(step):
        level = step.level.reshape(-1, 1, 1, 1, 1)
        return (step.inputs.noisy * torch.sqrt(level**2 + 1) - step.clean) / level

    assert other.level.tolist() == [2.0] * 4
    # at small levels most of the noise is rounded away
    torch.testing.assert_close(noise(own), noise(other), rtol=0, atol=1e-3)


def test_each_cell_is_the_decoded_input(config, tiny_model, batch):
    rows = grid_of(config, tiny_model, batch.part(0, 2))
    scale = tiny_model.first_stage.scaling_factor
    assert len(rows) == 2
    assert all(len(row) == 1 + 2 * (1 + len(TIMES)) for row in rows)
    own = step_inputs(config, tiny_model, batch, step=0)
    for number, row in enumerate(rows):
        clean, condition = row[0][1], row[1][1]
        expected = tiny_model.first_stage.decode(own.clean[number, :1] / scale)[0]
        assert np.array_equal(clean, np.asarray(expected))
        shown = own.inputs.conditioning_latents[number, :1] / tiny_model.conditioning_scale
        assert np.array_equal(condition, np.asarray(tiny_model.first_stage.decode(shown)[0]))
        middle = own.inputs.noisy[number, 4:5] / scale
        video = row[2 + len(TIMES)]
        assert np.array_equal(video[1], np.asarray(tiny_model.first_stage.decode(middle)[0]))
        assert f"sigma {float(own.level[number]):.3g}" in video[0]
        assert f"sigma_cond {float(own.inputs.sigma_cond[number]):.3g}" in row[1][0]


def test_the_clean_frame_is_the_first_frame_of_the_video(config, encoded_run, tiny_model, batch):
    """Not noise: the codec is lossy, and the posterior has some noise of its own."""
    rows = grid_of(config, tiny_model, batch)
    for number, row in enumerate(rows):
        real = encoded_run.frames(batch.records[number])[0].astype(float)
        error = np.abs(row[0][1].astype(float) - real).mean()
        assert error < 0.35 * np.abs(real - real.mean()).mean()


def test_more_noise_is_farther_from_the_clean_picture(config, tiny_model, batch):
    rows = grid_of(config, tiny_model, batch)

    def error(row, place):
        return float(np.abs(row[place][1].astype(float) - row[0][1].astype(float)).mean())

    for first in (2, 3 + len(TIMES)):
        means = [np.mean([error(row, first + k) for row in rows]) for k in range(len(TIMES))]
        assert means == sorted(means)


def test_without_noise_the_condition_is_the_clean_frame(config, tiny_model, batch):
    time_noise = dataclasses.replace(config.time_noise, preset="none")
    rows = grid_of(dataclasses.replace(config, time_noise=time_noise), tiny_model, batch)
    for row in rows:
        pictures = [picture for _, picture in row[1 : 2 + len(TIMES)]]
        assert all(np.array_equal(picture, pictures[0]) for picture in pictures)
        assert "sigma_cond 0" in row[1][0]


def test_a_dropped_condition_is_said_to_be(config, tiny_model, batch):
    train = dataclasses.replace(config.train, condition_dropout=1.0)
    rows = grid_of(dataclasses.replace(config, train=train), tiny_model, batch)
    assert all("dropped" in row[1][0] for row in rows)


def test_the_picture_is_written_whole(config, tmp_path):
    path = tmp_path / "first_batch.png"
    made = first_batch_picture(config, path)
    again = copy.copy(path.read_bytes())
    assert [entry.name for entry in tmp_path.iterdir()] == ["first_batch.png"]
    with Image.open(path) as image:
        assert image.width > 9 * 250
        assert image.height > 4 * 250
    assert len(made["clips"]) == 4
    first_batch_picture(config, path)
    assert path.read_bytes() == again
