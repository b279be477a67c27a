import dataclasses
import json
import shutil

import numpy as np
import pytest

from cil.errors import ConfigError, DataError
from pipelines import register
from pipelines.report import RunReport
from pipelines.shard_reader import ShardReader
from pipelines.shards import load_manifest
from pipelines.storage import read_json


@pytest.fixture
def trained_run(encoded_run, model_folder, tmp_path, monkeypatch):
    """A run that is trained and estimated, with MLflow replaced by notes."""
    output = tmp_path / "run"
    shutil.copytree(encoded_run.dataset, output / "dataset")
    shutil.copytree(model_folder, output / "train" / "model")
    for name in ("analytic_init.safetensors", "sampling.json"):
        (output / "train" / "model" / name).unlink()
    (output / "estimate").mkdir()
    shutil.copy(model_folder / "analytic_init.safetensors", output / "estimate")
    fingerprint = load_manifest(output / "dataset").fingerprint
    empty = {"reused": False, "metrics": {}, "seconds": 1.0}
    RunReport(
        stage="train",
        inputs={"dataset": fingerprint, "identity": "t" * 64},
        outputs={"model": str(output / "train" / "model"), "mlflow_run_id": "run-1"},
        **empty,
    ).save(output / "train" / "report.json")
    RunReport(
        stage="estimate",
        inputs={"dataset": fingerprint, "identity": "e" * 64},
        outputs={},
        **{**empty, "metrics": {"variance": 0.5}},
    ).save(output / "estimate" / "report.json")
    config = dataclasses.replace(
        encoded_run.config, output=dataclasses.replace(encoded_run.config.output, dir=str(output))
    )
    calls = []

    def register_model(config, run_id, folder, **settings):
        calls.append((run_id, folder, settings))
        return {"name": "m", "version": "1", "uri": "models:/m/1", "alias": "challenger"}

    monkeypatch.setattr(register.tracking, "register_model", register_model)
    monkeypatch.setattr(register.tracking, "finish_run", lambda config, run_id: None)
    monkeypatch.setattr(register, "version_of", lambda config, version: version)
    monkeypatch.setattr(register, "publish_model_card", lambda *arguments, **settings: None)
    return config, output, calls


def test_the_conditioning_image_is_the_first_frame_of_the_clip(encoded_run):
    reader = ShardReader(encoded_run.dataset)
    for index in (0, 1, 9):
        frames = encoded_run.frames(reader.clip(index).record)
        image = register.conditioning_image(reader, index)
        assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
        differences = [np.abs(image.astype(int) - frame).mean() for frame in frames]
        assert np.argmin(differences) == 0
        assert differences[0] < 12


def test_one_folder_holds_all_that_sampling_needs(trained_run):
    config, output, calls = trained_run
    report = register.run(config)
    folder = output / "register" / "model"
    assert sorted(path.name for path in folder.iterdir()) == [
        "analytic_init.safetensors",
        "first_stage",
        "model.json",
        "sampling.json",
        "time_noise.json",
        "unet",
    ]
    assert read_json(folder / "sampling.json") == {
        "analytic_init": True,
        "num_steps": 2,
        "start_time": 0.94,
    }
    assert report.outputs["model"] == str(folder)
    ((run_id, registered, settings),) = calls
    assert (run_id, registered) == ("run-1", folder)
    assert settings["tags"]["manifest_fingerprint"] == load_manifest(output / "dataset").fingerprint
    assert settings["tags"]["train_identity"] == "t" * 64
    assert settings["metrics"]["data_clips"] == 10.0
    assert settings["metrics"]["analytic_init_variance"] == 0.5
    left = sorted(path.name for path in (output / "register").iterdir())
    assert left == ["config.yaml", "model", "report.json"]


def test_the_same_model_is_registered_once(trained_run):
    config, _, calls = trained_run
    first = register.run(config)
    again = register.run(config)
    assert again.reused
    assert not first.reused
    assert again.outputs == first.outputs
    assert len(calls) == 1


@pytest.mark.parametrize("change", ["weights", "statistics", "sampling", "name", "folder"])
def test_another_model_is_registered_again(trained_run, change):
    config, output, calls = trained_run
    register.run(config)
    if change == "weights":
        path = output / "train" / "model" / "unet" / "diffusion_pytorch_model.safetensors"
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    elif change == "statistics":
        path = output / "estimate" / "analytic_init.safetensors"
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    elif change == "sampling":
        config = dataclasses.replace(
            config, sample=dataclasses.replace(config.sample, start_time=0.5)
        )
    elif change == "name":
        config = dataclasses.replace(
            config, tracking=dataclasses.replace(config.tracking, model_name="other")
        )
    else:
        (output / "register" / "model" / "sampling.json").unlink()
    assert not register.run(config).reused
    assert len(calls) == 2


@pytest.mark.parametrize("stage", ["train", "estimate"])
def test_a_stage_that_has_not_finished_is_named(trained_run, stage):
    config, output, calls = trained_run
    (output / stage / "report.json").unlink()
    with pytest.raises(DataError, match=f"{stage} has not finished in .*; run `cil {stage}` first"):
        register.run(config)
    assert calls == []


@pytest.mark.parametrize("stage", ["train", "estimate"])
def test_results_of_an_older_data_set_are_not_registered_as_of_this_one(trained_run, stage):
    """Videos were added and encoded, but one of the stages after it was not run again."""
    config, output, calls = trained_run
    path = output / stage / "report.json"
    raw = read_json(path)
    path.write_text(json.dumps({**raw, "inputs": {**raw["inputs"], "dataset": "0" * 64}}))
    with pytest.raises(DataError, match=f"another version of the data set; run `cil {stage}`"):
        register.run(config)
    assert calls == []


def test_a_model_that_cannot_be_loaded_is_not_registered(trained_run):
    config, output, calls = trained_run
    path = output / "train" / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError):
        register.run(config)
    assert calls == []
    assert not (output / "register" / "report.json").exists()


def test_statistics_of_another_bucket_than_the_models_are_refused(trained_run, monkeypatch):
    config, _, calls = trained_run
    real = register.open_dataset

    def other_shape(config):
        reader = real(config)
        reader.manifest.buckets[reader.bucket]["latents_shape"] = [4, 4, 8, 8]
        return reader

    monkeypatch.setattr(register, "open_dataset", other_shape)
    with pytest.raises(ConfigError, match=r"made for latents \[8, 4, 8, 8\].*has \[4, 4, 8, 8\]"):
        register.run(config)
    assert calls == []
