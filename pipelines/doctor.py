"""`cil doctor`: is everything here that a run needs? A line per check: ok, warn or fail.

Exit code 0 unless a check fails. With --json the result is one object on stdout.
"""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from cil.errors import CilError
from pipelines import tracking
from pipelines.config import RunConfig, dataset_of, environment, redact_uri
from pipelines.progress import console
from pipelines.remote import shown_url
from pipelines.source_state import source_options
from pipelines.sources import check_source
from pipelines.storage import check_writable
from pipelines.store import open_store

__all__ = ["Check", "run"]

_PACKAGES = (
    "torch",
    "ray",
    "deepspeed",
    "peft",
    "mlflow",
    "diffusers",
    "transformers",
    "safetensors",
    "decord",
    "av",
    "fsspec",
    "jinja2",
    "opencv-python-headless",
    "s3fs",
    "scenedetect-headless",
    "webdataset",
)
_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}
_FREE_GIB_WANTED = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """The result of one check."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    """What is there."""
    advice: str = ""
    """What to do about it; empty if ok."""


def run(config: RunConfig, *, as_json: bool) -> int:
    """Check the environment and what the configuration names.

    Args:
        config: whose folders, servers and cluster are checked.
        as_json: also print the result as JSON on stdout.

    Returns:
        Exit code: 1 if a check failed, else 0.
    """
    checks = [_python(), *_packages(), _hf_kernels(), _gpu(), _ffmpeg(), _ray(config)]
    checks.append(_disk(config))
    checks.append(_setting("output", config.output.dir, lambda: _writable(config)))
    if config.output.dataset is not None:
        checks.append(
            _setting(
                "dataset",
                shown_url(dataset_of(config)),
                lambda: open_store(dataset_of(config)).check_writable("output.dataset"),
            )
        )
    checks.append(
        _setting("mlflow", tracking.shown_uri(config), lambda: tracking.check_tracking(config))
    )
    if config.data.videos:
        checks.append(
            _setting(
                "videos",
                shown_url(config.data.videos),
                lambda: check_source(config.data.videos, source_options(config)),
            )
        )
    for check in checks:
        text = f"{check.name}: {check.found}" + (f"; {check.advice}" if check.advice else "")
        console.print(f"[{_STYLES[check.state]}]{check.state:<5}[/] ", end="")
        console.print(text, markup=False)
    if as_json:
        print(json.dumps({"doctor": [asdict(check) for check in checks]}))
    return int(any(check.state == "fail" for check in checks))


def _writable(config: RunConfig) -> None:
    check_writable(Path(config.output.dir), "output.dir")


def _setting(name: str, found: str, check: Callable[[], None]) -> Check:
    try:
        check()
    except CilError as error:
        return Check(name=name, state="fail", found=redact_uri(str(error)))
    return Check(name=name, state="ok", found=found)


def _python() -> Check:
    found = sys.version.split()[0]
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
        return Check(name="python", state="ok", found=found)
    return Check(name="python", state="fail", found=found, advice="use Python 3.11 or 3.12")


def _packages() -> list[Check]:
    checks = []
    for name in _PACKAGES:
        try:
            checks.append(Check(name=name, state="ok", found=version(name)))
        except PackageNotFoundError:
            advice = "run `make setup`, or pip install -e '.[pipelines]' -c constraints.txt"
            checks.append(Check(name=name, state="fail", found="not installed", advice=advice))
    return checks


def _hf_kernels() -> Check:
    """Another distribution owns the import name `kernels`; both together break diffusers."""
    try:
        found = version("kernels")
    except PackageNotFoundError:
        return Check(name="kernels", state="ok", found="ours")
    return Check(
        name="kernels",
        state="fail",
        found=f"the distribution `kernels` {found} is installed",
        advice="pip uninstall kernels: its import name is our package's",
    )


def _gpu() -> Check:
    if find_spec("torch") is None:
        return Check(name="gpu", state="warn", found="unknown without torch")
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return Check(
            name="gpu", state="ok", found=f"{torch.cuda.device_count()} x {', '.join(names)}"
        )
    return Check(
        name="gpu",
        state="warn",
        found="none",
        advice="the tiny family trains on the CPU; real models need GPUs (train.use_gpu)",
    )


def _ffmpeg() -> Check:
    if find_spec("av") is None:
        return Check(name="ffmpeg", state="fail", found="PyAV is missing", advice="make setup")
    import av

    libraries = ".".join(str(part) for part in av.library_versions["libavcodec"])
    return Check(name="ffmpeg", state="ok", found=f"libavcodec {libraries}, inside PyAV")


def _ray(config: RunConfig) -> Check:
    address = config.cluster.address or environment("RAY_ADDRESS")
    if not address:
        return Check(name="ray", state="ok", found="a local cluster is started for each command")
    from pipelines.runtime import ray_session

    try:
        with ray_session(config.cluster):
            import ray

            resources = ray.cluster_resources()
    except CilError as error:
        return Check(name="ray", state="fail", found=redact_uri(str(error)))
    found = f"{resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU at {address}"
    return Check(name="ray", state="ok", found=found)


def _disk(config: RunConfig) -> Check:
    folder = Path(config.output.dir).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    if free >= _FREE_GIB_WANTED:
        return Check(name="disk", state="ok", found=f"{free:.0f} GiB free at {folder}")
    advice = "checkpoints and shards need room; choose another output.dir"
    return Check(name="disk", state="warn", found=f"{free:.1f} GiB free", advice=advice)
