"""The kernels run on a CPU in Triton's interpreter, in both versions of Triton.

The interpreter has to be chosen before Triton is imported, so each version runs the checks of
``interpreted/`` in a process of its own. The second version is installed beside the environment
by `make setup`.
"""

import os
import subprocess
import sys
from pathlib import Path

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


def run_checks(*options, path=()):
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([*map(str, path), str(ROOT)]),
        "OMP_NUM_THREADS": "1",  # two threads that wait for each other are many times slower
    }
    checks = sorted(str(file) for file in CHECKS.glob("check_*.py"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *checks],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_the_checks_hold_in_the_installed_triton():
    run_checks()


def test_the_checks_hold_in_the_other_triton():
    """3.6 is what torch 2.11 brings; its interpreter and compiler differ from 3.7's."""
    assert (OTHER_FOLDER / "triton").is_dir(), (
        f"no Triton {OTHER} in {OTHER_FOLDER}; run `make setup`, or "
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
    chosen = " and ".join(f"not {name}" for name in ONCE_IS_ENOUGH)
    run_checks("-k", chosen, path=[OTHER_FOLDER])


def test_an_operator_on_a_cpu_does_not_import_triton():
    code = (
        "import sys, torch, kernels.fused as k\n"
        "x = torch.ones(1, 1, 1, 2, 2)\n"
        "k.training_input(x, x, key=k.make_key(1, 2), sample_ids=torch.tensor([3]),"
        " scales=torch.ones(1, 5), level=torch.ones(1))\n"
        "assert 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True)
