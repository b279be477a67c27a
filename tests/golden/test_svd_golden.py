"""The svd family against the released training code: outputs, losses and gradients with weights."""

import gzip
import json

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from safetensors.torch import load_file

import cil.models
from cil.losses import TrainingDraws, denoising_loss
from cil.models import ClipConditions
from cil.time_noise import TimeNoiseConfig


@pytest.fixture(scope="module")
def case(golden):
    data = json.loads((golden / "svd_A.json").read_text())
    model = cil.models.build("svd", **data["config"])
    weights = load_file(golden / "svd_unet_A.weights.safetensors")
    weights = {name: value.float() for name, value in weights.items()}
    model.network.load_state_dict(weights, strict=True)
    model.network.eval()
    return model, data, load_file(golden / "svd_A.io.safetensors")


@torch.no_grad()
@pytest.mark.parametrize(
    ("rows", "tokens", "name"),
    [(2, "each", "out_fixed"), (2, "first", "out_same_context"), (1, "each", "out_batch1")],
)
def test_outputs(case, rows, tokens, name):
    model, _, tensors = case
    context = tensors["encoder_hidden_states"]
    context = context[:1].expand(2, -1, -1) if tokens == "first" else context
    found = model.network(
        tensors["x"][:rows],
        tensors["timesteps"][:rows],
        context[:rows],
        tensors["added_time_ids"][:rows],
        return_dict=False,
    )[0]
    torch.testing.assert_close(found, tensors[name], rtol=0, atol=1e-5)


def test_full_size_keys_and_order(golden):
    wanted = json.loads(gzip.decompress((golden / "full_svd_unet_keys.json.gz").read_bytes()))
    with torch.device("meta"):
        network = UNetSpatioTemporalConditionModel(**wanted["config"])
    found = [[name, list(value.shape)] for name, value in network.state_dict().items()]
    assert found == [[name, list(shape)] for name, shape in _pairs(wanted["keys"])]


def _pairs(keys):
    return keys.items() if isinstance(keys, dict) else keys


@pytest.mark.parametrize("run", ["timenoise_keep", "timenoise_drop", "timenoise_highsigma"])
def test_losses_and_gradients(case, run):
    model, data, tensors = case
    of = data["losses"][run]
    kwargs = of["kwargs"]
    schedule = cil.models.build(
        "svd", p_mean=kwargs["P_mean"], p_std=kwargs["P_std"], **data["config"]
    ).schedule
    level = schedule.sigma(tensors[f"{run}.draw1"].flatten())
    draws = TrainingDraws(
        level=level,
        noise=tensors[f"{run}.draw0"],
        normal=tensors[f"{run}.draw2"].flatten(),
        other_level=level,
        cond_noise=tensors[f"{run}.draw3"],
        dropout=torch.full((2,), of["cfg_random"]),
    )
    clips = ClipConditions(
        fps=torch.full((2,), of["fps"] + 1.0),
        motion_bucket_id=torch.full((2,), of["motion_bucket_id"]),
        frame_stride=torch.ones(2),
    )
    model.network.zero_grad()
    result = denoising_loss(
        model.network_call(clips),
        tensors["latents"],
        tensors["first_frame_latents_unscaled"] * model.conditioning_scale,
        schedule=schedule,
        parameterization=model.parameterization,
        corruption=TimeNoiseConfig(preset="paper-svd", beta_m=15.0, a=5.0).build(schedule),
        draws=draws,
        dropout=of["cfg_random_null_ratio"],
        tokens=tensors["encoder_hidden_states"][:1].expand(2, -1, -1),
    )
    assert float(result.loss.detach()) == pytest.approx(of["loss"], rel=1e-5)
    result.loss.backward()
    norms = [p.grad.norm() for p in model.network.parameters() if p.grad is not None]
    assert float(torch.stack(norms).norm()) == pytest.approx(of["grad_norm_total"], rel=1e-4)
