"""Real servers on this machine; all of them end with the tests."""

import pytest

from tests.servers.local_mlflow import running_mlflow
from tests.servers.local_postgres import running_postgres
from tests.servers.local_service import two_nights


@pytest.fixture(scope="session")
def postgres():
    """A database server."""
    with running_postgres() as made:
        yield made


@pytest.fixture(scope="session")
def registry(postgres, s3_endpoint, s3_client, tmp_path_factory):
    """MLflow's server, with users, on Postgres and S3."""
    s3_client.create_bucket(Bucket="mlflow-artifacts")
    folder = tmp_path_factory.mktemp("mlflow-server")
    with running_mlflow(folder, postgres, s3_endpoint, "mlflow-artifacts") as made:
        yield made


@pytest.fixture(scope="session")
def nights(registry, tmp_path_factory):
    """Two versions of a model, made by jobs on a cluster."""
    return two_nights(tmp_path_factory.mktemp("service"), registry)
