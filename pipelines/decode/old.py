"""Videos to clips: bytes of a file in, uint8 frames at the wanted rate and size out.

`probe_video` reads the packets without decoding: they give the presentation time of every frame.
`decode_clips` decodes once, in order, and keeps the frames that are on screen at the wanted times.
decord decodes where it is known to be right; PyAV decodes everything else, and whatever decord
could not. Neither ever seeks: random access gives wrong frames on many files.
"""

import itertools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cil.errors import DataError
from pipelines.records import QuarantineRecord

__all__ = [
    "ClipTransform",
    "DecodeError",
    "DecodedClip",
    "DecodedVideo",
    "VideoProbe",
    "decode_clips",
    "probe_video",
    "quarantine_record",
]

Frame = npt.NDArray[np.uint8]

_DECORD_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
_DECORD_CODECS = ("h264", "vp9")
_DECORD_PIXEL_FORMATS = ("yuv420p", "yuvj420p")
_DECORD_FAULT_TOLERANCE = 1e-9
"""Share of the frames that decord may replace by a neighbour: less than one of any video."""
_SCRIPTS = ("concat", "dash", "hls", "imf", "sdp")
"""Formats that name other files; the hash of such a file says nothing about its frames."""
_TIME_TOLERANCE_S = 1e-4
_LONGEST_FRAME_S = 60.0
"""How long a frame may stay on screen; one damaged time would repeat it for days."""
_LOST_FRAMES_ALLOWED = 32
"""Frames before the first key frame of an open group of pictures, which no decoder can show."""
_FRAME_IN_EVERY_PACKET = ("av1", "h264", "hevc", "libdav1d", "mpeg2video", "vp9")
"""Codecs whose packets are all shown; those of others may say `keep the last frame`."""


class DecodeError(DataError):
    """A video that was refused, with the stage and the decoder that refused it."""

    def __init__(self, message: str, *, stage: str, decoder: str | None, exception: str) -> None:
        super().__init__(message)
        self.stage = stage
        self.decoder = decoder
        self.exception = exception


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipTransform:
    """How clips are cut: frame count, rate in Hz, size in pixels, most clips per video."""

    num_frames: int
    fps: float
    height: int
    width: int
    max_clips: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoProbe:
    """What the container says, from a pass over the packets without decoding."""

    container: str
    codec: str
    pixel_format: str
    average_fps: float
    """Frames per second in Hz, from the frame times."""
    times_s: tuple[float, ...] | None
    """Presentation times of the frames, ascending; None if packets lack them."""
    has_edit_list: bool
    """Whether packets are decoded but not shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedClip:
    """One clip: frames (F, H, W, 3) uint8 RGB, and where it lies in the video."""

    start_s: float
    end_s: float
    frames: Frame
    num_distinct_frames: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedVideo:
    """All clips of one video."""

    clips: tuple[DecodedClip, ...]
    decoder: str
    source_fps: float


def probe_video(path: Path) -> VideoProbe:
    """Read container, codec and frame times without decoding.

    Raises:
        DecodeError: the file cannot be opened, or has no video.
    """
    import av

    times: list[float] = []
    discarded, timeless, packets = 0, 0, 0
    try:
        with av.open(str(path)) as container:
            stream = _best_stream(container)
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                if packet.is_corrupt:
                    raise _probe_refusal("a packet is incomplete; the file was cut off", "CutOff")
                packets += 1
                if packet.is_discard:
                    discarded += 1
                elif packet.pts is None or packet.time_base is None:
                    timeless += 1
                else:
                    times.append(float(packet.pts * packet.time_base))
            rate = float(stream.average_rate or 0)
            name, codec = container.format.name, stream.codec_context.name
            pixel_format = stream.codec_context.pix_fmt or "unknown"
    except DecodeError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _refusal(error, stage="probe", decoder="pyav") from error
    if not packets:
        raise _probe_refusal("the video stream has no frames", "NoFrames")
    times.sort()
    if not timeless and times and times[-1] > times[0]:
        rate = (len(times) - 1) / (times[-1] - times[0])
    return VideoProbe(
        container=name,
        codec=codec,
        pixel_format=pixel_format,
        average_fps=rate,
        times_s=None if timeless else tuple(times),
        has_edit_list=discarded > 0,
    )


def _best_stream(container: Any) -> Any:
    """Return the video stream that is decoded, refusing what has none."""
    if container.format.name in _SCRIPTS:
        text = f"the file is a script ({container.format.name}) that names other files"
        raise _probe_refusal(text, "Script")
    stream = container.streams.best("video")
    if stream is None:
        raise _probe_refusal("the file has no video stream", "NoVideo")
    if stream.codec_context is None:
        raise _probe_refusal("the codec of the video stream is unknown", "UnknownCodec")
    return stream


def decode_clips(path: Path, transform: ClipTransform) -> DecodedVideo:
    """Decode a video into consecutive clips that do not overlap.

    Args:
        path: video file.
        transform: how clips are cut.

    Returns:
        The clips; each frame is the one on screen at its time, resized to cover (H, W) and cropped.

    Raises:
        DecodeError: the file is broken, or shorter than one clip.
    """
    probe = probe_video(path)
    clips: tuple[DecodedClip, ...] | None = None
    decoder = "decord"
    if _decord_is_right(probe):
        try:
            clips = _cut(_decord_frames(path, probe), probe, transform)
        except _DecoderDisagreesError:
            clips = None
        except Exception as error:
            # decord raises its own class, and RuntimeError or IndexError from its C++ side
            if isinstance(error, DecodeError):
                raise
            clips = None
    if clips is None:
        decoder = "pyav"
        try:
            clips = _cut(_pyav_frames(path, probe), probe, transform)
        except DecodeError:
            raise
        except Exception as error:
            raise _refusal(error, stage="decode", decoder=decoder) from error
    return DecodedVideo(clips=clips, decoder=decoder, source_fps=probe.average_fps)


def quarantine_record(item: dict[str, str], error: DecodeError) -> QuarantineRecord:
    """Say why a file was refused."""
    return QuarantineRecord(
        path=item["path"],
        sha256=item["sha256"],
        stage=error.stage,
        decoder=error.decoder,
        exception=error.exception,
        message=str(error),
        attempts=1,
    )


class _DecoderDisagreesError(Exception):
    """The decoder gives another number of frames than the container holds."""


def _decord_is_right(probe: VideoProbe) -> bool:
    return (
        probe.container in _DECORD_CONTAINERS
        and probe.codec in _DECORD_CODECS
        and probe.pixel_format in _DECORD_PIXEL_FORMATS
        and probe.times_s is not None
        and len(set(probe.times_s)) == len(probe.times_s)
        and not probe.has_edit_list
    )


def _decord_frames(path: Path, probe: VideoProbe) -> Iterator[tuple[float, Frame]]:
    """Yield (time in seconds, frame) in order; decord applies the rotation flag itself."""
    import decord

    assert probe.times_s is not None
    reader = decord.VideoReader(str(path), num_threads=1, fault_tol=_DECORD_FAULT_TOLERANCE)
    if len(reader) != len(probe.times_s):
        raise _DecoderDisagreesError
    for time_s in probe.times_s:
        yield time_s, reader.next().asnumpy()


def _pyav_frames(path: Path, probe: VideoProbe) -> Iterator[tuple[float, Frame]]:
    """Yield (time in seconds, frame) in presentation order, with the rotation flag applied."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"err_detect": "explode"}  # no guessing over damage
        clock = _FrameClock(probe)
        first = last = -float("inf")
        index = -1
        for index, frame in enumerate(container.decode(stream)):
            assert isinstance(frame, av.VideoFrame)
            if frame.is_corrupt:
                raise DataError(f"frame {index} is corrupt")
            time_s = clock.time(index, frame.time)
            if time_s < last:
                raise DataError(f"frame {index} at {time_s:.3f} s comes before {last:.3f} s")
            first = time_s if index == 0 else first
            last = time_s
            yield time_s, np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    _check_number(index + 1, first, probe)


def _check_number(decoded: int, first_s: float, probe: VideoProbe) -> None:
    """Refuse a video of which frames are missing, but for a few before the first that is whole.

    A frame that is missing later would leave the one before it on screen, and shift all that
    follows where frames are counted, in AVI.
    """
    if probe.times_s is None:
        return
    lost = len(probe.times_s) - decoded
    lost_before = sum(time_s < first_s - _TIME_TOLERANCE_S for time_s in probe.times_s)
    counted = probe.container == "avi" or probe.codec in _FRAME_IN_EVERY_PACKET
    if lost > _LOST_FRAMES_ALLOWED or (counted and lost > lost_before):
        raise DataError(f"only {decoded} of {len(probe.times_s)} frames could be decoded")


class _FrameClock:
    """Times of decoded frames in seconds."""

    def __init__(self, probe: VideoProbe) -> None:
        self._probe = probe
        self._shift: float | None = None

    def time(self, index: int, stated_s: float | None) -> float:
        """Return the time of a decoded frame.

        AVI states decoding times, which run backwards around B-frames; there the frame takes its
        place in the sorted list of the packets' times.
        """
        times = self._probe.times_s
        if times is None:
            return self._counted(index, stated_s)
        if self._probe.container == "avi" and index < len(times):
            return times[index]
        if stated_s is None:
            raise DataError(f"frame {index} carries no time")
        return stated_s

    def _counted(self, index: int, stated_s: float | None) -> float:
        """Count frames at the average rate; the times that are stated must agree."""
        rate = self._probe.average_fps
        if rate <= 0:
            raise DataError("frames carry no time and the container states no frame rate")
        time_s = index / rate
        if stated_s is not None:
            self._shift = stated_s - time_s if self._shift is None else self._shift
            if abs(stated_s - self._shift - time_s) > 0.5 / rate:
                raise DataError(
                    f"frame {index} at {stated_s:.3f} s is not where {rate:g} Hz puts it, and "
                    "other frames carry no time"
                )
        return time_s


def _cut(
    frames: Iterator[tuple[float, Frame]], probe: VideoProbe, transform: ClipTransform
) -> tuple[DecodedClip, ...]:
    """Keep the frame that is on screen at each of the times 0, 1/fps, 2/fps, ..."""
    kept = _KeptFrames(transform)
    times: list[float] = []
    current: Frame | None = None
    # Decoding goes on to the end even if enough is kept: a broken file is refused as a whole.
    for time_s, frame in frames:
        if current is not None:
            _check_gap(times[-1], time_s)
            kept.keep_until(time_s - times[0], len(times) - 1, current)
        times.append(time_s)
        current = frame
    if current is None:
        raise DataError("no frame could be decoded")
    gaps = [late - early for early, late in itertools.pairwise(times)]
    last_gap = statistics.median(gaps) if gaps else 1 / max(probe.average_fps, 1.0)
    duration = times[-1] - times[0] + last_gap
    kept.keep_until(duration, len(times) - 1, current)
    clips = kept.clips()
    if not clips:
        raise DecodeError(
            f"too short: {duration:.2f} s, and one clip of {transform.num_frames} frames at "
            f"{transform.fps:g} Hz needs {transform.num_frames / transform.fps:.2f} s",
            stage="select",
            decoder=None,
            exception="TooShort",
        )
    return clips


def _check_gap(early_s: float, late_s: float) -> None:
    if late_s - early_s > _LONGEST_FRAME_S:
        raise DecodeError(
            f"the frame after {early_s:.2f} s comes {late_s - early_s:.0f} s later, and "
            f"{_LONGEST_FRAME_S:.0f} s are allowed; its time is damaged, or this is a slide show",
            stage="select",
            decoder=None,
            exception="LongGap",
        )


class _KeptFrames:
    """Frames at the wanted rate and size, in order."""

    def __init__(self, transform: ClipTransform) -> None:
        self._transform = transform
        self._numbers: list[int] = []
        self._frames: list[Frame] = []
        most = transform.max_clips
        self._wanted = None if most is None else most * transform.num_frames

    def keep_until(self, end_s: float, number: int, frame: Frame) -> None:
        """Keep source frame ``number`` for each wanted time before ``end_s``, when it vanishes."""
        transform, resized = self._transform, None
        while len(self._frames) / transform.fps < end_s - _TIME_TOLERANCE_S:
            if self._wanted is not None and len(self._frames) >= self._wanted:
                return
            if resized is None:
                resized = _cover_and_crop(frame, transform.height, transform.width)
            self._numbers.append(number)
            self._frames.append(resized)

    def clips(self) -> tuple[DecodedClip, ...]:
        """Cut what was kept into clips that follow each other; an incomplete last one is left."""
        length, fps = self._transform.num_frames, self._transform.fps
        return tuple(
            DecodedClip(
                start_s=start / fps,
                end_s=(start + length) / fps,
                frames=np.stack(self._frames[start : start + length]),
                num_distinct_frames=len(set(self._numbers[start : start + length])),
            )
            for start in range(0, len(self._frames) - length + 1, length)
        )


def _cover_and_crop(frame: Frame, height: int, width: int) -> Frame:
    """Resize so that the frame covers (height, width), keeping its aspect, and crop the centre."""
    import cv2

    rows, columns = frame.shape[:2]
    scale = max(height / rows, width / columns)
    size = (max(width, round(columns * scale)), max(height, round(rows * scale)))
    if size != (columns, rows):
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        frame = cv2.resize(np.ascontiguousarray(frame), size, interpolation=method)
    top, left = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
    return np.ascontiguousarray(frame[top : top + height, left : left + width])


def _probe_refusal(message: str, exception: str) -> DecodeError:
    return DecodeError(message, stage="probe", decoder="pyav", exception=exception)


def _refusal(error: BaseException, *, stage: str, decoder: str) -> DecodeError:
    # not str(error): FFmpeg puts the whole path into it, which is not the same on every machine
    lines = (getattr(error, "strerror", None) or str(error)).strip().splitlines()
    return DecodeError(
        (lines[0] if lines else type(error).__name__)[:300],
        stage=stage,
        decoder=decoder,
        exception=type(error).__name__,
    )
