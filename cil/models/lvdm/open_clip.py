"""OpenCLIP's text and vision halves inside a checkpoint, as CLIP networks of transformers.

    network = text_from_open_clip(parts.text, source="model.ckpt")        # CLIPTextModel
    parts = parts.replace(text=text_to_open_clip(network, rest))

and the same with ``vision``, for ``CLIPVisionModelWithProjection``. ``rest`` are the tensors that
the networks of transformers have no place for, such as ``logit_scale``. For folders of them see
``cil.models.lvdm.open_clip_folders``.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cil.errors import DataError
from cil.models.pretrained import import_transformers
from cil.models.strict_loading import load_strict, looks_like

__all__ = [
    "HEADS",
    "MARKS",
    "text_from_open_clip",
    "text_to_open_clip",
    "vision_from_open_clip",
    "vision_to_open_clip",
]

HEADS = 16
"""Of every attention in both halves of ViT-H/14; shapes do not show it."""
MARKS = {"bos_token_id": -2, "eos_token_id": -1}
"""Where the marks around a caption lie in CLIP's vocabulary, from its end."""

_TEXT = (
    ("model.token_embedding.weight", "embeddings.token_embedding.weight"),
    ("model.positional_embedding", "embeddings.position_embedding.weight"),
    ("model.ln_final.", "final_layer_norm."),
    ("model.transformer.resblocks.", "encoder.layers."),
)
_VISION = (
    ("model.visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("model.visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("model.visual.conv1.", "vision_model.embeddings.patch_embedding."),
    ("model.visual.ln_pre.", "vision_model.pre_layrnorm."),
    ("model.visual.ln_post.", "vision_model.post_layernorm."),
    ("model.visual.transformer.resblocks.", "vision_model.encoder.layers."),
)
_VISION_PROJECTION = ("model.visual.proj", "visual_projection.weight")
_BLOCK = (
    ("ln_1.", "layer_norm1."),
    ("attn.out_proj.", "self_attn.out_proj."),
    ("ln_2.", "layer_norm2."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
)
_ACTIVATION = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "attention_dropout": 0.0}
_LAYERS = re.compile(r"(.*encoder\.layers\.\d+\.)(.+)")
_NEITHER = ("model.logit_scale", "model.text_projection", "model.attn_mask", "mean", "std")
_OF_TEXT = ("model.token_embedding.", "model.positional_embedding", "model.ln_final.")


def text_from_open_clip(
    part: Mapping[str, Tensor],
    *,
    source: str | Path,
    heads: int = HEADS,
    dtype: torch.dtype | None = None,
) -> Any:
    """Make the text network.

    Args:
        part: ``LVDMParts.text``.
        source: the file, for messages.
        heads: of every attention; weights do not show it.
        dtype: of the weights; None means float32.

    Returns:
        A ``CLIPTextModel``, frozen. Its weights are views of those of ``part`` where they were of
        the type already.

    Raises:
        DataError: the weights are not those of OpenCLIP's text half.
    """
    library = import_transformers()
    _check_rest(part, (*(old for old, _ in _TEXT), *_NEITHER), source)
    words = _wanted(part, "model.token_embedding.weight", source)
    places = _wanted(part, "model.positional_embedding", source)
    layers, inner = _depth(part, "model.transformer.resblocks.", source)
    config = library.CLIPTextConfig(
        vocab_size=words.shape[0],
        hidden_size=words.shape[1],
        intermediate_size=inner,
        max_position_embeddings=places.shape[0],
        num_hidden_layers=layers,
        num_attention_heads=_checked(heads, words.shape[1], source),
        projection_dim=words.shape[1],
        pad_token_id=0,
        **{name: words.shape[0] + place for name, place in MARKS.items()},
        **_ACTIVATION,
    )
    return _network(library.CLIPTextModel, config, _renamed(part, _TEXT), source, dtype)


def vision_from_open_clip(
    part: Mapping[str, Tensor],
    *,
    source: str | Path,
    heads: int = HEADS,
    dtype: torch.dtype | None = None,
) -> Any:
    """Make the vision network, a ``CLIPVisionModelWithProjection``; see ``text_from_open_clip``."""
    library = import_transformers()
    known = (*(old for old, _ in _VISION), _VISION_PROJECTION[0], *_NEITHER, *_OF_TEXT)
    _check_rest(part, known, source)
    patches = _wanted(part, "model.visual.conv1.weight", source)
    places = _wanted(part, "model.visual.positional_embedding", source)
    projection = _wanted(part, _VISION_PROJECTION[0], source)
    layers, inner = _depth(part, "model.visual.transformer.resblocks.", source)
    config = library.CLIPVisionConfig(
        hidden_size=patches.shape[0],
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=_checked(heads, patches.shape[0], source),
        num_channels=patches.shape[1],
        patch_size=patches.shape[2],
        image_size=patches.shape[2] * round((places.shape[0] - 1) ** 0.5),
        projection_dim=projection.shape[1],
        **_ACTIVATION,
    )
    state = _renamed(part, _VISION) | {_VISION_PROJECTION[1]: projection.T}
    return _network(library.CLIPVisionModelWithProjection, config, state, source, dtype)


def text_to_open_clip(network: Any, rest: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the weights of a ``CLIPTextModel`` under OpenCLIP's names, as ``LVDMParts.text``.

    Args:
        network: of ``text_from_open_clip``, or read from a folder.
        rest: tensors that the network has no place for, by their names in the part.
    """
    return {**(rest or {}), **_named_back(network.state_dict(), _TEXT)}


def vision_to_open_clip(
    network: Any, rest: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the weights of the vision network as ``LVDMParts.vision``; see the text's."""
    state = network.state_dict()
    old, new = _VISION_PROJECTION
    projection = {old: state.pop(new).T.contiguous()}
    return {**(rest or {}), **_named_back(state, _VISION), **projection}


def _network(
    kind: Any, config: Any, state: Mapping[str, Tensor], source: str | Path, dtype: Any
) -> Any:
    """Build on the meta device, load, and count the positions, which no state dict holds."""
    with torch.device("meta"):
        network = kind(config)
    for module in network.modules():
        places = getattr(module, "position_ids", None)
        if isinstance(places, Tensor):
            module.position_ids = torch.arange(places.shape[-1])[None]
    load_strict(network, state, source=source, dtype=dtype)
    return network.eval().requires_grad_(requires_grad=False)


def _renamed(part: Mapping[str, Tensor], table: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """Rename the tensors that a table knows and split the fused projections; others stay out."""
    found: dict[str, Tensor] = {}
    for name, tensor in part.items():
        old, new = next((row for row in table if name.startswith(row[0])), ("", ""))
        if not old:
            continue
        renamed = new + name.removeprefix(old)
        block = _LAYERS.fullmatch(renamed)
        if block is None:
            found[renamed] = tensor
            continue
        layer, inside = block.groups()
        if inside.startswith("attn.in_proj_"):
            kind = inside.removeprefix("attn.in_proj_")
            for which, piece in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{layer}self_attn.{which}_proj.{kind}"] = piece
            continue
        theirs, ours = next((row for row in _BLOCK if inside.startswith(row[0])), ("", ""))
        found[layer + ours + inside.removeprefix(theirs)] = tensor
    return found


def _named_back(
    state: Mapping[str, Tensor], table: tuple[tuple[str, str], ...]
) -> dict[str, Tensor]:
    """Rename the tensors of a network of transformers and fuse its projections."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block = _LAYERS.fullmatch(name)
        inside, fused = block[2] if block else "", None
        layer = block[1] if block else name
        part = re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", inside)
        if part:
            if part[1] != "q":
                continue
            pieces = [state[f"{layer}self_attn.{which}_proj.{part[2]}"] for which in "qkv"]
            fused, inside = torch.cat(pieces), f"attn.in_proj_{part[2]}"
        elif block:
            theirs, ours = next(row for row in _BLOCK if inside.startswith(row[1]))
            inside = theirs + inside.removeprefix(ours)
        old, new = next(row for row in table if layer.startswith(row[1]))
        found[old + layer.removeprefix(new) + inside] = tensor if fused is None else fused
    return found


def _check_rest(part: Mapping[str, Tensor], known: tuple[str, ...], source: str | Path) -> None:
    """Refuse what is neither converted nor known to be without effect."""
    odd = [name for name in part if not name.startswith(known)]
    if odd:
        kind = looks_like(list(part)) or "no known kind"
        raise DataError(
            f"the encoder in {source} has {len(odd)} tensors that OpenCLIP's ViT-H/14 has not "
            f"({', '.join(odd[:3])}); its names are those of: {kind}; give the part of a "
            "checkpoint that holds OpenCLIP's weights"
        )


def _wanted(part: Mapping[str, Tensor], name: str, source: str | Path) -> Tensor:
    if name not in part:
        kind = looks_like(list(part)) or "no known kind"
        raise DataError(
            f"the encoder in {source} lacks {name}; its names are those of: {kind}; give the part "
            "of a checkpoint that holds OpenCLIP's weights"
        )
    return part[name]


def _depth(part: Mapping[str, Tensor], prefix: str, source: str | Path) -> tuple[int, int]:
    """Return the number of layers and the width of their feed-forward part."""
    layers = {
        int(name.removeprefix(prefix).split(".")[0]) for name in part if name.startswith(prefix)
    }
    return len(layers), _wanted(part, f"{prefix}0.mlp.c_fc.weight", source).shape[0]


def _checked(heads: int, width: int, source: str | Path) -> int:
    if heads < 1 or width % heads:
        raise DataError(
            f"the encoder in {source} is {width} wide, which {heads} heads do not divide"
        )
    return heads
