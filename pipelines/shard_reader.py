"""Clips by their number, in any order, from the shards of a data set.

A shard is mapped into memory when a clip of it is first asked for, from the cache if the data set
is remote, and the hash of its content is checked; see `pipelines.shard_files`.
"""

import bisect
import copy
import json
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from cil.errors import ConfigError, DataError
from cil.models import FirstStage, load_first_stage
from cil.models.null_condition import NullCondition
from pipelines.null_condition import read_null_condition
from pipelines.records import ClipRecord, Manifest, ShardEntry
from pipelines.shard_files import ShardFiles
from pipelines.shards import (
    CONDITION_SUFFIX,
    FIRST_STAGE_NAME,
    LATENTS_SUFFIX,
    RECORD_SUFFIX,
    THUMBNAIL_SUFFIX,
    sealed_manifest,
    tar_name,
)
from pipelines.store import Location, open_store
from pipelines.tensor_views import tensor_views

__all__ = ["LatentClip", "ShardReader", "chosen_bucket"]

_REQUESTS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentClip:
    """A clip as it is read back; posterior mean and std (F, C, h, w), unscaled."""

    record: ClipRecord
    mean: Tensor
    std: Tensor
    image_embeds: Tensor
    text_embeds: Tensor | None = None
    conditioning_latents: Tensor | None = None
    """(F, C, h, w), unscaled, where they are more than the latents of the first frame."""


class ShardReader:
    """Random access to the clips of a bucket, by their number in the manifest's order."""

    def __init__(
        self,
        dataset: Location,
        *,
        bucket: str | None = None,
        cache: Path | None = None,
        files: ShardFiles | None = None,
        manifest: Manifest | None = None,
    ) -> None:
        """Open a data set.

        Args:
            dataset: folder, URL or store of the data set.
            bucket: name of the bucket that is read; None takes the only one.
            cache: folder for what is read from a remote data set; None takes a temporary one.
            files: shards of the data set, to share with other readers; None opens them anew.
            manifest: of the data set; None reads it.

        Raises:
            ConfigError: no such bucket, or several and none was named.
            DataError: there is no data set, or one of another format.
        """
        self._store = open_store(dataset)
        self._cache = cache or Path(tempfile.gettempdir()) / "cil-cache"
        self.manifest = manifest or sealed_manifest(self._store)
        self.bucket = chosen_bucket(self.manifest, bucket)
        self._files = files or ShardFiles(self._store, folder=self._cache)
        self._entries = [e for e in self.manifest.entries() if e.bucket == self.bucket]
        self._ends = list(accumulate(entry.count for entry in self._entries))
        self._chosen: tuple[int, ...] | None = None

    @property
    def entries(self) -> list[ShardEntry]:
        """The shards of the bucket, in order."""
        return list(self._entries)

    @property
    def latents_shape(self) -> tuple[int, ...]:
        """(F, C, h, w) of the latents of a clip."""
        return tuple(self.manifest.buckets[self.bucket]["latents_shape"])

    def first_stage(self) -> FirstStage:
        """Return the codec that the latents belong to."""
        return load_first_stage(self._store.local_folder(FIRST_STAGE_NAME, self._cache))

    def null_condition(self) -> NullCondition | None:
        """Return what stands for no caption and no image; None for a data set without texts.

        Raises:
            DataError: it is missing or damaged.
        """
        stated = self.manifest.null_condition
        return read_null_condition(self._store, self._cache, sha256=stated)

    def subset(self, indices: Sequence[int]) -> "ShardReader":
        """Return a reader of some of the clips, numbered anew in the order given.

        It shares with this one what is open; ``entries`` and `check_all` are still of the bucket.
        """
        assert self._chosen is None
        part = copy.copy(self)
        part._chosen = tuple(indices)
        return part

    def videos(self) -> list[str]:
        """Read the content hash of the video of every clip from the sidecars of all shards."""
        return self._of_all(self._files.videos)

    def sample_keys(self) -> list[str]:
        """Read the sample key of every clip from the sidecars of all shards."""
        return self._of_all(self._files.keys)

    def _of_all(self, read: Callable[[ShardEntry], list[str]]) -> list[str]:
        with ThreadPoolExecutor(_REQUESTS) as pool:
            found = [item for part in pool.map(read, self._entries) for item in part]
        return found if self._chosen is None else [found[index] for index in self._chosen]

    def __len__(self) -> int:
        """Number of clips."""
        if self._chosen is not None:
            return len(self._chosen)
        return self._ends[-1] if self._ends else 0

    def check_all(self) -> None:
        """Check every shard: the hash of a local one, that a remote one is there and has its size.

        Raises:
            ConfigError: the cache is too small for one of the shards.
            DataError: a shard is missing or damaged.
        """
        self._files.check(self._entries)

    def key(self, index: int) -> str:
        """Read the sample key of a clip from the sidecar of its shard; the shard is not needed."""
        entry, inside = self._locate(index)
        return self._files.keys(entry)[inside]

    def clip(self, index: int) -> LatentClip:
        """Read a clip by its number, 0 <= index < len(self); tensors in float32.

        Raises:
            DataError: the shard differs from the manifest.
        """
        stored = self.stored_clip(index)
        text, shown = stored.text_embeds, stored.conditioning_latents
        return LatentClip(
            record=stored.record,
            mean=_own(stored.mean),
            std=_own(stored.std),
            image_embeds=_own(stored.image_embeds),
            text_embeds=None if text is None else _own(text),
            conditioning_latents=None if shown is None else _own(shown),
        )

    def stored_clip(self, index: int) -> LatentClip:
        """Return a clip as it lies in the shard: tensors in the stored types, not to be written to.

        Raises:
            DataError: the shard differs from the manifest.
        """
        entry, inside = self._locate(index)
        content, at = self._files.content(entry), self._files.members(entry, inside)
        offset, size = at[RECORD_SUFFIX]
        try:
            latents = tensor_views(content, *at[LATENTS_SUFFIX])
            condition = tensor_views(content, *at[CONDITION_SUFFIX])
            clip = LatentClip(
                record=ClipRecord.from_json(json.loads(content[offset : offset + size])),
                mean=latents["mean"],
                std=latents["std"],
                image_embeds=condition["image_embeds"],
                text_embeds=condition.get("text_embeds"),
                conditioning_latents=condition.get("conditioning_latents"),
            )
            for name in ("mean", "std"):
                if latents[name].shape != self.latents_shape:
                    raise DataError(f"{name} has the shape {tuple(latents[name].shape)}")
            return clip
        except (KeyError, ValueError, RecursionError) as error:
            place = self._store.url(tar_name(entry.name))
            raise DataError(
                f"clip {inside} of {place} cannot be read: {error}; it was written by another "
                "version, encode the videos again"
            ) from error

    def thumbnail(self, index: int) -> bytes:
        """Read the conditioning frame of a clip, as WebP."""
        entry, inside = self._locate(index)
        offset, size = self._files.members(entry, inside)[THUMBNAIL_SUFFIX]
        return self._files.content(entry)[offset : offset + size]

    def _locate(self, index: int) -> tuple[ShardEntry, int]:
        assert 0 <= index < len(self)
        if self._chosen is not None:
            index = self._chosen[index]
        number = bisect.bisect_right(self._ends, index)
        entry = self._entries[number]
        return entry, index - (self._ends[number] - entry.count)


def chosen_bucket(manifest: Manifest, asked: str | None) -> str:
    """Return the bucket that was asked for, or the only one.

    Raises:
        ConfigError: no such bucket, or several and none was named.
    """
    there = sorted(manifest.buckets)
    if asked in there:
        return str(asked)
    if asked is None and len(there) == 1:
        return there[0]
    given = f"got {asked}" if asked else "none was named"
    raise ConfigError(
        f"train.bucket must be one of the data set's buckets ({', '.join(there)}), {given}"
    )


def _own(view: Tensor) -> Tensor:
    return view.to(torch.float32, copy=True)
