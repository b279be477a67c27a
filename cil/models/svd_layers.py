"""The network of Stable Video Diffusion as diffusers builds it: how it is called, what is trained.

These mix frames:

    residual blocks     temporal_res_block, and time_mixer, which weighs it against the spatial one
    transformers        temporal_transformer_blocks, the frames' time_pos_embed, and time_mixer

All others see one frame at a time, or no frame at all: the embeddings of noise level and fps.
LoRA adapts the linear layers of all attention, over places, frames and the image's tokens.
"""

import torch
from torch import Tensor, nn

from cil.losses import Network, NetworkInputs

__all__ = ["SVD_LORA_TARGETS", "svd_network_call", "svd_temporal_parameters"]

SVD_LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""Ends of the names of the linear layers of every attention: queries, keys, values, output."""

_TEMPORAL = {"temporal_res_block", "temporal_transformer_blocks", "time_pos_embed", "time_mixer"}


def svd_temporal_parameters(network: nn.Module) -> frozenset[str]:
    """Return the names of the parameters of all temporal layers.

    Args:
        network: a ``UNetSpatioTemporalConditionModel`` of diffusers, of any size.
    """
    names = (name for name, _ in network.named_parameters())
    return frozenset(name for name in names if _TEMPORAL & set(name.split(".")))


def svd_network_call(
    network: nn.Module, *, fps_id: Tensor, motion_bucket_id: Tensor, dtype: torch.dtype
) -> Network:
    """Return prediction = call(NetworkInputs).

    Args:
        network: a ``UNetSpatioTemporalConditionModel`` of diffusers, or a wrapper of one.
        fps_id: (B,) what the network is told of the frame rate.
        motion_bucket_id: (B,) 0..255.
        dtype: of the network's weights.
    """

    def call(inputs: NetworkInputs) -> Tensor:
        sigma_cond = inputs.sigma_cond
        ids = [fps_id.to(sigma_cond), motion_bucket_id.to(sigma_cond), sigma_cond]
        assert inputs.tokens is not None
        prediction: Tensor = network(
            inputs.concatenated().to(dtype),
            inputs.time,
            inputs.tokens.to(dtype),
            torch.stack(ids, dim=1),
            return_dict=False,
        )[0]
        return prediction.float()

    return call
