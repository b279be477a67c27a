"""Which checkpoints a run may resume from."""

from dataclasses import replace

import pytest

from cil.errors import DataError
from pipelines.checkpoint import TrainState

STATE = TrainState(seed=1, world_size=2, config_hash="aaaa", manifest_fingerprint="bbbb")


def test_progress_may_differ():
    STATE.require_same_run(replace(STATE, num_steps=7, num_clips_seen=56))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 2),
        ("world_size", 4),
        ("config_hash", "cccc"),
        ("manifest_fingerprint", "dddd"),
        ("format_version", 99),
    ],
)
def test_another_run_is_refused_with_both_values(name, value):
    with pytest.raises(DataError) as caught:
        STATE.require_same_run(replace(STATE, **{name: value}))
    message = str(caught.value)
    assert f"{name} is {value} there and {getattr(STATE, name)} here" in message
