"""Weights into a network: every tensor of one in the other, or one message that says what differs.

    with torch.device("meta"):
        network = LVDMUNet(config)
    load_strict(network, state, source="model.ckpt")

The network is built on the meta device, where it takes no memory, and takes the tensors as they
are: a tensor of the right type stays a map of its file, others are cast one by one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from cil.errors import DataError

__all__ = ["difference", "load_strict", "looks_like"]

Network = TypeVar("Network", bound=nn.Module)

_SHOWN = 3
_LVDM = "LVDM (DynamiCrafter or VideoCrafter1)"
# Parts of names that must all occur, most telling first.
_FAMILIES = (
    ("LoRA adapter", ("lora_",)),
    ("adapter", (".lora.",)),
    ("AnimateDiff motion module", ("motion_modules.",)),
    ("Stable Video Diffusion in its original format", ("conditioner.embedders.",)),
    ("whole " + _LVDM + " checkpoint", ("model.diffusion_model.", "init_attn.")),
    ("whole " + _LVDM + " checkpoint", ("model.diffusion_model.", "temopral_conv.")),
    ("Stable Diffusion checkpoint", ("model.diffusion_model.",)),
    (_LVDM + " UNet", ("input_blocks.", "init_attn.")),
    ("Stable Diffusion UNet", ("input_blocks.", "middle_block.")),
    ("I2VGen-XL UNet of diffusers", ("down_blocks.", "image_latents_proj_in.")),
    ("Stable Video Diffusion UNet of diffusers", ("temporal_transformer_blocks.", "mid_block.")),
    ("image UNet of diffusers", ("down_blocks.", "mid_block.", "time_embedding.")),
    (
        "Stable Video Diffusion autoencoder of diffusers",
        ("encoder.down_blocks.", "decoder.time_conv_out."),
    ),
    ("autoencoder of diffusers", ("encoder.down_blocks.", "decoder.up_blocks.")),
    ("autoencoder in its original format", ("encoder.down.", "decoder.up.")),
    ("OpenCLIP vision encoder", ("visual.transformer.resblocks.",)),
    ("OpenCLIP text encoder", ("transformer.resblocks.",)),
    ("CLIP vision encoder of transformers", ("vision_model.",)),
    ("CLIP text encoder of transformers", ("text_model.",)),
    ("image projector of " + _LVDM, ("latents", "proj_in.", "layers.0.0.to_kv.")),
    ("Wan transformer of diffusers", ("blocks.", "condition_embedder.time_proj.")),
    ("T5 encoder", ("encoder.block.", "SelfAttention")),
    ("diffusion transformer", ("transformer_blocks.", "attn")),
)


def looks_like(names: Sequence[str]) -> str | None:
    """Tell what kind of checkpoint has such names; None if it is none of those known."""
    for family, marks in _FAMILIES:
        if all(any(mark in name for name in names) for mark in marks):
            return family
    return None


def load_strict(
    network: Network,
    state: Mapping[str, Tensor],
    *,
    source: str | Path,
    dtype: torch.dtype | None = None,
) -> Network:
    """Give a network its weights.

    Args:
        network: on the meta device or another; its own weights are dropped, not written to, and
            its device does not matter: it ends where the tensors of ``state`` are.
        state: exactly its names and shapes, floating point where it is.
        source: the file, for messages.
        dtype: type of all floating-point weights; None leaves each as the network was built.
            Casting costs the memory of the weights in that type.

    Returns:
        The network, holding the tensors of ``state`` themselves where no cast was needed.

    Raises:
        DataError: names, shapes or kinds of number differ, or a buffer that is not in state dicts
            was left without values.
    """
    wanted = network.state_dict()
    wrong = difference(wanted, state)
    if wrong:
        kind = looks_like(list(state))
        seems = f"its names are those of: {kind}" if kind else "its names are of no known kind"
        raise DataError(
            f"{source} does not fit {type(network).__name__} ({len(wanted)} tensors wanted, "
            f"{len(state)} given; {seems}): {'; '.join(wrong)}. Give the checkpoint of this model, "
            "or the settings of that one"
        )
    taken = {name: _as(state[name], value.dtype, dtype) for name, value in wanted.items()}
    network.load_state_dict(taken, strict=True, assign=True)
    empty = [name for name, value in network.named_buffers() if value.is_meta]
    if empty:
        raise DataError(
            f"{type(network).__name__} has buffers that no checkpoint holds ({', '.join(empty)}); "
            "build it with these buffers on the CPU"
        )
    return network


def difference(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Say how two state dicts differ: counts, and the first few of each kind."""
    found = []
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    both = [name for name in wanted if name in given]
    shapes = [
        f"{name} {tuple(given[name].shape)} in place of {tuple(wanted[name].shape)}"
        for name in both
        if given[name].shape != wanted[name].shape
    ]
    kinds = [
        f"{name} {given[name].dtype} in place of {wanted[name].dtype}"
        for name in both
        if given[name].is_floating_point() != wanted[name].is_floating_point()
    ]
    for what, names in (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", shapes),
        ("of another type", kinds),
    ):
        if names:
            more = ", ..." if len(names) > _SHOWN else ""
            found.append(f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{more})")
    return found


def _as(tensor: Tensor, built: torch.dtype, dtype: torch.dtype | None) -> Tensor:
    """Cast one tensor, if it must be."""
    if dtype is not None and built.is_floating_point:
        built = dtype
    return tensor.detach().to(built).contiguous()
