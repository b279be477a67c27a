"""What `pip install .` installs: every file of the packages, the pages of the reports too."""

import subprocess
import sys
import zipfile
from pathlib import Path
from shutil import copytree, ignore_patterns

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cil", "kernels", "pipelines")
ROOT_FILES = ("pyproject.toml", "README.md", "LICENSE")


def test_the_wheel_holds_every_file_of_the_packages(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for package in PACKAGES:
        copytree(ROOT / package, source / package, ignore=ignore_patterns("__pycache__", "*.pyc"))
    for name in ROOT_FILES:
        (source / name).write_bytes((ROOT / name).read_bytes())
    files = {
        path.relative_to(source).as_posix()
        for package in PACKAGES
        for path in (source / package).rglob("*")
        if path.is_file()
    }

    pip_wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    out = ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run([*pip_wheel, *out], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert files == held
    assert any(name.endswith(".html") for name in held)
