"""Files that are no settings: one message each, soon, and in little memory."""

import time

import pytest

from cil.errors import ConfigError, DataError
from pipelines.config import load_config, redact_uri, validate_config
from pipelines.records import ClipRecord, Manifest, ShardEntry
from pipelines.shown_text import shortened
from pipelines.yaml_file import read_mapping


def bomb(depth):
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, depth)]
    return "\n".join([*lines, f"data: {{fps: *a{depth - 1}}}"]).encode()


STRANGE = {
    "aliases that multiply": (bomb(40), "its aliases stand for too much"),
    "a list in itself": (b"data: &a [*a]", "an alias leads back to what it is in"),
    "a mapping in itself": (b"&a {data: *a}", "an alias leads back to what it is in"),
    "too large": (b"#" * (2**18 + 1), "has more than 256 KiB"),
    "too large, and binary": (b"\xff" * (2**18 + 1), "has more than 256 KiB"),
    "binary": (b"\xff\xfe", "cannot read the config file"),
    "a month that is none": (b"seed: 2024-13-45", "a value cannot be read (ValueError: month"),
    "a number that is none": (b"seed: 0x_", "a value cannot be read (ValueError: "),
    "a number of many digits": (b"seed: " + b"9" * 5000, "a value cannot be read (ValueError: "),
    "a boolean that is none": (b"seed: !!bool x", "a value cannot be read (KeyError: "),
    "an empty number": (b"seed: !!int ''", "a value cannot be read (IndexError: "),
    "no time": (b"seed: !!timestamp x", "a value cannot be read (AttributeError: "),
    "too deep": (b"[" * 5000, "nested too deeply"),
    "an object": (b"a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
    "two documents": (b"a: 1\n---\nb: 2", "expected a single document"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_it_is_refused_with_a_reason(tmp_path, what):
    content, reason = STRANGE[what]
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        read_mapping(path)
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 3000
    assert time.monotonic() - started < 10


def test_aliases_that_do_not_multiply_are_used(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\nd: [*a, *a]\n")
    same = {"x": 1}
    assert read_mapping(path) == {"a": same, "b": same, "c": {"x": 1, "y": 2}, "d": [same, same]}


def test_a_name_that_no_file_has():
    with pytest.raises(ConfigError, match="cannot read the config file 'a\\\\x00b'"):
        read_mapping("a\0b")


def test_a_long_value_is_cut_and_a_strange_key_cannot_move_the_cursor():
    with pytest.raises(ConfigError) as caught:
        validate_config({"data": {"fps": "9x" * 10_000}, "da\x1b[2Jta\nerror: x": 1}, source="here")
    head, *lines = str(caught.value).splitlines()
    assert head == "here has 2 mistakes:"
    assert len(lines) == 2
    assert all(len(line) < 1000 for line in lines)
    assert "(20002 characters)" in lines[0] + lines[1]
    assert "\x1b" not in str(caught.value)
    assert shortened("plain\ntext") == "plain\ntext"


def test_a_password_is_hidden_before_its_uri_is_cut():
    secret = "secret" * 100
    with pytest.raises(ConfigError) as caught:
        validate_config({"seed": f"https://me:{secret}@host/x", "data": 5}, source="here")
    assert "https://me:***@host/x" in str(caught.value)
    assert "secret" not in shortened(f"see s3://key:{secret}@bucket and more")


def test_a_message_describes_fifty_mistakes_and_counts_all():
    with pytest.raises(ConfigError) as caught:
        validate_config({f"k{n}": n for n in range(3000)}, source="here")
    lines = str(caught.value).splitlines()
    assert lines[0] == "here has 3000 mistakes:"
    assert len(lines) == 52
    assert lines[-1] == "  and 2950 more"


def test_true_is_no_number_in_a_list(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: {block_out_channels: [true, 64]}\nevaluate: {analytic_init: [true]}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    (line,) = str(caught.value).splitlines()[1:]
    assert line == "  model.block_out_channels.0: must not be true or false, got True"


def test_a_long_text_of_marks_is_looked_at_once():
    started = time.monotonic()
    for text in ("://" * 80_000, "://" * 80_000 + "@", "?a" * 100_000, "x://u:p@" * 30_000):
        redact_uri(text)
    assert time.monotonic() - started < 5


# -- records --------------------------------------------------------------------------------------

ENTRY = {"name": "shard-000000", "generation": 0, "bucket": "8x8x2", "count": 1, "sha256": "a"}
ENTRY["num_bytes"] = 4096


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("count", "1", "count must be int, got '1'"),
        ("count", True, "count must be int, got True"),
        ("count", 1.0, "count must be int, got 1.0"),
        ("name", None, "name must be str, got None"),
        ("bucket", ["x"], "bucket must be str"),
        ("sha256", 7, "sha256 must be str, got 7"),
    ],
)
def test_a_field_of_another_type_is_named(field, value, message):
    with pytest.raises(DataError) as caught:
        ShardEntry.from_json({**ENTRY, field: value})
    assert f"not a ShardEntry: {message}" in str(caught.value)


@pytest.mark.parametrize("raw", [None, [], "text", 5])
def test_a_record_is_a_mapping(raw):
    with pytest.raises(DataError, match="not a ClipRecord: got "):
        ClipRecord.from_json(raw)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": [{**ENTRY, "bucket": "9x9x9"}]}, "of the bucket '9x9x9'"),
        ({"shards": [{**ENTRY, "count": -1}]}, "-1 clips in 4096 bytes"),
        ({"shards": [{**ENTRY, "num_bytes": 2**60}]}, "1 clips in"),
        ({"shards": [5]}, "shards must be list"),
        ({"buckets": {"8x8x2": {}}}, "latents_shape of '8x8x2' is None"),
        ({"buckets": {"8x8x2": {"latents_shape": [2, 3, 4]}}}, "latents_shape of"),
        ({"buckets": {"8x8x2": {"latents_shape": [2, 3, 4, -4]}}}, "latents_shape of"),
        ({"totals": {"clips": "many"}}, "totals must be dict"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(changes, message):
    whole = {
        "format_version": 2,
        "fingerprint": "x",
        "identity": {},
        "identity_hash": "x",
        "buckets": {"8x8x2": {"latents_shape": [2, 3, 4, 4], "clips": 1}},
        "shards": [ENTRY],
        "totals": {"clips": 1},
        "quarantined_by_stage": {},
        "dropped_by_reason": {},
    }
    assert Manifest.from_json(whole).entries()[0].count == 1
    with pytest.raises(DataError) as caught:
        Manifest.from_json({**whole, **changes})
    assert message in str(caught.value)
