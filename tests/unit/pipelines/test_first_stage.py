import dataclasses
import json

import numpy as np
import pytest
import torch

from cil.models import load_first_stage
from pipelines import encode
from pipelines.first_stage import NoClipsError, ensure_first_stage, moments_of_video
from pipelines.records import QuarantineRecord


@pytest.fixture
def moments(encoded_run):
    """Take the moments of one video of the run."""

    def take(path, **changes):
        transform = dataclasses.replace(encode.transform_of(encoded_run.config), **changes)
        batch = {"path": np.array([path]), "sha256": np.array(["0" * 64])}
        return moments_of_video(
            batch, source=str(encoded_run.videos), transform=transform, patch_size=4
        )

    return take


def test_a_video_counts_its_patches(moments):
    row = moments("a.mp4")
    assert row["count"].tolist() == [2 * 8 * 8 * 8]  # clips, frames, rows, columns
    assert row["total"].shape[0] == row["second"].shape[0] == 1
    assert row["refused"].tolist() == [""]
    assert moments("a.mp4", max_clips=1)["count"].tolist() == [8 * 8 * 8]


def test_moments_are_exact_integers_and_repeat(moments):
    one, two = moments("b.mp4"), moments("b.mp4")
    for name in ("count", "total", "second"):
        assert np.array_equal(one[name], two[name])
        assert np.array_equal(one[name], np.round(one[name]))


@pytest.mark.parametrize(
    ("path", "stage"),
    [("broken.mp4", "probe"), ("short.mp4", "select"), ("missing.mp4", "probe"), ("sub", "probe")],
)
def test_a_refused_video_counts_nothing_and_says_why(moments, path, stage):
    row = moments(path)
    assert row["count"].tolist() == [0]
    assert not row["total"].any()
    assert not row["second"].any()
    record = QuarantineRecord.from_json(json.loads(row["refused"][0]))
    assert (record.path, record.stage, record.sha256) == (path, stage, "0" * 64)
    assert record.message


def test_a_given_first_stage_is_copied_into_the_data_set(encoded_run, tmp_path):
    given = encoded_run.dataset / "first_stage"
    config = dataclasses.replace(
        encoded_run.config,
        first_stage=dataclasses.replace(encoded_run.config.first_stage, path=str(given)),
    )
    how = encode.transform_of(config)
    made = ensure_first_stage(config, tmp_path / "dataset", how, ())
    assert made.fingerprint() == load_first_stage(given).fingerprint()
    assert sorted(path.name for path in (tmp_path / "dataset").iterdir()) == ["first_stage"]


def test_a_first_stage_that_is_there_is_kept(encoded_run):
    made = ensure_first_stage(
        encoded_run.config, encoded_run.dataset, encode.transform_of(encoded_run.config), ()
    )
    assert made.fingerprint() == load_first_stage(encoded_run.dataset / "first_stage").fingerprint()


def test_the_fitted_codec_reconstructs_its_videos(encoded_run):
    from pipelines.decode import decode_clips

    codec = load_first_stage(encoded_run.dataset / "first_stage")
    clip = decode_clips(
        encoded_run.videos / "a.mp4", encode.transform_of(encoded_run.config)
    ).clips[0]
    posterior = codec.encode(clip.frames)
    error = np.abs(codec.decode(posterior.mean).numpy().astype(int) - clip.frames).mean()
    mean = np.abs(clip.frames.astype(int) - clip.frames.mean()).mean()
    assert error < mean / 2
    assert torch.isfinite(posterior.std).all()


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
    error = NoClipsError(refused)
    assert error.refused == refused
    assert "5 video files" in str(error)
    assert "0.mp4: reason 0" in str(error)
