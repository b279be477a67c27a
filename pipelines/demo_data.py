"""Make the demo's videos: glowing shapes that drift over a dark torus, as real H.264 files.

    python -m pipelines.demo_data --out build/demo/videos
    python -m pipelines.demo_data --out build/experiments/still/videos --world still --size 16

In: numbers only. Out: OUT/sprite-0000.mp4 and so on, a few first frames as PNG that belong to none
of them (beside OUT), and OUT.json, written last, with the settings and the sha256 of every file.
The same arguments and the same PyAV give the same bytes; a second call finds all done and does
nothing. ``pipelines.demo_sprites`` says what the videos show, ``pipelines.demo_stills`` what those
of the worlds ``moving`` and ``still`` do, which are for the experiments.
"""

import argparse
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cil.errors import CilError, ConfigError, StageError
from pipelines.demo_sprites import draw_sprite, render
from pipelines.demo_stills import draw_still, render_still

__all__ = ["DemoDataConfig", "World", "main", "make_demo_data"]

World = Literal["sprites", "moving", "still"]
_Clip = Callable[[float], NDArray[np.uint8]]
"""Frame of a moment, in seconds: (size, size, 3) uint8 RGB."""

_NAME = re.compile(r"sprite-\d{4,}\.mp4(\.part)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoDataConfig:
    """What is made; every field is in the mark OUT.json."""

    num_videos: int = 96
    """Videos to make, >= 1."""
    num_frames: int = 16
    """Frames of each video, >= 1."""
    fps: int = 16
    """Frames per second of each video, >= 1."""
    size: int = 128
    """Width and height in pixels, even, >= 16."""
    num_held_out: int = 6
    """First frames kept apart, >= 0."""
    seed: int = 0
    """Of all that is drawn, >= 0."""
    world: World = "sprites"
    """What the videos show: glowing shapes that drift, or a disc on a texture, which is ``moving``
    in most videos or ``still`` in most."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        least = {
            "num_videos": 1,
            "num_frames": 1,
            "fps": 1,
            "size": 16,
            "num_held_out": 0,
            "seed": 0,
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be >= {low}, got {getattr(self, name)}")
        if self.world not in get_args(World):
            raise ConfigError(
                f"world must be one of {', '.join(get_args(World))}, got {self.world!r}"
            )
        if self.size % 2:
            raise ConfigError(f"size must be even for H.264, got {self.size}; use {self.size + 1}")


def _draw(config: DemoDataConfig, rng: np.random.Generator) -> _Clip:
    """Draw a clip of the world; returns what renders it."""
    if config.world == "sprites":
        sprite = draw_sprite(rng)
        return lambda time_s: render(sprite, size=config.size, time_s=time_s)
    still = draw_still(rng, config.world)
    return lambda time_s: render_still(still, size=config.size, time_s=time_s)


def _encode_mp4(clip: _Clip, config: DemoDataConfig) -> bytes:
    """Render a video and encode it with libx264 on one thread, so that the bytes repeat."""
    buffer = io.BytesIO()
    # Neither B-frames nor an edit list: every decoder then counts the frames alike.
    with av.open(buffer, mode="w", format="mp4", options={"use_editlist": "0"}) as container:
        options = {"crf": "14", "preset": "fast", "bf": "0", "threads": "1"}
        stream = container.add_stream("libx264", rate=config.fps, options=options)
        stream.width = stream.height = config.size
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, config.fps)
        for index in range(config.num_frames):
            frame = av.VideoFrame.from_ndarray(clip(index / config.fps), format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def _encode_png(clip: _Clip) -> bytes:
    """Render a first frame as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(clip(0.0)).save(buffer, format="PNG")
    return buffer.getvalue()


def make_demo_data(config: DemoDataConfig, *, out: Path, held_out: Path) -> bool:
    """Make the videos and the held-out first frames.

    Args:
        config: what to make.
        out: folder of the videos; nothing else may be in it.
        held_out: folder of the PNG files, not inside ``out``.

    Returns:
        True if something was made, False if all was there already.

    Raises:
        ConfigError: ``held_out`` is inside ``out``, or ``out`` holds files of someone else.
        StageError: a folder cannot be written.
    """
    if held_out.resolve().is_relative_to(out.resolve()):
        raise ConfigError(f"the held-out images must not be among the videos, got {held_out}")
    mark = out.parent / f"{out.name}.json"
    settings: dict[str, Any] = {**asdict(config), "av": av.__version__, "held_out": held_out.name}
    if _is_complete(mark, settings, out, held_out):
        return False
    foreign = [path.name for path in _entries(out) if not _NAME.fullmatch(path.name)]
    if foreign:
        raise ConfigError(f"{out} holds {foreign[0]!r}, which is not ours; give an empty folder")
    total = config.num_videos + config.num_held_out
    digests = {}
    try:
        mark.unlink(missing_ok=True)
        for path in _entries(out):
            path.unlink()
        for path, content in _files(config, out, held_out):
            _write(path, content)
            digests[f"{path.parent.name}/{path.name}"] = hashlib.sha256(content).hexdigest()
            if sys.stderr.isatty():
                end = "\n" if len(digests) == total else ""
                sys.stderr.write(f"\rdemo videos: {len(digests)} of {total} files{end}")
        described = json.dumps({**settings, "sha256": digests}, indent=2, sort_keys=True) + "\n"
        _write(mark, described.encode())
    except OSError as error:
        raise StageError(f"cannot write the demo videos ({error}); give another --out") from error
    return True


def _files(config: DemoDataConfig, out: Path, held_out: Path) -> Iterator[tuple[Path, bytes]]:
    """Make every file's path and content; each depends on the seed and its own index only."""
    for kind, count in enumerate((config.num_videos, config.num_held_out)):
        for index in range(count):
            clip = _draw(config, np.random.default_rng([config.seed, kind, index]))
            if kind == 0:
                yield out / f"sprite-{index:04d}.mp4", _encode_mp4(clip, config)
            else:
                yield held_out / f"first-{index:02d}.png", _encode_png(clip)


def _is_complete(mark: Path, settings: dict[str, Any], out: Path, held_out: Path) -> bool:
    """Tell whether the mark has these settings and every file it lists has its sha256."""
    try:
        described = json.loads(mark.read_text(encoding="utf-8"))
        digests = described.pop("sha256")
        folders = {out.name: out, held_out.name: held_out}
        found = {
            name: hashlib.sha256((folders[name.split("/")[0]] / name.split("/")[1]).read_bytes())
            for name in digests
        }
    except (OSError, ValueError, KeyError):
        return False
    same = all(found[name].hexdigest() == digests[name] for name in digests)
    return same and described == settings


def _entries(folder: Path) -> list[Path]:
    """List a folder, sorted; empty if it does not exist."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _write(path: Path, content: bytes) -> None:
    """Write a file at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 failed, 2 wrong arguments."""
    defaults = DemoDataConfig()
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.demo_data",
        description="Make the demo's H.264 videos: glowing shapes that drift in random directions.",
        epilog="example: python -m pipelines.demo_data --out build/demo/videos --num-videos 16",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the videos")
    parser.add_argument(
        "--held-out-dir",
        type=Path,
        help="folder of first frames as PNG that belong to no video (default: OUT/../held_out)",
    )
    parser.add_argument(
        "--world",
        choices=get_args(World),
        default=defaults.world,
        help="what the videos show: shapes that drift, or discs that move or mostly stand still "
        "(default: %(default)s)",
    )
    for name, help_text in {
        "num_videos": "videos to make",
        "num_frames": "frames of each video",
        "fps": "frames per second",
        "size": "width and height in pixels",
        "num_held_out": "first frames kept apart",
        "seed": "of all that is drawn",
    }.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=int,
            default=getattr(defaults, name),
            help=f"{help_text} (default: %(default)s)",
        )
    given = vars(parser.parse_args(arguments))
    out: Path = given.pop("out")
    held_out: Path = given.pop("held_out_dir") or out.parent / "held_out"
    try:
        made = make_demo_data(DemoDataConfig(**given), out=out, held_out=held_out)
    except CilError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    state = "made" if made else "complete already"
    sys.stdout.write(f"{state}: videos in {out}, held-out first frames in {held_out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
