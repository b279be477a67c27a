"""The frames of chosen clips, each compared with what the strict sequential pass has seen.

Scanning decodes every video in order, strictly, and stores the number and the CRC-32 of every frame
of a clip. So the clips can be read again by faster means (decord, random access): where a frame
differs, the means is not trusted again for that kind of file, and the clip is read in order.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.decode.decoders import DECODERS, Decoder, sequential
from pipelines.decode.errors import DecodeError
from pipelines.decode.frame import Frame, SourceFrame, cover_and_crop
from pipelines.decode.probe import VideoProbe, Watch, probe_video
from pipelines.storage import sha256_of_file

__all__ = ["ReadClip", "Trust", "WantedClip", "read_clips"]

_RANDOM_ACCESS_GAIN = 2.0
"""Random access is tried where it decodes so many times fewer frames than reading in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedClip:
    """A clip to be read: source frame numbers, ascending, and the CRC-32 of each as it will be."""

    height: int
    width: int
    frames: list[int]
    crc32: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadClip:
    """Frames (F, H, W, 3) uint8 RGB, and what decoded them."""

    frames: Frame
    decoder: str


@dataclass(slots=True)
class Trust:
    """Ways of reading that gave a wrong frame, by kind of file; for the life of a process."""

    _off: set[tuple[str, ...]] = field(default_factory=set)

    def allows(self, way: "_Way", probe: VideoProbe) -> bool:
        """Tell whether a way of reading has been right so far for this kind of file."""
        return self._kind(way, probe) not in self._off

    def withdraw(self, way: "_Way", probe: VideoProbe) -> None:
        """Do not read this kind of file that way again."""
        self._off.add(self._kind(way, probe))

    @staticmethod
    def _kind(way: "_Way", probe: VideoProbe) -> tuple[str, ...]:
        access = "random" if way.random_access else "sequential"
        return (way.decoder, access, probe.container, probe.codec, probe.pixel_format)


@dataclass(frozen=True, slots=True)
class _Way:
    decoder: str
    random_access: bool


def read_clips(
    path: Path, request: dict[str, Any], trust: Trust, watch: Watch = iter
) -> Iterator[ReadClip]:
    """Read the clips of one video, in the order asked for.

    Args:
        path: video file.
        request: ``clips``, each with the fields of `WantedClip`, by their start; ``backend``, the
            decoder that is asked for or "auto"; ``sha256`` of the file.
        trust: ways that are known to be wrong; extended here.
        watch: passes an iterator of frames on and may tell others that it goes on.

    Yields:
        The clips, every frame equal to the scanned one.

    Raises:
        DecodeError: the file is not the scanned one, or cannot be decoded as it was.
        OSError: the file is gone.
    """
    wanted = [WantedClip(**clip) for clip in request["clips"]]
    if not wanted:
        return
    try:
        probe = probe_video(path, watch)
    except DecodeError:
        _check_unchanged(path, request["sha256"])
        raise
    done = 0
    for way in _ways(probe, wanted, request["backend"], trust):
        try:
            for frames in _read(way, path, probe, wanted[done:], watch):
                if _wrong_frames(frames, wanted[done]):
                    raise _WrongFramesError
                yield ReadClip(frames=frames, decoder=way.decoder)
                done += 1
            return
        except _WrongFramesError:
            trust.withdraw(way, probe)
        except DecodeError:
            trust.withdraw(way, probe)
    _check_unchanged(path, request["sha256"])
    # The scanning decoder again, in order. Another machine's scaler may round differently, so equal
    # content is enough here.
    strict = _Way("pyav", random_access=False)
    for frames in _read(strict, path, probe, wanted[done:], watch):
        yield ReadClip(frames=frames, decoder=strict.decoder)
        done += 1
    if done < len(wanted):
        raise DecodeError(
            f"only {done} of {len(wanted)} clips could be read again; the scan saw all of them",
            stage="decode",
            decoder=strict.decoder,
            exception="FewerFrames",
        )


def _check_unchanged(path: Path, sha256: str) -> None:
    """Refuse a file that is not the scanned one; one that is gone raises OSError."""
    if sha256_of_file(path) != sha256:
        raise DecodeError(
            "the file changed while the data set was encoded; encode again to take the new content",
            stage="read",
            decoder=None,
            exception="Changed",
        )


class _WrongFramesError(Exception):
    """A frame is not the scanned one."""


def _ways(
    probe: VideoProbe, wanted: Sequence[WantedClip], backend: str, trust: Trust
) -> list[_Way]:
    """Return the ways to try, fastest first; the strict one comes after all of them."""
    names = ("decord", "pyav") if backend == "auto" else (backend,)
    random = _random_access_pays(probe, wanted)
    ways = []
    for name in names:
        if DECODERS[name].is_right_for(probe):
            ways += [_Way(name, random_access=True)] if random else []
            ways += [_Way(name, random_access=False)]
    return [way for way in ways if trust.allows(way, probe)]


def _random_access_pays(probe: VideoProbe, wanted: Sequence[WantedClip]) -> bool:
    """Compare the frames that have to be decoded from key frames with those from the start."""
    if probe.times_s is None or not probe.key_times_s:
        return False
    keys = np.searchsorted(np.array(probe.times_s), np.array(probe.key_times_s))
    cost = 0
    for clip in wanted:
        before = keys[keys <= clip.frames[0]]
        cost += clip.frames[-1] - (int(before[-1]) if len(before) else 0) + 1
    return cost * _RANDOM_ACCESS_GAIN < max(clip.frames[-1] for clip in wanted) + 1


def _read(
    way: _Way, path: Path, probe: VideoProbe, wanted: Sequence[WantedClip], watch: Watch
) -> Iterator[Frame]:
    if not way.random_access:
        yield from _gather(watch(sequential(path, probe, decoder=way.decoder)), wanted)
        return
    assert probe.times_s is not None
    decoder: Decoder = DECODERS[way.decoder]
    for clip in wanted:
        numbers = sorted(set(clip.frames))
        times = [probe.times_s[number] for number in numbers if number < len(probe.times_s)]
        if len(times) < len(numbers):
            raise _WrongFramesError
        found = decoder.frames_at(path, probe, numbers, times_s=times)
        yield from _gather(watch(found), [clip])


def _gather(frames: Iterator[SourceFrame], wanted: Sequence[WantedClip]) -> Iterator[Frame]:
    """Collect clips from frames that come in order; clips are sorted by start, may overlap."""
    open_clips: list[tuple[WantedClip, dict[int, Frame]]] = []
    waiting = list(wanted)
    for frame in frames:
        while waiting and waiting[0].frames[0] <= frame.number:
            open_clips.append((waiting.pop(0), {}))
        for clip, kept in open_clips:
            if frame.number in clip.frames:
                kept[frame.number] = cover_and_crop(frame.pixels, clip.height, clip.width)
        while open_clips and open_clips[0][0].frames[-1] <= frame.number:
            clip, kept = open_clips.pop(0)
            if set(clip.frames) - set(kept):
                raise _WrongFramesError
            yield np.stack([kept[number] for number in clip.frames])
        if not waiting and not open_clips:
            return


def _wrong_frames(frames: Frame, clip: WantedClip) -> bool:
    found = [zlib.crc32(np.ascontiguousarray(frame).data) for frame in frames]
    return found != clip.crc32
