"""Metrics on their way to MLflow: a server that comes and goes, and a real local store."""

import dataclasses
import threading
import time

import mlflow
import pytest

from cil.errors import StageError
from pipelines import tracking
from pipelines.config import RunConfig
from pipelines.metrics_log import MetricsLog
from pipelines.records import FORMAT_VERSION, Manifest
from pipelines.settings import OutputConfig, TrackingConfig
from pipelines.tracking.client import client_of
from pipelines.tracking.metrics import send_rows

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

MANIFEST = Manifest(
    format_version=FORMAT_VERSION,
    fingerprint="f" * 64,
    identity={},
    identity_hash="i" * 64,
    buckets={},
    shards=[],
    totals={"clips": 3},
)
NAMES = ("loss", "grad_norm", "learning_rate", "sigma_cond")


def row(step):
    names = {"loss": float(step), "grad_norm": 1.0, "learning_rate": 0.1, "sigma_cond": 2.0}
    return {"step": step, **names, "clips": 8.0, "seconds": 0.5, "time_s": 1e9 + step / 3}


def wait_until(what):
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


class FakeServer:
    """Keeps metrics, or is away, or keeps them and loses its answer."""

    def __init__(self):
        self.kept, self.calls, self.mode = [], 0, "up"

    def _called(self):
        self.calls += 1
        if self.mode == "away":
            raise mlflow.MlflowException("connection refused\nand more")

    def log_batch(self, run_id, metrics):
        self._called()
        assert run_id == "run"
        self.kept += metrics
        if self.mode == "deaf":
            raise mlflow.MlflowException("the answer was lost")

    def get_metric_history(self, run_id, name):
        self._called()
        return [metric for metric in self.kept if metric.key == name]

    def steps(self, name="loss"):
        return [metric.step for metric in self.kept if metric.key == name]


@pytest.fixture
def server():
    return FakeServer()


@pytest.fixture
def log(tmp_path):
    return MetricsLog(tmp_path / "metrics.jsonl")


@pytest.fixture
def sender(server, log):
    made = tracking.MetricsSender(
        "http://me:s3cret@host", "run", log, pauses_s=(0.01,), make_client=lambda _: server
    )
    yield made
    made.close()


def report(sender, log, *steps):
    rows = [row(step) for step in steps]
    log.append(rows)
    sender.add(rows)


def test_rows_arrive_as_they_come(sender, server, log):
    report(sender, log, 0, 1)
    wait_until(lambda: server.steps() == [0, 1])
    calls = server.calls
    report(sender, log, 2)
    wait_until(lambda: server.steps() == [0, 1, 2])
    assert server.calls == calls + 1, "nothing is asked while all goes well"
    assert [server.steps(name) for name in NAMES] == [[0, 1, 2]] * 4
    assert {metric.timestamp for metric in server.kept if metric.step == 1} == {1_000_000_000_333}


def test_what_an_earlier_process_has_not_sent_goes_first(sender, server, log):
    log.append([row(0), row(1), row(2)])
    send_rows(server, "run", [row(0), row(2)])
    report(sender, log, 3)
    wait_until(lambda: sorted(server.steps()) == [0, 1, 2, 3])


def test_a_server_that_was_away_gets_everything_once(sender, server, log, caplog):
    report(sender, log, 0)
    wait_until(lambda: server.steps() == [0])
    server.mode = "away"
    for step in range(1, 6):
        report(sender, log, step)
    wait_until(lambda: sender.is_away)
    calls = server.calls
    wait_until(lambda: server.calls > calls + 3)
    assert server.steps() == [0]
    server.mode = "up"
    wait_until(lambda: not sender.is_away)
    report(sender, log, 6)
    wait_until(lambda: len(server.steps()) == 7)
    assert sorted(server.steps()) == list(range(7))
    assert caplog.text.count("metrics kept for later") == 1
    assert caplog.text.count("is back and has all metrics") == 1
    assert "s3cret" not in caplog.text
    assert "and more" not in caplog.text


def test_what_arrived_although_the_answer_was_lost_is_not_sent_again(sender, server, log):
    server.mode = "deaf"
    report(sender, log, 0, 1)
    wait_until(lambda: sender.is_away)
    server.mode = "up"
    report(sender, log, 2)
    wait_until(lambda: not sender.is_away)
    wait_until(lambda: server.steps() == [0, 1, 2])


def test_a_server_that_hangs_holds_nothing_up(sender, server, log):
    hangs = threading.Event()
    server._called = hangs.wait
    started = time.monotonic()
    for step in range(100):
        report(sender, log, step)
    assert time.monotonic() - started < 5
    hangs.set()
    wait_until(lambda: sorted(server.steps()) == list(range(100)))


def test_closing_sends_what_is_left_and_waits_for_no_server(sender, server, log):
    report(sender, log, 0, 1, 2)
    sender.close()
    assert server.steps() == [0, 1, 2]
    other = tracking.MetricsSender("http://host", "run", log, make_client=lambda _: server)
    server.mode = "away"
    other.add([])
    wait_until(lambda: other.is_away)
    started = time.monotonic()
    other.close()
    assert time.monotonic() - started < 5


# -- a real store ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Configuration and client of a local store."""
    folder = tmp_path_factory.mktemp("store")
    config = RunConfig(
        tracking=TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", system_metrics_s=0.1),
        output=OutputConfig(dir=str(folder / "run")),
    )
    return config, client_of(config.tracking.uri)


def history(client, run_id, name="loss"):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]


def test_a_row_that_is_sent_twice_is_there_once(store, tmp_path):
    """Two processes may send the same: the one that trains, and the one that ends it."""
    config, client = store
    run_id = tracking.start_run(config, tmp_path, MANIFEST, "a" * 64)
    send_rows(client, run_id, [row(step) for step in range(5)])
    send_rows(client, run_id, [row(step) for step in range(3, 8)])
    for name in NAMES:
        assert sorted(step for step, _ in history(client, run_id, name)) == list(range(8))


def test_what_is_missing_is_added(store, log, tmp_path):
    config, client = store
    run_id = tracking.start_run(config, tmp_path, MANIFEST, "b" * 64)
    rows = [row(step) for step in range(300)]  # MLflow takes a thousand metrics at once
    log.append(rows)
    send_rows(client, run_id, [rows[0], rows[1], rows[3]])
    tracking.sync_metrics(config, run_id, log, MetricsLog(tmp_path / "nothing"))
    tracking.sync_metrics(config, run_id, log)
    assert sorted(history(client, run_id)) == [(step, float(step)) for step in range(300)]


def test_rows_of_an_earlier_version_have_no_time(store, tmp_path):
    config, client = store
    run_id = tracking.start_run(config, tmp_path, MANIFEST, "c" * 64)
    old = {name: value for name, value in row(7).items() if name != "time_s"}
    send_rows(client, run_id, [old])
    assert history(client, run_id) == [(7, 7.0)]


def test_a_run_that_is_gone_is_known(store, log, tmp_path):
    config, client = store
    run_id = tracking.start_run(config, tmp_path, MANIFEST, "d" * 64)
    assert tracking.has_run(config, run_id)
    client.delete_run(run_id)
    assert not tracking.has_run(config, run_id)
    assert not tracking.has_run(config, "0" * 32)
    log.append([row(0)])
    with pytest.raises(StageError, match="failed while completing the metrics"):
        tracking.sync_metrics(config, run_id, log)


def test_the_machine_is_recorded_while_the_block_runs(store, tmp_path):
    config, client = store
    run_id = tracking.start_run(config, tmp_path, MANIFEST, "e" * 64)
    log, name = MetricsLog(tmp_path / "load.jsonl"), "system/cpu_utilization_percentage"
    for count in (2, 4):  # the second block goes on where the first one ended
        with tracking.record_load(config, run_id, log):
            wait_until(lambda: len(history(client, run_id, name)) >= count)  # noqa: B023
        tracking.sync_metrics(config, run_id, log)
    steps = sorted(step for step, _ in history(client, run_id, name))
    assert steps == list(range(len(log.rows())))
    never = dataclasses.replace(config.tracking, system_metrics_s=0.0)
    nothing = MetricsLog(tmp_path / "nothing.jsonl")
    with tracking.record_load(dataclasses.replace(config, tracking=never), run_id, nothing):
        time.sleep(0.3)
    assert not nothing.path.exists()
