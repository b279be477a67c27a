"""Training is disturbed or goes on with other workers; the results are those of a run left alone.

Small shards of random clips, so that a run takes little more than starting Ray: eleven clips and
batches of four, so that epochs end within batches and within what is disturbed.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

_LIMIT_S = 1200
NUM_CLIPS, BATCH, STEPS = 11, 4, 20
CONFIG = {
    "data": {"videos": "none", "num_frames": 2, "fps": 8, "height": 16, "width": 16},
    "model": {"cross_attention_dim": 8},
    "train": {
        "num_steps": STEPS,
        "max_failures": 1,
        "global_batch_size": BATCH,
        "log_every": 1,
        "checkpoint_every": 3,
        "warmup_steps": 2,
        "num_workers": 2,
    },
}


def _small_shards():
    place = Path(__file__).parents[1] / "unit" / "pipelines" / "conftest.py"
    spec = importlib.util.spec_from_file_location("fixtures_of_the_unit_tests", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SmallShards()


def write_dataset(folder, counts, shapes):
    """Write shards of random clips with a codec of two random directions per channel."""
    from cil.models.patch_pca import PatchPCA

    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(12, 4, generator=generator))
    PatchPCA(
        patch_size=2,
        basis=basis,
        mean=torch.full((12,), 100.0),
        variances=torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64),
        residual=torch.tensor(0.1, dtype=torch.float64),
    ).save(folder / "first_stage")
    _small_shards().dataset(folder, counts, shapes=shapes)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset") / "dataset"
    write_dataset(folder, (6, 5), ((2, 4, 8, 8),))
    return folder


class Training:
    """One output folder, and the command that trains in it."""

    def __init__(self, output, dataset, config=CONFIG):
        self.output, self.train = output, output / "train"
        output.mkdir(parents=True)
        (output / "dataset").symlink_to(dataset)
        self.config = output / "config.yaml"
        self.config.write_text(yaml.safe_dump(config))
        self.log = output / "command.log"

    def command(self, *overrides):
        command = [sys.executable, "-m", "pipelines", "train", "--config", str(self.config)]
        return [*command, "--output.dir", str(self.output), "--json", *overrides]

    def run(self, *overrides, code=0):
        """Train to the end; returns the report, or what was said on the way to an error."""
        done = subprocess.run(
            self.command(*overrides), capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
        self.log.write_text(done.stdout + done.stderr)
        assert done.returncode == code, done.stderr
        return done.stderr if code else json.loads(done.stdout.splitlines()[-1])["train"]

    def start(self, *overrides):
        return subprocess.Popen(
            self.command(*overrides),
            stdout=subprocess.DEVNULL,
            stderr=self.log.open("w"),
            start_new_session=True,
        )

    def wait_for_steps(self, process, count):
        deadline = time.monotonic() + _LIMIT_S
        while len(self.steps()) < count:
            assert process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, "waited too long"
            time.sleep(0.02)

    def steps(self):
        return [(row["step"], row["loss"], row["grad_norm"]) for row in self._rows("metrics")]

    def ledger(self):
        return self._rows("ledger")

    def _rows(self, name):
        found = list(self.train.glob(f"{name}-*.jsonl"))
        assert len(found) <= 1
        lines = [line for path in found for line in path.read_text().splitlines()]
        return [json.loads(line) for line in lines if line.endswith("}")]

    def checkpoints(self):
        return sorted(path for path in self.train.glob("ray/train-*/checkpoint_*") if path.is_dir())

    def ema(self):
        return load_file(self.checkpoints()[-1] / "ema.safetensors")


def family(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def title(process):
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def kill_tree(process):
    children = family(process)
    for victim in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    process.kill()
    process.wait()
    psutil.wait_procs(children, timeout=30)


def assert_same(found, expected):
    """Losses, norms, average and ledger, bit for bit."""
    assert found.steps() == expected.steps()
    assert_same_tensors(found.ema(), expected.ema())
    assert found.ledger() == expected.ledger()


def assert_same_tensors(found, expected):
    assert sorted(found) == sorted(expected)
    assert [name for name, value in expected.items() if not value.equal(found[name])] == []


def assert_every_clip_once_per_epoch(ledger, num_clips, *, num_steps=STEPS):
    """Each bucket's clips, one after another over all steps, are permutation after permutation."""
    assert [row["step"] for row in ledger] == list(range(num_steps))
    assert [len(row["keys"]) for row in ledger] == [BATCH] * num_steps
    assert set(num_clips) == {row["bucket"] for row in ledger}
    all_keys = set()
    for bucket, count in num_clips.items():
        keys = [key for row in ledger if row["bucket"] == bucket for key in row["keys"]]
        rounds = [keys[first : first + count] for first in range(0, len(keys), count)]
        assert len(rounds) > 1
        assert all(len(set(part)) == len(part) for part in rounds), "a clip came twice"
        assert all(set(part) == set(rounds[0]) for part in rounds[:-1]), "a clip was missed"
        assert len(rounds[0]) == count
        assert not all_keys & set(rounds[0])
        all_keys |= set(rounds[0])


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory):
    training = Training(tmp_path_factory.mktemp("undisturbed") / "out", dataset)
    training.run()
    return training


@pytest.fixture
def training(dataset, tmp_path):
    return Training(tmp_path / "out", dataset)


def test_the_ledger_has_every_clip_once_per_epoch(undisturbed):
    ledger = undisturbed.ledger()
    assert_every_clip_once_per_epoch(ledger, {"16x16x2": NUM_CLIPS})
    assert [row["epoch"] for row in ledger][:4] == [0, 0, 0, 1]
    assert len(undisturbed.checkpoints()) == 2
    state = json.loads((undisturbed.checkpoints()[-1] / "train_state.json").read_text())
    assert (state["num_steps"], state["num_clips_seen"]) == (STEPS, STEPS * BATCH)
    assert (state["world_size"], state["zero_stage"], state["trainable"]) == (2, 2, "all")
    assert state["epoch"] == 7
    assert not list(undisturbed.train.glob(".*"))


@pytest.mark.parametrize("victim", ["worker", "command"])
def test_killed_after_seven_steps_it_ends_the_same(training, undisturbed, victim):
    process = training.start()
    training.wait_for_steps(process, 7)
    if victim == "worker":
        workers = [child for child in family(process) if "RayTrainWorker" in title(child)]
        assert len(workers) == 2
        workers[1].kill()
        assert process.wait(timeout=_LIMIT_S) == 0, training.log.read_text()
    else:
        kill_tree(process)
        assert len(training.steps()) < STEPS
        assert not training.run()["reused"]
    assert_same(training, undisturbed)


def test_a_node_of_two_dies(training, undisturbed):
    from ray.cluster_utils import Cluster

    with socket.socket() as free:  # another Ray on this machine has the usual port
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    head = {"num_cpus": 1, "dashboard_port": port}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    process = None
    try:
        second = cluster.add_node(num_cpus=1)
        process = training.start("--cluster.address", cluster.address)
        training.wait_for_steps(process, 7)
        workers = [p for p in psutil.process_iter() if _is_worker_of(p, cluster)]
        nodes = {worker.ppid() for worker in workers}
        assert len(workers) == len(nodes) == 2, "the workers must be on both nodes"
        cluster.add_node(num_cpus=1)
        cluster.remove_node(second, allow_graceful=False)
        assert process.wait(timeout=_LIMIT_S) == 0, training.log.read_text()
    finally:
        if process is not None and process.poll() is None:
            kill_tree(process)
        cluster.shutdown()
    assert_same(training, undisturbed)


def _is_worker_of(process, cluster):
    if "RayTrainWorker" not in title(process):
        return False
    raylets = {p.pid for node in cluster.list_all_nodes() for p in _raylets(node)}
    return process.ppid() in raylets


def _raylets(node):
    return [info.process for info in node.all_processes.get("raylet", [])]


@pytest.mark.parametrize(
    ("stage", "before", "after"), [("2", "2", "1"), ("2", "1", "2"), ("3", "2", "1")]
)
def test_it_goes_on_with_another_number_of_workers(training, undisturbed, stage, before, after):
    """Also with other settings of memory: they decide the last bits at most."""
    process = training.start("--train.zero-stage", stage, "--train.num-workers", before)
    training.wait_for_steps(process, 7)
    kill_tree(process)
    assert len(training.steps()) < STEPS
    training.run(
        *("--train.zero-stage", stage, "--train.num-workers", after),
        *("--train.micro-batch-size", "1", "--train.gradient-checkpointing"),
    )
    assert f"was written by {before} workers; converting it for {after}" in training.log.read_text()
    found, expected = training.steps(), undisturbed.steps()
    assert [row[0] for row in found] == [row[0] for row in expected]
    apart = max(abs(a[1] - b[1]) for a, b in zip(found, expected, strict=True))
    print("losses apart by", apart)
    assert apart < 1e-6
    assert training.ledger() == undisturbed.ledger()
    assert not list(training.train.glob(".*"))


def test_four_workers_have_the_losses_of_two(training, undisturbed):
    training.run("--train.num-workers", "4", "--cluster.num-cpus", "4")
    pairs = zip(training.steps(), undisturbed.steps(), strict=True)
    apart = max(abs(a[1] - b[1]) for a, b in pairs)
    print("losses apart by", apart)
    assert apart < 1e-6
    assert training.ledger() == undisturbed.ledger()


def test_three_workers_take_equally_many_steps_of_two_buckets(tmp_path):
    folder = tmp_path / "dataset"
    write_dataset(folder, (6, 4), ((4, 4, 8, 8), (2, 4, 8, 8)))
    buckets = ["16x16x4", "16x16x2"]
    config = {**CONFIG, "data": {**CONFIG["data"], "buckets": buckets}}
    config["train"] = {**CONFIG["train"], "global_batch_size": 6, "num_workers": 3}
    training = Training(tmp_path / "out", folder, config)
    training.run("--cluster.num-cpus", "3", "--train.num-steps", "8")
    ledger = training.ledger()  # joining fails unless all workers had the same steps and bucket
    assert [row["step"] for row in ledger] == list(range(8))
    assert {row["bucket"] for row in ledger} == set(buckets)
    keys = {b: {k for row in ledger if row["bucket"] == b for k in row["keys"]} for b in buckets}
    assert {bucket: len(found) for bucket, found in keys.items()} == {buckets[0]: 6, buckets[1]: 4}
    assert not keys[buckets[0]] & keys[buckets[1]]


def test_a_full_disk_keeps_the_last_checkpoint(dataset, undisturbed, tmp_path):
    """The file system is a real one that is too small for three checkpoints, then is enlarged."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    size = sum(p.stat().st_size for p in undisturbed.checkpoints()[-1].rglob("*") if p.is_file())
    place = tmp_path / "small"
    place.mkdir()
    small = f"size={int(size * 2.5) + 2**24}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", small, "tmpfs", str(place)], check=True)
    try:
        training = Training(place / "out", dataset)
        said = training.run(code=1)
        assert "the checkpoint of step 9 cannot be written to" in said.replace("\n", " ")
        assert len(training.checkpoints()) == 2
        assert not list(training.train.glob(".checkpoint*"))
        subprocess.run(["mount", "-o", "remount,size=1g", str(place)], check=True)
        training.run()
        assert_same(training, undisturbed)
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_another_zero_stage_and_a_foreign_checkpoint_are_refused(training, undisturbed):
    shutil.copytree(undisturbed.train, training.train)
    (training.train / "report.json").unlink()
    before = {p: p.read_bytes() for p in training.train.rglob("*state.json")}
    said = " ".join(training.run("--train.zero-stage", "3", code=1).split())
    assert "zero_stage is 2 there and 3 here" in said
    state = training.checkpoints()[-1] / "train_state.json"
    state.write_text(json.dumps({**json.loads(before[state]), "model_hash": "x" * 64}))
    sums = (state.parent / "sha256").rename(training.train / "sums")  # else it is damaged, first
    said = " ".join(training.run(code=1).split())
    assert f"is {'x' * 64} there and" in said
    state.write_bytes(before[state])
    sums.rename(state.parent / "sha256")
    assert not training.run()["reused"]
    assert_same(training, undisturbed)
