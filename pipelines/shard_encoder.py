"""The work of one encoding worker: a shard spec in, a shard in the data set out. No Ray.

    spec -> videos, decoded ahead in processes of their own -> clips -> latents, tokens -> shard

A worker keeps its encoders and decoders for the next shard. Clips are encoded one by one, so the
bytes do not depend on what else is going on; on the CPU everything is single-threaded.
"""

import io
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cil import rng
from cil.models import ClipFirstStage, Posterior
from cil.rng import Stream
from pipelines.allocator import keep_freed_memory
from pipelines.config import content_hash
from pipelines.decode.clips import ReadClip
from pipelines.decode.config import DecodeConfig
from pipelines.decode.errors import DecodeError, quarantine_record
from pipelines.decode_ahead import DecodeAhead, PlannedVideo
from pipelines.encoders import ConditionEncoders, first_stage_for_encoding
from pipelines.records import ClipRecord, QuarantineRecord, ShardSpec
from pipelines.selection.bucket import Bucket
from pipelines.selection.candidates import CandidateClip
from pipelines.selection.micro_conditioning import fps_id, motion_bucket_id
from pipelines.settings import ConditionConfig, EncodeConfig
from pipelines.shards import FIRST_STAGE_NAME, EncodedClip, write_shard
from pipelines.store import open_store

__all__ = ["EncoderSettings", "ShardEncoder", "encode_shard"]


_THUMBNAIL_SIDE = 192
"""Longest side of a thumbnail in pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSettings:
    """All that a worker must know, besides the shard."""

    dataset: str
    """Folder or URL of the data set."""
    identity_hash: str
    """Hash of everything that decides the bytes besides the videos."""
    clip_hash: str
    """Hash of what decides the bytes of a clip: frame rate, first stage, encoders, types."""
    fps: float
    """Frames per second of a clip, in Hz."""
    seed: int
    """Of the samples, where a sample of the posterior is stored."""
    token_width: int
    """Width of the zero image token where there is no image encoder."""
    decode: DecodeConfig
    encode: EncodeConfig
    condition: ConditionConfig


def encode_shard(
    batch: dict[str, npt.NDArray[Any]], *, settings: EncoderSettings
) -> dict[str, list[str]]:
    """Encode one shard in a worker process, which keeps its encoder for the next one.

    Args:
        batch: one row with the columns ``spec``, a `ShardSpec` as JSON, and ``places``, the
            `SourceVideo` of each input as a JSON list.
        settings: of the encoder.

    Returns:
        One row with the column ``sidecar``, the `ShardSidecar` as JSON.
    """
    return _encoder(settings)(batch)


@lru_cache(maxsize=1)
def _encoder(settings: EncoderSettings) -> "ShardEncoder":
    return ShardEncoder(settings)


class ShardEncoder:
    """Takes a shard spec, decodes and encodes its videos, writes the shard."""

    def __init__(self, settings: EncoderSettings) -> None:
        if not settings.encode.use_gpu:
            torch.set_num_threads(1)
        keep_freed_memory()
        self._settings = settings
        self._store = open_store(settings.dataset)
        self._dtype = getattr(torch, settings.encode.latents_dtype)
        with tempfile.TemporaryDirectory() as cache:
            folder = self._store.local_folder(FIRST_STAGE_NAME, Path(cache))
            self._first_stage = first_stage_for_encoding(folder, settings.encode)
        self._conditions = ConditionEncoders(
            settings.condition, settings.encode, settings.token_width
        )
        self._ahead = DecodeAhead(settings.decode, settings.encode.decoders_per_worker)

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, list[str]]:
        """Write one shard; returns its sidecar as JSON."""
        (spec_json,), (places_json,) = batch["spec"], batch["places"]
        spec = ShardSpec.from_json(json.loads(str(spec_json)))
        quarantined: list[QuarantineRecord] = []
        sidecar = write_shard(
            self._store,
            spec,
            self._clips(spec, json.loads(str(places_json)), quarantined),
            identity_hash=self._settings.identity_hash,
            quarantined=quarantined,
        )
        return {"sidecar": [json.dumps(sidecar.to_json())]}

    def _clips(
        self, spec: ShardSpec, places: list[dict[str, Any]], quarantined: list[QuarantineRecord]
    ) -> Iterator[EncodedClip]:
        bucket = Bucket.parse(spec.bucket)
        videos = [
            PlannedVideo.of(item, place, bucket)
            for item, place in zip(spec.inputs, places, strict=True)
        ]
        for item, frames_of_clips in self._ahead.read(videos):
            wanted = [CandidateClip.from_json(clip) for clip in item.planned["clips"]]
            encoded = []  # a video is in the shard with all of its clips, or not at all
            try:
                for clip, read in zip(wanted, frames_of_clips, strict=True):
                    encoded.append(self._encode(item.planned, bucket, clip, read))
            except DecodeError as error:
                record = quarantine_record(item.planned["path"], error)
                quarantined.append(replace(record, sha256=item.planned["sha256"]))
                continue
            yield from encoded

    def _encode(
        self, video: dict[str, Any], bucket: Bucket, clip: CandidateClip, read: ReadClip
    ) -> EncodedClip:
        identity = {
            "content": video["sha256"],
            "start_s": clip.start_s,
            "frames": clip.frames,
            "bucket": bucket.name,
            "encoding": self._settings.clip_hash,
        }
        key = content_hash(identity)[:32]
        scores = clip.scores
        record = ClipRecord(
            key=key,
            path=video["path"],
            content_sha256=video["sha256"],
            bucket=bucket.name,
            shot=clip.shot,
            start_s=clip.start_s,
            end_s=clip.end_s,
            fps=self._settings.fps,
            source_fps=round(video["source_fps"], 3),
            num_frames=bucket.num_frames,
            frames=list(clip.frames),
            height=bucket.height,
            width=bucket.width,
            decoder=video["decoder"],
            scores=scores.to_json(),
            fps_id=fps_id(self._settings.fps),
            motion_bucket_id=motion_bucket_id(scores.motion),
            caption=video["caption"],
        )
        posterior = self._stored(self._first_stage.encode(read.frames), key)
        return EncodedClip(
            record=record,
            mean=posterior.mean.to(self._dtype).cpu(),
            std=posterior.std.to(self._dtype).cpu(),
            condition=self._condition(read.frames, video["caption"]),
            thumbnail=_webp(read.frames[0]),
        )

    def _condition(
        self, frames: npt.NDArray[np.uint8], caption: str | None
    ) -> dict[str, torch.Tensor]:
        """Encode what a network is told of a clip; with the image, where that is more than tokens.

        A first stage that compresses time makes the conditioning latents itself: they are no frame
        of the clip's own latents.
        """
        made = self._conditions.encode(frames[0], caption)
        if isinstance(self._first_stage, ClipFirstStage):
            latents = self._first_stage.encode_conditioning(frames[0], len(frames))
            made["conditioning_latents"] = latents.to(self._dtype).cpu()
        return made

    def _stored(self, posterior: Posterior, key: str) -> Posterior:
        """Reduce the posterior to what is stored of it."""
        kind = self._settings.encode.posterior
        if kind == "mean_std":
            return posterior
        mean, nothing = posterior.mean, torch.zeros_like(posterior.std)
        if kind == "sample":
            noise = rng.normal(
                mean.shape,
                seed=self._settings.seed,
                sample_ids=[int(key[:7], 16)],
                stream=Stream.POSTERIOR,
                step=int(key[7:14], 16),
            )[0]
            mean = posterior.sample(noise.to(mean.device))
        return Posterior(mean=mean, std=nothing)


def _webp(frame: npt.NDArray[np.uint8]) -> bytes:
    """Return a small picture of a frame, for people."""
    from PIL import Image

    picture, buffer = Image.fromarray(frame), io.BytesIO()
    picture.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.BOX)
    picture.save(buffer, format="WEBP", quality=80, method=0)
    return buffer.getvalue()
