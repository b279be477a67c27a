"""The loss computations of svd_A and dynamicrafter_trainstep_A, given every draw and the network's
output."""

import json

import pytest
import torch
from safetensors.torch import load_file

from cil import (
    EDMSchedule,
    Parameterization,
    TimeNoiseConfig,
    TrainingDraws,
    VPSchedule,
    denoising_loss,
)
from cil.conditioning import keep_text_and_image, replace_by_noise

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def svd(golden):
    return load_file(golden / "svd_A.io.safetensors"), json.loads(
        (golden / "svd_A.json").read_text()
    )


def svd_draws(tensors, run, schedule, dropout, noise):
    batch = tensors["latents"].shape[0]
    normal = tensors[f"{run}.draw1"].flatten()
    return TrainingDraws(
        level=schedule.sigma(normal),
        noise=tensors[f"{run}.draw0"],
        normal=tensors[noise].flatten(),
        other_level=schedule.sigma(normal),
        cond_noise=tensors[f"{run}.draw3"],
        dropout=torch.full((batch,), dropout),
    )


@pytest.mark.parametrize("run", ["timenoise_keep", "timenoise_drop", "timenoise_highsigma"])
def test_svd_time_noise_losses(svd, run):
    tensors, data = svd
    case = data["losses"][run]
    schedule = EDMSchedule(p_mean=case["kwargs"]["P_mean"], p_std=case["kwargs"]["P_std"])
    corruption = TimeNoiseConfig(preset="paper-svd", beta_m=15.0, a=5.0).build(schedule)
    seen = []

    def network(inputs):
        seen.append(inputs)
        return tensors[f"{run}.model_pred"]

    result = denoising_loss(
        network,
        tensors["latents"],
        tensors["first_frame_latents_unscaled"],
        schedule=schedule,
        parameterization=Parameterization.EDM,
        corruption=corruption,
        draws=svd_draws(tensors, run, schedule, case["cfg_random"], f"{run}.draw2"),
        dropout=case["cfg_random_null_ratio"],
        tokens=tensors["encoder_hidden_states"][:1].expand(2, -1, -1),
    )
    inputs = seen[0]
    expected = tensors[f"{run}.unet_input"]
    torch.testing.assert_close(inputs.noisy, expected[:, :, :4], **CLOSE)
    torch.testing.assert_close(inputs.conditioning_latents, expected[:, :, 4:], **CLOSE)
    torch.testing.assert_close(inputs.time, tensors[f"{run}.c_noise"], **CLOSE)
    torch.testing.assert_close(inputs.sigma_cond, tensors[f"{run}.added_time_ids"][:, 2], **CLOSE)
    torch.testing.assert_close(inputs.tokens, tensors[f"{run}.encoder_hidden_states"], **CLOSE)
    assert float(result.loss) == pytest.approx(case["loss"], rel=1e-5)
    assert (run == "timenoise_drop") == (float(result.keep.sum()) == 0.0)


def test_svd_pixel_noise_baseline(svd):
    tensors, data = svd
    case = data["losses"]["baseline_keep"]
    schedule = EDMSchedule()
    corruption = TimeNoiseConfig(preset="paper-svd-baseline").build(schedule)
    seen = []

    def network(inputs):
        seen.append(inputs)
        return tensors["baseline_keep.model_pred"]

    result = denoising_loss(
        network,
        tensors["latents"],
        # The noised image is not among the data, its encoding is.
        lambda sigma_cond: tensors["baseline_keep.unet_input"][:, :1, 4:],
        schedule=schedule,
        parameterization=Parameterization.EDM,
        corruption=corruption,
        draws=svd_draws(
            tensors, "baseline_keep", schedule, case["cfg_random"], "baseline_keep.draw3"
        ),
    )
    expected = tensors["baseline_keep.unet_input"]
    torch.testing.assert_close(seen[0].noisy, expected[:, :, :4], **CLOSE)
    torch.testing.assert_close(seen[0].conditioning_latents, expected[:, :, 4:], **CLOSE)
    sigma_cond = tensors["baseline_keep.added_time_ids"][:, 2]
    torch.testing.assert_close(result.sigma_cond, sigma_cond, **CLOSE)
    assert float(result.loss) == pytest.approx(case["loss"], rel=1e-5)


@pytest.mark.parametrize("run", ["clip_type1", "clip_type2"])
def test_dynamicrafter_step(golden, run):
    """Noising, noised condition, v target with dynamic rescale, tokens and dropout of the step."""
    tensors = load_file(golden / "dynamicrafter_trainstep_A.io.safetensors")
    data = json.loads((golden / "dynamicrafter_trainstep_A.json").read_text())[run]
    tensors = {k.removeprefix(f"{run}."): v for k, v in tensors.items() if k.startswith(run)}
    schedule = VPSchedule(zero_terminal_snr=True, base_scale=0.7)
    corruption = TimeNoiseConfig(preset="paper-dynamicrafter").build(schedule)
    clean = tensors["z"].permute(0, 2, 1, 3, 4)
    timesteps = tensors["draw0_randint"]
    seen = []

    def network(inputs):
        seen.append(inputs)
        return tensors["unet_out"].permute(0, 2, 1, 3, 4)

    result = denoising_loss(
        network,
        clean,
        clean[:, data["cond_frame_index"]][:, None],
        schedule=schedule,
        parameterization=Parameterization.V_PREDICTION,
        corruption=corruption,
        draws=TrainingDraws(
            level=timesteps,
            noise=tensors["draw5_randn"].permute(0, 2, 1, 3, 4),
            normal=tensors["draw6_randn"],
            other_level=timesteps,
            cond_noise=tensors["draw7_randn"].permute(0, 2, 1, 3, 4),
            dropout=torch.ones(4),
        ),
    )
    assert float(result.loss) == pytest.approx(data["loss"], rel=1e-5)
    unet_in = tensors["unet_in"].permute(0, 2, 1, 3, 4)
    torch.testing.assert_close(seen[0].noisy, unet_in[:, :, :4], **CLOSE)
    torch.testing.assert_close(
        seen[0].conditioning_latents, unet_in[:, :, 4:], rtol=1e-5, atol=1e-4
    )

    tokens, token_noise = tensors["img_tokens_before_noise"], tensors["draw4_randn"]
    if run == "clip_type2":
        # One draw for the whole batch.
        uniform = tensors["draw3_py_random"].expand(4)
        tokens = replace_by_noise(tokens, token_noise, uniform, 0.95)
    else:
        # The tokens have a sigma_cond of their own.
        both = TimeNoiseConfig(preset="paper-dynamicrafter", target="both").build(schedule)
        token_sigma = both.sigma_cond(timesteps, tensors["draw3_randn"], timesteps)
        tokens = both.corrupt_tokens(tokens, token_sigma, token_noise)
    keep_text, keep_image = keep_text_and_image(tensors["draw1_rand"], 0.05)
    assert [keep == 0.0 for keep in keep_image.tolist()] == data["masked_image_is_zero"]
    text = torch.where(
        keep_text.reshape(-1, 1, 1) > 0, tensors["text_emb"], tensors["null_text_emb"]
    )
    torch.testing.assert_close(
        torch.cat((text, tokens), dim=1), tensors["unet_context"], rtol=1e-5, atol=1e-4
    )
