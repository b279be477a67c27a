"""Hashes of a training checkpoint's files: a flipped bit in weights would go unnoticed otherwise.

Each rank notes the sha256 of the files that it wrote, in ``sha256/rankN.json``. On resume the ranks
share the files of all; what reads a single file checks that one. Checkpoints of older versions have
no hashes and are read as they are.
"""

from collections.abc import Iterable
from pathlib import Path

from cil.errors import DataError
from pipelines.storage import read_json, sha256_of_file, write_json
from pipelines.train_state import STATE_FILE

__all__ = ["check_sums", "copy_sums", "instead_of", "write_sums"]

_FOLDER = "sha256"


def write_sums(folder: Path, rank: int) -> None:
    """Hash all files of this rank's part of a checkpoint.

    Args:
        folder: this rank's temporary folder.
        rank: number of this worker.

    Raises:
        OSError: a file cannot be read, or the hashes cannot be written.
    """
    own = folder / _FOLDER
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.parent != own)
    sums = {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in files}
    write_json(own / f"rank{rank}.json", {"files": sums})


def copy_sums(source: Path, target: Path, names: Iterable[str]) -> None:
    """Note the hashes of some files beside a copy of them; nothing, if the checkpoint has none.

    Args:
        source: the checkpoint.
        target: folder of the copies.
        names: the files, as paths in the checkpoint.

    Raises:
        DataError: the hashes are damaged.
        OSError: they cannot be written.
    """
    known = _sums_of(source)
    kept = {name: known[name] for name in names if name in known}
    if kept:
        write_json(target / _FOLDER / "rank0.json", {"files": kept})


def check_sums(folder: Path, *, name: str | None = None, part: int = 0, num_parts: int = 1) -> None:
    """Compare files of a checkpoint with their hashes.

    Args:
        folder: the checkpoint.
        name: the only file to check, as a path in the checkpoint; None checks all.
        part: number of this worker, which checks one share of the files.
        num_parts: workers that share them.

    Raises:
        DataError: a file is missing or is not what was written.
    """
    wanted = _sums_of(folder)
    if name is not None:
        wanted = {each: sha256 for each, sha256 in wanted.items() if each == name}
    chosen = sorted(wanted)[part::num_parts]
    for each in chosen:
        path = folder / each
        if not path.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{folder / _FOLDER} names {each!r}, which is not in the checkpoint")
        found = sha256_of_file(path) if path.is_file() else "no file"
        if found != wanted[each]:
            raise DataError(
                f"the checkpoint in {folder} is damaged: {each} was written with the sha256 "
                f"{wanted[each]}, now it has {found}{instead_of(folder)}"
            )


def instead_of(folder: Path) -> str:
    """Say what to do without a checkpoint that is damaged: the end of a message.

    Args:
        folder: the checkpoint. Those beside it are not compared with their hashes here.
    """
    others = sorted(
        path.parent
        for path in folder.parent.glob(f"checkpoint_*/{STATE_FILE}")
        if path.parent.name != folder.name
    )
    if not others:
        return (
            "; restore it from a backup, or give another one as --checkpoint (cil export --list "
            "names them); only without any, choose another output.dir to start again"
        )
    names = ", ".join(path.name for path in others)
    text = f". There are also {names}: cil export takes one as --checkpoint NAME, cil validate its "
    text += f"folder in {folder.parent}"
    if others[-1].name < folder.name:
        text += (
            f". To go on from {others[-1].name} instead, delete {folder} and run the same command "
            "again"
        )
    return text


def _sums_of(folder: Path) -> dict[str, str]:
    """Read the hashes of all files of a checkpoint; none, if an older version wrote it."""
    known: dict[str, str] = {}
    for sums in sorted((folder / _FOLDER).glob("rank*.json")):
        found = read_json(sums)
        files = found.get("files") if isinstance(found, dict) else None
        if not isinstance(files, dict):
            raise DataError(f"{sums} is damaged: it lists no files{instead_of(folder)}")
        known.update(files)
    return known
