"""Mistakes of users, through the command line: a message, an exit code, nothing written."""

import json
import shutil

import pytest

from pipelines.__main__ import _main


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("no video")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "clip.mp4").write_bytes(b"not really")
    (tmp_path / "file").write_text("a file")
    return tmp_path


def run(capfd, *arguments):
    code = _main(list(arguments))
    captured = capfd.readouterr()
    return code, captured.out, captured.err


CASES = {
    "no folder": (["--data.videos", "{}/missing"], "missing does not exist"),
    "nothing given": ([], "data.videos is not set"),
    "a file": (
        ["--data.videos", "{}/file"],
        "neither a video, a tar file nor a table by its suffix",
    ),
    "empty folder": (["--data.videos", "{}/empty"], "has no video files (0 other files)"),
    "no videos in it": (["--data.videos", "{}/texts"], "for example notes.txt"),
    "output is a file": (
        ["--data.videos", "{}/videos", "--output.dir", "{}/file/out"],
        "output.dir: cannot write to",
    ),
    "output among the videos": (
        ["--data.videos", "{}/videos", "--output.dir", "{}/videos/out"],
        "output.dir must not be inside data.videos",
    ),
    "unknown store": (
        ["--data.videos", "{}/videos", "--tracking.uri", "ftp://nowhere"],
        "tracking.uri must be",
    ),
    "no frames": (
        ["--data.num-frames", "0"],
        "data.num_frames: must be greater than or equal to 1",
    ),
    "blind network": (
        ["--data.videos", "{}/videos", "--model.block-out-channels", "32", "32"],
        "must have a level of at least 64 channels",
    ),
    "batch that does not divide": (
        ["--train.num-workers", "3"],
        "train.global_batch_size must be a multiple of",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_mistakes_end_with_code_2_before_anything_is_written(folders, capfd, name):
    arguments, message = CASES[name]
    arguments = [argument.format(folders) for argument in arguments]
    if "--output.dir" not in arguments:
        arguments += ["--output.dir", str(folders / "out")]
    before = sorted(folders.rglob("*"))
    code, out, err = run(capfd, "run", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert sorted(folders.rglob("*")) == before


@pytest.mark.parametrize("command", ["run", "retrain"])
def test_a_server_that_is_away_ends_with_code_1_before_anything_is_written(folders, capfd, command):
    before = sorted(folders.rglob("*"))
    places = ("--data.videos", f"{folders}/videos", "--output.dir", f"{folders}/out")
    code, _, err = run(capfd, command, *places, "--tracking.uri", "http://127.0.0.1:9")
    assert code == 1
    assert "no MLflow server at http://127.0.0.1:9" in err
    assert sorted(folders.rglob("*")) == before


def test_all_problems_are_reported_together(folders, capfd):
    arguments = ["--data.videos", f"{folders}/missing", "--tracking.uri", "http://127.0.0.1:9"]
    code, _, err = run(capfd, "run", *arguments, "--output.dir", f"{folders}/file/out")
    assert code == 2
    assert err.count("error: ") == 3


@pytest.mark.parametrize("stage", ["train", "estimate", "register", "sample"])
def test_a_stage_without_the_one_before_it_says_which_to_run(folders, capfd, stage):
    if stage == "sample":
        arguments = ["--model", str(folders / "nowhere"), "--image", str(folders / "file")]
        code, _, err = run(capfd, stage, *arguments)
        assert (code, "cannot read the image" in err) == (2, True)
        return
    code, _, err = run(capfd, stage, "--output.dir", str(folders / "out"))
    assert code == 1
    assert "first" in err
    shutil.rmtree(folders / "out", ignore_errors=True)


def test_dry_run_prints_the_configuration_and_stops(folders, capfd):
    import yaml

    output = str(folders / "out")
    code, out, _ = run(capfd, "run", "--output.dir", output, "--train.num-steps", "7", "--dry-run")
    assert code == 0
    resolved = yaml.safe_load(out)
    assert resolved["train"]["num_steps"] == 7
    assert resolved["output"]["dir"] == output
    assert not (folders / "out").exists()


def test_doctor_prints_one_object_as_json(folders, capfd):
    arguments = ["--output.dir", str(folders / "out"), "--json"]
    code, out, err = run(capfd, "doctor", *arguments)
    checks = json.loads(out.splitlines()[-1])["doctor"]
    assert code == int(any(check["state"] == "fail" for check in checks))
    assert {"python", "torch", "ray", "mlflow", "output"} <= {check["name"] for check in checks}
    assert "ok" in err
