"""Adapters on small networks, against the formula written out and against peft and diffusers."""

import copy
import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cil.errors import ConfigError
from pipelines.config import validate_config
from pipelines.dataset import open_dataset
from pipelines.engine import choose_trainable
from pipelines.lora import add_lora, lora_parameters, merge_lora, save_adapter
from pipelines.model_folder import build_model
from pipelines.settings import TrainConfig
from pipelines.train import train_identity


class Block(nn.Module):
    """An attention's layers by name, and some that no adapter belongs to."""

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k = nn.Linear(6, 8), nn.Linear(6, 8, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(8, 6), nn.Dropout(0.0)])
        self.conv = nn.Conv1d(6, 6, 1)

    def forward(self, values):
        return self.to_out[0](torch.tanh(self.to_q(values)) * self.to_k(values))


TARGETS = ("to_q", "to_k", "to_out.0")


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(Block(), Block())


def adapted(*, rank=2, alpha=6.0, seed=0, targets=TARGETS, moved=True):
    """Add adapters; ``moved`` ones have a B that is not zero, as after training."""
    made = network()
    add_lora(made, targets=targets, rank=rank, alpha=alpha, seed=seed)
    if moved:
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, value in made.named_parameters():
                if ".lora_B." in name:
                    value.normal_(std=0.3, generator=generator)
    return made


def firsts(made):
    return {n: v.detach().clone() for n, v in made.named_parameters() if ".lora_A." in n}


VALUES = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))


def test_a_fresh_adapter_changes_nothing_and_keeps_the_names_of_the_weights():
    plain, made = network(), adapted(moved=False)
    assert made(VALUES).equal(plain(VALUES))
    kept = {n.replace(".base_layer", "") for n in made.state_dict() if ".lora_" not in n}
    assert kept == set(plain.state_dict())
    assert len(lora_parameters(made)) == 2 * 2 * len(TARGETS)
    assert made.get_parameter("0.to_q.lora_A.default.weight").shape == (2, 6)
    assert made.get_parameter("0.to_q.lora_B.default.weight").shape == (8, 2)


def test_the_first_weights_are_of_seed_and_name_alone():
    """Not of the global generator, nor of which other layers have adapters."""
    before = torch.random.get_rng_state()
    one = firsts(adapted(seed=1))
    assert torch.random.get_rng_state().equal(before)
    torch.manual_seed(99)
    again, other = firsts(adapted(seed=1)), firsts(adapted(seed=2))
    fewer = firsts(adapted(seed=1, targets=("to_k",)))
    torch.random.set_rng_state(before)
    assert all(value.equal(again[name]) for name, value in one.items())
    assert not any(value.equal(other[name]) for name, value in one.items())
    assert all(value.equal(one[name]) for name, value in fewer.items())
    values = [tuple(value.flatten().tolist()) for value in one.values()]
    assert len(set(values)) == len(values)


def test_the_first_weights_follow_the_law_of_peft():
    """Uniform up to 1 / sqrt(in): Kaiming's law as peft has it."""
    made = nn.Sequential(nn.Linear(100, 10))
    add_lora(made, targets=["0"], rank=200, alpha=1.0, seed=0)
    (first,) = firsts(made).values()
    assert first.abs().max().item() == pytest.approx(0.1, rel=1e-3)
    assert first.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.02)
    assert abs(first.mean().item()) < 1e-3


def test_an_adapter_adds_the_scaled_product():
    made, plain = adapted(rank=2, alpha=6.0), network()
    with torch.no_grad():
        for name, value in plain.named_parameters():
            if name.endswith(("to_q.weight", "to_k.weight", "to_out.0.weight")):
                layer = name.removesuffix(".weight")
                first = made.get_parameter(f"{layer}.lora_A.default.weight")
                second = made.get_parameter(f"{layer}.lora_B.default.weight")
                value.add_(3.0 * second @ first)
    assert (made(VALUES) - plain(VALUES)).abs().max() < 1e-6
    assert (made(VALUES) - network()(VALUES)).abs().max() > 0.1


def test_merging_leaves_a_plain_network_with_the_same_outputs():
    made = adapted()
    expected = made(VALUES)
    untouched = made.get_parameter("0.conv.weight").clone()
    merge_lora(made)
    plain = network()
    assert list(made.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in made.modules()] == [type(m) for m in plain.modules()]
    assert not hasattr(made, "peft_config")
    assert (made(VALUES) - expected).abs().max() < 1e-6
    assert made.get_parameter("0.conv.weight").equal(untouched)
    plain.load_state_dict(made.state_dict())


def test_peft_loads_the_adapter(tmp_path):
    from peft import PeftModel

    made = adapted()
    save_adapter(made, tmp_path / "adapter")
    wrapped = PeftModel.from_pretrained(network(), tmp_path / "adapter")
    assert wrapped(VALUES).equal(made(VALUES))
    assert wrapped.merge_and_unload().state_dict().keys() == network().state_dict().keys()


def test_diffusers_loads_the_adapter_with_its_scale(tmp_path):
    """The network of SVD has no such method in diffusers yet; others have."""
    from diffusers import ConfigMixin, ModelMixin
    from diffusers.loaders import PeftAdapterMixin

    class Network(ModelMixin, ConfigMixin, PeftAdapterMixin):
        config_name = "config.json"

        def __init__(self):
            super().__init__()
            self.blocks = network()

        def forward(self, values):
            return self.blocks(values)

    made = Network()
    add_lora(made, targets=TARGETS, rank=2, alpha=6.0, seed=0)
    with torch.no_grad():
        for name, value in made.named_parameters():
            if ".lora_B." in name:
                value.fill_(1.0)
    save_adapter(made, tmp_path / "adapter")
    other = Network()
    other.load_lora_adapter(
        str(tmp_path / "adapter"),
        prefix="base_model.model",
        weight_name="adapter_model.safetensors",
    )
    assert (other(VALUES) - made(VALUES)).abs().max() < 1e-6
    assert (other(VALUES) - Network()(VALUES)).abs().max() > 0.1


def test_no_set_decides_the_order_in_the_files_of_an_adapter(tmp_path):
    """peft keeps targets in a set, whose order differs from process to process."""
    made = nn.ModuleDict({name: nn.Linear(4, 4) for name in "hgfedcba"})
    add_lora(made, targets=list("hgfedcba"), rank=2, alpha=2.0, seed=0)
    for number in range(10):
        save_adapter(made, tmp_path / str(number))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert len({(tmp_path / str(n) / name).read_bytes() for n in range(10)}) == 1
    settings = json.loads((tmp_path / "1" / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["lora_alpha"]) == ("LORA", 2, 2.0)
    assert settings["target_modules"] == list("abcdefgh")
    names = load_file(tmp_path / "1" / "adapter_model.safetensors")
    assert "base_model.model.a.lora_A.weight" in names
    assert len(names) == 16


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (
            ("to_q", "to_z"),
            "'to_z' is no layer of the network; its linear layers end in to_k, to_q",
        ),
        (("o_q",), "'o_q' is no layer"),
        (("conv",), "'conv' must name linear layers only, 0.conv is a Conv1d"),
        (("to_out",), "'to_out' must name linear layers only, 0.to_out is a ModuleList"),
        (("to_out.1",), "'to_out.1' must name linear layers only, 0.to_out.1 is a Drop"),
    ],
)
def test_targets_that_are_no_linear_layers_are_refused(targets, words):
    made = network()
    with pytest.raises(ConfigError, match=f"train.lora_targets: {words}"):
        add_lora(made, targets=targets, rank=2, alpha=2.0, seed=0)
    assert list(made.state_dict()) == list(network().state_dict())


# -- in a run -------------------------------------------------------------------------------------


def with_lora(encoded_run, **train):
    changed = dataclasses.replace(encoded_run.config.train, trainable="lora", **train)
    return dataclasses.replace(encoded_run.config, train=changed)


def test_all_attention_of_the_network_of_svd_is_adapted(encoded_run, tiny_model):
    """Told from the class that diffusers gives attention: over places, frames and tokens."""
    from diffusers.models.attention_processor import Attention

    layers = {
        f"{path}.{layer}"
        for path, module in tiny_model.network.named_modules()
        if isinstance(module, Attention)
        for layer in ("to_q", "to_k", "to_v", "to_out.0")
    }
    config = with_lora(encoded_run, lora_rank=4)
    model = build_model(config, open_dataset(config))
    assert choose_trainable(config.train, model) == {
        f"{layer}.lora_{part}.default.weight" for layer in layers for part in "AB"
    }
    gets_gradients = {n for n, p in model.network.named_parameters() if p.requires_grad}
    assert gets_gradients == lora_parameters(model.network)
    base = tiny_model.network.state_dict()
    kept = {
        name.replace(".base_layer", ""): value
        for name, value in model.network.state_dict().items()
        if ".lora_" not in name
    }
    assert sorted(kept) == sorted(base)
    assert all(kept[name].equal(value) for name, value in base.items())


def test_settings_choose_layers_and_scale(encoded_run):
    config = with_lora(encoded_run, lora_targets=("ff.net.2",), lora_rank=3, lora_alpha=1.5)
    found = build_model(config, open_dataset(config)).network
    assert all(".ff.net.2.lora_" in name for name in lora_parameters(found))
    assert found.peft_config["default"].lora_alpha == 1.5
    unset = with_lora(encoded_run, lora_rank=3)
    assert build_model(unset, open_dataset(unset)).network.peft_config["default"].lora_alpha == 3


def test_without_adapters_there_is_nothing_to_train(tiny_model):
    model = copy.copy(tiny_model)
    model.network = copy.deepcopy(tiny_model.network)
    with pytest.raises(ConfigError, match="'lora' leaves nothing to train"):
        choose_trainable(TrainConfig(trainable="lora"), model)


@pytest.mark.parametrize("setting", [{"lora_alpha": 2.0}, {"lora_targets": ("to_q",)}])
def test_settings_of_adapters_need_adapters(setting):
    (name,) = setting
    with pytest.raises(ConfigError, match=rf"train.{name} needs train.trainable lora, got all"):
        validate_config({"train": setting}, source="the test")
    assert validate_config({"train": {**setting, "trainable": "lora"}}, source="the test")


@pytest.mark.parametrize(
    "setting", [{"lora_rank": 8}, {"lora_alpha": 2.0}, {"lora_targets": ("to_q",)}]
)
def test_adapters_decide_the_identity_where_there_are_any(encoded_run, setting):
    base = with_lora(encoded_run)
    assert train_identity(with_lora(encoded_run, **setting), "f") != train_identity(base, "f")
    plain = encoded_run.config
    changed = dataclasses.replace(plain, train=dataclasses.replace(plain.train, **setting))
    assert train_identity(changed, "f") == train_identity(plain, "f")
