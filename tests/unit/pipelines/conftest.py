"""Helpers of the pipeline tests, as fixtures: drawn videos, the reference clips, small shards."""

import dataclasses
import hashlib
import io
import os
from contextlib import ExitStack, contextmanager, nullcontext
from fractions import Fraction
from pathlib import Path

import av  # before decord: the two bring their own codec libraries, and the first one loaded wins
import numpy as np
import pytest
import torch
from PIL import Image

from cil.analytic_init import AnalyticInit
from pipelines import encode, estimate, first_stage, scan
from pipelines.config import RunConfig, content_hash, validate_config
from pipelines.dataset import open_dataset
from pipelines.records import FORMAT_VERSION, ClipRecord, Manifest, ShardSpec
from pipelines.shards import (
    EncodedClip,
    complete_sidecar,
    entry_of,
    load_manifest,
    moments_of,
    read_moments,
    write_shard,
)
from pipelines.storage import write_json
from pipelines.store import open_store

IDENTITY = {"settings": {"clips": {"fps": 8.0}}, "first_stage": "none"}
IDENTITY_HASH = content_hash(IDENTITY)
REFERENCE_VARIABLE = "CIL_REFERENCE_DATA"


class DrawnVideos:
    """Videos whose frames show their own number, as 2 x 4 black or white blocks: 0 to 255."""

    height, width = 32, 64

    def frame(self, number, height=height, width=width):
        """Draw a number as an (H, W, 3) uint8 frame."""
        bits = np.array([number >> bit & 1 for bit in range(8)], np.uint8).reshape(2, 4) * 255
        blocks = np.kron(bits, np.ones((height // 2, width // 4), np.uint8))
        return np.repeat(blocks[..., None], 3, axis=2)

    def number(self, frame):
        """Read the number back from a frame of any size."""
        height, width = frame.shape[:2]
        blocks = frame[: height // 2 * 2, : width // 4 * 4].reshape(
            2, height // 2, 4, width // 4, 3
        )
        return int(sum((mean > 128) << bit for bit, mean in enumerate(blocks.mean((1, 3, 4)).flat)))

    def write(
        self,
        path,
        *,
        codec="libx264",
        num_frames=50,
        fps=25,
        times_ms=None,
        options=None,
        container=None,
        muxer=None,
        pixel_format="yuv420p",
        size=(height, width),
    ):
        """Write frames 0, 1, 2, ... at a constant rate, or at the given times in milliseconds."""
        time_base = Fraction(1, 1000) if times_ms else Fraction(1, fps)
        with av.open(str(path), "w", format=muxer, options=container or {}) as file:
            stream = file.add_stream(codec, rate=fps, options=options or {})
            stream.height, stream.width = size
            stream.pix_fmt = pixel_format
            stream.time_base = stream.codec_context.time_base = time_base
            for index in range(num_frames):
                frame = av.VideoFrame.from_ndarray(self.frame(index, *size), format="rgb24")
                frame.pts = times_ms[index] if times_ms else index
                frame.time_base = time_base
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
        return path

    def remux(self, source, path, keep, muxer=None):
        """Copy the packets for which ``keep(number, packet)`` holds; it may change the packet."""
        with av.open(str(source)) as old, av.open(str(path), "w", format=muxer) as new:
            stream = new.add_stream_from_template(old.streams.video[0])
            for number, packet in enumerate(old.demux(video=0)):
                if packet.size and keep(number, packet):
                    packet.stream = stream
                    new.mux(packet)
        return path

    def shown_at(self, time_s, times_s):
        """Number of the frame on screen ``time_s`` after the first one."""
        return max(i for i, t in enumerate(times_s) if t - times_s[0] <= time_s + 1e-4)

    def wrong(self, video, times_s):
        """Frames of a decoded video that are not the one on screen: (time, expected, found)."""
        found = []
        for clip in video.clips:
            step = (clip.end_s - clip.start_s) / len(clip.frames)
            for index, frame in enumerate(clip.frames):
                time_s = clip.start_s + index * step
                expected = self.shown_at(time_s, times_s)
                if self.number(frame) != expected:
                    found.append((round(time_s, 3), expected, self.number(frame)))
        return found


@pytest.fixture(scope="session")
def drawn():
    """Writer and reader of videos that show their frame numbers."""
    return DrawnVideos()


@pytest.fixture(scope="session")
def reference():
    """Folder of the reference clips; a missing clip fails, a missing folder skips."""
    folder = os.environ.get(REFERENCE_VARIABLE)
    if not folder:
        pytest.skip(f"{REFERENCE_VARIABLE} is not set: the real reference clips are not here")
    return Path(folder) / "videos"


class SmallShards:
    """Latent shards of random clips, written by the real writer."""

    def clip(self, seed, *, shape=(2, 3, 4, 4), dtype=torch.bfloat16, sha="a" * 64):
        """Make an encoded clip that is a pure function of its arguments."""
        generator = torch.Generator().manual_seed(seed)
        mean, std = torch.randn(2, *shape, generator=generator)
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (seed % 256, 0, 0)).save(buffer, format="WEBP")
        record = ClipRecord(
            key=hashlib.sha256(f"clip {seed}".encode()).hexdigest()[:32],
            path=f"video {seed}.mp4",
            content_sha256=sha,
            start_s=float(seed),
            end_s=seed + 1.0,
            fps=8.0,
            source_fps=25.0,
            num_frames=shape[0],
            height=16,
            width=16,
            decoder="pyav",
            bucket=f"16x16x{shape[0]}",
            shot=0,
            frames=list(range(shape[0])),
            scores={"motion": 1.0},
            fps_id=7,
            motion_bucket_id=127,
        )
        return EncodedClip(
            record=record,
            mean=mean.to(dtype),
            std=std.abs().to(dtype),
            condition={"image_embeds": torch.zeros(1, 8)},
            thumbnail=buffer.getvalue(),
        )

    def spec(self, number=0, *, shas=("a" * 64,), generation=0, bucket="16x16x2"):
        """Make a shard spec."""
        return ShardSpec(
            name=f"shard-{number:06d}",
            generation=generation,
            bucket=bucket,
            inputs=[{"path": f"{sha[:4]}.mp4", "sha256": sha} for sha in shas],
        )

    def write(self, dataset, clips, number=0, quarantined=(), **spec):
        """Write a shard and return its sidecar."""
        return write_shard(
            open_store(dataset),
            self.spec(number, **spec),
            iter(clips),
            identity_hash=IDENTITY_HASH,
            quarantined=list(quarantined),
        )

    def complete(self, dataset, number=0, **spec):
        """Return the sidecar of a shard if it is complete."""
        return complete_sidecar(open_store(dataset), self.spec(number, **spec), IDENTITY_HASH)

    def dataset(self, folder, counts=(3, 2), *, shapes=((2, 3, 4, 4),), **clip):
        """Write a data set with that many clips per shard; returns its manifest.

        Shards take the shapes in turn; clips of other lengths are another bucket.
        """
        sidecars, first, buckets = [], 0, {}
        for number, count in enumerate(counts):
            shape = shapes[number % len(shapes)]
            name = f"16x16x{shape[0]}"
            clips = [self.clip(seed, shape=shape, **clip) for seed in range(first, first + count)]
            sidecars.append(self.write(folder, clips, number, bucket=name))
            bucket = buckets.setdefault(name, {"latents_shape": list(shape), "clips": 0})
            bucket["clips"] += count
            first += count
        shards = [entry_of(sidecar) for sidecar in sidecars]
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            fingerprint=content_hash({"identity": IDENTITY, "shards": shards}),
            identity=IDENTITY,
            identity_hash=IDENTITY_HASH,
            buckets=buckets,
            shards=shards,
            totals={"videos": first, "clips": first, "shards": len(shards)},
        )
        write_json(folder / "manifest.json", manifest.to_json())
        return manifest


def decoded_by_hand(path):
    """All frames of a video as (N, H, W, 3) uint8 RGB, by PyAV alone, in order."""
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


@dataclasses.dataclass(frozen=True)
class EncodedRun:
    """A run whose data set is complete, made without Ray by the functions that Ray would call."""

    config: RunConfig
    videos: Path
    output: Path

    @property
    def dataset(self):
        """Folder of the data set."""
        return self.output / "dataset"

    def frames(self, record):
        """Frames of a clip of 32 x 32 videos, decoded independently, by their numbers."""
        return decoded_by_hand(self.videos / record.path.replace("\\n", "\n"))[record.frames]


def write_noise(path, seed, *, num_frames=32, fps=16):
    """Write a small colourful video: coarse noise that drifts to the right."""
    colours = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    picture = np.repeat(np.repeat(colours, 8, axis=0), 8, axis=1)
    with av.open(str(path), "w") as file:
        # x264 writes its number of threads into the file, by default that of the machine's cores
        options = {"crf": "12", "bf": "0", "threads": "1"}
        stream = file.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for index in range(num_frames):
            shifted = np.ascontiguousarray(np.roll(picture, index, axis=1))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(shifted, format="rgb24")))
        file.mux(stream.encode())


def map_rows_here(rows, work, *, settings, **_):
    """Stand in for Ray Data: the same functions on the same rows, in this process."""
    for row in rows:
        columns = {name: np.array([value], dtype=object) for name, value in row.items()}
        result = work(columns, **settings)
        yield {name: column[0] for name, column in result.items()}


@contextmanager
def without_ray(log=None, *, backwards=False):
    """Run stages in this process; nothing may start Ray.

    The rows of each step go to ``log`` as (what is being done, row), if there is one.
    """

    def map_rows(rows, work, *, doing, **settings):
        rows = list(rows)[::-1] if backwards else list(rows)
        if log is not None:
            log.extend((doing, row) for row in rows)
        return map_rows_here(rows, work, **settings)

    with pytest.MonkeyPatch.context() as patch:
        for module in (scan, first_stage, encode, estimate):
            patch.setattr(module, "map_rows", map_rows)
        for module in (encode, estimate):
            patch.setattr(module, "ray_session", lambda *_, **__: nullcontext())
        yield


def encode_without_ray(config, log=None, *, backwards=False):
    """Run the stage with its tasks in this process; returns its report."""
    with without_ray(log, backwards=backwards), ExitStack() as session:
        return encode.run(config, session=session)


@pytest.fixture(scope="session")
def encoded_run(tmp_path_factory):
    """Five good videos of two clips each, a copy, a broken one and a short one, encoded."""
    folder = tmp_path_factory.mktemp("encoded")
    videos = folder / "videos"
    (videos / "sub").mkdir(parents=True)
    for seed, name in enumerate(["a.mp4", "b.mp4", "sub/c.mp4", "-d e.mp4", "f\nf.mp4"]):
        write_noise(videos / name, seed)
    (videos / "copy.mp4").write_bytes((videos / "a.mp4").read_bytes())
    (videos / "broken.mp4").write_text("not a video")
    write_noise(videos / "short.mp4", 99, num_frames=5)
    config = validate_config(
        {
            "data": {"videos": str(videos)},
            "encode": {"videos_per_shard": 3},
            "train": {"global_batch_size": 4, "num_steps": 4, "warmup_steps": 0},
            "sample": {"num_steps": 2, "num_videos": 2},
            "validate": {"held_out_fraction": 0},
            "output": {"dir": str(folder / "run")},
        },
        source="the tests",
    )
    encode_without_ray(config)
    return EncodedRun(config=config, videos=videos, output=folder / "run")


@pytest.fixture(scope="session")
def tiny_model(encoded_run):
    """A tiny model with fresh weights for the encoded run; tests must not train it."""
    from pipelines.model_folder import build_model

    return build_model(encoded_run.config, open_dataset(encoded_run.config))


@pytest.fixture(scope="session")
def model_folder(encoded_run, tiny_model, tmp_path_factory):
    """A complete model folder, as `register` assembles it; tests must not change it."""
    folder = tmp_path_factory.mktemp("model") / "model"
    tiny_model.save(folder)
    names = [entry.name for entry in load_manifest(encoded_run.dataset).entries()]
    total = moments_of({name: read_moments(encoded_run.dataset, name) for name in names})
    scale = tiny_model.first_stage.scaling_factor
    statistics = AnalyticInit.from_moments(total, {}).scaled(scale)
    statistics.save(folder / "analytic_init.safetensors")
    sampling = dataclasses.asdict(encoded_run.config.sample)
    sampling.pop("num_videos")
    write_json(folder / "sampling.json", sampling)
    return folder


@pytest.fixture(scope="session")
def run_encode():
    """The encode stage without Ray: config -> report."""
    return encode_without_ray


@pytest.fixture(scope="session")
def here():
    """Context in which stages run in this process, without Ray."""
    return without_ray


@pytest.fixture(scope="session")
def noise():
    """Writer of small colourful videos."""
    return write_noise


@pytest.fixture(scope="session")
def by_hand():
    """Reader of all frames of a video, by PyAV alone."""
    return decoded_by_hand


@pytest.fixture(scope="session")
def small_shards():
    """Writer of small shards and data sets."""
    return SmallShards()
