"""`cil export`: one checkpoint of a training becomes a model folder, on one process.

In: the folder of a run and the name of a committed checkpoint. Out: a model folder as training
writes at its end, safetensors and JSON only. The training may still be running.
Run: `cil export --output.dir build/demo/run --out build/exported`.
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cil.errors import ConfigError, DataError
from cil.models import ImageToVideoModel
from pipelines.committed import (
    RAY_FOLDER,
    CommittedCheckpoint,
    committed_checkpoints,
    other_trainings,
    run_name,
)
from pipelines.config import RunConfig, load_config
from pipelines.consolidate import averaged_weights, live_weights
from pipelines.dataset import TrainingData, open_training_data
from pipelines.engine import choose_trainable
from pipelines.model_folder import build_model, write_model
from pipelines.progress import console
from pipelines.report import RunReport, Stopwatch
from pipelines.storage import check_writable, hash_of_folder, sha256_of_file, temporary_beside
from pipelines.train import TRAIN_FOLDER, train_identity

__all__ = ["export_checkpoint", "list_checkpoints", "run_command"]

_EPILOG = """\
examples:
  cil export --output.dir build/demo/run --list
  cil export --output.dir build/demo/run --out build/exported
  cil export --output.dir build/demo/run --checkpoint NAME --out build/exported --json
  cil export --output.dir build/run --layout original --out build/model.safetensors

--weights live reads DeepSpeed's own files, which are pickles (torch.load without weights_only), and
a pickle can run code. Files that name anything but tensors and a few classes of DeepSpeed are
refused before they are read; still, take it for checkpoints of your own only. --weights ema reads
safetensors.
"""


def run_command(words: Sequence[str], *, description: str) -> RunReport:
    """Parse the command line, then export or list.

    Args:
        words: arguments after ``cil export``.
        description: what the command does, for its help.

    Raises:
        ConfigError: --out is missing, or holds something.
        DataError: no such run or checkpoint, or a damaged one.
    """
    parser = argparse.ArgumentParser(
        prog="cil export",
        description=f"{description}. Also: --json, --debug.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        *("--output.dir", "--output-dir"),
        dest="run",
        metavar="RUN",
        required=True,
        type=Path,
        help="folder of the run, as it was given to train",
    )
    parser.add_argument(
        "--output.dataset",
        dest="dataset",
        metavar="PLACE",
        help="where the run's data set is, if it has moved",
    )
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="new or empty folder")
    parser.add_argument(
        "--checkpoint",
        metavar="NAME",
        help="name or folder of a committed checkpoint; without it the last one",
    )
    parser.add_argument(
        "--weights",
        choices=["ema", "live"],
        default="ema",
        help="the average of the weights (default), or the weights themselves, which are in "
        "pickles, see below",
    )
    parser.add_argument(
        "--layout",
        choices=["folder", "original"],
        default="folder",
        help="a model folder (default); or one .safetensors or .ckpt file with the names of the "
        "published checkpoint, for dynamicrafter and videocrafter1",
    )
    parser.add_argument(
        "--list", action="store_true", help="show the committed checkpoints and stop"
    )
    given = parser.parse_args(list(words))
    if given.list:
        return list_checkpoints(given.run, dataset=given.dataset)
    if given.out is None:
        raise ConfigError("cil export needs --out FOLDER, or --list; see cil export --help")
    return export_checkpoint(
        given.run,
        given.out,
        checkpoint=given.checkpoint,
        live=given.weights == "live",
        original=given.layout == "original",
        dataset=given.dataset,
    )


def list_checkpoints(run: Path, *, dataset: str | None = None) -> RunReport:
    """Show what the last training in a run's folder has committed.

    Args:
        run: folder of the run.
        dataset: where its data set is, if it has moved.

    Raises:
        DataError: no training has begun there, or the list of checkpoints is damaged.
    """
    watch = Stopwatch()
    _, _, identity, found = _opened(run, dataset)
    for each in found:
        average = "ema, live" if each.has_average else "live"
        last = "  (last)" if each.last else ""
        text = f"{each.name}  step {each.num_steps}  {each.written}  {average}{last}"
        console.print(text, markup=False)
    return RunReport(
        stage="export",
        reused=False,
        inputs={"identity": identity},
        outputs={
            "checkpoints": [
                {
                    "name": each.name,
                    "path": str(each.path),
                    "step": each.num_steps,
                    "written": each.written,
                    "weights": ["ema", "live"] if each.has_average else ["live"],
                    "last": each.last,
                }
                for each in found
            ]
        },
        metrics={"checkpoints": float(len(found))},
        seconds=watch.seconds(),
    )


def export_checkpoint(
    run: Path,
    out: Path,
    *,
    checkpoint: str | None = None,
    live: bool = False,
    original: bool = False,
    dataset: str | None = None,
) -> RunReport:
    """Write a model folder, or the published file, from a checkpoint, whole or not at all.

    Args:
        run: folder of the run.
        out: a new folder, or an empty one; a new file with ``original``.
        checkpoint: name or folder of a committed checkpoint; None takes the last one.
        live: take the weights themselves, from DeepSpeed's pickles, not their average.
        original: write one file with the names of the published checkpoint.
        dataset: where the run's data set is, if it has moved.

    Raises:
        ConfigError: ``out`` holds something, or cannot be written.
        DataError: no such run or checkpoint, or a damaged one.
    """
    watch = Stopwatch()
    _check_file(out) if original else _check_empty(out)
    config, data, identity, found = _opened(run, dataset, needs_last=checkpoint is None)
    chosen = _choose(found, checkpoint, run, identity)
    if chosen.config_hash != identity:
        raise DataError(
            f"{chosen.path} was written with other settings than {run / TRAIN_FOLDER} has now"
        )
    model = build_model(config, data.largest)
    trained = choose_trainable(config.train, model)
    if live:
        names = [name for name, _ in model.network.named_parameters() if name in trained]
        weights = live_weights(chosen.path, names, zero_stage=config.train.zero_stage)
    else:
        weights = averaged_weights(chosen.path)
    wrong = sorted(trained ^ set(weights))
    if wrong:
        raise DataError(
            f"{chosen.path} must hold the parameters that are trained; {len(wrong)} are missing or "
            f"too many, the first is {wrong[0]}"
        )
    size = sum(value.nbytes for value in model.network.state_dict().values())
    console.print(f"export: writing {size / 2**20:.1f} MiB to {out}", markup=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    if original:
        _write_original(model, out, weights)
    else:
        write_model(model, out, weights)
    digest = sha256_of_file(out) if original else hash_of_folder(out)
    return RunReport(
        stage="export",
        reused=False,
        inputs={
            "identity": identity,
            "checkpoint": str(chosen.path),
            "weights": "live" if live else "ema",
        },
        outputs={"model": str(out), "model_sha256": digest},
        metrics={"steps": float(chosen.num_steps)},
        seconds=watch.seconds(),
    )


def _opened(
    run: Path, dataset: str | None, *, needs_last: bool = False
) -> tuple[RunConfig, TrainingData, str, tuple[CommittedCheckpoint, ...]]:
    """Find a run's settings, data set, identity and checkpoints."""
    saved = run / TRAIN_FOLDER / "config.yaml"
    if not saved.exists():
        raise DataError(f"{run} has no training: {saved} is not there; run train first")
    config = load_config(saved)
    config = replace(
        config,
        output=replace(config.output, dir=str(run), dataset=dataset or config.output.dataset),
    )
    data = open_training_data(config)
    identity = train_identity(config, data.manifest.fingerprint)
    found = committed_checkpoints(_ray_folder(run, identity), needs_last=needs_last)
    return config, data, identity, found


def _ray_folder(run: Path, identity: str) -> Path:
    return run / TRAIN_FOLDER / RAY_FOLDER / run_name(identity)


def _choose(
    found: Sequence[CommittedCheckpoint], asked: str | None, run: Path, identity: str
) -> CommittedCheckpoint:
    if not found:
        others = other_trainings(_ray_folder(run, identity))
        note = (
            ". Other settings, another data set or another version of this program trained "
            f"{others}: export that as it was then"
        )
        raise DataError(
            f"the training in {run} has committed no checkpoint yet, or its data set has changed "
            f"since; train writes one every train.checkpoint_every steps{note if others else ''}"
        )
    if asked is None:
        return next((each for each in found if each.last), found[-1])
    for each in found:
        if asked == each.name or Path(asked).resolve() == each.path.resolve():
            return each
    raise DataError(
        f"{asked} is no committed checkpoint of this run; there are: "
        f"{', '.join(each.name for each in found)}"
    )


def _write_original(
    model: ImageToVideoModel, out: Path, weights: Mapping[str, torch.Tensor]
) -> None:
    """Write the model folder beside the file, join it, and remove it."""
    from cil.models.checkpoint_files import write_checkpoint
    from cil.models.lvdm_import import original_lvdm

    folder = temporary_beside(out)
    try:
        write_model(model, folder, weights)
        write_checkpoint(out, original_lvdm(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_file(out: Path) -> None:
    if out.suffix not in (".safetensors", ".ckpt"):
        raise ConfigError(
            f"--out: with --layout original give a .safetensors or .ckpt file, got {out}"
        )
    if out.exists():
        raise ConfigError(f"--out: {out} is there already; choose a new file")
    check_writable(out.parent, "--out")


def _check_empty(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"--out: {out} is not empty; choose a new folder")
    check_writable(out, "--out")
    check_writable(out.parent, "--out")
