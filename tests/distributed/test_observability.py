"""Metrics of our own on the port of a real Ray node, and structured logs of its workers."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import logging, time, urllib.request
from pipelines import prometheus
from pipelines.log_format import log_fields, stderr_lines
from pipelines.runtime import ray_session
from pipelines.settings import ClusterConfig

NAMES = ["cil_loss", "cil_clips_per_second", "cil_data_wait_share", "cil_quarantined_total",
         "cil_gate_decisions_total"]

def work():
    from pipelines.worker_logs import label_records
    label_records(rank=1, run_id="r1", node="here", stage="train")
    logging.getLogger("pipelines.worker").warning("at http://me:%s@host", "pl4nted")
    prometheus.set_loss(0.5, run_id="r1")
    prometheus.set_data_wait_share(0.125, run_id="r1")
    time.sleep(60)

with stderr_lines("json", command="try"), log_fields(stage="encode"):
    with ray_session(ClusterConfig(num_cpus=1), debug=True):
        import ray
        worker = ray.remote(work).remote()
        prometheus.set_clips_per_second(3.0, run_id="none", stage="encode")
        prometheus.add_quarantined(2, run_id="none")
        prometheus.add_gate_decision(promoted=True)
        logging.getLogger("pipelines.driver").warning("from the driver")
        node = ray.nodes()[0]
        port = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        end, text = time.monotonic() + 90, ""
        while time.monotonic() < end and not all(name in text for name in NAMES):
            time.sleep(1)
            try:
                text = urllib.request.urlopen(port, timeout=5).read().decode()
            except OSError:
                continue
        print(*(line for line in text.splitlines() if "ray_cil_" in line), sep="\\n")
"""


@pytest.fixture(scope="module")
def done():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def test_all_metrics_are_on_the_port_with_their_labels(done):
    values = {}
    for line in done.stdout.splitlines():
        if not line.startswith("#"):
            name, labels = line.split("{", 1)
            labels, value = labels.rsplit("} ", 1)
            ours = [part for part in labels.split(",") if part.split("=")[0] in
                    ("run_id", "stage", "decision")]  # fmt: skip
            values[name] = (sorted(ours), float(value))
    assert values == {
        "ray_cil_loss": (['run_id="r1"'], 0.5),
        "ray_cil_data_wait_share": (['run_id="r1"'], 0.125),
        "ray_cil_clips_per_second": (['run_id="none"', 'stage="encode"'], 3.0),
        "ray_cil_quarantined_total": (['run_id="none"'], 2.0),
        "ray_cil_gate_decisions_total": (['decision="promoted"'], 1.0),
    }


def test_stderr_has_the_lines_of_driver_and_worker_as_json(done):
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    (driver,) = [line for line in lines if line["message"] == "from the driver"]
    assert (driver["command"], driver["stage"], driver["level"]) == ("try", "encode", "warning")
    (worker,) = [line for line in lines if line.get("rank") == 1]
    assert worker["message"] == "at http://me:***@host"
    assert (worker["stage"], worker["run_id"], worker["node"]) == ("train", "r1", "here")
    assert {"job_id", "node_id", "task_id"} <= set(worker)
