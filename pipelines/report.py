"""What a stage returns: paths, counts, durations. Saved as JSON beside the stage's output."""

import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cil.errors import DataError
from pipelines.storage import read_json, write_json

__all__ = ["RunReport", "Stopwatch", "versions"]

_VERSIONED = (
    "torch",
    "ray",
    "deepspeed",
    "peft",
    "mlflow",
    "diffusers",
    "decord",
    "av",
    "opencv-python-headless",
    "scenedetect-headless",
    "s3fs",
    "webdataset",
)

_KINDS: dict[str, Any] = {
    "stage": str,
    "reused": bool,
    "inputs": dict,
    "outputs": dict,
    "metrics": dict,
    "seconds": int | float,
}


def versions() -> dict[str, str]:
    """Return the versions of the libraries that decide results."""
    return {name: version(name) for name in _VERSIONED}


class Stopwatch:
    """Wall seconds since it was made."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def seconds(self) -> float:
        """Return the seconds since the start, to a hundredth."""
        return round(time.monotonic() - self._started, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunReport:
    """The result of a stage."""

    stage: str
    """Name of the stage."""
    reused: bool
    """True if everything was there already and nothing was done."""
    inputs: dict[str, Any]
    """What it worked on."""
    outputs: dict[str, Any]
    """Paths and fingerprints of what it made."""
    metrics: dict[str, float]
    """Counts and measures."""
    seconds: float
    """Wall time in seconds."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    def save(self, path: Path) -> None:
        """Write the report; a stage that reused its output leaves the first report in place."""
        if self.reused and path.exists():
            return
        write_json(path, {**self.to_json(), "versions": versions()})

    @classmethod
    def load(cls, path: Path) -> "RunReport":
        """Read a saved report.

        Raises:
            DataError: it is damaged.
        """
        raw = read_json(path)
        fields = raw if isinstance(raw, dict) else {}
        for name, kind in _KINDS.items():
            if not isinstance(fields.get(name), kind):
                raise DataError(
                    f"{path} is damaged: {name} is missing or of another type; delete it"
                )
        return cls(**{name: fields[name] for name in _KINDS})
