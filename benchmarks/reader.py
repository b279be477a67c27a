"""Decoded samples per second: our reader against the webdataset library and against Ray Data.

All three read the same shards, written by the real writer: clips of 16 x 4 x 32 x 32 bfloat16 (mean
and std), their conditions and records. A sample counts when its tensors are float32 and in a batch
and its record is parsed. Ours reads in the random order of training; webdataset in this process
with shuffled shards and a shuffle buffer; Ray by `read_webdataset` and `iter_torch_batches`,
decoding in its `collate_fn`. Our shards are hashed once, when they are first opened: the first
epoch of a process is shown apart. The files are in the page cache.

    python benchmarks/reader.py [--clips 2048] [--runs 7] [--no-ray]     writes results/reader.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measure import paired, save
from safetensors.torch import load

from pipelines.batches import BatchReader
from pipelines.config import content_hash
from pipelines.prefetch import Prefetch
from pipelines.records import FORMAT_VERSION, ClipRecord, Manifest, ShardSpec
from pipelines.shard_reader import ShardReader
from pipelines.shards import EncodedClip, dataset_fingerprint, entry_of, tar_name, write_shard
from pipelines.storage import write_json
from pipelines.store import open_store

SHAPE = (16, 4, 32, 32)
CLIPS_PER_SHARD = 128
BATCH = 16
FRESH_EPOCHS = 8
BUCKET = "256x256x16"
IDENTITY = {"settings": {"clips": {"fps": 8.0}}, "first_stage": "none"}


def clip(number: int) -> EncodedClip:
    generator = torch.Generator().manual_seed(number)
    mean, std = torch.randn(2, *SHAPE, generator=generator).to(torch.bfloat16)
    record = ClipRecord(
        key=content_hash(number)[:32],
        path=f"video {number}.mp4",
        content_sha256="a" * 64,
        bucket=BUCKET,
        shot=0,
        start_s=0.0,
        end_s=2.0,
        fps=8.0,
        source_fps=25.0,
        num_frames=16,
        frames=list(range(0, 48, 3)),
        height=256,
        width=256,
        decoder="pyav",
        scores={"motion": 1.0, "luma_mean": 100.0, "perceptual_hash": "0" * 16},
        fps_id=7,
        motion_bucket_id=127,
        caption="a caption of about the usual length, which says what is seen in the video",
    )
    return EncodedClip(
        record=record,
        mean=mean,
        std=std.abs(),
        condition={"image_embeds": torch.randn(1, 1024, generator=generator)},
        thumbnail=bytes(4000),
    )


def write_dataset(folder: Path, count: int) -> None:
    """Write a data set by the real writer."""
    shards = []
    for number, first in enumerate(range(0, count, CLIPS_PER_SHARD)):
        spec = ShardSpec(
            name=f"shard-{number:06d}",
            generation=0,
            bucket=BUCKET,
            inputs=[{"path": "video.mp4", "sha256": "a" * 64}],
        )
        clips = (clip(seed) for seed in range(first, min(count, first + CLIPS_PER_SHARD)))
        sidecar = write_shard(
            open_store(folder), spec, clips, identity_hash=content_hash(IDENTITY), quarantined=[]
        )
        shards.append(entry_of(sidecar))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        fingerprint=dataset_fingerprint(IDENTITY, shards),
        identity=IDENTITY,
        identity_hash=content_hash(IDENTITY),
        buckets={BUCKET: {"latents_shape": list(SHAPE), "clips": count}},
        shards=shards,
        totals={"clips": count, "shards": len(shards)},
    )
    write_json(folder / "manifest.json", manifest.to_json())


class Ours:
    """Epochs of our reader, one after the other, in random order."""

    def __init__(self, folder: Path, *, num_batches: int) -> None:
        reader = ShardReader(folder, cache=folder / "cache")
        self._source = BatchReader({BUCKET: reader}, global_batch_size=BATCH, seed=0)
        self._num_batches, self._steps, self._done = num_batches, len(reader) // BATCH, 0
        self.waited_s = 0.0

    def epoch(self) -> None:
        first, self._done = self._done, self._done + self._steps
        with Prefetch(
            self._source,
            first_step=first,
            num_steps=self._done,
            num_batches=self._num_batches,
        ) as batches:
            for step in range(first, self._done):
                check(batches.batch(step).mean)
                self.waited_s += batches.last_wait_s


def decoded(sample: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """Decode what a tar file's reader gives: the same tensors and record as ours."""
    latents = load(sample["latents.safetensors"])
    condition = load(sample["cond.safetensors"])
    record = sample["json"]
    record = json.loads(record) if isinstance(record, bytes) else record
    assert ClipRecord.from_json(record).fps
    tensors = latents["mean"], latents["std"], condition["image_embeds"]
    return tuple(tensor.to(torch.float32) for tensor in tensors)


def stacked(samples: list[dict[str, Any]]) -> list[torch.Tensor]:
    parts = zip(*[decoded(sample) for sample in samples], strict=True)
    return [torch.stack(tensors) for tensors in parts]


def check(mean: torch.Tensor) -> None:
    assert mean.shape == (BATCH, *SHAPE)
    assert mean.dtype == torch.float32


def webdataset_epoch(tars: list[str]) -> None:
    import webdataset

    samples: list[dict[str, Any]] = []
    for sample in webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0).shuffle(128):
        samples.append(sample)
        if len(samples) == BATCH:
            check(stacked(samples)[0])
            samples = []


def ray_epoch(tars: list[str]) -> None:
    import ray
    from ray.data.collate_fn import NumpyBatchCollateFn

    class Collate(NumpyBatchCollateFn):
        def __call__(self, columns: dict[str, Any]) -> list[torch.Tensor]:
            rows = zip(*columns.values(), strict=True)
            return stacked([dict(zip(columns, row, strict=True)) for row in rows])

    data = ray.data.read_webdataset(tars, shuffle="files")
    for batch in data.iter_torch_batches(batch_size=BATCH, collate_fn=Collate(), drop_last=True):
        check(batch[0])


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def memory_mib() -> dict[str, int]:
    """Return this process's private memory and the part of the files that it has mapped."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return {name: round(int(sizes[name]) / 1024) for name in ("RssAnon", "RssFile")}


def fresh_epochs(folder: Path) -> dict[str, Any]:
    """Epochs of a fresh process, which hashes each shard once: times and memory.

    Reading ahead warms up for a few of them; the rest show whether memory stays.
    """
    torch.set_num_threads(1)
    reader = Ours(folder, num_batches=2)
    seconds, memory = [], [memory_mib()]
    for _ in range(FRESH_EPOCHS):
        seconds.append(timed(reader.epoch))
        memory.append(memory_mib())
    return {"epoch_s": seconds, "memory_mib": memory}


def measurements(
    folder: Path, clips: int, runs: int, *, with_ray: bool
) -> Iterator[tuple[str, Any]]:
    tars = sorted(str(path) for path in folder.glob(tar_name("*")))
    off, on = Ours(folder, num_batches=0), Ours(folder, num_batches=2)
    for name, reader in (("prefetch_off", off), ("prefetch_on", on)):
        result = paired(reader.epoch, lambda: webdataset_epoch(tars), runs=runs)
        yield f"webdataset_{name}", rates(result, clips)
    if with_ray:
        import ray

        ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
        ray.data.DataContext.get_current().enable_progress_bars = False
        result = paired(on.epoch, lambda: ray_epoch(tars), runs=max(1, runs // 2))
        yield "ray", rates(result, clips)
        ray.shutdown()
    command = [sys.executable, __file__, "--fresh", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    yield "fresh_process", json.loads(done.stdout)


def rates(result: dict[str, Any], clips: int) -> dict[str, Any]:
    whole = clips // BATCH * BATCH
    return {
        "samples_per_s": whole / result["subject_s"],
        "baseline_samples_per_s": whole / result["baseline_s"],
        "times_as_fast": 1 / result["ratio"],
        **result,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--fresh", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.fresh:
        print(json.dumps(fresh_epochs(given.fresh)))
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(folder, given.clips)
        found = dict(measurements(folder, given.clips, given.runs, with_ray=not given.no_ray))
    save(
        "reader",
        "at least 2 times the decoded samples per second of webdataset, and 8 times Ray Data's",
        {"clips": given.clips, "batch": BATCH, "latents": [*SHAPE, "bfloat16"], **found},
    )


if __name__ == "__main__":
    main()
