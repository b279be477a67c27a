"""One optimiser step, with a plain engine: losses do not depend on how the batch is divided."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from cil.models import build
from cil.models.patch_moments import PatchMoments
from cil.models.patch_pca import PatchPCA
from pipelines.config import ModelConfig, RunConfig, TrainConfig
from pipelines.shards import ShardReader
from pipelines.train_step import NonFiniteLossError, TrainStep

BATCH = 4


class PlainEngine:
    """Does with one process what DeepSpeed's engine does, without updating the weights."""

    device = torch.device("cpu")

    def __init__(self, network):
        self.module = network
        self.optimizer = SimpleNamespace(param_groups=[{"lr": 0.0}])
        self.backward_calls = 0

    def __call__(self, *inputs, **options):
        return self.module(*inputs, **options)

    def backward(self, loss):
        self.backward_calls += 1

    def step(self):
        pass

    def get_global_grad_norm(self):
        return None


@pytest.fixture(scope="module")
def model():
    moments = PatchMoments(patch_size=4)
    generator = torch.Generator().manual_seed(0)
    moments.update(torch.randint(0, 256, (8, 16, 16, 3), generator=generator, dtype=torch.uint8))
    return build(
        "tiny",
        first_stage=PatchPCA.fit(moments, latent_channels=3),
        num_frames=2,
        height=16,
        width=16,
        latent_channels=3,
        downsampling=4,
        cross_attention_dim=8,
    )


@pytest.fixture(scope="module")
def reader(small_shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    small_shards.dataset(folder, counts=(3, 3))
    return ShardReader(folder)


def step_of(model, reader, *, rank=0, world_size=1, engine=None, **train):
    config = RunConfig(
        seed=5,
        model=ModelConfig(cross_attention_dim=8),
        train=TrainConfig(global_batch_size=BATCH, num_workers=world_size, **train),
    )
    engine = engine or PlainEngine(model.network)
    step = TrainStep(config, model, reader, engine, rank=rank, world_size=world_size)
    step._mean_over_ranks = lambda value: value  # the process group is Ray's
    return step


def test_loss_is_the_same_for_every_division_of_the_batch(model, reader):
    whole = step_of(model, reader)(3, learning_rate=0.1)
    micro = step_of(model, reader, micro_batch_size=1)(3, learning_rate=0.1)
    ranks = [
        step_of(model, reader, rank=rank, world_size=2)(3, learning_rate=0.1) for rank in range(2)
    ]
    assert micro["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert sum(row["loss"] for row in ranks) / 2 == pytest.approx(whole["loss"], rel=1e-6)
    assert ranks[0]["loss"] != pytest.approx(ranks[1]["loss"], rel=1e-3)
    assert whole["clips"] == BATCH


def test_steps_repeat_and_differ_from_each_other(model, reader):
    step = step_of(model, reader)
    assert step(1, learning_rate=0.1) == step(1, learning_rate=0.1)
    assert step(1, learning_rate=0.1)["loss"] != step(2, learning_rate=0.1)["loss"]


def test_the_learning_rate_reaches_the_optimiser(model, reader):
    engine = PlainEngine(model.network)
    row = step_of(model, reader, engine=engine)(0, learning_rate=0.125)
    assert engine.optimizer.param_groups == [{"lr": 0.125}]
    assert row["learning_rate"] == 0.125


def test_noise_is_on_the_condition(model, reader):
    assert step_of(model, reader)(0, learning_rate=0.1)["sigma_cond"] > 0


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(model, reader):
    engine = PlainEngine(
        lambda *inputs, **options: (torch.full_like(inputs[0], torch.nan)[:, :, :3],)
    )
    step = step_of(model, reader, engine=engine)
    with pytest.raises(NonFiniteLossError, match=r"loss of step 7 is nan.*[0-9a-f]{32}"):
        step(7, learning_rate=0.1)
    assert engine.backward_calls == 0


def test_dropping_every_condition_changes_the_loss(model, reader):
    kept = step_of(model, reader)(0, learning_rate=0.1)
    dropped = step_of(model, reader, condition_dropout=1.0)(0, learning_rate=0.1)
    assert kept["loss"] != dropped["loss"]
    assert replace(TrainConfig(), condition_dropout=1.0).condition_dropout == 1.0
