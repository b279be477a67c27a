"""The kernels run on a CPU in Triton's interpreter, in both versions of Triton.

The interpreter has to be chosen before Triton is imported, so each version runs the checks of
``interpreted/`` in a process of its own. The second version is installed beside the environment
by `make test`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CHECKS = Path(__file__).parent / "interpreted"
OTHER = "3.6.0"
OTHER_FOLDER = Path(os.environ.get("CIL_OTHER_TRITON", f"{sys.prefix}/triton-{OTHER}"))
ONCE_IS_ENOUGH = (
    "statistics_see_that",
    "without_int64",
    "every_word",
    "any_strides",
    "at_most_twice",
)
"""What does not depend on the version, or nearly so: mutations and error bounds."""


class Checks:
    """The checks in a process of their own, which runs while other tests do."""

    def __init__(self, log, *options, path=()):
        environment = {
            **os.environ,
            "TRITON_INTERPRET": "1",
            "PYTHONPATH": os.pathsep.join([*map(str, path), str(ROOT)]),
            "OMP_NUM_THREADS": "1",  # two threads that wait for each other are many times slower
        }
        files = sorted(str(file) for file in CHECKS.glob("check_*.py"))
        self._log = log
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *files],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def assert_passed(self):
        code = self._process.wait(timeout=900)
        output = self._log.read_text()
        assert code == 0, output
        assert " passed" in output
        assert "skipped" not in output

    def stop(self):
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
    """Both versions at once: each is one thread of Python."""
    folder = tmp_path_factory.mktemp("checks")
    chosen = " and ".join(f"not {name}" for name in ONCE_IS_ENOUGH)
    running = {
        "installed": Checks(folder / "installed.log"),
        "other": Checks(folder / "other.log", "-k", chosen, path=[OTHER_FOLDER]),
    }
    yield running
    for process in running.values():
        process.stop()


def test_the_other_triton_is_there():
    """3.6 is what torch 2.11 brings; its interpreter and compiler differ from 3.7's."""
    assert (OTHER_FOLDER / "triton").is_dir(), (
        f"no Triton {OTHER} in {OTHER_FOLDER}; run `make test`, or "
        f"pip install --no-deps --target {OTHER_FOLDER} triton=={OTHER}"
    )
    asked = subprocess.run(
        [sys.executable, "-c", "import triton; print(triton.__version__, triton.__file__)"],
        env={**os.environ, "PYTHONPATH": str(OTHER_FOLDER)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert asked.split() == [OTHER, str(OTHER_FOLDER / "triton" / "__init__.py")]


@pytest.mark.parametrize("version", ["installed", "other"])
def test_the_checks_hold(version, checks):
    checks[version].assert_passed()


def test_an_operator_on_a_cpu_does_not_import_triton():
    code = (
        "import sys, torch, kernels.fused as k\n"
        "x = torch.ones(1, 1, 1, 2, 2)\n"
        "k.training_input(x, x, key=k.make_key(1, 2), sample_ids=torch.tensor([3]),"
        " scales=torch.ones(1, 5), level=torch.ones(1))\n"
        "assert 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True)
