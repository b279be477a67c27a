"""The files of infra/ as far as they can be checked without building anything."""

import os
import re
import time
from pathlib import Path

import pytest
import yaml

from pipelines.environment_variables import VARIABLES, variables_for
from pipelines.extension_locks import remove_stale_locks

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"


def instructions():
    """Return the Dockerfile as (instruction, arguments), continued lines joined."""
    text = (INFRA / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def stages():
    """Return the instructions of each stage by name, with where it comes from."""
    found, current = {}, None
    for name, rest in instructions():
        if name == "FROM":
            source, _, stage = rest.partition(" AS ")
            current = found.setdefault(stage, {"from": source, "do": []})
        elif current is not None:
            current["do"].append((name, " ".join(rest.split())))
    return found


def does(stage, name):
    return [rest for instruction, rest in stage["do"] if instruction == name]


def test_every_instruction_is_one():
    known = {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "ADD", "USER", "CMD"}
    assert {name for name, _ in instructions()} <= known


def test_the_stages_build_on_each_other_and_the_base_is_pinned(stages):
    assert list(stages) == ["base", "cpu-build", "gpu-build", "cpu", "gpu"]
    (image,) = [rest for name, rest in instructions() if name == "ARG" and "PYTHON_IMAGE" in rest]
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.11\.\d+-slim-bookworm", image)
    assert stages["base"]["from"] == "${PYTHON_IMAGE}"
    assert {stage["from"] for name, stage in stages.items() if name != "base"} == {"base"}
    for kind in ("cpu", "gpu"):
        assert f"--from={kind}-build /opt/venv /opt/venv" in does(stages[kind], "COPY")


def test_what_is_installed_is_pinned(stages):
    for name in ("cpu-build", "gpu-build"):
        installs = re.findall(r"pip install [^&]*", " ".join(does(stages[name], "RUN")))
        assert installs
        for install in installs:
            assert "-c constraints.txt" in install or "grep '^torch==' constraints.txt" in install


def test_the_gpu_image_has_the_operators_of_deepspeed(stages):
    run = " ".join(does(stages["gpu-build"], "RUN"))
    for switch in ("DS_BUILD_OPS=0", "DS_BUILD_CPU_ADAM=1", "DS_BUILD_FUSED_ADAM=1"):
        assert switch in run
    # torch must be there already, and no wheel without the operators may be taken
    assert "--no-build-isolation --no-binary deepspeed" in run
    assert run.index("install --no-cache-dir -c constraints.txt torch") < run.index("DS_BUILD_OPS")
    assert "installed_ops" in run


def test_the_gpu_image_can_compile_the_launchers_of_triton(stages):
    assert "gcc libc6-dev" in " ".join(does(stages["gpu"], "RUN"))
    assert not does(stages["cpu"], "RUN")


@pytest.mark.parametrize(("stage", "place"), [("cpu", "image"), ("gpu", "gpu_image")])
def test_the_images_have_the_variables_and_no_root(stages, stage, place):
    (found,) = does(stages[stage], "ENV")
    assert dict(pair.split("=", 1) for pair in found.split()) == variables_for(place)
    assert does(stages[stage], "USER") == ["cil"]
    names = [name for name, _ in stages[stage]["do"]]
    assert set(names[names.index("USER") + 1 :]) <= {"CMD"}


def test_no_secret_is_in_a_file():
    files = [
        path for path in INFRA.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    assert len(files) > 20
    for path in [*files, ROOT / "ray_cluster.yaml"]:
        if path.suffix == ".env":  # what a user has made; git ignores it
            continue
        text = path.read_text()
        assert not re.search(r"(?i)(password|secret_access_key|token) *[=:] *[\w/+]{8,}", text)
        assert "AKIA" not in text


def test_a_job_has_the_variables():
    found = yaml.safe_load((INFRA / "runtime_env.yaml").read_text())["env_vars"]
    assert found == variables_for("job")


def test_the_table_of_variables_is_that_of_the_source():
    text = (INFRA / "README.md").read_text()
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| (.*?) \| (.*) \|$", text, re.MULTILINE)
    assert rows == [
        (
            variable.name,
            f"`{variable.value}`" if variable.value else "yours",
            ", ".join(sorted(variable.places)),
            variable.why,
        )
        for variable in VARIABLES
    ]


# -- locks ----------------------------------------------------------------------------------------


@pytest.fixture
def build(tmp_path):
    """Make the folder of a build with its lock; returns the lock."""

    def make(name, *, age_s, inside=""):
        folder = tmp_path / inside / name
        folder.mkdir(parents=True)
        moment = time.time() - age_s
        for file in ("lock", "build.ninja"):
            (folder / file).write_text("")
            os.utime(folder / file, (moment, moment))
        return folder / "lock"

    return make


def test_the_lock_of_a_killed_build_is_removed_with_a_warning(build, tmp_path, caplog):
    old, nested = build("cpu_adam", age_s=3600), build("ops", age_s=3600, inside="py311_cu130")
    assert sorted(remove_stale_locks(tmp_path)) == sorted([old, nested])
    assert not old.exists()
    assert (old.parent / "build.ninja").exists()
    assert "would have waited for it for ever" in caplog.text


def test_the_lock_of_a_build_that_goes_on_is_left(build, tmp_path):
    fresh, working = build("fresh", age_s=10), build("working", age_s=3600)
    (working.parent / "object.o").write_text("just written")
    assert remove_stale_locks(tmp_path) == []
    assert fresh.exists()
    assert working.exists()
    assert remove_stale_locks(tmp_path / "nothing") == []
