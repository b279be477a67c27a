"""The inventory and the plan of a small real data set, damaged in every way.

Encoding begins from both. A damaged inventory holds nothing, so its videos are scanned again; a
damaged plan is refused, as it says which clips are in which shard. Neither is ever half believed.
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cil.errors import CilError
from pipelines.dataset_identity import PLAN_NAME, refuse_other_identity, settings_identity
from pipelines.scan import INVENTORY_NAME, known_records
from pipelines.source_state import planned
from pipelines.store import open_store
from tests.unit.pipelines.fuzz.test_fuzzed_dataset import other_bytes, other_json, profile

QUICK, SLOW = 300, 5000


@pytest.fixture
def store(encoded_run, tmp_path):
    """A place with the two files of a data set, and nothing else."""
    there, made = open_store(str(encoded_run.dataset)), open_store(str(tmp_path / "dataset"))
    for name in (INVENTORY_NAME, PLAN_NAME):
        made.write(name, there.read(name))
    return made


@st.composite
def other_lines(draw, content):
    """An inventory of which one line is another: its JSON, all of it, or none."""
    lines = content.splitlines(keepends=True)
    at = draw(st.integers(0, len(lines) - 1))
    how = draw(st.sampled_from(["change", "drop", "twice", "swap"]))
    if how == "change":
        lines[at] = draw(other_json(lines[at]))[0] + b"\n"
    elif how == "drop":
        del lines[at]
    elif how == "twice":
        lines.insert(at, lines[at])
    else:
        lines[at], lines[-1] = lines[-1], lines[at]
    return b"".join(lines)


def known(store, run):
    return {name: record.to_json() for name, record in known_records(store, run.config).items()}


def check_inventory(store, run, in_time, whole, damaged):
    """Nothing of a damaged inventory is believed; a change of blanks or of the limits is none."""
    store.write(INVENTORY_NAME, damaged)
    with in_time():
        found = known(store, run)
    if damaged.partition(b"\n")[2] != whole.partition(b"\n")[2]:
        assert found == {}
    else:
        assert found in ({}, known_without_limits(store, run, whole))


def known_without_limits(store, run, whole):
    """What an inventory gives that was made with other limits of decoding, or with the same."""
    store.write(INVENTORY_NAME, whole)
    return known(store, run)


def check_plan(store, run, in_time, whole, damaged):
    store.write(PLAN_NAME, damaged)
    try:
        with in_time():
            refuse_other_identity(store, settings_identity(run.config))
            found = [spec.to_json() for spec in planned(store)]
    except CilError:
        return
    assert found == json.loads(whole)["shards"]


def examples(count, store, run, in_time):
    inventory, plan = store.read(INVENTORY_NAME), store.read(PLAN_NAME)
    others = st.one_of(other_lines(inventory), other_bytes(inventory))
    profile(count)(given(others)(lambda it: check_inventory(store, run, in_time, inventory, it)))()
    others = st.one_of(other_json(plan).map(lambda made: made[0]), other_bytes(plan))
    profile(count)(given(others)(lambda it: check_plan(store, run, in_time, plan, it)))()


def test_a_damaged_plan_or_inventory_is_refused_or_changes_nothing(encoded_run, store, in_time):
    assert len(known(store, encoded_run)) > 5
    assert planned(store)
    examples(QUICK, store, encoded_run, in_time)


@pytest.mark.slow
def test_much_damage_of_plan_and_inventory(encoded_run, store, in_time):
    examples(SLOW, store, encoded_run, in_time)


def test_files_of_before_the_hashes_are_read(encoded_run, store):
    inventory, plan = store.read(INVENTORY_NAME), json.loads(store.read(PLAN_NAME))
    before = known(store, encoded_run), planned(store)
    header, _, lines = inventory.partition(b"\n")
    old = {key: value for key, value in json.loads(header).items() if key != "records_sha256"}
    store.write(INVENTORY_NAME, json.dumps(old).encode() + b"\n" + lines)
    del plan["fingerprint"]
    store.write(PLAN_NAME, json.dumps(plan).encode())
    assert (known(store, encoded_run), planned(store)) == before
