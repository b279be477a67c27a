"""OpenCLIP's halves of a checkpoint as folders that the condition encoders open, and back.

    write_text_folder(parts.text, folder, tokenizer=words, source="model.ckpt")
    TextEncoder.from_folder(folder, layer="penultimate")
    parts = parts.replace(text=read_text_folder(folder))

and the same with ``vision`` for ``ImageEncoder.from_folder(folder, tokens="hidden")``. Tensors that
the networks of transformers have no place for lie beside them in ``open_clip_rest.safetensors``, so
that the way back is exact; without that file it gives what the networks hold.

The checkpoint holds no tokenizer. OpenCLIP's is the byte-pair vocabulary of CLIP, which many
published folders hold (``tokenizer/`` of Stable Diffusion); one has to be given. Where that one
pads a caption with the end mark, the folder that is written pads with token 0, as OpenCLIP does:
the networks see the padding.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cil.errors import DataError
from cil.models.condition_encoders import load_tokenizer
from cil.models.lvdm.open_clip import (
    HEADS,
    MARKS,
    text_from_open_clip,
    text_to_open_clip,
    vision_from_open_clip,
    vision_to_open_clip,
)
from cil.models.pretrained import part_of, transformers_network
from cil.models.storage import read_tensors, write_tensors

__all__ = ["read_text_folder", "read_vision_folder", "write_text_folder", "write_vision_folder"]

_REST = "open_clip_rest.safetensors"
_EMBEDDING = "model.token_embedding.weight"


def write_text_folder(
    part: Mapping[str, Tensor],
    folder: str | Path,
    *,
    tokenizer: str | Path,
    source: str | Path,
    heads: int = HEADS,
) -> None:
    """Write a folder that ``TextEncoder.from_folder`` opens.

    Args:
        part: ``LVDMParts.text``.
        folder: made if missing.
        tokenizer: a folder with CLIP's tokenizer; the checkpoint holds none.
        source: the checkpoint, for messages.
        heads: see ``text_from_open_clip``.

    Raises:
        DataError: other weights, or a tokenizer with another vocabulary.
    """
    network = text_from_open_clip(part, source=source, heads=heads)
    words = _tokenizer(Path(tokenizer), part[_EMBEDDING])
    network.save_pretrained(folder)
    words.save_pretrained(folder)
    _write_rest(part, text_to_open_clip(network), Path(folder))


def write_vision_folder(
    part: Mapping[str, Tensor], folder: str | Path, *, source: str | Path, heads: int = HEADS
) -> None:
    """Write a folder that ``ImageEncoder.from_folder`` opens; see ``write_text_folder``."""
    network = vision_from_open_clip(part, source=source, heads=heads)
    network.save_pretrained(folder)
    _write_rest(part, vision_to_open_clip(network), Path(folder))


def read_text_folder(folder: str | Path) -> dict[str, Tensor]:
    """Read a folder of ``write_text_folder`` as OpenCLIP's weights: ``LVDMParts.text``.

    Raises:
        DataError: the folder is damaged or holds another kind of network.
    """
    part = part_of(Path(folder), "text_encoder")
    return text_to_open_clip(transformers_network("CLIPTextModel", part), _read_rest(part))


def read_vision_folder(folder: str | Path) -> dict[str, Tensor]:
    """Read a folder of ``write_vision_folder`` as OpenCLIP's weights: ``LVDMParts.vision``."""
    part = part_of(Path(folder), "image_encoder")
    network = transformers_network("CLIPVisionModelWithProjection", part)
    return vision_to_open_clip(network, _read_rest(part))


def _tokenizer(folder: Path, embedding: Tensor) -> Any:
    """Read the tokenizer, check its vocabulary, and let it pad as OpenCLIP does."""
    words = load_tokenizer(folder)
    marks = (words.bos_token_id, words.eos_token_id)
    wanted = tuple(embedding.shape[0] + place for place in MARKS.values())
    if len(words) != embedding.shape[0] or marks != wanted:
        raise DataError(
            f"the tokenizer in {folder} has {len(words)} words and the marks {marks}; the text "
            f"encoder has {embedding.shape[0]} and {wanted}; give CLIP's tokenizer"
        )
    words.pad_token = words.convert_ids_to_tokens(0)
    return words


def _write_rest(part: Mapping[str, Tensor], taken: Mapping[str, Tensor], folder: Path) -> None:
    write_tensors(folder / _REST, {n: value for n, value in part.items() if n not in taken})


def _read_rest(folder: Path) -> dict[str, Tensor]:
    return read_tensors(folder / _REST) if (folder / _REST).is_file() else {}
