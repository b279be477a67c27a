"""Settings of reading a data set."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt

__all__ = ["ReadConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadConfig:
    """Reading the data set; none of it decides what is read."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}
    cache: str | None = None
    """Folder for what is read from a remote data set, best on a local disk of each machine; all
    workers of a machine share it. None takes a folder in output.dir."""
    cache_gib: Annotated[float, Gt(0)] = 100.0
    """Size of the cache of shards, in GiB. The least recently used shards make room for others,
    never one that is open. It must hold one shard for each worker of the machine, and should hold
    the data set: clips are read in random order, so what does not fit is downloaded again."""
    verify: Literal["always", "remember"] = "always"
    """When the hash of a shard is taken: by every process that opens it, or only if its size or
    time of change differ from when it was last found whole, which a file in the cache remembers.
    Downloaded shards are hashed when they arrive, and with "always" by every other process that
    finds them in the cache; a damaged one is downloaded again."""
    max_open_shards: Annotated[int, Ge(1)] = 128
    """Shards that one process has mapped into memory at the same time."""
    prefetch_batches: Annotated[int, Ge(0)] = 2
    """Batches that a training worker reads ahead in the background; 0 reads each when needed."""
