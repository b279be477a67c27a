"""A worker that stands still, and a step that is not finite, in real trainings on Ray."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SLEEPER = """
import sys, time
from pipelines import batches, train_worker

read = batches.BatchReader.batch


def batch(self, step):
    if self._slots[0] != 0 and step == 3:  # of the second worker
        time.sleep(20)
    return read(self, step)


worker = train_worker.train_worker


def train_worker_that_sleeps(settings):
    batches.BatchReader.batch = batch
    return worker(settings)


from pipelines import train

train.train_worker = train_worker_that_sleeps
from pipelines.__main__ import main

main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def encoded(cil, tmp_path_factory):
    output = tmp_path_factory.mktemp("guards") / "out"
    cil.run("encode", output)
    return output


@pytest.fixture
def output(encoded, tmp_path):
    shutil.copytree(encoded / "dataset", tmp_path / "out" / "dataset")
    return tmp_path / "out"


def test_the_worker_that_sleeps_in_its_batch_is_named(cil, output, tmp_path):
    script = tmp_path / "sleeper.py"
    script.write_text(textwrap.dedent(SLEEPER))
    _, _, _, *command = cil.stage("train", output, "--json")
    settings = ("--train.stall-warning-s", "6", "--read.prefetch-batches", "0")
    done = subprocess.run(
        [sys.executable, str(script), *command, *settings],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])["train"]
    lines = Path(report["outputs"]["warnings"]).read_text().splitlines()
    stalls = [json.loads(line) for line in lines if "stalled" in line]
    found = [one for one in stalls if "batch of step 3" in one["text"]]
    assert len(found) == 1, stalls
    assert found[0]["ranks"] == [1]
    assert "1 other workers have gone further" in found[0]["text"]
    assert found[0]["text"] in done.stderr.replace("\n", " ")


def test_a_step_that_is_not_finite_can_be_looked_at_again(cil, output):
    """A learning rate without sense breaks the weights: the replay has those very weights."""
    settings = ("--train.learning-rate", "1e30", "--train.warmup-steps", "0")
    failed = cil(*cil.stage("train", output, *settings))
    assert failed.returncode == 1
    (record,) = (output / "train").glob("nonfinite-step-*.json")
    written = json.loads(record.read_text())
    assert record.with_suffix(".safetensors").exists()
    import shlex

    program, *command = shlex.split(written["replay"])
    assert program == "cil"
    done = cil(*cil.command(*command, "--json"))
    assert done.returncode == 0, done.stderr
    replay = json.loads(done.stdout.splitlines()[-1])["replay"]
    assert [clip["key"] for clip in replay["outputs"]["clips"]] == written["clips"]
    assert replay["outputs"]["broken"], replay


DAMAGED = """
import os, sys
from pipelines import batches, train_worker

read = batches.BatchReader.batch


def batch(self, step):
    from cil.errors import DataError

    if self._slots[0] != 0 and step == 3:  # of the second worker
        raise DataError("shard-000001.tar is damaged: run encode again")
    return read(self, step)


worker = train_worker.train_worker


def train_worker_with_damage(settings):
    batches.BatchReader.batch = batch
    with open(os.environ["STARTS"], "a") as file:
        file.write("x")
    return worker(settings)


from pipelines import train

train.train_worker = train_worker_with_damage
from pipelines.__main__ import main

main(sys.argv[1:])
"""


def test_damage_that_one_worker_finds_is_told_at_once_and_as_it_is(cil, output, tmp_path):
    """Two workers; the other one waits for it in a step, so Ray ends and starts both, once."""
    script = tmp_path / "damaged.py"
    script.write_text(textwrap.dedent(DAMAGED))
    _, _, _, *command = cil.stage("train", output, "--train.max-failures", "5")
    done = subprocess.run(
        [sys.executable, str(script), *command],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "STARTS": str(tmp_path / "starts")},
    )
    assert done.returncode == 1, done.stderr
    said = " ".join(done.stderr.split())
    assert said.endswith("shard-000001.tar is damaged: run encode again"), said
    assert (tmp_path / "starts").read_text() == "xxxx"
