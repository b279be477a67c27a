"""ray_cluster.yaml against the schema and the checks that Ray itself ships."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


@pytest.fixture
def cluster():
    return yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())


def check(config):
    jsonschema.validate(config, SCHEMA)
    validate_config(prepare_config(copy.deepcopy(config)))


def test_ray_accepts_the_cluster(cluster):
    check(cluster)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("idle_timeout_minute",), 5),
        (("available_node_types", "gpu", "max_worker"), 2),
        (("available_node_types", "gpu", "resources"), {"GPU": "four"}),
        (("docker", "worker_images"), "x"),
        (("head_node_type",), "haed"),
        (("max_workers",), "six"),
    ],
)
def test_a_typo_is_caught(cluster, path, value):
    *parents, key = path
    owner = cluster
    for name in parents:
        owner = owner[name]
    owner[key] = value
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        check(cluster)


def test_pools_scale_to_zero_and_state_what_they_have(cluster):
    """Ray checks none of this: without resources it would ask AWS."""
    pools = dict(cluster["available_node_types"])
    head = pools.pop(cluster["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert set(pools) == {"cpu", "gpu"}
    assert all(pool["min_workers"] == 0 for pool in pools.values())
    assert all(pool["resources"]["CPU"] > 0 for pool in pools.values())
    assert pools["gpu"]["resources"]["GPU"] > 0
    assert sum(pool["max_workers"] for pool in pools.values()) <= cluster["max_workers"]


def test_jobs_reach_the_head_on_loopback_only(cluster):
    (start,) = [line for line in cluster["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in start


def test_the_runtime_environment_is_one_that_ray_knows():
    from ray.runtime_env import RuntimeEnv

    settings = yaml.safe_load((ROOT / "infra" / "runtime_env.yaml").read_text())
    assert set(settings) <= RuntimeEnv.known_fields
    assert {".venv", "build"} <= set(settings["excludes"])
