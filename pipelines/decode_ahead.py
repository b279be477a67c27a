"""Decodes the next videos while the caller encodes: threads that each drive a decoder process.

    ahead = DecodeAhead(limits, num_decoders)
    for video, clips in ahead.read(videos):     # in the order of `videos`
        for clip in clips: ...                  # may raise DecodeError

Little is held in memory: each decoder waits when a few clips of its video are not taken yet.
"""

import itertools
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from cil.errors import CilError
from pipelines.decode.clips import ReadClip, WantedClip
from pipelines.decode.config import DecodeConfig
from pipelines.decode.errors import DecodeError
from pipelines.decode.process import DecoderProcess
from pipelines.selection.bucket import Bucket
from pipelines.sources import SourceVideo, local_file, scratch_folder

__all__ = ["DecodeAhead", "PlannedVideo"]

_CLIPS_WAITING = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedVideo:
    """A video of a shard spec, where it is, and the clips that are wanted of it."""

    planned: dict[str, Any]
    """An input of a `ShardSpec`."""
    place: SourceVideo
    wanted: tuple[WantedClip, ...]

    @classmethod
    def of(cls, planned: dict[str, Any], place: dict[str, Any], bucket: Bucket) -> Self:
        """Combine an input of a shard spec with its place."""
        wanted = tuple(
            WantedClip(
                height=bucket.height,
                width=bucket.width,
                frames=clip["frames"],
                crc32=clip["crc32"],
            )
            for clip in planned["clips"]
        )
        return cls(planned=planned, place=SourceVideo(**place), wanted=wanted)


class _Reading:
    """One video on its way: its clips in a short queue, then None, or the error that ended it."""

    def __init__(self, video: PlannedVideo) -> None:
        self.video = video
        self.queue: queue.Queue[ReadClip | DecodeError | None] = queue.Queue(_CLIPS_WAITING)
        self.abandoned = threading.Event()

    def put(self, item: ReadClip | DecodeError | None) -> None:
        while not self.abandoned.is_set():
            with suppress(queue.Full):
                self.queue.put(item, timeout=0.5)
                return

    def clips(self) -> Iterator[ReadClip]:
        while (item := self._take()) is not None:
            if isinstance(item, DecodeError):
                raise item
            yield item

    def _take(self) -> ReadClip | DecodeError | None:
        while True:
            with suppress(queue.Empty):
                return self.queue.get(timeout=0.5)
            if self.abandoned.is_set():
                raise RuntimeError("the clips of a video were read after the next was asked for")


class DecodeAhead:
    """A few decoders that work ahead of one reader."""

    def __init__(self, config: DecodeConfig, num_decoders: int) -> None:
        self._todo: queue.Queue[_Reading | None] = queue.Queue()
        self._num_decoders = num_decoders
        # Threads that live as long as this object: a decoder dies with the thread that started it.
        for number in range(num_decoders):
            threading.Thread(
                target=_work, args=(config, self._todo), name=f"decoder-{number}", daemon=True
            ).start()

    def __del__(self) -> None:
        """End the threads and their decoders."""
        for _ in range(self._num_decoders):
            self._todo.put(None)

    def read(
        self, videos: Sequence[PlannedVideo]
    ) -> Iterator[tuple[PlannedVideo, Iterator[ReadClip]]]:
        """Yield each video with an iterator over its clips, in order.

        Whatever is left of the clips of a video is skipped when the next one is asked for.
        """
        readings = [_Reading(video) for video in videos]
        following = iter(readings)
        try:
            for reading in itertools.islice(following, self._num_decoders + 1):
                self._todo.put(reading)
            for reading in readings:
                yield reading.video, reading.clips()
                reading.abandoned.set()
                for one in itertools.islice(following, 1):
                    self._todo.put(one)
        finally:
            for reading in readings:
                reading.abandoned.set()


def _work(config: DecodeConfig, todo: "queue.Queue[_Reading | None]") -> None:
    with DecoderProcess(config) as decoder:
        while (reading := todo.get()) is not None:
            try:
                _decode(decoder, reading)
            except DecodeError as error:
                reading.put(error)
            except Exception as error:
                reading.put(_unreadable(reading.video, error))
            else:
                reading.put(None)


def _decode(decoder: DecoderProcess, reading: _Reading) -> None:
    video = reading.video
    with (
        scratch_folder() as scratch,
        local_file(video.place, scratch) as path,
    ):
        clips = decoder.clips(
            path,
            video.wanted,
            sha256=video.planned["sha256"],
        )
        for clip in clips:
            reading.put(clip)
            if reading.abandoned.is_set():
                return


def _unreadable(video: PlannedVideo, error: Exception) -> DecodeError:
    reason = getattr(error, "strerror", None) or (
        error if isinstance(error, CilError) else f"{type(error).__name__}: {error}"
    )
    return DecodeError(
        f"cannot be read: {reason}",
        stage="read",
        decoder=None,
        exception=type(error).__name__,
        sha256=video.planned["sha256"],
    )
