import json

import pytest

from cil.errors import DataError
from pipelines.records import ClipRecord, QuarantineRecord, ShardEntry, VideoRecord
from pipelines.shards import read_sidecar

VIDEO = VideoRecord(
    name="a/b.mp4",
    version="5:1",
    num_bytes=5,
    sha256="0" * 64,
    caption="a boat",
    probe={"container": "mp4", "codec": "h264", "decoder": "pyav"},
    scan={"clips": [], "reason": "too short"},
    refused=None,
)


def test_records_go_to_json_and_back(small_shards, tmp_path):
    manifest = small_shards.dataset(tmp_path)
    quarantined = QuarantineRecord(
        path="a.mp4",
        sha256=None,
        stage="read",
        decoder=None,
        exception="OSError",
        message="gone",
        attempts=1,
    )
    sidecar = read_sidecar(tmp_path, "shard-000000")
    records = [VIDEO, small_shards.clip(0).record, small_shards.spec(), manifest, quarantined]
    records += [sidecar, *manifest.entries()]
    for record in records:
        text = json.dumps(record.to_json(), allow_nan=False)
        assert type(record).from_json(json.loads(text)) == record


def test_missing_and_unknown_fields_are_named():
    raw = VIDEO.to_json()
    raw["colour"] = raw.pop("num_bytes")
    words = r"not a VideoRecord: missing=\['num_bytes'\], extra=\['colour'\].*another version"
    with pytest.raises(DataError, match=words):
        VideoRecord.from_json(raw)


def test_a_records_json_is_a_copy(small_shards):
    """Changing what was given out must not change the record."""
    spec = small_shards.spec()
    spec.to_json()["inputs"][0]["path"] = "other"
    assert spec.inputs[0]["path"] == "aaaa.mp4"


def test_the_manifest_lists_its_shards_in_order(small_shards, tmp_path):
    entries = small_shards.dataset(tmp_path, counts=(1, 2)).entries()
    assert all(isinstance(entry, ShardEntry) for entry in entries)
    assert [(entry.name, entry.count) for entry in entries] == [
        ("shard-000000", 1),
        ("shard-000001", 2),
    ]


def test_a_caption_is_optional():
    names = ClipRecord.__dataclass_fields__
    assert names["caption"].default is None
