import dataclasses
import json

import numpy as np
import pytest
import torch

from cil.models import load_first_stage
from pipelines import first_stage
from pipelines.config import dataset_of
from pipelines.first_stage import NoClipsError, ensure_first_stage, moments_of_video
from pipelines.planning import planned_input
from pipelines.records import QuarantineRecord
from pipelines.scan import known_records
from pipelines.selection.select import Selection
from pipelines.shard_reader import ShardReader
from pipelines.source_state import source_options, understand
from pipelines.sources import list_videos
from pipelines.store import open_store


@pytest.fixture(scope="module")
def source(encoded_run):
    """The source of the encoded run, as its inventory knows it."""
    config = encoded_run.config
    store = open_store(dataset_of(config))
    listing = list_videos(config.data.videos, options=source_options(config))
    known = known_records(store, config)
    return understand(config, store, listing, [known[video.name] for video in listing.videos])


@pytest.fixture
def moments(encoded_run, source):
    """Take the moments of some clips of one video of the run."""

    def take(name, clips=slice(None), **place):
        (sha256,) = [sha for sha, video in source.videos.items() if video.name == name]
        (there,) = [video for video in source.listing.videos if video.name == name]
        planned = planned_input(source.videos[sha256], source.selection.kept[sha256][clips])
        row = {"video": planned, "place": dataclasses.asdict(there) | place}
        batch = {key: np.array([json.dumps(value)], dtype=object) for key, value in row.items()}
        return moments_of_video(batch, decode=encoded_run.config.decode, patch_size=4)

    return take


def patches_of(frames):
    """(N, 48) patches of 4 x 4 pixels, as integers, in any order."""
    count, height, width, _ = frames.shape
    blocks = frames.reshape(count, height // 4, 4, width // 4, 4, 3)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(-1, 48).astype(np.int64)


def test_a_video_counts_the_patches_of_its_clips(moments):
    row = moments("a.mp4")
    assert row["count"].tolist() == [2 * 8 * 8 * 8]  # clips, frames, rows, columns
    assert row["total"].shape[0] == row["second"].shape[0] == 1
    assert moments("a.mp4", slice(1))["count"].tolist() == [8 * 8 * 8]


def test_moments_are_the_exact_sums_over_the_patches(encoded_run, moments):
    reader = ShardReader(encoded_run.dataset)
    records = [reader.clip(index).record for index in range(len(reader))]
    frames = [encoded_run.frames(record) for record in records if record.path == "b.mp4"]
    patches = patches_of(np.concatenate(frames))
    row = moments("b.mp4")
    found = np.sort(row["total"][0].astype(np.int64).ravel())
    assert found.tolist() == np.sort(patches.sum(axis=0)).tolist()
    second = np.sort(row["second"][0].astype(np.int64).ravel())
    assert second.tolist() == np.sort((patches.T @ patches).ravel()).tolist()
    again = moments("b.mp4")
    for name in ("count", "total", "second"):
        assert np.array_equal(row[name], again[name])


@pytest.mark.parametrize("what", ["gone", "another content", "a folder", "not a video"])
def test_a_video_that_cannot_be_read_again_counts_nothing(encoded_run, moments, tmp_path, what):
    other = {
        "gone": tmp_path / "gone.mp4",
        "another content": encoded_run.videos / "short.mp4",
        "a folder": encoded_run.videos / "sub",
        "not a video": encoded_run.videos / "broken.mp4",
    }[what]
    row = moments("a.mp4", location=str(other))
    assert row["count"].tolist() == [0]
    assert not row["total"].any()
    assert not row["second"].any()
    assert row["total"].shape == moments("a.mp4")["total"].shape


def test_what_was_read_before_an_error_does_not_count(encoded_run, moments):
    """Half of a video would make the codec depend on when it changed."""
    assert moments("a.mp4")["count"].item() > 0
    swapped = encoded_run.videos / "b.mp4"  # the same shape and length, other frames
    assert moments("a.mp4", location=str(swapped))["count"].tolist() == [0]


@pytest.fixture
def empty_store(tmp_path):
    return open_store(str(tmp_path / "dataset"))


def test_a_given_first_stage_is_copied_into_the_data_set(encoded_run, source, empty_store):
    given = encoded_run.dataset / "first_stage"
    config = dataclasses.replace(
        encoded_run.config,
        first_stage=dataclasses.replace(encoded_run.config.first_stage, path=str(given)),
    )
    made = ensure_first_stage(config, empty_store, source, {})
    assert made.fingerprint() == load_first_stage(given).fingerprint()
    assert {name.partition("/")[0] for name in empty_store.list()} == {"first_stage", "fit.json"}
    assert (
        empty_store.read("first_stage/first_stage.json")
        == (given / "first_stage.json").read_bytes()
    )


def test_a_first_stage_that_is_there_is_kept(encoded_run, source, monkeypatch):
    monkeypatch.setattr(first_stage, "map_rows", None)  # nothing may be fitted
    made = ensure_first_stage(encoded_run.config, open_store(str(encoded_run.dataset)), source, {})
    assert made.fingerprint() == load_first_stage(encoded_run.dataset / "first_stage").fingerprint()


def test_the_fitted_codec_reconstructs_its_videos(encoded_run):
    codec = load_first_stage(encoded_run.dataset / "first_stage")
    frames = encoded_run.frames(ShardReader(encoded_run.dataset).clip(0).record)
    posterior = codec.encode(frames)
    error = np.abs(codec.decode(posterior.mean).numpy().astype(int) - frames).mean()
    mean = np.abs(frames.astype(int) - frames.mean()).mean()
    assert error < mean / 2
    assert torch.isfinite(posterior.std).all()


@pytest.mark.parametrize("fit_videos", [1, 2, 256])
def test_the_codec_is_fitted_to_the_first_videos_by_hash(
    encoded_run, source, empty_store, monkeypatch, fit_videos
):
    asked = []

    def no_rows(rows, *_, **__):
        asked.extend(json.loads(row["video"])["sha256"] for row in rows)
        return iter(())

    monkeypatch.setattr(first_stage, "map_rows", no_rows)
    config = dataclasses.replace(
        encoded_run.config,
        first_stage=dataclasses.replace(encoded_run.config.first_stage, fit_videos=fit_videos),
    )
    with pytest.raises(NoClipsError):  # nothing could be read again
        ensure_first_stage(config, empty_store, source, {})
    assert asked == sorted(source.videos)[:fit_videos]
    assert len(asked) == min(fit_videos, 5)


def test_without_a_clip_there_is_nothing_to_fit(encoded_run, source, empty_store):
    nothing = dataclasses.replace(source, selection=Selection())
    with pytest.raises(NoClipsError, match=r"no clip to encode: 3 videos were refused \("):
        ensure_first_stage(encoded_run.config, empty_store, nothing, {})
    assert empty_store.list() == []


def test_no_clips_at_all_names_the_first_reasons():
    refused = [
        QuarantineRecord(
            path=f"{number}.mp4",
            sha256=None,
            stage="decode",
            decoder="pyav",
            exception="X",
            message=f"reason {number}",
            attempts=1,
        )
        for number in range(5)
    ]
    message = str(NoClipsError(refused, 0))
    assert "5 videos were refused (0.mp4: reason 0; 1.mp4: reason 1; 2.mp4: reason 2)" in message
    assert "selection dropped" not in message
    assert "selection dropped 7 clips" in str(NoClipsError(refused, 7))
    assert "see dropped.jsonl" in str(NoClipsError([], 7))


def test_what_a_killed_run_left_is_used_only_for_the_same_settings(
    encoded_run, empty_store, here, source
):
    """A kill between the fit and the plan leaves a codec that nothing is planned with."""
    with here():
        first = ensure_first_stage(encoded_run.config, empty_store, source, {"channels": 4})
        again = ensure_first_stage(encoded_run.config, empty_store, source, {"channels": 4})
        other = dataclasses.replace(
            encoded_run.config,
            first_stage=dataclasses.replace(encoded_run.config.first_stage, latent_channels=3),
        )
        changed = ensure_first_stage(other, empty_store, source, {"channels": 3})
    assert again.fingerprint() == first.fingerprint()
    assert (first.latent_channels, changed.latent_channels) == (4, 3)
