"""The data set of a run, as the stages after encoding read it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipelines.config import RunConfig, dataset_of
from pipelines.data_order import DataOrder
from pipelines.held_out import split
from pipelines.records import Manifest
from pipelines.selection.bucket import Bucket
from pipelines.shard_files import ShardFiles
from pipelines.shard_reader import ShardReader, chosen_bucket
from pipelines.shards import sealed_manifest
from pipelines.store import open_store

__all__ = ["TrainingData", "located", "open_dataset", "open_training_data"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    """The buckets that are trained on, and the clips of them that are not."""

    manifest: Manifest
    readers: Mapping[str, ShardReader]
    """The clips that are trained on, by name of the bucket; they share what is open."""
    held_out: Mapping[str, ShardReader] = field(default_factory=dict)
    """The clips that are kept for validation, by name of the bucket; empty if there are none."""

    @property
    def num_clips(self) -> int:
        """Clips that are trained on, in all of these buckets."""
        return sum(len(reader) for reader in self.readers.values())

    @property
    def num_held_out(self) -> int:
        """Clips that are kept for validation."""
        return sum(len(reader) for reader in self.held_out.values())

    @property
    def largest(self) -> ShardReader:
        """The bucket with the most pixels per clip, for which the model is built."""
        return self.readers[max(self.readers, key=_size)]

    def epoch(self, step: int, global_batch_size: int, seed: int) -> int:
        """Return the epoch of the clips of these buckets that a step belongs to, from 0."""
        counts = {bucket: len(reader) for bucket, reader in self.readers.items()}
        return DataOrder(counts, global_batch_size=global_batch_size, seed=seed).epoch(step)

    def check_all(self) -> None:
        """Check every shard; see `ShardReader.check_all`."""
        for reader in self.readers.values():
            reader.check_all()


def open_dataset(config: RunConfig, *, num_sharers: int = 1) -> ShardReader:
    """Open the run's data set at one bucket.

    Args:
        config: the run.
        num_sharers: processes of this machine that read remote shards at the same time.

    Raises:
        ConfigError: it has several buckets and ``train.bucket`` names none of them.
        DataError: there is none, or one of another format.
    """
    files, cache = _files(config, num_sharers)
    return ShardReader(dataset_of(config), bucket=config.train.bucket, cache=cache, files=files)


def open_training_data(config: RunConfig, *, num_sharers: int = 1) -> TrainingData:
    """Open the run's data set at the buckets that are trained on.

    Args:
        config: the run.
        num_sharers: processes of this machine that read remote shards at the same time.

    Raises:
        ConfigError: ``train.bucket`` names no bucket of the data set.
        DataError: there is none, or one of another format.
    """
    store = open_store(dataset_of(config))
    manifest = sealed_manifest(store)
    asked = config.train.bucket
    several = asked is None and manifest.buckets
    buckets = sorted(manifest.buckets) if several else [chosen_bucket(manifest, asked)]
    files, cache = _files(config, num_sharers)
    readers = {
        bucket: ShardReader(store, bucket=bucket, cache=cache, files=files, manifest=manifest)
        for bucket in buckets
    }
    trained, held_out = split(readers, config.validate.held_out_fraction)
    return TrainingData(manifest=manifest, readers=trained, held_out=held_out)


def located(config: RunConfig) -> RunConfig:
    """Return a configuration for workers, which are in another folder: no path is relative."""
    output = replace(
        config.output,
        dir=str(Path(config.output.dir).absolute()),
        dataset=open_store(dataset_of(config)).location,
    )
    read = replace(config.read, cache=str(_cache(config).absolute()))
    condition = replace(
        config.condition,
        image_encoder=_absolute(config.condition.image_encoder),
        text_encoder=_absolute(config.condition.text_encoder),
    )
    model = replace(config.model, pretrained=_absolute(config.model.pretrained))
    return replace(config, output=output, read=read, condition=condition, model=model)


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())


def _cache(config: RunConfig) -> Path:
    return Path(config.read.cache or Path(config.output.dir) / "cache")


def _files(config: RunConfig, num_sharers: int) -> tuple[ShardFiles, Path]:
    cache = _cache(config)
    store = open_store(dataset_of(config))
    return ShardFiles(store, folder=cache, settings=config.read, num_sharers=num_sharers), cache


def _size(bucket: str) -> tuple[int, int, str]:
    size = Bucket.parse(bucket)
    area = size.height * size.width
    return area * size.num_frames, area, bucket
