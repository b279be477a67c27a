"""The bytes of a data set depend on the videos and settings alone."""

import json

import pytest

from tests.unit.pipelines.encode.data_set_files import changed, contents, shards


@pytest.mark.parametrize(
    ("settings", "backwards"),
    [
        ({"encode": {"num_workers": 7, "decoders_per_worker": 3}}, True),
        ({"decode": {"backend": "pyav", "max_attempts": 1}, "train": {"num_steps": 9}}, False),
    ],
)
def test_the_bytes_do_not_depend_on_who_writes_them_and_when(
    encoded_run, run_encode, tmp_path, settings, backwards
):
    config = changed(encoded_run.config, **settings, output={"dir": str(tmp_path / "run")})
    run_encode(config, backwards=backwards)
    assert contents(tmp_path / "run" / "dataset") == contents(encoded_run.dataset)


def test_shards_of_several_buckets_do_not_depend_on_the_order_either(mixed, run_encode, tmp_path):
    config = changed(
        mixed.config,
        encode={"decoders_per_worker": 2},
        output={"dir": str(tmp_path / "run")},
    )
    run_encode(config, backwards=True)
    assert contents(tmp_path / "run" / "dataset") == contents(mixed.dataset)


def test_a_stopped_run_goes_on_and_gives_the_same_bytes(copied, run_encode, encoded_run):
    (copied.dataset / "manifest.json").unlink()
    before = shards(copied.dataset)
    (copied.dataset / "shards" / "shard-000001.json").unlink()
    (copied.dataset / "shards" / ".shard-000001.tar.1.tmp").write_bytes(b"half")
    log = []
    assert not run_encode(copied.config, log).reused
    assert [json.loads(row["spec"])["name"] for doing, row in log if doing == "encoding"] == [
        "shard-000001"
    ]
    expected, found = contents(encoded_run.dataset), contents(copied.dataset)
    del expected["inventory.jsonl"], found["inventory.jsonl"]  # has the times of the copied files
    assert found == expected
    after = shards(copied.dataset)
    untouched = [name for name in before if name.startswith("shard-000000")]
    assert {name: after[name] for name in untouched} == {name: before[name] for name in untouched}
