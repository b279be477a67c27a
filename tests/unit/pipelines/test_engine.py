import copy
import math

import pytest
import torch

from cil.errors import ConfigError
from pipelines import engine as module
from pipelines.engine import choose_trainable, start_engine, update_weights
from pipelines.settings import TrainConfig


class Model:
    """A model whose network can be marked without harm to other tests."""

    family = "test"

    def __init__(self, temporal=("0.weight",)):
        self.network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        self._temporal = frozenset(temporal)

    def temporal_parameters(self):
        return self._temporal


class WithoutZero:
    """DeepSpeed's engine at stage 0: torch's optimiser, and no look at the gradient."""

    def __init__(self, network, boundary=True):
        self.module, self.boundary, self.steps = network, boundary, 0
        self.optimizer = torch.optim.AdamW(network.parameters())

    def is_gradient_accumulation_boundary(self):
        return self.boundary

    def step(self):
        self.steps += 1


def test_gradients_reach_what_is_trained_and_nothing_else():
    model = Model()
    assert choose_trainable(TrainConfig(trainable="temporal"), model) == {"0.weight"}
    marked = {name: p.requires_grad for name, p in model.network.named_parameters()}
    assert marked == {"0.weight": True, "0.bias": False, "1.weight": False, "1.bias": False}
    assert len(choose_trainable(TrainConfig(), model)) == 4
    assert all(p.requires_grad for p in model.network.parameters())


def test_a_network_without_temporal_layers_is_refused():
    with pytest.raises(ConfigError, match=r"'temporal' leaves nothing to train .* family test"):
        choose_trainable(TrainConfig(trainable="temporal"), Model(temporal=()))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_without_zero_a_gradient_that_is_not_finite_stops_the_update(value):
    """torch's AdamW would make every weight NaN; 1e30 is finite, its norm is not."""
    engine = WithoutZero(Model().network)
    for parameter in engine.module.parameters():
        parameter.grad = torch.full_like(parameter, value)
    norm = update_weights(engine, TrainConfig(zero_stage=0))
    assert not math.isfinite(norm)
    assert engine.steps == 0


def test_without_zero_the_norm_is_that_of_the_whole_gradient():
    engine = WithoutZero(Model().network)
    for number, parameter in enumerate(engine.module.parameters()):
        parameter.grad = torch.full_like(parameter, number + 1.0)
    expected = math.sqrt(4 * 1 + 2 * 4 + 2 * 9 + 1 * 16)
    config = TrainConfig(zero_stage=0, max_grad_norm=0.5)
    assert update_weights(engine, config) == pytest.approx(expected)
    assert engine.steps == 1
    clipped = [float(p.grad.flatten()[0]) for p in engine.module.parameters()]
    assert clipped == pytest.approx([0.5 / expected * (n + 1) for n in range(4)], rel=1e-5)


def test_micro_batches_before_the_last_are_only_counted():
    engine = WithoutZero(Model().network, boundary=False)
    for parameter in engine.module.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    assert update_weights(engine, TrainConfig(zero_stage=0)) == 0.0
    assert engine.steps == 1


@pytest.mark.parametrize("missing", ["ninja", "c++"])
def test_an_optimiser_on_the_cpu_needs_a_compiler(monkeypatch, missing):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(module.shutil, "which", lambda name: None if name == missing else name)
    config = TrainConfig(use_gpu=True, offload_optimizer=True)
    model = Model()
    before = copy.deepcopy(model.network.state_dict())
    with pytest.raises(
        ConfigError, match=rf"not found on the worker: {missing.replace('+', '.')};"
    ):
        start_engine(config, model)
    assert all(value.equal(before[name]) for name, value in model.network.state_dict().items())


def test_an_optimiser_that_is_compiled_already_needs_none(monkeypatch):
    from deepspeed.git_version_info import installed_ops

    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    with pytest.raises(ConfigError, match="not found on the worker"):
        module._check_compiler()
    monkeypatch.setitem(installed_ops, "cpu_adam", True)
    assert module._check_compiler() is None
