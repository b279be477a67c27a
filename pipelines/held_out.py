"""Which clips are never trained on, so that a run can be judged by them.

In: readers of the buckets and a share of the videos. Out: readers of the clips to train on and of
those that are kept. A video is kept by the hash of its content alone: all its clips are on one
side, and adding videos moves none.
"""

import hashlib
from collections.abc import Mapping

from pipelines.shard_reader import ShardReader

__all__ = ["is_held_out", "none_held_out", "split"]


def is_held_out(content_sha256: str, fraction: float) -> bool:
    """Tell whether a video is kept for validation.

    Args:
        content_sha256: hash of the video's content, in hex.
        fraction: share of all videos that are kept, in [0, 1).
    """
    # Hashed again: the first stage is fitted to the first videos in the order of their hashes.
    number = hashlib.sha256(f"held out: {content_sha256}".encode()).digest()[:8]
    return int.from_bytes(number, "big") < fraction * 2**64


def split(
    readers: Mapping[str, ShardReader], fraction: float
) -> tuple[dict[str, ShardReader], dict[str, ShardReader]]:
    """Divide the clips of all buckets.

    Args:
        readers: of all clips, by name of the bucket.
        fraction: share of the videos that are kept, in [0, 1).

    Returns:
        Readers of the clips to train on and of the clips that are kept, without empty buckets. If
        no video would be kept, or none be left to train on, all are trained on.

    Raises:
        DataError: a sidecar is missing or damaged.
    """
    if not fraction:
        return dict(readers), {}
    trained: dict[str, ShardReader] = {}
    kept: dict[str, ShardReader] = {}
    for bucket, reader in readers.items():
        chosen = [is_held_out(video, fraction) for video in reader.videos()]
        for side, wanted in ((trained, False), (kept, True)):
            indices = [index for index, held in enumerate(chosen) if held is wanted]
            if indices:
                side[bucket] = reader.subset(indices)
    if not trained or not kept:
        return dict(readers), {}
    return trained, kept


def none_held_out(fraction: float) -> str:
    """Say why there is no validation although a share of the videos was asked for."""
    return (
        f"validate.held_out_fraction = {fraction:g} keeps none of these videos, or all of them: "
        "all clips are trained on and nothing is validated; raise it or encode more videos"
    )
