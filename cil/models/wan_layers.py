"""The network of Wan as diffusers builds it: how it is called, and what it has besides weights.

The network gets, on channels, the noisy latents, four channels of a mask that is 1 in the first
frame of latents (one for each frame of the clip in it), and the conditioning latents; it attends
to CLIP's tokens of the image and to those of the caption. Its axes are (B, C, F, h, w).

Every layer sees all frames: self-attention is over the whole clip, and the rest does not mix
places at all. So there are no temporal parameters.
"""

from typing import Any

import torch
from torch import Tensor, nn

from cil.losses import Network, NetworkInputs
from cil.models.diffusers_network import NetworkKind
from cil.models.wan_vae import TEMPORAL_DOWNSAMPLING

__all__ = [
    "WAN_KIND",
    "WAN_LORA_TARGETS",
    "WAN_TEXT_LENGTH",
    "first_frame_mask",
    "give_rotations",
    "wan_network_call",
]

WAN_TEXT_LENGTH = 512
"""Tokens of a caption; diffusers' attention counts on it."""

WAN_LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")
"""Ends of the names of the linear layers of every attention: queries, keys, values, output; keys
and values of the image's tokens."""


def first_frame_mask(latents: Tensor) -> Tensor:
    """Return the mask that tells which frames are known.

    Args:
        latents: (B, F, C, h, w).

    Returns:
        (B, F, 4, h, w): 1 in the first frame, 0 in the others.
    """
    batch, frames, _, rows, columns = latents.shape
    mask = latents.new_zeros(batch, frames, TEMPORAL_DOWNSAMPLING, rows, columns)
    mask[:, 0] = 1.0
    return mask


def wan_network_call(network: nn.Module, *, text_embeds: Tensor, dtype: torch.dtype) -> Network:
    """Return prediction = call(NetworkInputs).

    Args:
        network: a ``WanTransformer3DModel`` of diffusers, or a wrapper of one.
        text_embeds: (B, L, D) tokens of the captions.
        dtype: of the network's weights.
    """

    def call(inputs: NetworkInputs) -> Tensor:
        assert inputs.tokens is not None
        shown = inputs.conditioning_latents
        stacked = torch.cat([inputs.noisy, first_frame_mask(shown), shown], dim=2)
        prediction: Tensor = network(
            hidden_states=stacked.transpose(1, 2).to(dtype),
            timestep=inputs.time,
            encoder_hidden_states=text_embeds.to(inputs.noisy.device, dtype),
            encoder_hidden_states_image=inputs.tokens.to(dtype),
            return_dict=False,
        )[0]
        return prediction.transpose(1, 2).float()

    return call


def give_rotations(network: nn.Module) -> None:
    """Make the tables of rotary positions, which no file holds, on the CPU."""
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

    config: Any = network.config
    network.rope = WanRotaryPosEmbed(
        config.attention_head_dim, tuple(config.patch_size), config.rope_max_seq_len
    )


WAN_KIND = NetworkKind(
    family="wan",
    class_name="WanTransformer3DModel",
    settings_name="WanConfig",
    folder="transformer",
    unused=".norm_added_q.",
    complete=give_rotations,
)
