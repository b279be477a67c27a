"""A toy model of each published family through every stage, on real clips."""

import contextlib
import json
import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from cil.models import load
from cil.models.lvdm_import import original_lvdm

pytestmark = pytest.mark.slow

CLIPS = ("mm_demo.mp4", "dec_video_90.mov", "pancake.mkv")
PRESETS = {
    "svd": "paper-svd-fixed",
    "i2vgenxl": "paper-dynamicrafter",
    "dynamicrafter": "paper-dynamicrafter",
    "videocrafter1": "paper-videocrafter",
    "wan": "mild",
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    root = os.environ.get("CIL_REFERENCE_DATA")
    if not root:
        pytest.skip("CIL_REFERENCE_DATA is not set: the real reference clips are not here")
    folder = tmp_path_factory.mktemp("real") / "videos"
    folder.mkdir()
    for name in CLIPS:
        (folder / name).write_bytes((Path(root) / "videos" / name).read_bytes())
    return folder


def rows_of(output):
    found = list((output / "train").glob("metrics-*.jsonl"))
    lines = found[0].read_text().splitlines() if found else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def kill_in_training(command, output):
    """Start a run and kill it and all it started, after its first checkpoint."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while len(rows_of(output)) < 3:
        assert process.poll() is None, "the command ended before it could be killed"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
    victims = psutil.Process(process.pid).children(recursive=True)
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    process.kill()
    process.wait()
    psutil.wait_procs(victims, timeout=30)


@pytest.fixture(scope="session")
def toys(toy_svd, toy_i2vgenxl, toy_lvdm, toy_wan):
    return {"svd": toy_svd, "i2vgenxl": toy_i2vgenxl, "wan": toy_wan, **toy_lvdm}


@pytest.mark.parametrize("family", list(PRESETS))
def test_all_stages_and_going_on(cil, clips, toys, tmp_path, family):
    is_wan = family == "wan"
    part = "transformer" if is_wan else "unet"
    settings = {
        "data": {"num_frames": 5 if is_wan else 4, "fps": 8, "height": 32, "width": 32},
        "model": {"family": family, "pretrained": str(toys[family])},
        "time_noise": {"preset": PRESETS[family], **({"noise": "per_frame"} if is_wan else {})},
        "train": {
            "num_steps": 6,
            "global_batch_size": 4,
            "num_workers": 2,
            "zero_stage": 2,
            "checkpoint_every": 2,
            "log_every": 1,
            "warmup_steps": 0,
            "learning_rate": 1e-4,
            "condition_dropout": 0.05,
            "gradient_checkpointing": True,
        },
        "validate": {"num_clips": 2, "num_videos": 0, "held_out_fraction": 0.4, "num_bins": 2},
        "sample": {"num_steps": 2, "num_videos": 1, "start_time": 0.94},
    }
    config = tmp_path / "toy.yaml"
    config.write_text(yaml.safe_dump(settings))
    here = type(cil)(config=config, videos=clips)
    output = tmp_path / "out"
    kill_in_training(here.stage("run", output), output)
    before = rows_of(output)
    done = here(*here.stage("run", output, "--json"))
    assert done.returncode == 0, done.stderr
    rows = rows_of(output)
    assert [row["step"] for row in rows] == list(range(6))
    # with the masks of dropout too, steps that were taken again are the same
    for row, again in zip(before, rows, strict=False):
        assert again["loss"] == pytest.approx(row["loss"], rel=1e-5), row["step"]
    reports = json.loads(done.stdout.splitlines()[-1])
    assert sorted(reports) == ["encode", "estimate", "evaluate", "register", "sample", "train"]
    with_text = (output / "dataset" / "null_condition.safetensors").is_file()
    assert with_text == (family != "svd")
    model = load(family, output / "register" / "model")
    start = load_file(toys[family] / part / "diffusion_pytorch_model.safetensors")
    trained = model.network.state_dict()
    assert any(not (trained[name] == value).all() for name, value in start.items())
    assert (output / "sample" / "sample.mp4").stat().st_size > 0

    if family in ("svd", "i2vgenxl", "wan"):
        opened = DiffusionPipeline.from_pretrained(output / "register" / "model")
        network = getattr(opened, part)
        assert all((value == trained[k]).all() for k, value in network.state_dict().items())
        return
    out = tmp_path / "original.safetensors"
    words = ("export", "--output.dir", str(output), "--layout", "original", "--out", str(out))
    done = here(*here.command(*words, "--json"))
    assert done.returncode == 0, done.stderr
    original = load_file(out)
    assert set(original) == set(original_lvdm(toys[family]))
    prefix = "model.diffusion_model."
    unet = {k.removeprefix(prefix): v for k, v in original.items() if k.startswith(prefix)}
    assert all((unet[name] == value).all() for name, value in trained.items())
