"""The data set of a run, as the stages after encoding read it."""

from dataclasses import replace
from pathlib import Path

from pipelines.config import RunConfig, dataset_of
from pipelines.shards import ShardReader
from pipelines.store import open_store

__all__ = ["located", "open_dataset"]


def located(config: RunConfig) -> RunConfig:
    """Return a configuration for workers, which run in other folders: no path is relative."""
    output = replace(
        config.output,
        dir=str(Path(config.output.dir).absolute()),
        dataset=open_store(dataset_of(config)).location,
    )
    condition = replace(
        config.condition,
        image_encoder=_absolute(config.condition.image_encoder),
        text_encoder=_absolute(config.condition.text_encoder),
    )
    return replace(config, output=output, condition=condition)


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())


def open_dataset(config: RunConfig) -> ShardReader:
    """Open the run's data set at the bucket that is trained on.

    Raises:
        ConfigError: it has several buckets and ``train.bucket`` names none of them.
        DataError: there is none, or one of another format.
    """
    cache = Path(config.output.dir) / "cache"
    return ShardReader(dataset_of(config), bucket=config.train.bucket, cache=cache)
