import json
import shutil

import av
import numpy as np
import pytest
from PIL import Image

from cil.errors import DataError
from pipelines import sample
from pipelines.__main__ import _main


@pytest.fixture
def image(tmp_path):
    """An image file."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


@pytest.fixture
def cil(capsys):
    """Run a command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        try:
            code = _main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def command(cil, model_folder, image, tmp_path):
    """`cil sample` with model, image and output given, plus what a test adds."""

    def run(*arguments):
        return cil(
            *("sample", "--model", model_folder, "--image", image),
            *("--out", tmp_path / "out" / "video.mp4", *arguments),
        )

    return run


def frames(path):
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def test_a_folder_and_an_image_become_a_video_and_a_gif(command, tmp_path):
    code, out, err = command("--num-steps", "2", "--json")
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])["sample"]
    assert result["outputs"]["video"] == str(tmp_path / "out" / "video.mp4")
    assert result["outputs"]["gif"] == str(tmp_path / "out" / "video.gif")
    assert result["outputs"]["num_steps"] == 2
    assert result["outputs"]["start_time"] == 0.94
    assert frames(tmp_path / "out" / "video.mp4").shape == (8, 256, 256, 3)
    with Image.open(tmp_path / "out" / "video.gif") as gif:
        assert (gif.n_frames, gif.size) == (8, (256, 256))
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["video.gif", "video.mp4"]


def test_videos_of_a_seed_stand_side_by_side_and_repeat(command, tmp_path):
    path = tmp_path / "out" / "video.mp4"
    assert command("--num-videos", "2", "--seed", "5")[0] == 0
    both = frames(path)
    content = path.read_bytes()
    assert both.shape == (8, 256, 520, 3)
    assert command("--num-videos", "2", "--seed", "5")[0] == 0
    assert path.read_bytes() == content
    assert command("--seed", "5")[0] == 0
    first = frames(path)
    assert np.abs(both[:, :, :256].astype(int) - first).mean() < 3
    assert command("--seed", "6")[0] == 0
    assert np.abs(frames(path).astype(int) - first).mean() > 3


def test_flags_override_the_models_own_settings(command, tmp_path):
    path = tmp_path / "out" / "video.mp4"
    found = set()
    for flags in ([], ["--no-analytic-init"], ["--start-time", "0.3"], ["--num-steps", "4"]):
        code, _, err = command(*flags)
        assert code == 0, err
        found.add(path.read_bytes())
    assert len(found) == 4
    assert command("--analytic-init")[0] == 0
    assert path.read_bytes() in found


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num-steps", "0"], "num_steps"),
        (["--num-steps", "-3"], "num_steps"),
        (["--start-time", "0"], "start_time must be in (0, 1], got 0.0"),
        (["--start-time", "1.5"], "start_time must be in (0, 1], got 1.5"),
        (["--start-time", "nan"], "start_time"),
        (["--num-videos", "0"], "num_videos must be >= 1, got 0"),
        (["--seed", "-1"], "seed must be in [0, 2**63), got -1"),
        (["--out", "video.avi"], "out must end in .mp4, got video.avi"),
        (["--out", "video"], "out must end in .mp4"),
        (["--image", "missing.png"], "cannot read the image missing.png"),
        (["--model", "missing"], "model must be models:/NAME@ALIAS or a model folder, got missing"),
        (["--model", "models:/x@y"], "needs an MLflow store; give --tracking-uri"),
        (["--model", "models:/x@y", "--tracking-uri", "mlruns"], "tracking.uri must be http"),
        (["--dry-run"], "takes no --config and no --dry-run"),
        (["--seeds", "3"], "--seed"),
        (["--seed", "x"], "invalid literal"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(command, tmp_path, monkeypatch, flags, words):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*flags)
    assert (code, out) == (2, "")
    assert words in " ".join(err.split())
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png"]


@pytest.mark.parametrize(
    "damage", ["no statistics", "odd json", "no family", "other family", "no weights", "settings"]
)
def test_a_damaged_model_folder_is_one_message(cil, model_folder, image, tmp_path, damage):
    folder = tmp_path / "damaged"
    shutil.copytree(model_folder, folder)
    described = json.loads((folder / "model.json").read_bytes())
    if damage == "no statistics":
        (folder / "analytic_init.safetensors").unlink()
    elif damage == "odd json":
        (folder / "model.json").write_text("{")
    elif damage == "no family":
        del described["family"]
        (folder / "model.json").write_text(json.dumps(described))
    elif damage == "other family":
        (folder / "model.json").write_text(json.dumps({**described, "family": "svd"}))
    elif damage == "no weights":
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    else:
        (folder / "sampling.json").write_text("[]")
    out = tmp_path / "video.mp4"
    code, _, err = cil("sample", "--model", folder, "--image", image, "--out", out)
    assert code in (1, 2)
    assert err.startswith("error: ")
    assert "unexpected" not in err
    assert not out.exists()


def test_without_statistics_the_plain_start_still_works(cil, model_folder, image, tmp_path):
    folder = tmp_path / "plain"
    shutil.copytree(model_folder, folder)
    (folder / "analytic_init.safetensors").unlink()
    (folder / "sampling.json").unlink()
    out = tmp_path / "video.mp4"
    where = ("sample", "--model", folder, "--image", image, "--out", out)
    code, _, err = cil(*where, "--no-analytic-init", "--num-steps", "2")
    assert code == 0, err
    assert frames(out).shape[0] == 8


def test_the_stage_needs_a_registered_model(encoded_run):
    with pytest.raises(DataError, match=r"register has not finished in .*; run `cil register`"):
        sample.run(encoded_run.config)
    assert not (encoded_run.output / "sample").exists()
