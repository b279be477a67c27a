"""The held-out clips that a validation looks at, as tensors; the same ones for every checkpoint.

In: the held-out clips of a data set. Out: the first few of them in the order of the hashes of their
keys, so that new videos replace few of them, and per clip a number of its own for its noise.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cil.models import ImageToVideoModel
from pipelines.clip_inputs import DrawnClips, draw_clips
from pipelines.config import RunConfig
from pipelines.dataset import TrainingData
from pipelines.shard_reader import LatentClip, ShardReader

__all__ = [
    "ClipPlace",
    "HeldOutClip",
    "choose_clips",
    "chunks",
    "clips_in_order",
    "drawn_latents",
    "held_out_clip",
    "sample_id",
]

_FIRST_SAMPLE_ID = 2**31
"""Above the places in a global batch, which are the sample ids of training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutClip:
    """A clip that is not trained on, and its conditioning frame."""

    stored: LatentClip
    """Posterior of the latents, unscaled, float32 on the CPU."""
    image: npt.NDArray[np.uint8]
    """(H, W, 3) uint8 RGB."""

    @property
    def sample_id(self) -> int:
        """Number of the clip in the counter of all random numbers."""
        return sample_id(self.stored.record.key)


def sample_id(key: str) -> int:
    """Return a clip's number in the counter of random numbers; none is a place in a batch."""
    return _FIRST_SAMPLE_ID + int(key[:7], 16)


def choose_clips(data: TrainingData, count: int, *, bucket: str | None = None) -> list[HeldOutClip]:
    """Read the held-out clips that are validated on.

    Args:
        data: the data set.
        count: clips at most.
        bucket: take clips of this bucket only.

    Raises:
        DataError: a shard is missing or damaged.
    """
    readers = [reader for name, reader in sorted(data.held_out.items()) if bucket in (None, name)]
    return [held_out_clip(place) for place in clips_in_order(readers)[:count]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipPlace:
    """Where a clip is found."""

    key: str
    reader: ShardReader
    index: int
    """Number of the clip for the reader."""


def clips_in_order(readers: Sequence[ShardReader]) -> list[ClipPlace]:
    """List clips in the order of the hashes of their keys, which new videos do not change."""
    places = [
        ClipPlace(key=key, reader=reader, index=index)
        for reader in readers
        for index, key in enumerate(reader.sample_keys())
    ]
    return sorted(places, key=lambda place: hashlib.sha256(place.key.encode()).hexdigest())


def held_out_clip(place: ClipPlace) -> HeldOutClip:
    """Read a clip."""
    return HeldOutClip(
        stored=place.reader.clip(place.index), image=_image(place.reader, place.index)
    )


def _image(reader: ShardReader, index: int) -> npt.NDArray[np.uint8]:
    from PIL import Image

    with Image.open(io.BytesIO(reader.thumbnail(index))) as image:
        return np.array(image.convert("RGB"))


def chunks(clips: Sequence[HeldOutClip], size: int) -> Iterator[list[HeldOutClip]]:
    """Divide clips into batches of one bucket each, in their order within each bucket."""
    for bucket in sorted({clip.stored.record.bucket for clip in clips}):
        own = [clip for clip in clips if clip.stored.record.bucket == bucket]
        for start in range(0, len(own), size):
            yield own[start : start + size]


def drawn_latents(
    clips: Sequence[HeldOutClip],
    model: ImageToVideoModel,
    config: RunConfig,
    *,
    step: int | None,
    device: torch.device,
) -> DrawnClips:
    """Put clips of one bucket into tensors.

    Args:
        clips: of one bucket.
        model: for its scales.
        config: the run; its seed decides the posterior's samples.
        step: of the counter; None takes the mean of the posterior.
        device: where the tensors go.
    """
    stored = [clip.stored for clip in clips]
    texts = [clip.text_embeds for clip in stored if clip.text_embeds is not None]
    shown = [c.conditioning_latents for c in stored if c.conditioning_latents is not None]
    return draw_clips(
        config,
        model,
        records=[clip.record for clip in stored],
        mean=torch.stack([clip.mean for clip in stored]),
        std=torch.stack([clip.std for clip in stored]),
        image_embeds=torch.stack([clip.image_embeds for clip in stored]),
        text_embeds=torch.stack(texts) if texts else None,
        conditioning_latents=torch.stack(shown) if shown else None,
        sample_ids=torch.tensor(
            [clip.sample_id for clip in clips], dtype=torch.int64, device=device
        ),
        step=step,
    )
