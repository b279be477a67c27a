"""The cluster files against the schema and the checks that Ray itself ships."""

import copy
import json
import re
import shlex
import zipfile
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


FILES = ("ray_cluster.yaml", "infra/ray_cluster_gcp.yaml", "infra/ray_cluster_local.yaml")
SCALING = FILES[:2]


def read(name):
    return yaml.safe_load((ROOT / name).read_text())


@pytest.fixture
def cluster():
    return read(FILES[0])


def check(config):
    jsonschema.validate(config, SCHEMA)
    validate_config(prepare_config(copy.deepcopy(config)))


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_cluster(name):
    check(read(name))


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


@pytest.mark.parametrize("name", SCALING)
def test_pools_scale_to_zero_and_state_what_they_have(name):
    """Ray checks none of this: without resources it would ask the cloud."""
    cluster = read(name)
    pools = dict(cluster["available_node_types"])
    head = pools.pop(cluster["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert set(pools) == {"cpu", "gpu"}
    assert all(pool["min_workers"] == 0 for pool in pools.values())
    assert all(pool["resources"]["CPU"] > 0 for pool in pools.values())
    assert pools["gpu"]["resources"]["GPU"] > 0
    assert sum(pool["max_workers"] for pool in pools.values()) <= cluster["max_workers"]


def test_only_nodes_whose_loss_costs_little_are_spot():
    aws = read(FILES[0])["available_node_types"]
    spot = [name for name, pool in aws.items() if "InstanceMarketOptions" in pool["node_config"]]
    assert spot == ["cpu"]
    assert aws["cpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    gcp = read(FILES[1])["available_node_types"]
    found = {name: pool["node_config"].get("scheduling", {}) for name, pool in gcp.items()}
    assert [name for name, how in found.items() if how.get("provisioningModel") == "SPOT"] == [
        "cpu"
    ]


def test_the_metadata_of_aws_wants_a_session():
    for pool in read(FILES[0])["available_node_types"].values():
        assert pool["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


def starts(name):
    """Return the options of every `ray start` of a file, heads first."""
    cluster = read(name)
    lines = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    return [shlex.split(line) for line in lines if "ray start" in line]


@pytest.mark.parametrize("name", FILES)
def test_ray_is_started_with_a_token_and_options_that_it_has(name):
    source = (Path(ray.__file__).parent / "scripts" / "scripts.py").read_text()
    source = source[: source.index("\ndef start(")]  # its options stand above it
    known = set(re.findall(r'"(--[a-z-]+)"', source))
    assert len(starts(name)) == 2
    for variable, program, command, *options in starts(name):
        assert (variable, program, command) == ("RAY_AUTH_MODE=token", "ray", "start")
        assert {option.partition("=")[0] for option in options} <= known
    assert read(name)["file_mounts"] == {"/home/cil/.ray/auth_token": "~/.ray/auth_token"}


@pytest.mark.parametrize("name", FILES)
def test_jobs_reach_the_head_on_loopback_only(name):
    head, worker = starts(name)
    assert "--head" in head
    assert "--dashboard-host=127.0.0.1" in head
    assert not [option for option in worker if "dashboard" in option]


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_installed_that_is_not_pinned(name):
    cluster = read(name)
    images = [cluster["docker"]["image"]]
    for pool in cluster.get("available_node_types", {}).values():
        images += [pool["docker"]["worker_image"]] if "docker" in pool else []
    assert all(re.search(r":\d+\.\d+\.\d+-(cpu|gpu)$", image) for image in images)
    lists = [cluster[key] for key in cluster if key.endswith("setup_commands")]
    for command in [line for lines in lists for line in lines]:
        assert re.fullmatch(r"pip install [a-z0-9-]+==[\d.]+", command)
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    if name == FILES[0]:
        assert cluster["head_setup_commands"][0].removeprefix("pip install ") in constraints


def test_the_runtime_environment_is_one_that_ray_knows():
    from ray.runtime_env import RuntimeEnv

    settings = yaml.safe_load((ROOT / "infra" / "runtime_env.yaml").read_text())
    assert set(settings) <= RuntimeEnv.known_fields
    assert {".venv", "build"} <= set(settings["excludes"])


def test_a_job_takes_along_the_code_and_nothing_else(tmp_path):
    """Packed by Ray itself, from a folder without git, which would hide a hole in the list."""
    from ray._private.runtime_env.packaging import create_package

    wanted = [
        "pipelines/__main__.py",
        "cil/__init__.py",
        "kernels/__init__.py",
        "configs/demo.yaml",
    ]
    wanted += ["pyproject.toml", "infra/runtime_env.yaml", "pipelines/pages/head.html"]
    unwanted = [".git/config", ".venv/bin/python", "build/demo/run/x.pt", "infra/mlflow/mlflow.env"]
    unwanted += ["site/index.html", "run.log", "mlflow.db", "cil/__pycache__/x.pyc", "tests/x.py"]
    unwanted += ["docs/index.md", "benchmarks/x.py", "secret.env"]
    for name in [*wanted, *unwanted]:
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    excludes = yaml.safe_load((ROOT / "infra" / "runtime_env.yaml").read_text())["excludes"]
    package = tmp_path / "package.zip"
    create_package(str(tmp_path / "checkout"), package, include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(package) as packed:
        files = [name for name in packed.namelist() if not name.endswith("/")]
    assert sorted(files) == sorted(wanted)
