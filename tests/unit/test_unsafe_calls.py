"""Nothing in the packages runs what a file or a string says: no pickle, no shell, no eval."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "os.popen",
    "os.system",
    "yaml.full_load",
    "yaml.load",
    "yaml.unsafe_load",
}
FORBIDDEN_IMPORTS = {"cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
FORBIDDEN_ARGUMENTS = {("weights_only", False), ("shell", True), ("allow_pickle", True)}


def unsafe(code: str) -> Iterator[str]:
    """Yield what in a piece of code could run foreign code."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN_IMPORTS)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in FORBIDDEN_IMPORTS:
                yield str(node.module)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            constants = [k for k in node.keywords if isinstance(k.value, ast.Constant)]
            given = {keyword.arg: keyword.value.value for keyword in constants}
            if called in FORBIDDEN_CALLS:
                yield called
            if called == "torch.load" and given.get("weights_only") is not True:
                yield "torch.load without weights_only=True"
            for name, value in FORBIDDEN_ARGUMENTS:
                if name in given and given[name] is value:
                    yield f"{name}={value}"


def test_the_packages_have_no_unsafe_call():
    found = {
        path.relative_to(ROOT).as_posix(): calls
        for package in ("cil", "kernels", "pipelines")
        for path in sorted((ROOT / package).rglob("*.py"))
        if (calls := list(unsafe(path.read_text(encoding="utf-8"))))
    }
    assert found == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import cloudpickle as cp",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "model.load(path, weights_only=False)",
        "yaml.load(text)",
        "subprocess.run(command, shell=True)",
        "np.load(path, allow_pickle=True)",
        "os.system('ls')",
        "eval(text)",
    ],
)
def test_a_planted_unsafe_call_is_found(code):
    assert len(list(unsafe(code))) >= 1


@pytest.mark.parametrize(
    "code",
    ["torch.load(path, weights_only=True)", "yaml.safe_load(text)", "run(command, shell=False)"],
)
def test_a_safe_call_is_not_reported(code):
    assert list(unsafe(code)) == []
