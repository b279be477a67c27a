"""The data set of a run, as the stages after encoding read it."""

from pathlib import Path

from pipelines.config import RunConfig, dataset_of
from pipelines.shards import ShardReader

__all__ = ["open_dataset"]


def open_dataset(config: RunConfig) -> ShardReader:
    """Open the run's data set at the bucket that is trained on.

    Raises:
        ConfigError: it has several buckets and ``train.bucket`` names none of them.
        DataError: there is none, or one of another format.
    """
    cache = Path(config.output.dir) / "cache"
    return ShardReader(dataset_of(config), bucket=config.train.bucket, cache=cache)
