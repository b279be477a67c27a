"""Who may import whom, and how modules may be called; see ARCHITECTURE.md."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import pytest

import kernels

ROOT = Path(__file__).parents[2]
PACKAGES = ("cil", "kernels", "pipelines")
ENGINES = {"ray", "deepspeed", "mlflow", "peft"}
FORBIDDEN = {
    "cil": {*ENGINES, "triton", "pydantic", "tyro", "pipelines", "kernels"},
    "kernels": {*ENGINES, "cil", "pipelines"},
}
MLFLOW_PLACES = ("pipelines/tracking/", "pipelines/pyfunc_model.py")
NAMES_THAT_SAY_NOTHING = {"utils", "util", "common", "helpers", "helper", "misc"}
IMPORT_CALLS = {"import_module", "__import__"}


def violations(root: Path, dependencies: set[str]) -> list[str]:
    """Return one line for each rule that a file of the packages under ``root`` breaks."""
    found = []
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            for line, module in imported_modules(path, name):
                top = module.partition(".")[0]
                if top in FORBIDDEN.get(package, ()):
                    found.append(f"{name}:{line}: {package} must not import {top}")
                elif top == "mlflow" and not name.startswith(MLFLOW_PLACES):
                    found.append(f"{name}:{line}: only {list(MLFLOW_PLACES)} may import mlflow")
            for part in path.relative_to(root / package).with_suffix("").parts:
                if part in NAMES_THAT_SAY_NOTHING:
                    found.append(f"{name}: the name {part!r} says nothing")
                if part in dependencies:
                    found.append(f"{name}: {part!r} is also the name of a dependency")
    return found


def imported_modules(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """Yield (line, module) of every import in a file, however deep, also those by name."""
    parents = name.split("/")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((node.lineno, ".".join([*base, module])) for module in modules)
        elif isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
            first = node.args[0]
            if called in IMPORT_CALLS and isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)


@cache
def dependency_names() -> set[str]:
    """Return the import names of all that pyproject.toml lists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        lines += extra
    listed = {re.match(r"[A-Za-z0-9._-]+", line)[0].lower().replace("_", "-") for line in lines}
    listed.discard("conditional-image-leakage")
    return {
        module
        for module, distributions in packages_distributions().items()
        if listed & {name.lower().replace("_", "-") for name in distributions}
    }


def test_the_packages_keep_to_their_layers():
    assert violations(ROOT, dependency_names()) == []


def test_every_import_is_of_a_declared_dependency():
    known = dependency_names() | set(PACKAGES) | sys.stdlib_module_names
    undeclared = {
        f"{path.relative_to(ROOT).as_posix()}:{line}: {module}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for line, module in imported_modules(path, path.relative_to(ROOT).as_posix())
        if module.partition(".")[0] not in known
    }
    assert undeclared == set()


def test_the_names_of_dependencies_are_found():
    assert dependency_names() >= {"torch", "ray", "deepspeed", "mlflow", "triton", "yaml", "cv2"}


@pytest.mark.parametrize(
    ("file", "code", "complaint"),
    [
        ("cil/deep.py", "def f():\n    import ray\n", "cil/deep.py:2: cil must not import ray"),
        ("cil/x.py", "from ray.data import Dataset", "cil must not import ray"),
        ("cil/x.py", "if True:\n    import numpy, deepspeed.ops", "cil must not import deepspeed"),
        ("cil/x.py", "import triton.language as tl", "cil must not import triton"),
        ("cil/x.py", "def f():\n    from peft import LoraConfig", "cil must not import peft"),
        ("cil/x.py", "from pipelines import config", "cil must not import pipelines"),
        ("cil/x.py", "import kernels", "cil must not import kernels"),
        ("cil/x.py", "importlib.import_module('mlflow.pyfunc')", "cil must not import mlflow"),
        ("cil/x.py", "__import__('ray')", "cil must not import ray"),
        ("cil/models/x.py", "from ...kernels import y", "cil must not import kernels"),
        ("kernels/x.py", "from cil.rng import normal", "kernels must not import cil"),
        ("kernels/x.py", "import pipelines.config", "kernels must not import pipelines"),
        ("kernels/x.py", "import ray", "kernels must not import ray"),
        ("pipelines/train.py", "def f():\n    import mlflow", "may import mlflow"),
        ("pipelines/sub/tracking/x.py", "import mlflow", "may import mlflow"),
        ("pipelines/tracking.py", "import mlflow", "may import mlflow"),
        ("pipelines/deepspeed.py", "", "is also the name of a dependency"),
        ("pipelines/ray/x.py", "", "is also the name of a dependency"),
        ("cil/models/utils.py", "", "says nothing"),
        ("pipelines/common/x.py", "", "says nothing"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, file, code, complaint):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(code)
    (line,) = violations(tmp_path, dependency_names())
    assert complaint in line


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("pipelines/tracking/runs.py", "import mlflow"),
        ("pipelines/pyfunc_model.py", "import mlflow"),
        ("pipelines/train.py", "import ray, deepspeed, cil, kernels"),
        ("kernels/x.py", "import triton, torch"),
        ("cil/x.py", "from . import rng\nfrom cil import rng\nimport rayon\nray = 'import ray'"),
        ("cil/models/x.py", "from ..rng import normal"),
    ],
)
def test_what_is_allowed_is_not_reported(tmp_path, file, code):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(code)
    assert violations(tmp_path, dependency_names()) == []


def test_our_kernels_is_not_taken_for_the_other_distribution_of_that_name():
    """diffusers and transformers probe for it by its version; see docs/adr/0001."""
    assert not hasattr(kernels, "__version__")
    with pytest.raises(PackageNotFoundError):
        version("kernels")
