"""What a network is told in place of a caption and an image that are not there, for guidance.

    null = NullCondition(
        text_embeds=text_encoder.encode("").tokens, image_embeds=image_encoder.encode_grey()
    )
    null.save(folder)
    null = NullCondition.load(folder)       # None where the folder has none

The caption is the empty one; the image is grey, the zero of pixels in [-1, 1]. A data set and a
model folder hold both as encoders make them, so that nothing else needs the encoders.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch import Tensor

from cil.errors import DataError
from cil.models.storage import read_tensors, write_tensors

__all__ = ["NULL_CONDITION_FILE", "NullCondition"]

NULL_CONDITION_FILE = "null_condition.safetensors"
_NAMES = ("text_embeds", "image_embeds")


@dataclass(frozen=True, kw_only=True, slots=True)
class NullCondition:
    """The embeddings of the empty caption and of the grey image.

    Attributes:
        text_embeds: (L, D) float32.
        image_embeds: (L', D') float32, as ``encode_condition`` gives them; not projected.
    """

    text_embeds: Tensor
    image_embeds: Tensor

    def save(self, folder: Path) -> None:
        """Write the file into a folder that is there."""
        write_tensors(folder / NULL_CONDITION_FILE, {n: getattr(self, n) for n in _NAMES})

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Read the file of a folder; None if there is none.

        Raises:
            DataError: it is damaged.
        """
        path = folder / NULL_CONDITION_FILE
        return cls.read(path) if path.is_file() else None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read one file.

        Raises:
            DataError: it is missing or damaged.
        """
        found = read_tensors(path)
        if sorted(found) != sorted(_NAMES) or any(value.ndim != 2 for value in found.values()):
            raise DataError(
                f"{path} must hold {' and '.join(_NAMES)}, each (L, D), got {sorted(found)}; "
                "delete it and encode the videos again"
            )
        return cls(**{name: value.float() for name, value in found.items()})
