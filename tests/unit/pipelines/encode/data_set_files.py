"""Read what the encode stage has written, and change its settings."""

import dataclasses
import json
import os

import torch

from pipelines.records import QuarantineRecord, VideoRecord
from pipelines.shard_reader import ShardReader
from pipelines.shards import load_manifest
from pipelines.storage import sha256_of_file


def changed(config, **sections):
    """Return the configuration with some settings changed: section={field: value}."""
    return dataclasses.replace(
        config,
        **{
            name: dataclasses.replace(getattr(config, name), **values)
            for name, values in sections.items()
        },
    )


def lines(dataset, name):
    return [json.loads(line) for line in (dataset / name).read_text().splitlines()]


def quarantined(dataset):
    return [QuarantineRecord.from_json(item) for item in lines(dataset, "quarantine.jsonl")]


def inventory(dataset):
    return [VideoRecord.from_json(item) for item in lines(dataset, "inventory.jsonl")[1:]]


def shards(dataset):
    """Content of each file of the shards, and when it was written."""
    folder = dataset / "shards"
    return {path.name: (sha256_of_file(path), path.stat().st_mtime_ns) for path in folder.iterdir()}


def contents(dataset):
    """Content of all that must not depend on how the data set was made."""
    names = ["manifest.json", "plan.json", "quarantine.jsonl", "dropped.jsonl", "inventory.jsonl"]
    files = [dataset / name for name in names]
    files += [path for name in ("shards", "first_stage") for path in (dataset / name).iterdir()]
    return {str(path.relative_to(dataset)): path.read_bytes() for path in files}


def records(dataset, bucket=None):
    reader = ShardReader(dataset, bucket=bucket)
    return [reader.clip(index).record for index in range(len(reader))]


def assert_counts_add_up(dataset):
    totals = load_manifest(dataset).totals
    of_videos = ("videos_encoded", "videos_quarantined", "videos_without_clips")
    assert totals["videos"] == sum(totals[name] for name in of_videos)
    gone = totals["videos_gone"]
    candidates = sum(len(record.scan["clips"]) for record in inventory(dataset) if record.scan)
    copies = sum(record.stage == "duplicate" for record in quarantined(dataset))
    if not gone and not copies:
        assert totals["clips"] + totals["clips_dropped"] == candidates
    assert totals["clips"] == sum(entry.count for entry in load_manifest(dataset).entries())
    assert totals["clips_dropped"] == len(lines(dataset, "dropped.jsonl"))
    seen = [(record.path, record.stage) for record in quarantined(dataset)]
    assert len(seen) == len(set(seen))
    return totals


@dataclasses.dataclass(frozen=True)
class Mixed:
    config: object
    videos: object
    dataset: object


BUCKETS = {"32x32x4": 3, "32x32x8": 3, "32x64x4": 1, "32x64x8": 4}


def all_latents(dataset):
    reader = ShardReader(dataset)
    clips = [reader.clip(index) for index in range(len(reader))]
    by_place = {(clip.record.path, clip.record.start_s): clip for clip in clips}
    ordered = [by_place[place] for place in sorted(by_place)]
    return torch.stack([c.mean for c in ordered]), torch.stack([c.std for c in ordered])


def restored_times(copied, encoded_run):
    """Give the copied videos the times of the first ones, so that they are unchanged."""
    for path in encoded_run.videos.rglob("*.mp4"):
        status = path.stat()
        copy = copied.videos / path.relative_to(encoded_run.videos)
        os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))


DAMAGE = {
    "no manifest": lambda dataset: (dataset / "manifest.json").unlink(),
    "no sidecar": lambda dataset: (dataset / "shards" / "shard-000000.json").unlink(),
    "no moments": lambda dataset: (
        dataset / "shards" / "shard-000000.moments.safetensors"
    ).unlink(),
    "cut tar": lambda dataset: (dataset / "shards" / "shard-000000.tar").write_bytes(b""),
}
