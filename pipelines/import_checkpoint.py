"""`cil import`: a published checkpoint becomes a model folder, which `model.pretrained` takes.

In: one file of weights. Out: a model folder, safetensors and JSON only, whole or not at all.
Run: `cil import dynamicrafter model.ckpt --tokenizer clip/tokenizer --out build/dynamicrafter`.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cil.errors import ConfigError
from pipelines.import_settings import typed_settings
from pipelines.progress import console
from pipelines.report import RunReport, Stopwatch
from pipelines.storage import (
    check_writable,
    hash_of_folder,
    replace_folder,
    sha256_of_file,
    temporary_beside,
)

__all__ = ["import_checkpoint", "run_command"]

_EPILOG = """\
examples:
  cil import dynamicrafter model.ckpt --tokenizer stable-diffusion/tokenizer --out build/512
  cil import dynamicrafter model.ckpt --tokenizer clip --settings 1024.yaml --out build/1024
  cil import videocrafter1 model.ckpt --tokenizer clip --out build/videocrafter1

Nothing is downloaded, and a file that holds anything but tensors is refused. --settings is a YAML
mapping of settings of the model (height, width, ...) and of its network by published names; unset,
they are those of the published models of 512 pixels.
"""


def run_command(words: Sequence[str], *, description: str) -> RunReport:
    """Parse the command line and import.

    Args:
        words: arguments after ``cil import``.
        description: what the command does, for its help.

    Raises:
        ConfigError: --out holds something, or settings of another type or that do not fit.
        DataError: the checkpoint cannot be used.
    """
    from cil.models.lvdm_import import LVDM_SETTINGS

    parser = argparse.ArgumentParser(
        prog="cil import",
        description=f"{description}. Also: --json, --debug.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("family", choices=sorted(LVDM_SETTINGS), help="family of the checkpoint")
    parser.add_argument("checkpoint", type=Path, help="the published file")
    parser.add_argument(
        "--out", metavar="FOLDER", type=Path, required=True, help="new or empty folder"
    )
    parser.add_argument(
        "--tokenizer", metavar="FOLDER", type=Path, help="CLIP's tokenizer; no checkpoint holds it"
    )
    parser.add_argument("--settings", metavar="FILE", type=Path, help="YAML, see below")
    parser.add_argument(
        "--weights",
        choices=["live", "ema"],
        default="live",
        help="the weights themselves (default), or their averages where the file has some",
    )
    given = parser.parse_args(list(words))
    return import_checkpoint(
        given.family,
        given.checkpoint,
        given.out,
        tokenizer=given.tokenizer,
        settings=_settings(given.settings),
        averages=given.weights == "ema",
    )


def import_checkpoint(
    family: str, checkpoint: Path, out: Path, *, settings: dict[str, Any], **options: Any
) -> RunReport:
    """Write a model folder, whole or not at all.

    Args:
        family: of the checkpoint.
        checkpoint: the file.
        out: a new folder, or an empty one.
        settings: of the model and its network.
        **options: of `cil.models.lvdm_import.import_lvdm`.
    """
    from cil.models.lvdm_import import import_lvdm

    watch = Stopwatch()
    settings = typed_settings(family, settings, source="--settings")
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"--out: {out} is not empty; choose a new folder")
    check_writable(out.parent, "--out")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(out)
    try:
        import_lvdm(family, checkpoint, temporary, settings=settings, **options)
        replace_folder(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    console.print(f"import: {checkpoint} is now the {family} model in {out}", markup=False)
    return RunReport(
        stage="import",
        reused=False,
        inputs={"checkpoint": str(checkpoint), "checkpoint_sha256": sha256_of_file(checkpoint)},
        outputs={"model": str(out), "model_sha256": hash_of_folder(out)},
        metrics={},
        seconds=watch.seconds(),
    )


def _settings(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--settings: cannot read {path}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--settings: {path} must hold a mapping, got {type(values).__name__}")
    return values
