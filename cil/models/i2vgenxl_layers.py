"""The network of I2VGen-XL as diffusers builds it: how it is called, what mixes frames, memory.

The network gets the image three ways: latents of the first frame, followed by frames that hold
their own place, (frame + 1) / (F - 1), in place of latents; tokens that it makes itself of the
first frame's latents; and CLIP's projected token. Its axes are (B, C, F, h, w).

These mix frames:

    temp_convs, temp_attentions, transformer_in     at every level
    image_latents_temporal_encoder                  the frames of the image's latents

All others see one frame at a time, or no frame at all. Convolutions over frames have a dropout of
0.1 in training, as published, which no setting of diffusers changes.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cil.losses import Network, NetworkInputs

__all__ = [
    "I2VGENXL_LORA_TARGETS",
    "i2vgenxl_network_call",
    "i2vgenxl_temporal_parameters",
    "image_latents",
    "with_checkpointing",
]

I2VGENXL_LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""Ends of the names of the linear layers of every attention: queries, keys, values, output."""

_TEMPORAL = {"temp_convs", "temp_attentions", "transformer_in", "image_latents_temporal_encoder"}
_CHECKPOINTED = ("resnets", "temp_convs", "attentions", "temp_attentions")


def i2vgenxl_temporal_parameters(network: nn.Module) -> frozenset[str]:
    """Return the names of the parameters of all temporal layers of an ``I2VGenXLUNet``."""
    names = (name for name, _ in network.named_parameters())
    return frozenset(name for name in names if _TEMPORAL & set(name.split(".")))


def image_latents(conditioning_latents: Tensor) -> Tensor:
    """Keep the first frame of the conditioning latents, and write their place into the others.

    Args:
        conditioning_latents: (B, F, C, h, w), all frames alike but for noise.

    Returns:
        (B, F, C, h, w): latents of the image, then 1 / (F - 1), 2 / (F - 1), ... 1.
    """
    first, others = conditioning_latents[:, :1], conditioning_latents[:, 1:]
    frames = others.shape[1]
    places = torch.arange(1, frames + 1, dtype=torch.float64, device=first.device) / max(frames, 1)
    places = places.to(first.dtype)[:, None, None, None]
    return torch.cat([first, places.expand_as(others)], dim=1)


def i2vgenxl_network_call(
    network: nn.Module, *, fps: Tensor, text_embeds: Tensor, dtype: torch.dtype
) -> Network:
    """Return prediction = call(NetworkInputs).

    Args:
        network: an ``I2VGenXLUNet`` of diffusers, or a wrapper of one.
        fps: (B,) frames per second that the network is told.
        text_embeds: (B, L, D) tokens of the captions.
        dtype: of the network's weights.
    """

    def call(inputs: NetworkInputs) -> Tensor:
        assert inputs.tokens is not None
        shown = image_latents(inputs.conditioning_latents)
        prediction: Tensor = network(
            inputs.noisy.transpose(1, 2).to(dtype),
            inputs.time,
            fps=fps.to(inputs.noisy.device),
            image_latents=shown.transpose(1, 2).to(dtype),
            image_embeddings=inputs.tokens.to(dtype),
            encoder_hidden_states=text_embeds.to(inputs.noisy.device, dtype),
            return_dict=False,
        )[0]
        return prediction.transpose(1, 2).float()

    return call


def with_checkpointing(network: nn.Module) -> nn.Module:
    """Give a network of diffusers ``enable_gradient_checkpointing``, which it lacks; return it.

    Each residual layer, convolution over frames and transformer is computed again in the backward
    pass, with the same dropout.
    """
    # partial, not a closure: a deep copy of the network then copies it with the network
    network.enable_gradient_checkpointing = partial(  # type: ignore[assignment]
        _checkpoint_layers, network
    )
    return network


def _checkpoint_layers(network: Any) -> None:
    layers = [network.transformer_in]
    for block in (*network.down_blocks, network.mid_block, *network.up_blocks):
        for name in _CHECKPOINTED:
            layers += getattr(block, name, ())
    for layer in layers:
        layer.forward = partial(_again, layer)


def _again(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a layer so that the backward pass computes it again."""
    forward = partial(type(layer).forward, layer)
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
