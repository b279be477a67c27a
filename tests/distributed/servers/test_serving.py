"""The champion behind `mlflow models serve`: one client, wrong requests, twenty clients at once."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import requests

from tests.servers.local_serving import served

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
MODEL = "models:/whole@champion"
HERE = f"""
import json, sys
import mlflow, numpy as np
model = mlflow.pyfunc.load_model({MODEL!r})
image = np.array(json.load(sys.stdin), np.uint8)
print(json.dumps(model.predict(image, params={{"seed": 3}}).tolist()))
"""


@pytest.fixture(scope="module")
def url(nights, registry, tmp_path_factory):
    with served(MODEL, tmp_path_factory.mktemp("served"), registry.environment) as address:
        yield address


@pytest.fixture
def image():
    return np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8).tolist()


def ask(url, body):
    return requests.post(f"{url}/invocations", json=body, timeout=300)


def test_an_answer_is_the_video_that_another_process_makes(url, image, registry, tmp_path):
    answer = ask(url, {"inputs": image, "params": {"seed": 3}})
    assert answer.ok, answer.text
    video = np.array(answer.json()["predictions"])
    assert video.shape == (4, 32, 32, 3)
    done = subprocess.run(
        [sys.executable, "-c", HERE],
        env=registry.environment,
        cwd=tmp_path,
        input=json.dumps(image),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(video, json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": [1, 2, 3]},
        {"inputs": "not an image"},
        {"nothing": 1},
        {"inputs": [[[0, 0, 0]]], "params": {"num_steps": "many"}},
    ],
)
def test_a_wrong_request_is_refused_and_the_server_goes_on(url, image, body):
    answer = ask(url, body)
    assert answer.status_code == 400, answer.text
    assert ask(url, {"inputs": image}).ok


def test_twenty_clients_get_their_own_videos(url):
    done = subprocess.run(
        [
            *(sys.executable, "benchmarks/serving.py", "--url", url, "--json"),
            *("--clients", "20", "--rounds", "2", "--size", "32"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["requests"], result["wrong"], result["failed"]) == (40, 0, [])
    assert result["in_flight_max"] == 20
    assert 0 < result["together_s"]["p50"] <= result["together_s"]["p99"]
