"""The work of one encoding task: a shard spec in, a shard on disk out. No Ray.

    spec -> for each video: check its content, decode clips, encode them, make thumbnails -> shard

A worker process keeps its encoder, so the first stage is read once. Everything is single-threaded:
bytes do not depend on the host.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cil.models import load_first_stage
from pipelines.config import content_hash
from pipelines.decode import (
    ClipTransform,
    DecodedClip,
    DecodeError,
    decode_clips,
    quarantine_record,
)
from pipelines.records import ClipRecord, QuarantineRecord, ShardSpec
from pipelines.shards import EncodedClip, write_shard
from pipelines.storage import sha256_of_file

__all__ = ["ShardEncoder", "encode_shard"]


def encode_shard(batch: dict[str, npt.NDArray[Any]], **settings: Any) -> dict[str, list[str]]:
    """Encode one shard in a worker process, which keeps its encoder for the next one.

    Args:
        batch: one row with the column ``spec``, a `ShardSpec` as JSON.
        **settings: arguments of `ShardEncoder`.

    Returns:
        One row with the column ``sidecar``, the `ShardSidecar` as JSON.
    """
    return _encoder(**settings)(batch)


@lru_cache(maxsize=1)
def _encoder(**settings: Any) -> "ShardEncoder":
    return ShardEncoder(**settings)


class ShardEncoder:
    """Takes a shard spec, decodes and encodes its videos, writes the shard."""

    def __init__(
        self,
        *,
        source: str,
        dataset: str,
        transform: ClipTransform,
        identity_hash: str,
        latents_dtype: str,
        image_embeds_shape: tuple[int, int],
    ) -> None:
        import cv2
        import torch

        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        self._source, self._dataset = Path(source), Path(dataset)
        self._transform, self._identity_hash = transform, identity_hash
        self._dtype = getattr(torch, latents_dtype)
        self._image_embeds = torch.zeros(image_embeds_shape)
        self._first_stage = load_first_stage(self._dataset / "first_stage")
        self._fingerprint = self._first_stage.fingerprint()

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, list[str]]:
        """Write one shard; returns its sidecar as JSON."""
        (spec_json,) = batch["spec"]
        spec = ShardSpec.from_json(json.loads(str(spec_json)))
        quarantined: list[QuarantineRecord] = []
        sidecar = write_shard(
            self._dataset,
            spec,
            self._clips(spec, quarantined),
            identity_hash=self._identity_hash,
            quarantined=quarantined,
        )
        return {"sidecar": [json.dumps(sidecar.to_json())]}

    def _clips(self, spec: ShardSpec, quarantined: list[QuarantineRecord]) -> Iterator[EncodedClip]:
        for item in spec.inputs:
            try:
                _check_content(self._source / item["path"], item["sha256"])
                video = decode_clips(self._source / item["path"], self._transform)
            except DecodeError as error:
                quarantined.append(quarantine_record(item, error))
                continue
            for clip in video.clips:
                yield self._encode(item, clip, video.decoder, video.source_fps)

    def _encode(
        self, item: dict[str, str], clip: DecodedClip, decoder: str, source_fps: float
    ) -> EncodedClip:
        posterior = self._first_stage.encode(clip.frames)
        transform = self._transform
        identity = {
            "content": item["sha256"],
            "start_s": clip.start_s,
            "transform": {**asdict(transform), "max_clips": None},
            "first_stage": self._fingerprint,
        }
        record = ClipRecord(
            key=content_hash(identity)[:32],
            path=item["path"],
            content_sha256=item["sha256"],
            start_s=clip.start_s,
            end_s=clip.end_s,
            fps=transform.fps,
            source_fps=round(source_fps, 3),
            num_frames=transform.num_frames,
            num_distinct_frames=clip.num_distinct_frames,
            height=transform.height,
            width=transform.width,
            decoder=decoder,
        )
        return EncodedClip(
            record=record,
            mean=posterior.mean.to(self._dtype),
            std=posterior.std.to(self._dtype),
            image_embeds=self._image_embeds,
            thumbnail=_webp(clip.frames[0]),
        )


def _check_content(path: Path, sha256: str) -> None:
    """Refuse a file that is not the one the plan was made for."""
    try:
        found = sha256_of_file(path)
    except OSError as error:
        raise DecodeError(
            f"cannot be read: {error.strerror}",
            stage="read",
            decoder=None,
            exception=type(error).__name__,
        ) from error
    if found != sha256:
        raise DecodeError(
            "the file changed while the data set was encoded; encode again to take the new content",
            stage="read",
            decoder=None,
            exception="Changed",
        )


def _webp(frame: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="WEBP", quality=90, method=4)
    return buffer.getvalue()
