"""The LVDM UNets and image projectors: keys, outputs, every block, losses and gradients."""

import gzip
import json

import pytest
import torch
from safetensors.torch import load_file

from cil.models.lvdm import LVDMConfig, LVDMUNet, Resampler

UNETS = ("dynamicrafter_unet_A", "videocrafter_unet_A")


def read(golden, name):
    described = json.loads((golden / f"{name}.json").read_text())
    weights = load_file(golden / f"{name}.weights.safetensors")
    tensors = load_file(golden / f"{name}.io.safetensors")
    return described, {key: value.float() for key, value in weights.items()}, tensors


@pytest.fixture(scope="module", params=UNETS)
def case(request, golden):
    described, weights, tensors = read(golden, request.param)
    network = LVDMUNet(LVDMConfig.published(described["config"]))
    network.load_state_dict(weights, strict=True)
    return request.param, described, network.eval(), tensors


def close(found, wanted, atol=1e-5):
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


@torch.no_grad()
def test_outputs(case):
    name, _, network, t = case
    x, steps = t["x"], t["timesteps"]
    if name == UNETS[0]:
        close(network(x, steps, t["context_perframe"], fs=t["fs"]), t["out.perframe"])
        close(network(x, steps, t["context_shared"], fs=t["fs"]), t["out.shared"])
        close(network(x, steps, t["context_perframe"]), t["out.fs_none"])
        found = network(t["x_othert"], steps, t["context_othert"], fs=t["fs"])
        close(found, t["out.othert"])
    else:
        close(network(x, steps, t["context"], fps=t["fps"]), t["out.fps_tensor"])
        close(network(x, steps, t["context"]), t["out.fps_default16"])
        close(network(x, steps, t["context"], fs=t["fps"]), t["out.fs_kwarg_ignored"])


@torch.no_grad()
def test_every_block(case):
    name, _, network, t = case
    seen = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, key=key: seen.__setitem__(key, out))
        for key, module in network.named_modules()
        if f"inter.{key}" in t
    ]
    if name == UNETS[0]:
        network(t["x"], t["timesteps"], t["context_perframe"], fs=t["fs"])
    else:
        network(t["x"], t["timesteps"], t["context"], fps=t["fps"])
    for hook in hooks:
        hook.remove()
    wanted = {key.removeprefix("inter."): value for key, value in t.items() if "inter." in key}
    assert len(wanted) > 10
    assert sorted(seen) == sorted(wanted)
    for key, value in wanted.items():
        close(seen[key], value, atol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients(case, checkpointing):
    name, described, network, t = case
    network.gradient_checkpointing = checkpointing
    network.zero_grad()
    given = {"fs": t["fs"]} if name == UNETS[0] else {"fps": t["fps"]}
    context = t["context_perframe" if name == UNETS[0] else "context"]
    loss = (network(t["x"], t["timesteps"], context, **given) - t["target"]).square().mean()
    loss.backward()
    network.gradient_checkpointing = False
    assert loss.item() == pytest.approx(described["loss_value"], rel=1e-5)
    norms = {
        key: p.grad.norm().item() for key, p in network.named_parameters() if p.grad is not None
    }
    assert sorted(norms) == sorted(described["grad_norm"])
    for key, wanted in described["grad_norm"].items():
        assert norms[key] == pytest.approx(wanted, rel=1e-4, abs=1e-6), key
    total = sum(norm**2 for norm in norms.values()) ** 0.5
    assert total == pytest.approx(described["grad_norm_total"], rel=1e-5)


def test_what_begins_as_zero(case):
    _, described, network, _ = case
    fresh = LVDMUNet(network.config)
    zero = {key for key, value in fresh.named_parameters() if not value.any()}
    wanted = described["zero_initialised"]
    assert zero == {*wanted["weights"], *wanted["biases"]}


@pytest.mark.parametrize("name", ["full_dynamicrafter_keys", "full_videocrafter_keys"])
def test_full_size_keys_in_order(golden, name):
    full = json.loads(gzip.decompress((golden / f"{name}.json.gz").read_bytes()))
    with torch.device("meta"):
        network = LVDMUNet(LVDMConfig.published(full["unet"]["config"]))
        projector = Resampler(**full["image_proj_model"]["config"])
    for module, part in ((network, "unet"), (projector, "image_proj_model")):
        shapes = {key: list(value.shape) for key, value in module.state_dict().items()}
        assert list(shapes.items()) == list(full[part]["keys"].items())
        assert sum(p.numel() for p in module.parameters()) == full[part]["n_params"]


@pytest.mark.parametrize("family", ["dynamicrafter", "videocrafter"])
def test_resampler(golden, family):
    described, weights, tensors = read(golden, "resampler_vae_A")

    def of(values):
        return {k.removeprefix(f"{family}."): v for k, v in values.items() if k.startswith(family)}

    network, t = Resampler(**described[family]["config"]), of(tensors)
    network.load_state_dict(of(weights), strict=True)
    found = network(t["x"])
    close(found.detach(), t["out"])
    loss = (found - t["target"]).square().mean()
    loss.backward()
    assert loss.item() == pytest.approx(described[family]["loss"], rel=1e-5)
    for key, wanted in described[family]["grad_norm"].items():
        norm = network.get_parameter(key).grad.norm().item()
        assert norm == pytest.approx(wanted, rel=1e-4, abs=1e-6), key
