"""The null condition of a data set: the empty caption and a grey image, as its encoders make them.

In: a run's encoders. Out: ``null_condition.safetensors`` beside the first stage, for every data set
with texts. Training drops conditions to it and a model folder takes it along.
"""

import tempfile
from contextlib import suppress
from pathlib import Path

from cil.errors import DataError
from cil.models.null_condition import NULL_CONDITION_FILE, NullCondition
from pipelines.config import RunConfig
from pipelines.encoders import ConditionEncoders
from pipelines.model_settings import token_width
from pipelines.shards import load_manifest
from pipelines.storage import sha256_of_file
from pipelines.store import Store

__all__ = ["ensure_null_condition", "read_null_condition"]


def ensure_null_condition(config: RunConfig, store: Store) -> str | None:
    """Write the null condition of a data set with texts, if it is not there or damaged.

    Args:
        config: the run; the data set's identity holds its encoders, so what is there fits.
        store: where the data set is.

    Returns:
        The file's sha256, for the manifest; None for a data set without texts.
    """
    if config.condition.text_encoder is None:
        return None
    stated = _stated(store)
    if store.exists(NULL_CONDITION_FILE):
        with tempfile.TemporaryDirectory() as scratch, suppress(DataError):
            path = Path(scratch) / NULL_CONDITION_FILE
            path.write_bytes(store.read(NULL_CONDITION_FILE))
            NullCondition.read(path)
            found = sha256_of_file(path)
            if stated in (None, found):
                return found
    encoders = ConditionEncoders(config.condition, config.encode, token_width(config.model))
    null = encoders.null_condition()
    assert null is not None
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / NULL_CONDITION_FILE
        null.save(Path(scratch))
        made = sha256_of_file(path)
        store.put(path, NULL_CONDITION_FILE)
    return made


def read_null_condition(
    store: Store, cache: Path, *, sha256: str | None = None
) -> NullCondition | None:
    """Read the null condition of a data set; None where it has none.

    Args:
        store: where the data set is.
        cache: folder for what is read from a remote one.
        sha256: of the file, as the manifest states it; None for one that states none.

    Raises:
        DataError: it is missing or damaged.
    """
    place = store.url(NULL_CONDITION_FILE)
    if not store.exists(NULL_CONDITION_FILE):
        if sha256 is None:
            return None
        raise DataError(f"{place} is missing; run encode again to restore it")
    path = store.local(NULL_CONDITION_FILE, cache)
    if sha256 is not None:
        found = sha256_of_file(path)
        if found != sha256:
            raise DataError(
                f"{place} is damaged: its sha256 is {found}, the manifest states {sha256}; run "
                "encode again to restore it"
            )
    return NullCondition.read(path)


def _stated(store: Store) -> str | None:
    """Return the hash in the manifest; None without a manifest that can be read."""
    try:
        return load_manifest(store).null_condition
    except DataError:
        return None
