"""The null condition of a data set: the empty caption and a grey image, as its encoders make them.

In: a run's encoders. Out: ``null_condition.safetensors`` beside the first stage, for every data set
with texts. Training drops conditions to it and a model folder takes it along.
"""

import tempfile
from pathlib import Path

from cil.models.null_condition import NULL_CONDITION_FILE, NullCondition
from pipelines.config import RunConfig
from pipelines.encoders import ConditionEncoders
from pipelines.model_settings import token_width
from pipelines.store import Store

__all__ = ["ensure_null_condition", "read_null_condition"]


def ensure_null_condition(config: RunConfig, store: Store) -> None:
    """Write the null condition of a data set with texts, if it is not there.

    Args:
        config: the run; the data set's identity holds its encoders, so what is there fits.
        store: where the data set is.
    """
    if config.condition.text_encoder is None or store.exists(NULL_CONDITION_FILE):
        return
    encoders = ConditionEncoders(config.condition, config.encode, token_width(config.model))
    null = encoders.null_condition()
    assert null is not None
    with tempfile.TemporaryDirectory() as scratch:
        null.save(Path(scratch))
        store.put(Path(scratch) / NULL_CONDITION_FILE, NULL_CONDITION_FILE)


def read_null_condition(store: Store, cache: Path) -> NullCondition | None:
    """Read the null condition of a data set; None where it has none.

    Args:
        store: where the data set is.
        cache: folder for what is read from a remote one.

    Raises:
        DataError: it is damaged.
    """
    if not store.exists(NULL_CONDITION_FILE):
        return None
    return NullCondition.read(store.local(NULL_CONDITION_FILE, cache))
