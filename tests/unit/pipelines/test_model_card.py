"""The card of a version, in a real registry."""

import dataclasses
from pathlib import Path

import pytest

from pipelines.config import RunConfig
from pipelines.gate.config import GateConfig
from pipelines.gate.rules import Measured, decide
from pipelines.model_card import CARD_FILE, publish_model_card
from pipelines.settings import CardConfig, OutputConfig, TrackingConfig
from pipelines.tracking.client import client_of, store_of_process
from pipelines.tracking.versions import version_of

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cards")
    return RunConfig(
        tracking=TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", model_name="cards"),
        card=CardConfig(weights_license="Apache-2.0", data_license="<b>odd</b> | two\nlines"),
        output=OutputConfig(dir=str(folder)),
    )


@pytest.fixture(scope="module")
def version(config):
    uri = config.tracking.uri
    client = client_of(uri)
    place = Path(config.output.dir, "artifacts").as_uri()
    run = client.create_run(client.create_experiment("cards", artifact_location=place))
    with store_of_process(uri):
        client.create_registered_model("cards")
        client.create_model_version(
            "cards", "file:///nowhere", run_id=run.info.run_id, tags={"family": "tiny"}
        )
    return version_of(config, "1")


def test_the_card_is_the_description_and_an_artifact(config, version, tmp_path):
    path = publish_model_card(config, version, tmp_path / CARD_FILE, parent="7")
    text = path.read_text()
    client = client_of(config.tracking.uri)
    assert client.get_model_version("cards", "1").description == text
    assert [item.path for item in client.list_artifacts(version.run_id)] == [CARD_FILE]
    assert "# cards, version 1" in text
    assert "| Began from | version 7 |" in text
    assert "| Licence of the weights | Apache-2.0 |" in text
    assert "| Contact | not stated |" in text
    assert "No gate has judged this version." in text


def test_what_people_write_cannot_break_the_table(config, version, tmp_path):
    text = publish_model_card(config, version, tmp_path / CARD_FILE).read_text()
    (line,) = [line for line in text.splitlines() if "Licence of the training data" in line]
    assert line == "| Licence of the training data | &lt;b>odd&lt;/b> \\| two lines |"


def test_the_gates_decision_stands_on_it_with_numbers(config, version, tmp_path):
    bounded = dataclasses.replace(GateConfig(), max_motion_error=1.0)
    measured = [Measured(name="motion_error", challenger=2.0, n=8)]
    decision = decide(measured, bounded, champion=None)
    text = publish_model_card(config, version, tmp_path / CARD_FILE, decision=decision).read_text()
    assert "**Refused** against its bounds." in text
    assert "| motion_error | failed | motion error 2 is above its bound 1 |" in text
    assert "| alignment_mse | failed | alignment error is missing: it was not taken |" in text


@pytest.mark.parametrize("limits", ["é" * 6000, "one line\n" * 700])
def test_a_long_card_is_cut_for_the_description_alone(config, version, tmp_path, limits):
    long = dataclasses.replace(config, card=CardConfig(limitations=limits, description="a\0b"))
    text = publish_model_card(long, version, tmp_path / CARD_FILE).read_text()
    assert limits in text
    shown = client_of(config.tracking.uri).get_model_version("cards", "1").description
    assert len(shown) <= 5000, "the column in Postgres; sqlite takes more"
    assert shown.splitlines()[-1] == "the rest is in model_card.md"
    kept = shown.removesuffix("\n\nthe rest is in model_card.md")
    assert text.replace("\0", "").startswith(kept)
    assert "\0" not in shown


def test_the_files_of_the_run_and_its_commit_stand_on_it(config, version, tmp_path):
    (tmp_path / "leak report.html").write_text("x")
    client = client_of(config.tracking.uri)
    client.log_artifact(version.run_id, str(tmp_path / "leak report.html"))
    text = publish_model_card(config, version, tmp_path / CARD_FILE).read_text()
    assert "- [leak report.html](leak%20report.html)" in text
    assert CARD_FILE not in text
    assert "| Code | not stated |" in text
    tags = {**version.tags, "git_commit": "c0ffee", "git_dirty": "true"}
    known = dataclasses.replace(version, tags=tags)
    text = publish_model_card(config, known, tmp_path / CARD_FILE).read_text()
    assert "| Code | commit c0ffee, with changes |" in text
