"""What is said of an error of MLflow."""

import mlflow
import pytest
import sqlalchemy.exc

from cil.errors import StageError
from pipelines.tracking.client import explained, reason_of, sent

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

TOO_LONG = sqlalchemy.exc.DataError(
    "UPDATE model_versions\nSET description=%(d)s",
    {"d": "secret text"},
    ValueError("value too long for type character varying(5000)\n"),
)
TOO_LONG.add_detail("raised as a result of Query-invoked autoflush; consider a block")


@pytest.mark.parametrize("prefix", ["", "BAD_REQUEST: "])
def test_the_reason_is_told_and_not_the_statement(prefix):
    error = mlflow.MlflowException(f"{prefix}{TOO_LONG}")
    said = "value too long for type character varying(5000)"
    assert reason_of(error) == f"(builtins.ValueError) {said}"
    with (
        pytest.raises(StageError, match="failed while describing") as raised,
        explained("describing", "sqlite:///x.db"),
    ):
        raise error
    assert said in str(raised.value)
    assert "autoflush" not in str(raised.value)


def test_a_reason_of_several_lines_is_its_first_line_without_secrets():
    error = ValueError("cannot reach postgresql://me:hunter2@db/x\n\n\tIs the server running?\n")
    assert reason_of(error) == "cannot reach postgresql://me:***@db/x"
    assert len(reason_of(ValueError("x" * 9000))) < 400
    assert reason_of(ValueError()) == "ValueError"


def test_what_was_not_sent_is_said_with_the_reason(tmp_path, caplog):
    def send(_):
        raise mlflow.MlflowException(str(TOO_LONG))

    assert not sent(f"sqlite:///{tmp_path}/mlflow.db", send, "a tag")
    assert "a tag not sent" in caplog.text
    assert "value too long" in caplog.text
