"""Sizes and draws that tests of the wan family share."""

import json
import shutil

import numpy as np
import torch

from cil.losses import denoising_loss, draw_training
from cil.models import ClipConditions, Guidance
from cil.time_noise import TimeNoiseConfig

SIZE = {"num_frames": 9, "height": 32, "width": 48, "downsampling": 4, "latent_channels": 4}
LATENTS = (3, 4, 8, 12)
GUIDED = Guidance(first=5.0, last=5.0)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pipeline_of(folder, monkeypatch):
    """Open a folder by diffusers, with Euler's method on the times that our sampler visits."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline
    from diffusers.pipelines.wan import pipeline_wan_i2v

    class EvenTimes(FlowMatchEulerDiscreteScheduler):
        def set_timesteps(self, count, device=None):  # the class shifts what it is given
            super().set_timesteps(sigmas=np.linspace(1.0, 1.0 / count, count), device=device)

    # it calls ftfy, also where that is not installed
    monkeypatch.setattr(pipeline_wan_i2v, "prompt_clean", lambda text: text)
    pipeline = WanImageToVideoPipeline.from_pretrained(folder)
    assert pipeline.scheduler.config.flow_shift == 3.0
    pipeline.scheduler = EvenTimes(shift=pipeline.scheduler.config.flow_shift)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class Recorder(torch.nn.Module):
    """Stands in for the network: keeps what it was given and answers with a constant."""

    def forward(self, **told):
        self.seen = told
        return (torch.full_like(told["hidden_states"][:, :4], 0.5),)


def conditions(count=2, **changes):
    return ClipConditions(
        **{
            "fps": torch.full((count,), 16.0),
            "motion_bucket_id": torch.ones(count),
            "frame_stride": torch.ones(count),
            "text_embeds": random(count, 512, 16, seed=1),
            **changes,
        }
    )


def loss_of(model, network, *, preset="mild", target="latents"):
    """Return the loss of two clips, what was drawn, and the corruption."""
    corruption = TimeNoiseConfig(preset=preset, noise="per_frame", target=target).build(
        model.schedule
    )
    tokens = random(2, 5, 16, seed=4)
    draws = draw_training(
        LATENTS,
        schedule=model.schedule,
        corruption=corruption,
        seed=3,
        sample_ids=[5, 9],
        step=11,
        token_shape=(5, 16),
    )
    result = denoising_loss(
        model.network_call(conditions(), network=network),
        random(2, *LATENTS, seed=2),
        random(2, *LATENTS, seed=3),
        schedule=model.schedule,
        parameterization=model.parameterization,
        corruption=corruption,
        draws=draws,
        tokens=tokens,
    )
    return result, draws, tokens


def parameters_of(p):
    """Count the parameters of a network by its description, layer by layer."""

    def linear(inputs, outputs):
        return (inputs + 1) * outputs

    inner = p["num_attention_heads"] * p["attention_head_dim"]
    attention = 4 * linear(inner, inner) + 2 * inner  # with the norms of queries and keys
    of_image = 2 * linear(p["added_kv_proj_dim"], inner) + inner
    feed_forward = linear(inner, p["ffn_dim"]) + linear(p["ffn_dim"], inner)
    block = 2 * attention + of_image + 2 * inner + feed_forward + 6 * inner
    patch = linear(p["in_channels"] * 4, inner) + linear(inner, p["out_channels"] * 4) + 2 * inner
    time = linear(p["freq_dim"], inner) + linear(inner, inner) + linear(inner, 6 * inner)
    text = linear(p["text_dim"], inner) + linear(inner, inner)
    image = 2 * p["image_dim"] + linear(p["image_dim"], p["image_dim"])
    image += linear(p["image_dim"], inner) + 2 * inner
    return p["num_layers"] * block + patch + time + text + image


def changed(folder, tmp_path, *, part="transformer/config.json", **changes):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = copy / part
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return copy
