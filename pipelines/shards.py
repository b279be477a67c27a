"""Latent shards: WebDataset tar files with a sidecar, written whole or not at all.

    DATASET/manifest.json                           the version: shards in order, hashes, totals
    DATASET/plan.json                               which clips go to which shard
    DATASET/inventory.jsonl                         every video and what scanning it found
    DATASET/first_stage/                            the codec that the latents belong to
    DATASET/null_condition.safetensors              empty caption and grey image, if it has texts
    DATASET/quarantine.jsonl                        one line per refused video
    DATASET/dropped.jsonl                           one line per clip that was not chosen
    DATASET/shards/shard-000000.tar                 KEY.{latents,cond}.safetensors, .json, .webp
    DATASET/shards/shard-000000.moments.safetensors partial moments of its latents
    DATASET/shards/shard-000000.json                sidecar, written last: the shard is complete

A data set is in a local folder or at an fsspec URL (`pipelines.store`). A shard holds clips of one
bucket. The same clips give the same bytes: members have a fixed order, owner and time.
`pipelines.shard_reader` reads them.
"""

import dataclasses
import hashlib
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from cil.errors import DataError
from cil.moments import LatentMoments
from pipelines.config import content_hash
from pipelines.records import (
    FORMAT_VERSION,
    ClipRecord,
    Manifest,
    QuarantineRecord,
    ShardEntry,
    ShardSidecar,
    ShardSpec,
)
from pipelines.storage import temporary_beside
from pipelines.store import Location, Store, open_store, read_json, write_json

__all__ = [
    "CONDITION_SUFFIX",
    "FIRST_STAGE_NAME",
    "LATENTS_SUFFIX",
    "MANIFEST_NAME",
    "RECORD_SUFFIX",
    "THUMBNAIL_SUFFIX",
    "EncodedClip",
    "NewerFormatError",
    "complete_sidecar",
    "load_manifest",
    "moments_name",
    "read_moments",
    "read_sidecar",
    "sealed_manifest",
    "sidecar_name",
    "tar_name",
    "write_shard",
]

FIRST_STAGE_NAME = "first_stage"
MANIFEST_NAME = "manifest.json"
LATENTS_SUFFIX = "latents.safetensors"
CONDITION_SUFFIX = "cond.safetensors"
RECORD_SUFFIX = "json"
THUMBNAIL_SUFFIX = "webp"

_Versioned = TypeVar("_Versioned", Manifest, ShardSidecar)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedClip:
    """A clip ready to be written: latents (F, C, h, w) in the stored type."""

    record: ClipRecord
    mean: Tensor
    std: Tensor
    condition: dict[str, Tensor]
    """Encoded conditions by name: image_embeds (L, D), text_embeds (L, D) if there are any, and
    conditioning_latents (F, C, h, w) where the first stage compresses time."""
    thumbnail: bytes
    """The conditioning frame as WebP."""


def tar_name(shard: str) -> str:
    """Name of a shard's tar file in the data set."""
    return f"shards/{shard}.tar"


def sidecar_name(shard: str) -> str:
    """Name of a shard's sidecar in the data set."""
    return f"shards/{shard}.json"


def moments_name(shard: str) -> str:
    """Name of a shard's partial moments in the data set."""
    return f"shards/{shard}.moments.safetensors"


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
    store: Store,
    spec: ShardSpec,
    clips: Iterable[EncodedClip],
    *,
    identity_hash: str,
    quarantined: Sequence[QuarantineRecord],
) -> ShardSidecar:
    """Write a shard: tar file, moments, and last the sidecar.

    Args:
        store: where the data set is.
        spec: name and inputs of the shard.
        clips: its clips, in order; consumed while writing, so that one is in memory at a time.
        identity_hash: hash of all that decides the bytes besides the videos.
        quarantined: inputs that were refused, filled in by the time ``clips`` is exhausted.

    Returns:
        The sidecar, as written.
    """
    import webdataset

    moments = LatentMoments()
    keys: list[str] = []
    clips_of_input = {item["sha256"]: 0 for item in spec.inputs}
    temporary = store.scratch() / temporary_beside(Path(f"{spec.name}.tar")).name
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
        members = _member_offsets(temporary)
        if keys:
            store.put(temporary, tar_name(spec.name))
    finally:
        temporary.unlink(missing_ok=True)
    moments_bytes = save_tensors(moments.state_dict()) if keys else b""
    if keys:
        store.write(moments_name(spec.name), moments_bytes)
    else:  # of an earlier encoding, when its videos were still whole
        store.remove(tar_name(spec.name))
        store.remove(moments_name(spec.name))
    sidecar = ShardSidecar(
        format_version=FORMAT_VERSION,
        name=spec.name,
        generation=spec.generation,
        bucket=spec.bucket,
        identity_hash=identity_hash,
        spec_hash=content_hash(spec.to_json()),
        inputs=[
            {
                "path": item["path"],
                "sha256": item["sha256"],
                "clips": clips_of_input[item["sha256"]],
            }
            for item in spec.inputs
        ],
        quarantined=[record.to_json() for record in quarantined],
        count=len(keys),
        sha256=hashing.sha256.hexdigest() if keys else None,
        num_bytes=hashing.num_bytes if keys else 0,
        keys=keys,
        members=members,
        moments=(
            {
                "sha256": hashlib.sha256(moments_bytes).hexdigest(),
                "count": moments.count,
                "variance": moments.variance,
            }
            if keys
            else {}
        ),
    )
    write_json(store, sidecar_name(spec.name), sidecar.to_json())
    return sidecar


def _sample(clip: EncodedClip) -> dict[str, Any]:
    record = json.dumps(clip.record.to_json(), sort_keys=True).encode()
    latents = {"mean": clip.mean.contiguous(), "std": clip.std.contiguous()}
    condition = {name: tensor.contiguous() for name, tensor in clip.condition.items()}
    return {
        "__key__": clip.record.key,
        LATENTS_SUFFIX: save_tensors(latents),
        CONDITION_SUFFIX: save_tensors(condition),
        RECORD_SUFFIX: record,
        THUMBNAIL_SUFFIX: clip.thumbnail,
    }


def _member_offsets(path: Path) -> dict[str, dict[str, list[int]]]:
    members: dict[str, dict[str, list[int]]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            members.setdefault(key, {})[suffix] = [member.offset_data, member.size]
    return members


def read_sidecar(dataset: Location, shard: str) -> ShardSidecar:
    """Read a shard's sidecar.

    Raises:
        DataError: it cannot be read or is of another format.
    """
    return _read_record(open_store(dataset), sidecar_name(shard), ShardSidecar)


def _read_record(store: Store, name: str, kind: type[_Versioned]) -> _Versioned:
    """Read a record that states a format version which this program knows."""
    try:
        raw = read_json(store, name)
        if not isinstance(raw, dict) or not isinstance(raw.get("format_version"), int):
            raise DataError("it states no format version")
        if raw["format_version"] > FORMAT_VERSION:
            raise NewerFormatError(
                f"{store.url(name)} has format version {raw['format_version']}, this program reads "
                f"up to {FORMAT_VERSION}; use a newer one"
            )
        if raw["format_version"] < FORMAT_VERSION:
            raise DataError(
                f"it has format version {raw['format_version']}, this program writes "
                f"{FORMAT_VERSION}, with other contents"
            )
        return kind.from_json(raw)
    except NewerFormatError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot use {store.url(name)}: {error}; encode the videos again"
        ) from error


def complete_sidecar(store: Store, spec: ShardSpec, identity_hash: str) -> ShardSidecar | None:
    """Return the sidecar if the shard is complete and belongs to the plan, else None.

    Raises:
        NewerFormatError: a newer program wrote it; it must not be overwritten.
    """
    if not store.exists(sidecar_name(spec.name)):
        return None
    try:
        sidecar = read_sidecar(store, spec.name)
    except NewerFormatError:
        raise
    except DataError:
        return None  # damaged: the shard is written again
    same = (sidecar.spec_hash, sidecar.identity_hash) == (
        content_hash(spec.to_json()),
        identity_hash,
    )
    if not same or not _has_inputs_of(sidecar, spec):
        return None
    if sidecar.count:
        if store.size(tar_name(spec.name)) != sidecar.num_bytes:
            return None
        if not store.exists(moments_name(spec.name)):
            return None
    return sidecar


def _has_inputs_of(sidecar: ShardSidecar, spec: ShardSpec) -> bool:
    """Tell whether a sidecar, which may be damaged, lists the inputs of its shard."""
    try:
        there = [(item["path"], item["sha256"]) for item in sidecar.inputs]
        clips = sum(item["clips"] for item in sidecar.inputs)
    except (TypeError, KeyError):
        return False
    return there == [(i["path"], i["sha256"]) for i in spec.inputs] and clips == sidecar.count


def load_manifest(dataset: Location) -> Manifest:
    """Read a data set's manifest.

    Raises:
        DataError: there is none, or it is of another format.
    """
    store = open_store(dataset)
    if not store.exists(MANIFEST_NAME):
        raise DataError(
            f"no data set in {store.url()} ({MANIFEST_NAME} is missing); run encode first"
        )
    return _read_record(store, MANIFEST_NAME, Manifest)


def dataset_fingerprint(identity: dict[str, Any], shards: Sequence[dict[str, Any]]) -> str:
    """Hash what a manifest lists: what decides the bytes, and the shards with theirs.

    Raises:
        ValueError: a value is NaN or infinite, for which JSON has no word.
    """
    return content_hash({"identity": identity, "shards": shards})


def sealed_manifest(dataset: Location) -> Manifest:
    """Read a data set's manifest, and check that its fingerprint is that of what it lists.

    Raises:
        DataError: there is none, it is of another format, or was damaged or edited.
    """
    store = open_store(dataset)
    manifest = load_manifest(store)
    try:
        found = dataset_fingerprint(manifest.identity, manifest.shards)
    except ValueError:  # NaN, for which JSON has no word
        found = ""
    if found != manifest.fingerprint:
        raise DataError(
            f"{store.url(MANIFEST_NAME)} is damaged: its fingerprint is not that of its identity "
            "and shards; cil verify says what is wrong, run encode again to write it anew"
        )
    return manifest


def read_moments(dataset: Location, shard: str) -> LatentMoments:
    """Read a shard's partial moments, checked against the sidecar.

    Raises:
        DataError: the file differs from what the sidecar states.
    """
    store = open_store(dataset)
    sidecar = read_sidecar(store, shard)
    name = moments_name(shard)
    content = store.read(name) if store.exists(name) else b""
    if hashlib.sha256(content).hexdigest() != sidecar.moments.get("sha256"):
        raise DataError(
            f"{store.url(name)} is not what its sidecar states; delete "
            f"{store.url(sidecar_name(shard))} and run encode again"
        )
    return LatentMoments.from_state_dict(load_tensors(content))


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
            bucket=sidecar.bucket,
            count=sidecar.count,
            sha256=sidecar.sha256,
            num_bytes=sidecar.num_bytes,
        )
    )
