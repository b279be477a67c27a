"""Fixtures of all tests: an S3 server on this machine."""

import contextlib
import io
import logging
import uuid
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class S3:
    """A fresh bucket on a server that speaks S3 over HTTP, and boto's own client to look at it."""

    client: object
    bucket: str

    def url(self, key=""):
        """URL of a key in the bucket."""
        return f"s3://{self.bucket}/{key}" if key else f"s3://{self.bucket}"

    def put(self, key, content=b""):
        """Write an object that may also be read without credentials."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=content, ACL="public-read")

    def get(self, key):
        """Read an object."""
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def keys(self):
        """Keys of all objects, sorted."""
        found = self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return sorted(item["Key"] for item in found)


@pytest.fixture(scope="session")
def s3_endpoint():
    """Address of an S3 server that lives as long as the tests."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    with contextlib.redirect_stdout(io.StringIO()):
        server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint, monkeypatch):
    """A fresh bucket, and an environment in which s3:// leads to it."""
    import boto3
    import s3fs

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE", "FSSPEC_S3_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    yield S3(client, bucket)
    s3fs.S3FileSystem.clear_instance_cache()
