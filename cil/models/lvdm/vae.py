"""The first stage inside a checkpoint of DynamiCrafter or VideoCrafter1, as diffusers has it.

    vae = vae_from_ldm(parts.first_stage, source="model.ckpt")   # diffusers' AutoencoderKL
    write_vae_folder(parts.first_stage, folder, source="model.ckpt")
    parts = parts.replace(first_stage=read_vae_folder(folder))

Names and shapes are those of LDM's ``AutoencoderKL`` on one side and of diffusers' on the other,
one to one. The conversion there is diffusers' own; the way back is checked against it name by name.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cil.errors import DataError
from cil.models.autoencoder_kl import AutoencoderKLFirstStage
from cil.models.pretrained import load_strictly, part_of
from cil.models.strict_loading import load_strict, looks_like

__all__ = ["read_vae_folder", "vae_from_ldm", "vae_to_ldm", "write_vae_folder"]

LATENT_SCALE = 0.18215
"""Multiplies the latents of both families."""

_BACK = (
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"group_norm\.", "norm."),
    (r"to_([qkv])\.", r"\1."),
    (r"to_out\.0\.", "proj_out."),
    (r"conv_norm_out\.", "norm_out."),
    (r"conv_shortcut\.", "nin_shortcut."),
    (r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"up_blocks\.(\d+)\.resnets\.", r"up.\1.block."),
    (r"up_blocks\.(\d+)\.upsamplers\.0\.", r"up.\1.upsample."),
)
_ORDER = ("conv_in", "down", "mid", "up", "norm_out", "conv_out")
_ATTENTION = re.compile(r"\.mid\.attn_1\.(q|k|v|proj_out)\.weight$")


def vae_from_ldm(
    part: Mapping[str, Tensor],
    *,
    source: str | Path,
    scaling_factor: float = LATENT_SCALE,
    dtype: torch.dtype | None = None,
) -> Any:
    """Make diffusers' autoencoder from LDM's weights.

    Args:
        part: ``LVDMParts.first_stage``.
        source: the file, for messages.
        scaling_factor: of the latents, written into the configuration.
        dtype: of the weights; None means float32.

    Returns:
        An ``AutoencoderKL`` in evaluation mode, frozen; tensors that were of the type already are
        those of ``part``.

    Raises:
        DataError: the weights are not those of such an autoencoder.
    """
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    settings = _settings(part, source) | {"scaling_factor": scaling_factor}
    with torch.device("meta"):
        network = AutoencoderKL(**settings)
    wanted = _names(network)
    if set(wanted.values()) != set(part):
        odd = sorted(set(wanted.values()) ^ set(part))
        raise DataError(
            f"the first stage in {source} is not LDM's autoencoder with {len(wanted)} tensors: "
            f"{len(odd)} are missing or too many ({', '.join(odd[:3])}); give the published file"
        )
    load_strict(network, convert_ldm_vae_checkpoint(part, settings), source=source, dtype=dtype)
    return network.eval().requires_grad_(requires_grad=False)


def vae_to_ldm(network: Any) -> dict[str, Tensor]:
    """Return the weights of diffusers' ``AutoencoderKL`` under LDM's names and in LDM's order.

    Raises:
        DataError: an autoencoder that LDM's names cannot express.
    """
    state, names = network.state_dict(), _names(network)
    found = {}
    for new, old in sorted(names.items(), key=lambda pair: _rank(pair[1])):
        found[old] = state[new][..., None, None] if _ATTENTION.search(old) else state[new]
    return found


def write_vae_folder(part: Mapping[str, Tensor], folder: str | Path, *, source: str | Path) -> None:
    """Write a first-stage folder, which ``load_first_stage`` opens, from LDM's weights.

    Raises:
        DataError: see ``vae_from_ldm``.
    """
    AutoencoderKLFirstStage(vae_from_ldm(part, source=source)).save(Path(folder))


def read_vae_folder(folder: str | Path) -> dict[str, Tensor]:
    """Read a first-stage or diffusers folder as LDM's weights: what ``LVDMParts`` takes.

    Raises:
        DataError: the folder is damaged or holds another kind of network.
    """
    from diffusers import AutoencoderKL

    def load(*args: Any, **kwargs: Any) -> Any:
        return AutoencoderKL.from_pretrained(*args, low_cpu_mem_usage=False, **kwargs)

    part = part_of(Path(folder), "vae")
    return vae_to_ldm(load_strictly(load, part, stem="diffusion_pytorch_model"))


def _settings(part: Mapping[str, Tensor], source: str | Path) -> dict[str, Any]:
    """Read the configuration off names and shapes."""
    try:
        widths: list[int] = []
        blocks = 0
        while (name := f"encoder.down.{len(widths)}.block.0.conv1.weight") in part:
            widths.append(part[name].shape[0])
        while f"encoder.down.0.block.{blocks}.conv1.weight" in part:
            blocks += 1
        return {
            "in_channels": part["encoder.conv_in.weight"].shape[1],
            "out_channels": part["decoder.conv_out.weight"].shape[0],
            "latent_channels": part["post_quant_conv.weight"].shape[0],
            "block_out_channels": tuple(widths),
            "layers_per_block": blocks,
            "down_block_types": ("DownEncoderBlock2D",) * len(widths),
            "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        }
    except (KeyError, IndexError) as error:
        kind = looks_like(list(part)) or "no known kind"
        raise DataError(
            f"the first stage in {source} lacks {error}; its names are those of: {kind}"
        ) from error


def _names(network: Any) -> dict[str, str]:
    """Map the names of diffusers to those of LDM, and check that diffusers maps them back."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    state, levels = network.state_dict(), len(network.config.block_out_channels)
    names = {new: _to_ldm(new, levels) for new in state}
    # one element each, which says where it came from
    marks = {
        old: torch.full((1,) * (4 if _ATTENTION.search(old) else state[new].ndim), number)
        for number, (new, old) in enumerate(names.items())
    }
    order = list(names)
    back = convert_ldm_vae_checkpoint(marks, dict(network.config))
    found = {new: order[int(mark)] for new, mark in back.items()}
    if len(marks) != len(names) or found != {new: new for new in names}:
        odd = sorted(new for new in {*found, *names} if found.get(new) != new)
        raise DataError(
            f"this autoencoder has parts that LDM's format has no name for ({', '.join(odd[:3])})"
        )
    return names


def _to_ldm(name: str, levels: int) -> str:
    """Rename one tensor of diffusers; LDM counts the levels of the decoder from the outside."""
    name = re.sub(
        r"up_blocks\.(\d+)", lambda found: f"up_blocks.{levels - 1 - int(found[1])}", name
    )
    name = re.sub(
        r"mid_block\.resnets\.(\d+)", lambda found: f"mid.block_{int(found[1]) + 1}", name
    )
    for pattern, replacement in _BACK:
        name = re.sub(rf"(?<![a-z_]){pattern}", replacement, name)
    return name


def _rank(name: str) -> tuple[Any, ...]:
    """Sort key: the order in which LDM's autoencoder registers its layers."""
    words = name.split(".")
    if words[0] not in ("encoder", "decoder"):
        return (2 if words[0] == "quant_conv" else 3, 0, 0)
    half, place = words[0] == "decoder", _ORDER.index(words[1])
    if words[1] == "mid":
        return (half, place, ("block_1", "attn_1", "block_2").index(words[2]))
    # a level's blocks come before its resizing; within a block names keep their given order
    level = (int(words[2]), words[3] != "block") if words[1] in ("down", "up") else ()
    return (half, place, *level)
