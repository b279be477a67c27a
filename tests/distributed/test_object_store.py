"""Videos in, data set out, both in an object store that is reached over HTTP."""

import json
import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def store(s3, s3_endpoint, cil) -> dict[str, str]:
    """Put the small videos into the bucket; return the environment that reaches it."""
    for path in sorted(cil.videos.iterdir()):
        s3.put(f"clips/{path.name}", path.read_bytes())
    return {
        **os.environ,
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def run(cil, store, name: str, *arguments: str) -> dict:
    command = cil.command(name, *arguments, "--json")
    done = subprocess.run(
        command, env=store, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "not-a-secret" not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])[name]


def test_the_same_bytes_in_a_bucket_as_in_a_folder(cil, store, s3, tmp_path):
    local = cil.run("encode", tmp_path / "local")["encode"]
    settings = ["--config", str(cil.config), "--data.videos", s3.url("clips")]
    settings += ["--output.dataset", s3.url("set"), "--output.dir", str(tmp_path / "remote")]
    remote = run(cil, store, "encode", *settings)
    assert remote["outputs"]["fingerprint"] == local["outputs"]["fingerprint"]
    folder = tmp_path / "local" / "dataset"
    for path in sorted((folder / "shards").iterdir()):
        assert s3.get(f"set/shards/{path.name}") == path.read_bytes()
    written = s3.keys()
    assert not [key for key in written if ".tmp" in key]
    assert run(cil, store, "encode", *settings)["reused"]
    assert run(cil, store, "verify", s3.url("set"))["outputs"]["faults"] == []
    trained = run(cil, store, "train", *settings, "--train.num-steps", "2")
    assert trained["metrics"]["steps"] == 2


def test_a_killed_encode_goes_on_in_the_bucket(cil, store, s3, tmp_path):
    settings = ["--config", str(cil.config), "--data.videos", s3.url("clips")]
    settings += ["--output.dataset", s3.url("set"), "--output.dir", str(tmp_path / "remote")]
    whole = run(cil, store, "encode", *settings)
    written = s3.keys()
    expected = {key: s3.get(key) for key in written if key.startswith("set/shards/")}
    s3.client.delete_object(Bucket=s3.bucket, Key="set/manifest.json")
    s3.client.delete_object(Bucket=s3.bucket, Key="set/shards/shard-000001.json")
    s3.put("set/shards/shard-000001.tar", b"cut")
    again = run(cil, store, "encode", *settings)
    assert again["outputs"]["fingerprint"] == whole["outputs"]["fingerprint"]
    assert {key: s3.get(key) for key in expected} == expected
    assert Path(tmp_path / "remote").exists()
