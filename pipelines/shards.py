"""Latent shards: WebDataset tar files with a sidecar, written whole or not at all, read by offset.

    DATASET/manifest.json                           the version: shards in order, hashes, totals
    DATASET/plan.json                               which videos go to which shard
    DATASET/first_stage/                            the codec that the latents belong to
    DATASET/quarantine.jsonl                        one line per refused file
    DATASET/shards/shard-000000.tar                 KEY.{latents,cond}.safetensors, .json, .webp
    DATASET/shards/shard-000000.moments.safetensors partial moments of its latents
    DATASET/shards/shard-000000.json                sidecar, written last: the shard is complete

The same clips give the same bytes: members have a fixed order, owner and time.
"""

import dataclasses
import hashlib
import json
import mmap
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from cil.errors import DataError
from cil.moments import LatentMoments
from pipelines.records import (
    FORMAT_VERSION,
    ClipRecord,
    Manifest,
    QuarantineRecord,
    ShardEntry,
    ShardSidecar,
    ShardSpec,
)
from pipelines.storage import (
    commit,
    read_json,
    sha256_of_file,
    temporary_beside,
    write_atomic,
    write_json,
)

__all__ = [
    "CONDITION_SUFFIX",
    "LATENTS_SUFFIX",
    "EncodedClip",
    "LatentClip",
    "NewerFormatError",
    "ShardReader",
    "complete_sidecar",
    "load_manifest",
    "moments_path",
    "read_moments",
    "read_sidecar",
    "sidecar_path",
    "tar_path",
    "write_shard",
]

LATENTS_SUFFIX = "latents.safetensors"
CONDITION_SUFFIX = "cond.safetensors"
_RECORD_SUFFIX = "json"
_THUMBNAIL_SUFFIX = "webp"

_Versioned = TypeVar("_Versioned", Manifest, ShardSidecar)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedClip:
    """A clip ready to be written: latents (F, C, h, w) in the stored type, tokens (L, D)."""

    record: ClipRecord
    mean: Tensor
    std: Tensor
    image_embeds: Tensor
    thumbnail: bytes
    """The conditioning frame as WebP."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentClip:
    """A clip as it is read back; posterior mean and std (F, C, h, w), unscaled, float32."""

    record: ClipRecord
    mean: Tensor
    std: Tensor
    image_embeds: Tensor


def tar_path(dataset: Path, name: str) -> Path:
    """Path of a shard's tar file."""
    return dataset / "shards" / f"{name}.tar"


def sidecar_path(dataset: Path, name: str) -> Path:
    """Path of a shard's sidecar."""
    return dataset / "shards" / f"{name}.json"


def moments_path(dataset: Path, name: str) -> Path:
    """Path of a shard's partial moments."""
    return dataset / "shards" / f"{name}.moments.safetensors"


class NewerFormatError(DataError):
    """A data set of a newer format, which this program neither reads nor overwrites."""


class _HashingFile:
    """A file that hashes what is written to it; enough of a file for a tar writer."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0

    def write(self, content: bytes) -> int:
        self.sha256.update(content)
        self.num_bytes += len(content)
        return self._file.write(content)

    def tell(self) -> int:
        return self.num_bytes


def write_shard(
    dataset: Path,
    spec: ShardSpec,
    clips: Iterable[EncodedClip],
    *,
    identity_hash: str,
    quarantined: Sequence[QuarantineRecord],
) -> ShardSidecar:
    """Write a shard: tar file, moments, and last the sidecar.

    Args:
        dataset: folder of the data set.
        spec: name and inputs of the shard.
        clips: its clips, in order; consumed while writing, so that one is in memory at a time.
        identity_hash: hash of all that decides the bytes besides the videos.
        quarantined: inputs that were refused, filled in by the time ``clips`` is exhausted.

    Returns:
        The sidecar, as written.
    """
    import webdataset

    path = tar_path(dataset, spec.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    moments = LatentMoments()
    keys: list[str] = []
    clips_of_input = {item["sha256"]: 0 for item in spec.inputs}
    try:
        with temporary.open("wb") as file:
            hashing = _HashingFile(file)
            with webdataset.TarWriter(
                hashing, user="cil", group="cil", mode=0o644, mtime=0, encoder=False
            ) as writer:
                for clip in clips:
                    writer.write(_sample(clip))
                    moments.update(clip.mean.double()[None], clip.std.double()[None])
                    keys.append(clip.record.key)
                    clips_of_input[clip.record.content_sha256] += 1
            file.flush()
            os.fsync(file.fileno())
        members = _member_offsets(temporary)
        if keys:
            commit(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    moments_file = moments_path(dataset, spec.name)
    moments_bytes = save_tensors(moments.state_dict()) if keys else b""
    if keys:
        write_atomic(moments_file, moments_bytes)
    else:  # of an earlier encoding, when its videos were still whole
        path.unlink(missing_ok=True)
        moments_file.unlink(missing_ok=True)
    sidecar = ShardSidecar(
        format_version=FORMAT_VERSION,
        name=spec.name,
        generation=spec.generation,
        identity_hash=identity_hash,
        inputs=[{**item, "clips": clips_of_input[item["sha256"]]} for item in spec.inputs],
        quarantined=[record.to_json() for record in quarantined],
        count=len(keys),
        sha256=hashing.sha256.hexdigest() if keys else None,
        num_bytes=hashing.num_bytes if keys else 0,
        keys=keys,
        members=members,
        moments=(
            {
                "file": moments_file.name,
                "sha256": hashlib.sha256(moments_bytes).hexdigest(),
                "count": moments.count,
                "variance": moments.variance,
            }
            if keys
            else {}
        ),
    )
    write_json(sidecar_path(dataset, spec.name), sidecar.to_json())
    return sidecar


def _sample(clip: EncodedClip) -> dict[str, Any]:
    record = json.dumps(clip.record.to_json(), sort_keys=True).encode()
    latents = {"mean": clip.mean.contiguous(), "std": clip.std.contiguous()}
    return {
        "__key__": clip.record.key,
        LATENTS_SUFFIX: save_tensors(latents),
        CONDITION_SUFFIX: save_tensors({"image_embeds": clip.image_embeds.contiguous()}),
        _RECORD_SUFFIX: record,
        _THUMBNAIL_SUFFIX: clip.thumbnail,
    }


def _member_offsets(path: Path) -> dict[str, dict[str, list[int]]]:
    members: dict[str, dict[str, list[int]]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            members.setdefault(key, {})[suffix] = [member.offset_data, member.size]
    return members


def read_sidecar(path: Path) -> ShardSidecar:
    """Read a sidecar.

    Raises:
        DataError: it cannot be read or is of another format.
    """
    return _read_record(path, ShardSidecar)


def _read_record(path: Path, kind: type[_Versioned]) -> _Versioned:
    """Read a record that states a format version which this program knows."""
    try:
        raw = read_json(path)
        if not isinstance(raw, dict) or not isinstance(raw.get("format_version"), int):
            raise DataError("it states no format version")
        if raw["format_version"] > FORMAT_VERSION:
            raise NewerFormatError(
                f"{path} has format version {raw['format_version']}, this program reads up to "
                f"{FORMAT_VERSION}; use a newer one"
            )
        return kind.from_json(raw)
    except NewerFormatError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"cannot use {path}: {error}; run encode again") from error


def complete_sidecar(dataset: Path, spec: ShardSpec, identity_hash: str) -> ShardSidecar | None:
    """Return the sidecar if the shard is complete and belongs to the plan, else None.

    Raises:
        NewerFormatError: a newer program wrote it; it must not be overwritten.
    """
    path = sidecar_path(dataset, spec.name)
    if not path.exists():
        return None
    try:
        sidecar = read_sidecar(path)
        inputs = [{"path": item["path"], "sha256": item["sha256"]} for item in sidecar.inputs]
    except NewerFormatError:
        raise
    except (DataError, KeyError, TypeError):
        return None  # damaged: the shard is written again
    if inputs != spec.inputs or sidecar.identity_hash != identity_hash:
        return None
    if sidecar.count:
        tar = tar_path(dataset, spec.name)
        if not tar.exists() or tar.stat().st_size != sidecar.num_bytes:
            return None
        if not moments_path(dataset, spec.name).exists():
            return None
    return sidecar


def load_manifest(dataset: Path) -> Manifest:
    """Read a data set's manifest.

    Raises:
        DataError: there is none, or it is of another format.
    """
    path = dataset / "manifest.json"
    if not path.exists():
        raise DataError(f"no data set in {dataset} (manifest.json is missing); run encode first")
    return _read_record(path, Manifest)


def read_moments(dataset: Path, name: str) -> LatentMoments:
    """Read a shard's partial moments, checked against the sidecar.

    Raises:
        DataError: the file differs from what the sidecar states.
    """
    sidecar = read_sidecar(sidecar_path(dataset, name))
    path = moments_path(dataset, name)
    content = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(content).hexdigest() != sidecar.moments.get("sha256"):
        raise DataError(
            f"{path} is not what its sidecar states; delete {sidecar_path(dataset, name)} "
            "and run encode again"
        )
    return LatentMoments.from_state_dict(load_tensors(content))


class ShardReader:
    """Random access to the clips of a data set, by their number in the manifest's order.

    Shards are memory-mapped and their hash is checked when first opened.
    """

    def __init__(self, dataset: Path) -> None:
        self._dataset = dataset
        self.manifest = load_manifest(dataset)
        self._entries = self.manifest.entries()
        self._starts: list[int] = []
        total = 0
        for entry in self._entries:
            self._starts.append(total)
            total += entry.count
        self._count = total
        self._open: dict[int, tuple[ShardSidecar, mmap.mmap]] = {}

    def __len__(self) -> int:
        """Number of clips."""
        return self._count

    def check_all(self) -> None:
        """Open every shard, which compares its hash with the manifest.

        Raises:
            DataError: a shard is missing or damaged.
        """
        for number in range(len(self._entries)):
            self._shard(number)

    def key(self, index: int) -> str:
        """Sample key of a clip by its number."""
        shard, inside = self._locate(index)
        return self._shard(shard)[0].keys[inside]

    def clip(self, index: int) -> LatentClip:
        """Read a clip by its number, 0 <= index < len(self).

        Raises:
            DataError: the shard differs from the manifest.
        """
        shard, inside = self._locate(index)
        sidecar, content = self._shard(shard)
        offsets = sidecar.members[sidecar.keys[inside]]
        latents = load_tensors(_slice(content, offsets[LATENTS_SUFFIX]))
        condition = load_tensors(_slice(content, offsets[CONDITION_SUFFIX]))
        return LatentClip(
            record=ClipRecord.from_json(json.loads(_slice(content, offsets[_RECORD_SUFFIX]))),
            mean=latents["mean"].to(torch.float32),
            std=latents["std"].to(torch.float32),
            image_embeds=condition["image_embeds"].to(torch.float32),
        )

    def thumbnail(self, index: int) -> bytes:
        """Read the conditioning frame of a clip, as WebP."""
        shard, inside = self._locate(index)
        sidecar, content = self._shard(shard)
        return _slice(content, sidecar.members[sidecar.keys[inside]][_THUMBNAIL_SUFFIX])

    def _locate(self, index: int) -> tuple[int, int]:
        import bisect

        assert 0 <= index < self._count
        shard = bisect.bisect_right(self._starts, index) - 1
        return shard, index - self._starts[shard]

    def _shard(self, number: int) -> tuple[ShardSidecar, mmap.mmap]:
        if number not in self._open:
            self._open[number] = self._open_shard(self._entries[number])
        return self._open[number]

    def _open_shard(self, entry: ShardEntry) -> tuple[ShardSidecar, mmap.mmap]:
        path = tar_path(self._dataset, entry.name)
        if not path.exists():
            raise DataError(f"{path} is missing; run encode again to restore it")
        found = sha256_of_file(path)
        if found != entry.sha256:
            raise DataError(
                f"{path} is damaged: its sha256 is {found}, the manifest states {entry.sha256}; "
                f"delete {sidecar_path(self._dataset, entry.name)} and run encode again"
            )
        sidecar = read_sidecar(sidecar_path(self._dataset, entry.name))
        if sidecar.sha256 != entry.sha256:
            raise DataError(
                f"{sidecar_path(self._dataset, entry.name)} is of another tar file: it states the "
                f"sha256 {sidecar.sha256}, the manifest {entry.sha256}; run encode again"
            )
        with path.open("rb") as file:
            return sidecar, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _slice(content: mmap.mmap, place: Sequence[int]) -> bytes:
    offset, size = place
    return content[offset : offset + size]


def moments_of(shards: Mapping[str, LatentMoments]) -> LatentMoments:
    """Merge partial moments in the order of the shards' names, so that the result is exact."""
    total = LatentMoments()
    for name in sorted(shards):
        total.merge(shards[name])
    return total


def entry_of(sidecar: ShardSidecar) -> dict[str, Any]:
    """Return the manifest's line about a complete shard."""
    assert sidecar.sha256 is not None
    return dataclasses.asdict(
        ShardEntry(
            name=sidecar.name,
            generation=sidecar.generation,
            count=sidecar.count,
            sha256=sidecar.sha256,
            num_bytes=sidecar.num_bytes,
        )
    )
