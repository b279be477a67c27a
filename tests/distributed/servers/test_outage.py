"""MLflow's server is killed while a training runs: the training goes on, and nothing is lost."""

import collections
import contextlib
import dataclasses
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

pytestmark = pytest.mark.slow

_LIMIT_S = 600
STEPS = 100
LONG = (
    *("--train.num-steps", str(STEPS), "--train.checkpoint-every", "50"),
    *("--train.num-workers", "1", "--train.log-every", "2", "--tracking.system-metrics-s", "0.5"),
)
NAMES = ("loss", "grad_norm", "learning_rate", "sigma_cond")


@dataclasses.dataclass
class Training:
    """`cil train` as a process of its own."""

    cil: object
    output: Path
    registry: object
    processes: list = dataclasses.field(default_factory=list)

    def start(self) -> subprocess.Popen:
        self.log = self.output.parent / "train.log"
        with self.log.open("a") as log:
            process = subprocess.Popen(
                self.cil.stage("train", self.output, "--json", *LONG),
                env=self.registry.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.processes.append(process)
        return process

    def kill(self) -> None:
        """Leave nothing behind after a failure."""
        for process in self.processes:
            if process.poll() is None:
                family = psutil.Process(process.pid).children(recursive=True)
                for each in [*family, process]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        each.kill()

    def rows(self) -> list[dict]:
        found = list((self.output / "train").glob("metrics-*.jsonl"))
        lines = found[0].read_text().splitlines() if found else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def wait_for_steps(self, count: int, process: subprocess.Popen) -> None:
        deadline = time.monotonic() + _LIMIT_S
        while len(self.rows()) < count:
            assert process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    @property
    def run_id(self) -> str:
        return json.loads((self.output / "train" / "mlflow_run.json").read_text())["run_id"]

    def ask(self, question: str, **words: str) -> dict:
        """Ask the server without MLflow's client."""
        answer = requests.get(
            f"{self.registry.uri}/api/2.0/mlflow/{question}",
            params={"run_id": self.run_id, **words},
            auth=(self.registry.user, self.registry.password),
            timeout=60,
        )
        assert answer.ok, answer.text
        return answer.json()

    def history(self, name: str) -> list[tuple[int, float]]:
        found = self.ask("metrics/get-history", metric_key=name).get("metrics", [])
        return [(int(metric.get("step", 0)), metric["value"]) for metric in found]

    def check_history(self) -> None:
        """Each step is there once, with the number that training wrote down."""
        rows = self.rows()
        assert [row["step"] for row in rows] == list(range(STEPS))
        for name in NAMES:
            history = self.history(name)
            counts = collections.Counter(step for step, _ in history)
            assert sorted(counts) == list(range(STEPS)), f"a hole in {name}"
            assert set(counts.values()) == {1}, f"a duplicate in {name}"
            assert dict(history) == pytest.approx({row["step"]: row[name] for row in rows})
        load = [step for step, _ in self.history("system/cpu_utilization_percentage")]
        assert sorted(load) == list(range(len(load)))
        assert len(load) > 10
        assert self.ask("runs/get")["run"]["info"]["status"] == "FINISHED"


@pytest.fixture(scope="module")
def dataset(cil, tmp_path_factory):
    output = tmp_path_factory.mktemp("dataset")
    cil.run("encode", output)
    return output / "dataset"


@pytest.fixture
def training(cil, dataset, registry, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    shutil.copytree(dataset, output / "dataset")
    made = Training(cil, output, registry)
    yield made
    made.kill()
    if registry.server.process is None:
        registry.server.start()


def finish(process: subprocess.Popen) -> str:
    out = process.communicate(timeout=_LIMIT_S)[0]
    return out.splitlines()[-1] if out else ""


@contextlib.contextmanager
def paused(process: subprocess.Popen) -> Iterator[None]:
    """Hold the training worker, so that the test does not depend on how fast machines are."""
    family = psutil.Process(process.pid).children(recursive=True)
    workers = [each for each in family if "RayTrainWorker" in " ".join(each.cmdline())]
    assert workers
    for each in workers:
        each.suspend()
    try:
        yield
    finally:
        for each in workers:
            each.resume()


def test_a_server_that_comes_back_has_everything(training, registry):
    process = training.start()
    training.wait_for_steps(10, process)
    registry.server.kill()
    killed_at = len(training.rows())
    training.wait_for_steps(killed_at + 20, process)
    with paused(process):
        assert len(training.rows()) < STEPS
        registry.server.start()
    report = finish(process)
    assert process.returncode == 0, training.log.read_text()
    assert json.loads(report)["train"]["metrics"]["steps"] == STEPS
    training.check_history()
    assert "Traceback" not in training.log.read_text()


def test_what_a_server_missed_for_good_is_sent_by_the_next_command(training, registry):
    process = training.start()
    training.wait_for_steps(10, process)
    registry.server.kill()
    finish(process)
    said = training.log.read_text()
    assert process.returncode == 1, said
    assert "training is done and its model is in" in said
    assert "the same command sends what is missing and trains nothing again" in said
    assert "Traceback" not in said
    assert [row["step"] for row in training.rows()] == list(range(STEPS))
    assert (training.output / "train" / "unsent.json").exists()
    assert not [secret for secret in registry.secrets if secret in said]

    process = training.start()  # still away
    finish(process)
    assert process.returncode == 1
    assert "no MLflow server at" in training.log.read_text()

    registry.server.start()
    process = training.start()
    report = json.loads(finish(process))["train"]
    assert process.returncode == 0, training.log.read_text()
    assert report["reused"], "it was trained again"
    training.check_history()
    assert not (training.output / "train" / "unsent.json").exists()
    again = training.start()
    finish(again)
    training.check_history()
