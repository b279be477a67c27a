"""`cil verify DATASET`: is every byte of a data set what its manifest says?

Checks of each shard: sha256 and size of the tar file, the index against the tar's own headers,
count and keys, record and tensors of every clip, moments. Exit code 1 if anything is wrong.
"""

import json
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from cil.errors import CilError, DataError
from cil.models import load_first_stage
from cil.models.null_condition import NULL_CONDITION_FILE
from cil.moments import LatentMoments
from pipelines.config import content_hash
from pipelines.null_condition import read_null_condition
from pipelines.progress import stage_progress
from pipelines.records import ClipRecord, Manifest, ShardEntry, ShardSidecar
from pipelines.report import RunReport, Stopwatch
from pipelines.shards import (
    CONDITION_SUFFIX,
    FIRST_STAGE_NAME,
    LATENTS_SUFFIX,
    RECORD_SUFFIX,
    THUMBNAIL_SUFFIX,
    dataset_fingerprint,
    load_manifest,
    read_moments,
    read_sidecar,
    sidecar_name,
    tar_name,
)
from pipelines.shown_text import shortened
from pipelines.storage import sha256_of_file
from pipelines.store import Store, open_store

__all__ = ["Fault", "faults_of_dataset", "verify"]

_WORKERS = 4
_LONGEST = 1000
"""Characters of a fault: a file may hold anything."""
_UNREADABLE = (
    *(CilError, OSError, ValueError, LookupError, tarfile.TarError, SafetensorError),
    *(TypeError, RuntimeError),  # JSON nested too deeply, tensors of other shapes
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Something that is not as it should be."""

    place: str
    """File of the data set."""
    message: str
    """What is wrong."""


def verify(location: str, cache: Path) -> RunReport:
    """Check a data set.

    Args:
        location: its folder or URL.
        cache: folder for shards of a remote data set while they are read.

    Returns:
        Counts; ``outputs["faults"]`` is empty if all is well.

    Raises:
        DataError: there is no data set, or one of another format.
    """
    watch = Stopwatch()
    store = open_store(location)
    manifest = load_manifest(store)
    faults = faults_of_dataset(store, manifest, cache)
    return RunReport(
        stage="verify",
        reused=False,
        inputs={"dataset": store.url(), "fingerprint": manifest.fingerprint},
        outputs={"faults": [shortened(f"{f.place}: {f.message}", _LONGEST) for f in faults]},
        metrics={
            "shards": float(len(manifest.shards)),
            "clips": float(sum(entry.count for entry in manifest.entries())),
            "faults": float(len(faults)),
        },
        seconds=watch.seconds(),
    )


def faults_of_dataset(store: Store, manifest: Manifest, cache: Path) -> list[Fault]:
    """Return everything that is wrong with a data set, by file."""
    faults = list(_manifest_faults(store, manifest, cache))
    entries = manifest.entries()

    def check(entry: ShardEntry) -> list[Fault]:
        try:
            return list(_shard_faults(store, manifest, entry, cache))
        except _UNREADABLE as error:
            return [Fault(place=tar_name(entry.name), message=f"cannot be read: {error}")]

    with (
        ThreadPoolExecutor(_WORKERS) as pool,
        stage_progress("verify: shards", len(entries)) as progress,
    ):
        for found in pool.map(check, entries):
            faults += found
            progress.advance(f"{len(faults)} faults" if faults else "")
    return faults


def _manifest_faults(store: Store, manifest: Manifest, cache: Path) -> Iterator[Fault]:
    place = "manifest.json"
    try:
        identity = content_hash(manifest.identity)
        expected = dataset_fingerprint(manifest.identity, manifest.shards)
    except ValueError as error:  # NaN
        identity = expected = f"none: {error}"
    if identity != manifest.identity_hash:
        yield Fault(place=place, message="the identity is not what its hash says")
    if expected != manifest.fingerprint:
        yield Fault(place=place, message="the fingerprint is not that of the identity and shards")
    entries = manifest.entries()
    yield from (Fault(place=place, message=message) for message in _count_faults(manifest, entries))
    listed = {name for entry in entries for name in (tar_name(entry.name),)}
    for name in store.list("shards"):
        if name.endswith(".tar") and name not in listed:
            yield Fault(place=name, message="the manifest does not list it")
    try:
        read_null_condition(store, cache, sha256=manifest.null_condition)
    except (DataError, OSError) as error:
        yield Fault(place=NULL_CONDITION_FILE, message=str(error))
    try:
        first_stage = load_first_stage(store.local_folder(FIRST_STAGE_NAME, cache))
    except (DataError, OSError) as error:
        yield Fault(place=FIRST_STAGE_NAME, message=str(error))
        return
    if first_stage.fingerprint() != manifest.identity.get("first_stage"):
        yield Fault(place=FIRST_STAGE_NAME, message="it is not the one that made the latents")


def _count_faults(manifest: Manifest, entries: list[ShardEntry]) -> Iterator[str]:
    """Count the shards, and compare with the totals that are stated."""
    counted = {
        "clips": sum(entry.count for entry in entries),
        "shards": len(entries),
        "bytes": sum(entry.num_bytes for entry in entries),
    }
    for name, number in counted.items():
        stated = manifest.totals.get(name)
        if stated != number and (name == "clips" or stated is not None):
            yield f"the shards have {number} {name}, the total is {stated}"
    for name, bucket in manifest.buckets.items():
        number = sum(entry.count for entry in entries if entry.bucket == name)
        if bucket.get("clips") != number:
            yield f"the shards of {name} have {number} clips, the bucket {bucket.get('clips')}"


def _shard_faults(
    store: Store, manifest: Manifest, entry: ShardEntry, cache: Path
) -> Iterator[Fault]:
    name = tar_name(entry.name)

    def fault(message: str, place: str = name) -> Fault:
        return Fault(place=place, message=message)

    if not store.exists(name):
        yield fault("it is missing")
        return
    sidecar = read_sidecar(store, entry.name)
    stated = {**entry.to_json(), "identity_hash": manifest.identity_hash}
    if any(getattr(sidecar, field) != value for field, value in stated.items()):
        yield fault("the manifest states something else", sidecar_name(entry.name))
    if sum(item.get("clips", 0) for item in sidecar.inputs) != sidecar.count:
        yield fault("its videos have another number of clips", sidecar_name(entry.name))
    path = store.local(name, cache)
    found = sha256_of_file(path)
    if found != entry.sha256:
        yield fault(f"its sha256 is {found}, the manifest states {entry.sha256}")
        return
    if not len(sidecar.keys) == len(set(sidecar.keys)) == sidecar.count:
        yield fault("keys are missing or stand twice", sidecar_name(entry.name))
    shape = manifest.buckets[entry.bucket]["latents_shape"]
    moments = LatentMoments()
    with path.open("rb") as file, tarfile.open(fileobj=file) as tar:
        index: dict[str, dict[str, list[int]]] = {}
        for member in tar:
            key, _, suffix = member.name.partition(".")
            index.setdefault(key, {})[suffix] = [member.offset_data, member.size]
        if index != sidecar.members or list(index) != sidecar.keys:
            yield fault("the index is not that of the tar", sidecar_name(entry.name))
            return
        for key in sidecar.keys:
            yield from (
                fault(f"clip {key}: {message}")
                for message in _clip_faults(file, index[key], key, shape, moments)
            )
    yield from (fault(message) for message in _moments_faults(store, sidecar, moments))


def _clip_faults(
    file: IO[bytes],
    places: dict[str, list[int]],
    key: str,
    shape: list[int],
    moments: LatentMoments,
) -> Iterator[str]:
    def content(suffix: str) -> bytes:
        offset, size = places[suffix]
        file.seek(offset)
        return file.read(size)

    record = ClipRecord.from_json(json.loads(content(RECORD_SUFFIX)))
    if record.key != key:
        yield f"its record is of {record.key}"
    latents = load_tensors(content(LATENTS_SUFFIX))
    usable = True
    for name in ("mean", "std"):
        tensor = latents[name]
        if list(tensor.shape) != shape:
            yield f"{name} has shape {list(tensor.shape)}, the bucket {shape}"
            return
        if not bool(torch.isfinite(tensor.float()).all()):
            yield f"{name} is not finite"
            usable = False
    if bool((latents["std"].float() < 0).any()):
        yield "std is negative"
        usable = False
    for name, tensor in load_tensors(content(CONDITION_SUFFIX)).items():
        if name == "conditioning_latents" and list(tensor.shape) != shape:
            yield f"{name} has shape {list(tensor.shape)}, the bucket {shape}"
        if not bool(torch.isfinite(tensor.float()).all()):
            yield f"{name} is not finite"
    if content(THUMBNAIL_SUFFIX)[:4] != b"RIFF":
        yield "its thumbnail is not a WebP image"
    if usable:  # else the moments refuse it, and the reason above would be lost
        moments.update(latents["mean"].double()[None], latents["std"].double()[None])


def _moments_faults(store: Store, sidecar: ShardSidecar, moments: LatentMoments) -> Iterator[str]:
    stored = cast(dict[str, Any], read_moments(store, sidecar.name).state_dict())
    for name, value in moments.state_dict().items():
        if not torch.allclose(stored[name], value, rtol=1e-12, atol=1e-12):
            yield f"the stored moments are not those of the clips: {name}"
