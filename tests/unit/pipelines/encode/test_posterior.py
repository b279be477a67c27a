"""What is stored of the first stage's posterior: moments, mean or a sample."""

import dataclasses
from contextlib import ExitStack

import pytest
import torch

from cil.errors import ConfigError
from pipelines import encode
from pipelines.config import load_config
from tests.unit.pipelines.encode.data_set_files import (
    all_latents,
    contents,
)


def test_the_posterior_is_stored_as_asked(encode_two):
    def encoded(kind):
        settings = {"posterior": kind, "latents_dtype": "float32"}
        return all_latents(encode_two(kind, encode=settings))

    mean, std = encoded("mean_std")
    assert bool((std > 0).all())
    mean_alone, nothing = encoded("mean")
    assert torch.equal(mean_alone, mean)
    assert not nothing.any()
    sample, nothing = encoded("sample")
    assert not nothing.any()
    noise = (sample - mean) / std
    assert abs(float(noise.mean())) < 0.05  # 16384 draws: a standard error of 0.008
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    assert not torch.equal(noise[0], noise[1])  # each clip has its own
    assert not torch.equal(noise[0, 0], noise[0, 1])


def test_a_sample_depends_on_the_seed_alone(sampled):
    first = sampled(0)
    again = sampled(0, encode={"posterior": "sample", "num_workers": 5})
    other = sampled(1)
    assert contents(again) == contents(first)
    assert not torch.equal(all_latents(other)[0], all_latents(first)[0])
    # the same clips under the same settings but the seed, so other settings
    reseeded = dataclasses.replace(load_config(first / "config.yaml"), seed=1)
    with pytest.raises(ConfigError, match="seed: 0 there, 1 asked"):
        encode.run(reseeded, session=ExitStack())
