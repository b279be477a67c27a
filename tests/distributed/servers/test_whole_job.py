"""Everything at once: jobs on a Ray cluster with a token take videos to a champion.

The jobs know MLflow's address and its password from the node, and register on Postgres and S3.
"""

import json

import pytest

pytestmark = pytest.mark.slow


def report_in(text: str) -> dict:
    """Find the command's report among the lines of a job."""
    (line,) = [line for line in text.splitlines() if line.startswith('{"retrain"')]
    return json.loads(line)["retrain"]["outputs"]


def test_ray_job_submit_takes_videos_to_a_champion(nights):
    shown = nights.by_ray.stdout + nights.by_ray.stderr
    outputs = report_in(nights.by_ray.stdout)
    assert (outputs["status"], outputs["champion"], outputs["version"]) == ("promoted", "1", "1")
    assert outputs["tracking_uri"] == nights.registry.uri
    nights.check_no_secret(shown)


def test_cil_submit_does_the_next_night_once(nights):
    done, followed, repeated = nights.by_cil, nights.followed, nights.repeated
    outputs = report_in(done.stderr)
    ending = (done.returncode, outputs["status"])
    assert ending in {(0, "promoted"), (3, "refused")}, done.stderr  # eight steps are noise
    assert outputs["version"] == "2"
    nights.check_no_secret(done.stdout + done.stderr)
    assert followed.returncode == done.returncode, followed.stderr
    assert "already" in followed.stderr
    assert repeated.returncode == 0, repeated.stderr
    assert report_in(repeated.stderr)["status"] == "nothing new"
