"""The encode stage from end to end, its tasks in this process: data sets to test it on."""

import dataclasses
import os
import shutil
from contextlib import ExitStack

import pytest

from pipelines import encode
from tests.unit.pipelines.encode.data_set_files import (
    Mixed,
    changed,
    restored_times,
)


@pytest.fixture
def copied(encoded_run, tmp_path):
    """A copy of the encoded run and of its videos that a test may damage."""
    shutil.copytree(encoded_run.output, tmp_path / "run")
    shutil.copytree(encoded_run.videos, tmp_path / "videos")
    config = changed(
        encoded_run.config,
        data={"videos": str(tmp_path / "videos")},
        output={"dir": str(tmp_path / "run")},
    )
    return dataclasses.replace(
        encoded_run, config=config, videos=tmp_path / "videos", output=tmp_path / "run"
    )


@pytest.fixture(scope="package")
def two_videos(encoded_run, tmp_path_factory):
    """A folder with two videos of two clips each, and settings with a first stage that is given."""
    folder = tmp_path_factory.mktemp("two") / "videos"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(encoded_run.videos / name, folder)
    return changed(
        encoded_run.config,
        data={"videos": str(folder)},
        first_stage={"path": str(encoded_run.dataset / "first_stage")},
    )


@pytest.fixture
def encode_two(two_videos, run_encode, tmp_path):
    """Encode the two videos with some settings changed; returns the data set."""

    def run(place="run", **sections):
        config = changed(two_videos, **sections, output={"dir": str(tmp_path / place)})
        run_encode(config)
        return tmp_path / place / "dataset"

    return run


@pytest.fixture(scope="package")
def mixed(drawn, noise, run_encode, encoded_run, tmp_path_factory):
    """Square and wide videos with captions, cut to two lengths, stored as float32."""
    folder = tmp_path_factory.mktemp("mixed")
    videos = folder / "videos"
    videos.mkdir()
    for seed, name in enumerate(["s.mp4", "t.mp4", b"odd \xff [x] %s.mp4"]):
        noise(videos / os.fsdecode(name), seed, num_frames=27)  # 13 or 14 frames at 8 Hz
    drawn.write(videos / "wide.mkv", num_frames=38)  # 1.52 s: 13 frames at 8 Hz
    drawn.write(videos / "late.mp4", num_frames=30, fps=10)  # 3 s: 24 frames at 8 Hz
    (videos / "s.txt").write_text("a grey\n  street ")
    (videos / "wide.json").write_text('{"caption": "numbers"}')
    config = changed(
        encoded_run.config,
        data={
            "videos": str(videos),
            "buckets": ("32x32x8", "32x32x4", "32x64x8", "32x64x4"),
        },
        select={"shot_threshold": None},
        first_stage={"path": str(encoded_run.dataset / "first_stage")},
        encode={"latents_dtype": "float32", "videos_per_shard": 2},
        output={"dir": str(folder / "run")},
    )
    run_encode(config)
    return Mixed(config, videos, folder / "run" / "dataset")


@pytest.fixture(scope="package")
def sampled(two_videos, run_encode, tmp_path_factory):
    """Samples of the posterior for some seeds."""

    def run(seed, **sections):
        folder = tmp_path_factory.mktemp("sampled")
        config = changed(
            two_videos,
            **{"encode": {"posterior": "sample"}, **sections},
            output={"dir": str(folder)},
        )
        run_encode(dataclasses.replace(config, seed=seed))
        return folder / "dataset"

    return run


@pytest.fixture
def without_tasks(monkeypatch):
    """Run the stage; it must not come to the point where it starts Ray."""

    def run(config):
        def started(*_, **__):
            raise AssertionError("Ray was started")

        monkeypatch.setattr(encode, "ray_session", started)
        with ExitStack() as session:
            return encode.run(config, session=session)

    return run


@pytest.fixture
def same_videos(copied, encoded_run):
    restored_times(copied, encoded_run)
    return copied


@pytest.fixture
def during_encode(monkeypatch, run_encode):
    """Run the stage and do something after everything was scanned and planned."""

    def run(config, action):
        real = encode._make_plan

        def make_plan(*arguments):
            plan = real(*arguments)
            action()
            return plan

        with monkeypatch.context() as patch:
            patch.setattr(encode, "_make_plan", make_plan)
            return run_encode(config)

    return run
