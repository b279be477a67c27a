"""Write one small video per container, codec and frame rate, read it back, and tell what was right.

Every frame shows its own number. Each decoder that says it is right for a file must give the right
numbers, times and pixels, in order and at random. The unit tests check the rows; renew the page
with: python docs/decoding_table.py
"""

import importlib.util
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from pipelines.decode import DECODERS, DecodeError, SourceFrame, VideoProbe, probe_video, sequential
from pipelines.decode.ffmpeg_libraries import LIBRARY_PATH, link_ffmpeg
from pipelines.decode.pyav_decoder import PyavDecoder

PAGE = Path(__file__).with_name("decoding.md")
NUM_FRAMES = 40
SMALL, LARGE = (32, 64), (64, 128)  # x265 and SVT-AV1 do not take less than 64 rows
TIME_TOLERANCE_S = 1.001e-3  # Matroska rounds to milliseconds
CONTAINERS = ("mp4", "mov", "mkv", "webm", "avi", "ts", "mpg")
RATES = {
    "23.976": Fraction(24000, 1001),
    "25": Fraction(25),
    "60": Fraction(60),
    "variable": None,
}


@dataclass(frozen=True)
class Encoding:
    """How a codec is asked to encode; `reorders`: frames are stored in another order than shown."""

    codec: str
    options: dict[str, str] = field(default_factory=dict)
    pixel_format: str = "yuv420p"
    size: tuple[int, int] = SMALL
    reorders: bool = False


def x264(**options: str) -> dict[str, str]:
    """Return options with a key frame every 12 frames, wherever the picture changes."""
    return {"threads": "1", "g": "12", "sc_threshold": "0", "b_strategy": "0", **options}


def x265(more: str) -> dict[str, str]:
    """Return options with a key frame every 12 frames."""
    keys = "keyint=12:min-keyint=12:scenecut=0"
    return {"x265-params": f"log-level=none:pools=1:frame-threads=1:{keys}:{more}"}


VP9 = {"crf": "20", "b:v": "0", "cpu-used": "8", "g": "12"}
SVT = {"preset": "12", "g": "12", "crf": "20", "svtav1-params": "lp=1"}
ENCODINGS = {
    "h264": Encoding("libx264", x264(bf="0")),
    "h264, B-frames": Encoding("libx264", x264(bf="3"), reorders=True),
    "h264, open GOP": Encoding(
        "libx264", x264(bf="3", **{"x264-params": "open-gop=1:b-pyramid=normal"}), reorders=True
    ),
    "h264, open GOP without B-frames": Encoding(
        "libx264", x264(bf="0", **{"x264-params": "open-gop=1"})
    ),
    "h264, intra refresh": Encoding("libx264", x264(bf="0", **{"x264-params": "intra-refresh=1"})),
    "h264, 10 bit": Encoding("libx264", x264(bf="2"), "yuv420p10le", reorders=True),
    "h264, 4:4:4": Encoding("libx264", x264(bf="2"), "yuv444p", reorders=True),
    "hevc, closed GOP": Encoding(
        "libx265", x265("open-gop=0:bframes=3:b-adapt=0"), size=LARGE, reorders=True
    ),
    "hevc, open GOP": Encoding(
        "libx265", x265("open-gop=1:bframes=3:b-adapt=0"), size=LARGE, reorders=True
    ),
    "hevc, 10 bit": Encoding(
        "libx265", x265("open-gop=1:bframes=3"), "yuv420p10le", LARGE, reorders=True
    ),
    "vp8": Encoding("libvpx", {"crf": "10", "b:v": "1M", "cpu-used": "8", "g": "12"}),
    "vp9": Encoding("libvpx-vp9", VP9),
    "vp9, hidden frames": Encoding(
        "libvpx-vp9", {**VP9, "auto-alt-ref": "1", "lag-in-frames": "16"}
    ),
    "vp9, odd size": Encoding("libvpx-vp9", VP9, size=(33, 65)),
    "av1": Encoding("libsvtav1", SVT, size=LARGE),
    "av1, 10 bit": Encoding("libsvtav1", SVT, "yuv420p10le", LARGE),
    "mpeg4": Encoding("mpeg4", {"qscale": "2", "g": "12"}),
    "mpeg4, B-frames": Encoding("mpeg4", {"qscale": "2", "g": "12", "bf": "2"}, reorders=True),
    "mpeg2video": Encoding("mpeg2video", {"qscale": "2", "g": "12", "bf": "2"}, reorders=True),
    "mjpeg": Encoding("mjpeg", {"qscale": "2"}, "yuvj420p"),
    "ffv1": Encoding("ffv1", {"g": "12"}),
}
RARE = {
    "h264, open GOP without B-frames": ("mp4", "mkv"),
    "h264, intra refresh": ("mp4", "mkv", "ts"),
    "h264, 4:4:4": ("mp4", "mkv", "ts"),
    "hevc, 10 bit": ("mp4", "mkv", "ts"),
    "vp9, odd size": ("mp4", "webm"),
    "av1, 10 bit": ("mp4", "mkv"),
}
"""Encodings that are tested in few containers; the sizes and formats do not depend on them."""


@dataclass(frozen=True)
class Special:
    """A file that is unusual in another way than by its codec."""

    container: str
    encoding: str
    what: str
    muxing: dict[str, str] = field(default_factory=dict)
    rotation: int = 0
    hidden_frames: int = 0
    start_s: int = 0


SPECIALS = [
    Special("mp4", "h264", "edit list: 5 frames are hidden", hidden_frames=5),
    Special("mp4", "h264, B-frames", "edit list: 5 frames are hidden", hidden_frames=5),
    Special("mov", "hevc, open GOP", "edit list: 15 frames are hidden", hidden_frames=15),
    Special("mp4", "h264, B-frames", "no edit list", {"use_editlist": "0"}),
    Special("mp4", "h264, B-frames", "fragments", {"movflags": "frag_keyframe+empty_moov"}),
    Special("mp4", "h264, B-frames", "index first", {"movflags": "faststart"}),
    Special("mp4", "h264, B-frames", "starts at 5 s", start_s=5),
    Special("mkv", "h264, B-frames", "starts at 5 s", start_s=5),
    *(Special("mp4", "h264", f"rotated by {angle}", rotation=angle) for angle in (90, 180, 270)),
    Special("mov", "hevc, closed GOP", "rotated by 90", rotation=90),
    Special("mp4", "vp9", "rotated by 270", rotation=270),
    Special("flv", "h264, B-frames", ""),
    Special("wmv", "h264", ""),
]


@dataclass(frozen=True)
class Row:
    """What came of one file."""

    container: str
    encoding: str
    rate: str
    result: str
    """`right`, `refused: why`, `cannot be written: why`, or `WRONG: what`."""
    what: str = ""
    random_access: tuple[str, ...] = ()
    num_keys: int = 0
    reorders: bool = False


def draw(number: int, height: int, width: int) -> Any:
    """Draw a number as 2 x 4 black or white blocks, (H, W, 3) uint8."""
    bits = np.array([number >> bit & 1 for bit in range(8)], np.uint8).reshape(2, 4) * 255
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 4 // width
    return np.repeat(bits[rows][:, columns][..., None], 3, axis=2)


def read(frame: Any) -> int | None:
    """Read the number from a frame; None if any block is neither black nor white."""
    height, width = frame.shape[:2]
    number = 0
    for bit in range(8):
        row, column = divmod(bit, 4)
        top, left = -(-row * height // 2), -(-column * width // 4)
        block = frame[top : (row + 1) * height // 2, left : (column + 1) * width // 4, 1]
        grey = int(block.sum()) // block.size
        if 64 <= grey <= 191:
            return None
        number |= (grey > 128) << bit
    return number


def times_ms(rate: str) -> list[Fraction]:
    """Return the time of every frame in milliseconds."""
    if (hertz := RATES[rate]) is not None:
        return [1000 * number / hertz for number in range(NUM_FRAMES)]
    gaps = random.Random(7)  # noqa: S311
    steps = [gaps.choice([7, 20, 33, 40, 41, 90, 250]) for _ in range(NUM_FRAMES - 1)]
    return [Fraction(time) for time in itertools.accumulate(steps, initial=0)]


def write(path: Path, encoding: Encoding, rate: str, special: Special) -> None:
    """Write a video whose frames show their numbers."""
    hertz = RATES[rate]
    base = Fraction(1, 1000) if hertz is None else 1 / hertz
    start_ms = 1000 * special.start_s
    with av.open(str(path), "w", options=special.muxing) as file:
        stream = file.add_stream(encoding.codec, rate=hertz or 25, options=encoding.options)
        stream.height, stream.width = encoding.size
        stream.pix_fmt = encoding.pixel_format
        stream.time_base = stream.codec_context.time_base = base
        if special.rotation:
            stream.set_display_rotation(special.rotation)
        for number, time in enumerate(times_ms(rate)):
            frame = av.VideoFrame.from_ndarray(draw(number, *encoding.size), format="rgb24")
            frame.pts = round((time + start_ms) / 1000 / base)
            frame.time_base = base
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def hide(path: Path, number: int, rate: str) -> None:
    """Move a video to the left of time 0 by that many frames: an edit list then hides them."""
    whole = path.rename(path.with_name(f"whole{path.suffix}"))
    shift = times_ms(rate)[number] / 1000
    with av.open(str(whole)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.pts -= round(shift / packet.time_base)
                packet.dts -= round(shift / packet.time_base)
                packet.stream = stream
                new.mux(packet)


def mistakes(
    found: list[SourceFrame], numbers: list[int], special: Special, rate: str
) -> Iterator[str]:
    """Compare frames with what was written; `numbers` counts the frames that are shown."""
    if [frame.number for frame in found] != numbers:
        yield f"frames {[frame.number for frame in found]} came, not {numbers}"
    written = times_ms(rate)[special.hidden_frames :]
    first_s = found[0].time_s - float(written[found[0].number] - written[0]) / 1000 if found else 0
    for frame in found:
        drawn = read(np.rot90(frame.pixels, -special.rotation // 90))
        if drawn != frame.number + special.hidden_frames:
            yield f"frame {frame.number} shows {drawn}"
        expected_s = float(written[frame.number] - written[0]) / 1000
        if abs(frame.time_s - first_s - expected_s) > TIME_TOLERANCE_S:
            yield f"frame {frame.number} is at {frame.time_s - first_s:.4f}, not {expected_s:.4f} s"


def check(path: Path, special: Special, rate: str) -> tuple[str, tuple[str, ...]]:
    """Read a file in every way that claims to be right: (result, decoders of random access)."""
    try:
        probe = probe_video(path)
        reference = list(sequential(path, probe))
    except DecodeError as error:
        return f"refused: {error}", ()
    count = NUM_FRAMES - special.hidden_frames
    wrong = list(mistakes(reference, list(range(count)), special, rate))
    if wrong:
        return f"WRONG: sequential {wrong[:3]}", ()
    if probe.num_frames != count or not probe.key_times_s:
        return f"WRONG: the probe counts {probe.num_frames}, keys {probe.key_times_s}", ()
    scattered = sorted(random.Random(str(path.name)).sample(range(count), 9))  # noqa: S311
    asked = [scattered, [count - 1], [0, count // 2, count // 2, count - 2], [scattered[4]]]
    names = []
    for name, decoder in DECODERS.items():
        if not decoder.is_right_for(probe):
            continue
        sequences = [(list(range(count)), decoder.frames(path, probe))]
        for numbers in asked:
            times = [reference[number].time_s for number in numbers]
            sequences.append((numbers, decoder.frames_at(path, probe, numbers, times_s=times)))
        for numbers, frames in sequences:
            try:
                found = list(frames)
            except DecodeError as error:
                return f"WRONG: {name} {numbers} fails: {error}", ()
            wrong = list(mistakes(found, numbers, special, rate))
            wrong += [
                f"frame {frame.number} differs from the reference"
                for frame in found
                if not np.array_equal(frame.pixels, reference[frame.number].pixels)
            ]
            if wrong:
                return f"WRONG: {name} {numbers} {wrong[:3]}", ()
        names.append(how_pyav_finds(path, probe, reference) if name == "pyav" else name)
    return "right", tuple(names)


def how_pyav_finds(path: Path, probe: VideoProbe, reference: list[SourceFrame]) -> str:
    """Return whether PyAV can find the last frame by a jump."""
    pyav, last = PyavDecoder(), reference[-1]
    if pyav.seeks(probe):
        try:
            list(pyav.jump(path, probe, [last.number], times_s=[last.time_s]))
            return "pyav seeks"
        except DecodeError:
            pass
    return "pyav from the start"


def measure(special: Special, rate: str, folder: Path) -> Row:
    """Write one file and read it back."""
    encoding = ENCODINGS[special.encoding]
    path = folder / f"video.{special.container}"
    names = {"container": special.container, "encoding": special.encoding, "rate": rate}
    try:
        write(path, encoding, rate, special)
        if special.hidden_frames:
            hide(path, special.hidden_frames, rate)
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return Row(**names, what=special.what, result=f"cannot be written: {reason}")
    result, access = check(path, special, rate)
    if result != "right":
        return Row(**names, what=special.what, result=result)
    with av.open(str(path)) as file:
        packets = [packet for packet in file.demux(video=0) if packet.size]
    stored = [packet.pts for packet in packets]
    return Row(
        **names,
        what=special.what,
        result=result,
        random_access=access,
        num_keys=sum(packet.is_keyframe for packet in packets),
        reorders=None not in stored and stored != sorted(stored),
    )


def rows() -> Iterator[Row]:
    """Measure everything; takes about a minute on a slow core."""
    av.logging.set_level(None)
    with tempfile.TemporaryDirectory() as name:
        for encoding, container, rate in itertools.product(ENCODINGS, CONTAINERS, RATES):
            if encoding not in RARE or (container in RARE[encoding] and rate in ("25", "variable")):
                yield measure(Special(container, encoding, ""), rate, Path(name))
        for special in SPECIALS:
            yield measure(special, "25", Path(name))


def page(found: list[Row]) -> str:
    """Return the page: one line per container, codec and result, with the rates that share it."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for row in found:
        access = ", ".join(row.random_access) or "-"
        options = ", ".join(filter(None, [*row.encoding.split(", ")[1:], row.what])) or "-"
        codec = row.encoding.split(", ")[0]
        scan = "pyav" if row.random_access else "-"
        key = (row.container, codec, options, scan, access, row.result)
        lines.setdefault(key, []).append(row.rate)
    table = [
        f"| {container} | {codec} | {options} | {', '.join(rates)} | {scan} | {access} | {result} |"
        for (container, codec, options, scan, access, result), rates in lines.items()
    ]
    return "\n".join([*INTRODUCTION.strip().splitlines(), *table, ""])


INTRODUCTION = """
# Decoding

Which decoder reads which files, and what was measured. `python docs/decoding_table.py` writes this
page: it encodes 40 frames that show their own numbers for every line, and reads them back in order
and at scattered places. `right` means that not one frame was wrong: the number, the time within a
millisecond, and for every decoder but the first the same pixels as the first. A file is refused,
with the reason, where that cannot be had.

- **Scan** is the strict pass over the whole file, in order, that every video goes through once.
- **Random access** lists who may find single frames again. `pyav seeks` decodes from the nearest
  key frame; `pyav from the start` decodes everything before.
- `variable` is a rate that changes from frame to frame, between 4 and 140 Hz.

Elsewhere than listed, decoders return wrong frames without an error; how a file is judged is
[decision 0005](adr/0005-decoding.md). What random access finds is compared with the scan anyway.

| Container | Codec | Options | Rates in Hz | Scan | Random access | Result |
|---|---|---|---|---|---|---|
"""


def main(arguments: list[str]) -> int:
    """Measure and write the page, or print the rows as JSON."""
    linked = "--linked" in arguments  # this is the process in which torchcodec finds FFmpeg
    if not linked and importlib.util.find_spec("torchcodec") is not None:
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, LIBRARY_PATH: str(link_ffmpeg(Path(folder)))}
            command = [sys.executable, __file__, "--linked", *arguments]
            return subprocess.run(command, env=environment, check=False).returncode
    if not linked:
        del DECODERS["torchcodec"]
    measured = list(rows())
    if "--json" in arguments:
        print(json.dumps([asdict(row) for row in measured]))
    else:
        PAGE.write_text(page(measured), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
