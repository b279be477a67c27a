"""One small run through Ray Data, Ray Train, DeepSpeed and MLflow, checked with other tools."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from safetensors.torch import load as load_tensors

from cil.analytic_init import AnalyticInit
from cil.models import load_first_stage
from cil.moments import LatentMoments

STAGES = ["encode", "estimate", "evaluate", "register", "sample", "train"]


def test_all_stages_report(finished_run):
    assert sorted(finished_run.reports) == STAGES
    assert not any(report["reused"] for report in finished_run.reports.values())
    assert "Traceback" not in finished_run.stderr


def test_each_stage_saves_its_configuration(finished_run):
    import yaml

    for stage in ("dataset", "train", "estimate", "register", "sample"):
        saved = yaml.safe_load((finished_run.output / stage / "config.yaml").read_text())
        assert saved["train"]["num_steps"] == 6


def test_counts_add_up_and_the_broken_file_has_a_reason(finished_run):
    dataset = finished_run.output / "dataset"
    totals = json.loads((dataset / "manifest.json").read_bytes())["totals"]
    lines = (dataset / "quarantine.jsonl").read_text().splitlines()
    refused = [json.loads(line) for line in lines]
    assert [item["path"] for item in refused] == ["broken.mp4"]
    assert "Invalid data" in refused[0]["message"]
    assert refused[0]["stage"] == "probe"
    assert totals["videos"] == 8
    assert (totals["videos_encoded"], totals["videos_quarantined"]) == (7, 1)
    assert (totals["videos_without_clips"], totals["videos_gone"]) == (0, 0)
    assert (dataset / "dropped.jsonl").read_text() == ""
    # 24 frames at 16 Hz are 12 at 8 Hz: three clips of four frames from each of seven videos
    assert totals["clips"] == 21


def test_webdataset_reads_the_shards(finished_run):
    dataset = finished_run.output / "dataset"
    manifest = json.loads((dataset / "manifest.json").read_bytes())
    urls = [str(dataset / "shards" / f"{shard['name']}.tar") for shard in manifest["shards"]]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(samples) == manifest["totals"]["clips"]
    assert len({sample["__key__"] for sample in samples}) == len(samples)
    for sample in samples:
        latents = load_tensors(sample["latents.safetensors"])
        record = json.loads(sample["json"])
        assert list(latents["mean"].shape) == manifest["buckets"][record["bucket"]]["latents_shape"]
        assert latents["mean"].dtype == torch.bfloat16
        assert bool((latents["std"].float() > 0).all())
        assert record["key"] == sample["__key__"]
        assert sample["webp"][:4] == b"RIFF"
        assert "image_embeds" in load_tensors(sample["cond.safetensors"])


def test_verify_finds_nothing_wrong(cil, finished_run):
    done = cil(*cil.command("verify", str(finished_run.output / "dataset"), "--json"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["verify"]["outputs"]["faults"] == []


def test_tar_lists_the_members_in_order(finished_run):
    shards = finished_run.output / "dataset" / "shards"
    for path in sorted(shards.glob("*.tar")):
        listed = subprocess.run(["tar", "tf", path], capture_output=True, text=True, check=True)
        sidecar = json.loads(path.with_suffix(".json").read_bytes())
        keys = [name.split(".")[0] for name in listed.stdout.split()]
        assert list(dict.fromkeys(keys)) == sidecar["keys"]
        with tarfile.open(path) as tar:
            assert {member.mtime for member in tar} == {0}


def test_statistics_equal_a_two_pass_computation(finished_run):
    dataset = finished_run.output / "dataset"
    urls = [str(path) for path in sorted((dataset / "shards").glob("*.tar"))]
    latents = [
        load_tensors(sample["latents.safetensors"])
        for sample in webdataset.WebDataset(urls, shardshuffle=False)
    ]
    mean = torch.stack([item["mean"].double() for item in latents]).numpy()
    std = torch.stack([item["std"].double() for item in latents]).numpy()
    scale = load_first_stage(dataset / "first_stage").scaling_factor
    expected = (mean.var(axis=0) + (std**2).mean(axis=0)).mean() * scale**2
    found = AnalyticInit.load(finished_run.output / "estimate" / "analytic_init.safetensors")
    assert found.variance == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(found.mean.numpy(), mean.mean(axis=0) * scale, rtol=0, atol=1e-12)
    assert LatentMoments().count == 0


def test_every_step_is_in_the_metrics_file_and_in_mlflow_once(finished_run):
    import mlflow

    report = finished_run.reports["train"]
    lines = Path(report["outputs"]["metrics"]).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == list(range(6))
    client = mlflow.MlflowClient(finished_run.reports["register"]["outputs"]["tracking_uri"])
    history = client.get_metric_history(report["outputs"]["mlflow_run_id"], "loss")
    assert sorted(metric.step for metric in history) == list(range(6))
    by_step = {metric.step: metric.value for metric in history}
    assert [by_step[row["step"]] for row in rows] == [row["loss"] for row in rows]
    run = client.get_run(report["outputs"]["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.num_steps"] == "6"
    fingerprint = finished_run.reports["encode"]["outputs"]["fingerprint"]
    assert fingerprint.startswith(run.inputs.dataset_inputs[0].dataset.digest)


def test_diffusers_opens_the_exported_network(finished_run):
    from diffusers import UNetSpatioTemporalConditionModel

    folder = finished_run.output / "train" / "model" / "unet"
    network = UNetSpatioTemporalConditionModel.from_pretrained(folder, local_files_only=True)
    shape = (1, 4, 2 * 4, 8, 8)
    out = network(torch.zeros(shape), 0.0, torch.zeros(1, 1, 32), torch.zeros(1, 3)).sample
    assert out.shape == (1, 4, 4, 8, 8)
    assert bool(torch.isfinite(out).all())
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".ckpt")]


_PLAIN_CLIENT = """
import sys
sys.modules["pipelines"] = None
sys.modules["ray"] = None
import mlflow, numpy
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/tiny-i2v@challenger")
image = numpy.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=numpy.uint8)
video = model.predict(image, params={"seed": 1})
assert video.shape == (4, 32, 32, 3) and video.dtype == numpy.uint8, video.shape
assert (model.predict(image, params={"seed": 1}) == video).all()
assert (model.predict(image, params={"seed": 2}) != video).any()
"""


def test_a_plain_mlflow_client_loads_the_model_without_pickle(finished_run, tmp_path):
    uri = finished_run.reports["register"]["outputs"]["tracking_uri"]
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    for name in ("PYTHONPATH", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", _PLAIN_CLIENT, uri],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("source", ["registry", "folder"])
def test_sample_command_writes_a_video(cil, finished_run, tmp_path, source):
    import av
    from PIL import Image

    outputs = finished_run.reports["register"]["outputs"]
    model = "models:/tiny-i2v@challenger" if source == "registry" else outputs["model"]
    image = next((cil.videos.parent / "held_out").glob("*.png"))
    out = tmp_path / "video.mp4"
    arguments = ["--model", model, "--image", str(image), "--seed", "3", "--out", str(out)]
    arguments += ["--start-time", "0.9", "--tracking-uri", outputs["tracking_uri"]]
    done = cil(*cil.command("sample", *arguments))
    assert done.returncode == 0, done.stderr
    with av.open(str(out)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 4
    assert frames[0].shape == (256, 256, 3)
    with Image.open(out.with_suffix(".gif")) as gif:
        assert gif.n_frames == 4


def test_a_second_run_finds_everything_done(cil, finished_run):
    before = {p: p.stat().st_mtime_ns for p in finished_run.output.rglob("*") if p.is_file()}
    reports = cil.run("run", finished_run.output)
    assert sorted(reports) == STAGES
    assert all(report["reused"] for report in reports.values())
    after = {p: p.stat().st_mtime_ns for p in finished_run.output.rglob("*") if p.is_file()}
    databases = {p for p in before if p.name.startswith("mlflow.db")}
    assert {p for p in after if after[p] != before.get(p)} <= databases


@pytest.mark.slow  # the same is asked of the stage without processes, in the unit tests
def test_encode_twice_gives_the_same_bytes(cil, finished_run, tmp_path):
    # other numbers of workers and decoders, and another place: none of it may matter
    workers = ("--encode.num-workers", "1", "--encode.decoders-per-worker", "2")
    cil.run("encode", tmp_path / "again", *workers)
    first, second = finished_run.output / "dataset", tmp_path / "again" / "dataset"
    names = sorted(path.name for path in (first / "shards").iterdir())
    assert names == sorted(path.name for path in (second / "shards").iterdir())
    tables = ("manifest.json", "plan.json", "quarantine.jsonl", "dropped.jsonl", "inventory.jsonl")
    for name in (*tables, *(f"shards/{name}" for name in names)):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
