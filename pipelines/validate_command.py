"""`cil validate`: the validation of a checkpoint once more, by hand, in this process.

It gives the numbers that the training wrote down, as noise comes from the run's seed alone. Results
go to ``train/validation-by-hand``; nothing else of the run is touched.
"""

from pathlib import Path

from cil.errors import ConfigError
from pipelines.best_checkpoint import BEST_FOLDER, KEPT_FILES
from pipelines.checkpoint import damage_named
from pipelines.checkpoint_sums import check_sums
from pipelines.config import RunConfig
from pipelines.progress import console
from pipelines.report import RunReport, Stopwatch
from pipelines.side_launcher import one_thread_per_core
from pipelines.storage import read_json
from pipelines.train import TRAIN_FOLDER, train_identity
from pipelines.train_state import STATE_FILE, read_state
from pipelines.validation import validate

__all__ = ["run_command"]

_FOLDER = "validation-by-hand"


def run_command(config: RunConfig, *, checkpoint: str | None) -> RunReport:
    """Validate a checkpoint of a run.

    Args:
        config: settings of the training.
        checkpoint: its folder; None takes the best one, else the last.

    Returns:
        Paths and measures.

    Raises:
        ConfigError: there is no such checkpoint.
        DataError: there are no held-out clips, or the weights are damaged or of another run.
    """
    from pipelines.dataset import open_training_data

    watch = Stopwatch()
    train_folder = Path(config.output.dir) / TRAIN_FOLDER
    place = Path(checkpoint) if checkpoint else _choose(train_folder)
    missing = [name for name in KEPT_FILES if not (place / name).exists()]
    if missing:
        raise ConfigError(
            f"checkpoint must be a folder with {' and '.join(KEPT_FILES)}, {place} has no "
            f"{missing[0]}; give train/best of a run, or one of its checkpoints"
        )
    one_thread_per_core(config.validate)
    identity = train_identity(config, open_training_data(config).manifest.fingerprint)
    step = _step_of(place)
    folder = train_folder / _FOLDER / f"step-{step:06d}"
    console.print(f"validate: step {step}, {place}", markup=False)
    record = validate(config, checkpoint=place, identity=identity, folder=folder)
    return RunReport(
        stage="validate",
        reused=False,
        inputs={"checkpoint": str(place), "identity": identity, "n": record["n"]},
        outputs={"validation": str(folder)},
        metrics={name: value for name, value in record["metrics"].items() if "_bin_" not in name},
        seconds=watch.seconds(),
    )


def _step_of(checkpoint: Path) -> int:
    """Read which step a checkpoint is of, after comparing the file with its hash."""
    check_sums(checkpoint, name=STATE_FILE)
    with damage_named(checkpoint):
        return read_state(checkpoint).num_steps


def _choose(train_folder: Path) -> Path:
    best, report = train_folder / BEST_FOLDER, train_folder / "report.json"
    if not best.exists() and not report.exists():
        raise ConfigError(
            f"no training has finished in {train_folder}, and none of its checkpoints was "
            "validated; check --output.dir, or give --checkpoint"
        )
    if best.exists() or not report.exists():
        return best
    return Path(read_json(report)["outputs"]["checkpoint"])
