"""Processes die by kill -9; what is there afterwards equals an undisturbed run, byte for byte."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

_LIMIT_S = 1200
LONGER = ("--train.num-steps", "30", "--train.checkpoint-every", "5", "--train.log-every", "1")


def wait_for(what: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not what():
        assert process.poll() is None, "the command ended before it could be disturbed"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def kill_tree(process: subprocess.Popen) -> None:
    """Kill a command and everything it started, at once, as a machine that goes away does."""
    children = _family(process)
    for victim in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    process.kill()
    process.wait()
    psutil.wait_procs(children, timeout=30)


def start(cil, output: Path, stage: str, *overrides: str) -> subprocess.Popen:
    return subprocess.Popen(
        cil.stage(stage, output, *overrides),
        stdout=subprocess.DEVNULL,
        stderr=(output.parent / f"{stage}.log").open("w"),
        start_new_session=True,
    )


def shard_bytes(output: Path) -> dict[str, bytes]:
    dataset = output / "dataset"
    files = [*sorted((dataset / "shards").iterdir()), dataset / "manifest.json"]
    return {path.name: path.read_bytes() for path in files}


def steps(output: Path) -> list[dict]:
    (path,) = (output / "train").glob("metrics-*.jsonl")
    lines = path.read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def losses(output: Path) -> list[tuple[int, float, float]]:
    return [(row["step"], row["loss"], row["grad_norm"]) for row in steps(output)]


@pytest.fixture(scope="module")
def undisturbed(cil, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    cil.run("encode", output)
    cil.run("train", output, *LONGER)
    return output


@pytest.fixture
def encoded(cil, undisturbed, tmp_path) -> Path:
    import shutil

    output = tmp_path / "out"
    shutil.copytree(undisturbed / "dataset", output / "dataset")
    return output


def test_killed_encode_goes_on_and_gives_the_same_bytes(cil, undisturbed, tmp_path):
    output = tmp_path / "out"
    shards = output / "dataset" / "shards"
    process = start(cil, output, "encode", "--encode.num-workers", "1")
    wait_for(lambda: shards.is_dir() and any(shards.glob("*.json")), process)
    kill_tree(process)
    complete = len(list(shards.glob("*.json")))
    assert complete < 3, "all shards were done before the command was killed"
    assert not (output / "dataset" / "manifest.json").exists()
    cil.run("encode", output)
    assert shard_bytes(output) == shard_bytes(undisturbed)


@pytest.mark.parametrize("task", ["scan_group", "encode_shard"])
def test_killed_worker_is_replaced(cil, undisturbed, tmp_path, task):
    output = tmp_path / "out"
    process = start(cil, output, "encode", "--encode.num-workers", "1")

    def victims() -> list[psutil.Process]:
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if task in child.name().lower() + _title(child)]

    wait_for(lambda: bool(victims()), process)
    victims()[0].kill()
    assert process.wait(timeout=_LIMIT_S) == 0
    assert shard_bytes(output) == shard_bytes(undisturbed)


def test_killed_scan_goes_on_and_gives_the_same_bytes(cil, undisturbed, tmp_path):
    output = tmp_path / "out"
    parts = output / "dataset" / "scan"
    process = start(cil, output, "encode", "--encode.num-workers", "1")
    wait_for(lambda: parts.is_dir() and any(parts.glob("*.jsonl")), process)
    kill_tree(process)
    assert not (output / "dataset" / "manifest.json").exists()
    cil.run("encode", output)
    assert shard_bytes(output) == shard_bytes(undisturbed)
    assert not list(parts.glob("*.jsonl"))


def test_killed_decoder_is_replaced(cil, undisturbed, tmp_path):
    """The process that touches the bytes of videos dies; its file is tried again."""
    output = tmp_path / "out"
    process = start(cil, output, "encode", "--encode.num-workers", "1")

    def victims() -> list[psutil.Process]:
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if "pipelines.decode.child" in _title(child)]

    wait_for(lambda: bool(victims()), process)
    victims()[0].kill()
    assert process.wait(timeout=_LIMIT_S) == 0
    assert shard_bytes(output) == shard_bytes(undisturbed)


def everything(output: Path) -> dict[str, bytes]:
    """All of a data set but what says when and where it was made."""
    dataset = output / "dataset"
    files = [path for path in sorted(dataset.rglob("*")) if path.is_file()]
    names = {path: path.relative_to(dataset).as_posix() for path in files}
    where = ("report.json", "report.html", "config.yaml")
    return {name: path.read_bytes() for path, name in names.items() if name not in where}


@pytest.fixture(scope="module")
def forty_videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("forty") / "videos"
    command = [sys.executable, "-m", "pipelines.demo_data", "--out", str(folder)]
    command += ["--num-videos", "40", "--num-frames", "24", "--size", "64", "--num-held-out", "1"]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "broken.mp4").write_bytes(b"not a video at all")
    return folder


def test_ten_deaths_at_random_moments_change_no_byte(cil, forty_videos, tmp_path):
    """The command, a worker, a decoder or Ray's node process dies; the next command goes on."""
    source = ("--data.videos", str(forty_videos))
    cil.run("encode", tmp_path / "whole", *source)
    expected = everything(tmp_path / "whole")
    output, chance = tmp_path / "out", random.Random(0)
    done = []
    for number in range(10):
        process = start(cil, output, "encode", *source)
        _wait_for_workers(process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=chance.uniform(0.0, 8.0))
        kind = ("command", "worker", "decoder", "node")[number % 4]
        if process.poll() is None:
            _kill(process, kind, chance)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=120)
        kill_tree(process)
        done.append((kind, process.returncode))
        if (output / "dataset" / "manifest.json").exists():
            assert everything(output) == expected, done
            chance.choice(sorted((output / "dataset" / "shards").glob("*.json"))).unlink()
            (output / "dataset" / "manifest.json").unlink()
            (output / "dataset" / "inventory.jsonl").unlink()
    cil.run("encode", output, *source)
    assert everything(output) == expected, done
    assert sum(code != 0 for _, code in done) >= 2, f"hardly any of the deaths was felt: {done}"


def _wait_for_workers(process: subprocess.Popen) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        if any("ray::" in _title(child) for child in _family(process)):
            return
        time.sleep(0.05)


def _family(process: subprocess.Popen) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _kill(process: subprocess.Popen, kind: str, chance: random.Random) -> None:
    if kind == "command":
        kill_tree(process)
        return
    titles = {"worker": "ray::", "decoder": "pipelines.decode.child", "node": "raylet/raylet"}
    victims = [child for child in _family(process) if titles[kind] in _title(child)]
    for victim in victims if kind == "node" else victims and [chance.choice(victims)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()


def test_killed_training_worker_recovers_exactly(cil, undisturbed, encoded):
    process = start(cil, encoded, "train", *LONGER)
    wait_for(lambda: any((encoded / "train").glob("metrics-*.jsonl")), process)
    wait_for(lambda: len(steps(encoded)) >= 12, process)
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "RayTrainWorker" in _title(child)
    ]
    assert len(workers) == 2
    workers[1].kill()
    assert process.wait(timeout=_LIMIT_S) == 0
    assert losses(encoded) == losses(undisturbed)
    assert_same_weights(encoded, undisturbed)


def test_killed_training_command_resumes_exactly(cil, undisturbed, encoded):
    process = start(cil, encoded, "train", *LONGER)
    wait_for(lambda: any((encoded / "train").glob("metrics-*.jsonl")), process)
    wait_for(lambda: len(steps(encoded)) >= 12, process)
    kill_tree(process)
    assert len(steps(encoded)) < 30
    report = cil.run("train", encoded, *LONGER)["train"]
    assert not report["reused"]
    assert losses(encoded) == losses(undisturbed)
    assert_same_weights(encoded, undisturbed)


def assert_same_weights(output: Path, other: Path) -> None:
    name = "train/model/unet/diffusion_pytorch_model.safetensors"
    found, expected = load_file(output / name), load_file(other / name)
    assert sorted(found) == sorted(expected)
    different = [key for key, value in expected.items() if not value.equal(found[key])]
    assert different == []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def test_interrupt_ends_with_its_own_code(cil, encoded):
    process = start(cil, encoded, "train", *LONGER)
    wait_for(lambda: any((encoded / "train").glob("metrics-*.jsonl")), process)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=_LIMIT_S) == 130
