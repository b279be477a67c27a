"""A newcomer: a fresh clone, and the commands of docs/quickstart.md as they stand, in their order.

What is changed: `make demo` is `make demo-quick`, paths of the demo follow it, and a run on own
videos gets few steps. The environment is not installed again: `.venv` is made as `make setup` would
leave it, with the packages of this environment and the code of the clone.
"""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FEW = "--train.num-steps 4 --train.warmup-steps 1 --train.checkpoint-every 4"
FEW += " --validate.num-videos 0 --evaluate.num-clips 2 --evaluate.num-steps 2"
FEW += " --sample.num-steps 2 --sample.num-videos 1"
ELSEWHERE = {
    "mlflow ui": "a server that stays; it is started by test_observability and others",
    "cil submit": "needs a cluster; test_submit starts one",
}
SCRIPT = "import sys\nfrom pipelines.__main__ import main\nsys.exit(main())\n"


def shell_lines():
    """The commands of the page, in their order."""
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    text = "\n".join(BLOCK.findall(page)).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip()]


def smaller(line):
    """The same command for the quick demo."""
    line = line.replace("make demo", "make demo-quick").replace("build/demo/", "build/demo-quick/")
    return f"{line} {FEW}" if line.startswith("cil run ") else line


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone of what is committed, with an environment that has everything but our own code."""
    folder = tmp_path_factory.mktemp("newcomer") / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    venv = folder / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "newcomer.pth").write_text(f"{folder}\n{sysconfig.get_path('purelib')}\n")
    cil = venv / "bin" / "cil"
    cil.write_text(f"#!{venv}/bin/python\n{SCRIPT}")
    cil.chmod(0o755)
    (venv / ".installed").touch()  # newer than pyproject.toml: make has nothing to install
    return folder


@pytest.fixture(scope="module")
def shell(clone):
    """Run a line as a newcomer does: bash, in the clone, with the environment activated."""
    home = clone.parent / "home"
    home.mkdir()
    keep = ("PATH", "LANG", "TMPDIR", "OMP_NUM_THREADS")
    clean = {name: os.environ[name] for name in keep if name in os.environ}

    def run(line):
        return subprocess.run(
            ["bash", "-c", f"source .venv/bin/activate; {line}"],
            cwd=clone,
            env={**clean, "HOME": str(home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=1500,
            check=False,
        )

    run.home = home
    return run


def test_the_quickstart_works_as_it_is_written(clone, shell):
    where = shell("python -c 'import pipelines; print(pipelines.__file__)'").stdout.strip()
    assert Path(where).is_relative_to(clone), where
    run = []
    for line in shell_lines():
        if line.startswith(tuple(ELSEWHERE)):
            continue
        done = shell(smaller(line))
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        assert "Traceback" not in done.stderr, line
        run.append(line)
        if line.startswith("make demo"):  # a newcomer's own videos, where the page says they are
            clips = clone / "build" / "demo-quick" / "videos"
            (shell.home / "clips").symlink_to(clips)
    assert {shlex.split(line)[1] for line in run if line.startswith("cil ")} >= {
        *("doctor", "plan", "run", "verify", "train", "sample", "export")
    }
    for made in (
        *("build/demo-quick/leak/report.html", "build/demo-quick/run/sample/sample.gif"),
        *("build/demo-quick/run/sweep/report.html", "build/clips/dataset/report.html"),
        *("video.mp4", "video.gif", "build/exported/model.json"),
    ):
        assert (clone / made).stat().st_size > 0, made
    status = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"],
        cwd=clone,
        capture_output=True,
        text=True,
        check=True,
    )
    assert status.stdout == "", "the newcomer has edited nothing"
