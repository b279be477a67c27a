"""Which layers of the network of Stable Video Diffusion, as diffusers builds it, are trained.

These mix frames:

    residual blocks     temporal_res_block, and time_mixer, which weighs it against the spatial one
    transformers        temporal_transformer_blocks, the frames' time_pos_embed, and time_mixer

All others see one frame at a time, or no frame at all: the embeddings of noise level and fps.
LoRA adapts the linear layers of all attention, over places, frames and the image's tokens.
"""

from torch import nn

__all__ = ["SVD_LORA_TARGETS", "svd_temporal_parameters"]

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
