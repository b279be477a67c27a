"""Aliases and their history in a real store."""

import dataclasses

import pytest

from cil.errors import ConfigError, StageError
from pipelines import promotion
from pipelines.config import RunConfig
from pipelines.promotion import CHAMPION, GATE_TAG, PREVIOUS, promote, roll_back
from pipelines.settings import OutputConfig, TrackingConfig
from pipelines.tracking import versions
from pipelines.tracking.client import client_of

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry")
    return RunConfig(
        tracking=TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db"),
        output=OutputConfig(dir=str(folder)),
    )


@pytest.fixture
def config(store, request):
    """A model of its own with three versions that the gate has passed."""
    name = request.node.name[:60].replace("[", "-").replace("]", "")
    config = dataclasses.replace(
        store, tracking=dataclasses.replace(store.tracking, model_name=name)
    )
    client = client_of(config.tracking.uri)
    client.create_registered_model(name)
    for _ in range(3):
        made = client.create_model_version(name, "file:///nowhere", tags={GATE_TAG: "passed"})
        versions.move_alias(config, "challenger", str(made.version))
    return config


def aliases(config):
    found = {}
    for each in versions.versions_of(config):
        found |= dict.fromkeys(each.aliases, each.version)
    return found


def lines(config):
    return [(e["action"], e["version"], e["previous"]) for e in versions.history(config)]


def test_a_model_that_is_not_there_has_nothing(store):
    assert versions.versions_of(store) == []
    assert versions.aliased(store, CHAMPION) is None
    assert versions.history(store) == []
    with pytest.raises(StageError, match="has no version 7"):
        versions.version_of(store, "7")
    with pytest.raises(ConfigError, match="has no champion, so there is nothing to roll back to"):
        roll_back(store, reason="why not")


def test_promotions_and_rollbacks_move_the_aliases_and_are_written_down(config):
    move = promote(config, "1", reason="the first")
    assert (move.version, move.previous, move.done_before) == ("1", None, False)
    assert aliases(config) == {CHAMPION: "1", "challenger": "3"}
    promote(config, "2", reason="better")
    move = promote(config, "3", reason="better still", evidence="run 5")
    assert move.previous == "2"
    assert aliases(config) == {CHAMPION: "3", PREVIOUS: "2"}, "the challenger has become champion"
    move = roll_back(config, reason="users complain")
    assert (move.version, move.previous) == ("2", "3")
    assert aliases(config) == {CHAMPION: "2", PREVIOUS: "1"}
    assert versions.version_of(config, "3").tags[GATE_TAG] == "rolled back"
    roll_back(config, reason="and more")
    assert aliases(config) == {CHAMPION: "1"}
    with pytest.raises(ConfigError, match="has no previous_champion"):
        roll_back(config, reason="again")
    assert lines(config) == [
        ("promote", "1", None),
        ("promote", "2", "1"),
        ("promote", "3", "2"),
        ("rollback", "2", "3"),
        ("rollback", "1", "2"),
    ]
    assert versions.history(config)[2]["evidence"] == "run 5"
    assert versions.history(config)[3]["reason"] == "users complain"


def test_promoting_the_champion_again_changes_nothing(config):
    promote(config, "1", reason="x")
    promote(config, "2", reason="x")
    assert promote(config, "2", reason="x").done_before
    assert aliases(config) == {CHAMPION: "2", PREVIOUS: "1", "challenger": "3"}
    assert len(lines(config)) == 2


@pytest.mark.parametrize("tag", ["pending", "refused", "rolled back"])
def test_what_no_gate_has_passed_is_promoted_only_by_force(config, tag):
    versions.tag_version(config, "2", {GATE_TAG: tag})
    with pytest.raises(ConfigError, match=rf"has not passed the gate \(tag gate: {tag}\)"):
        promote(config, "2", reason="x")
    assert aliases(config) == {"challenger": "3"}
    promote(config, "2", reason="I have looked at it", force=True)
    assert aliases(config)[CHAMPION] == "2"


class Killed(BaseException):
    pass


STEPS = ("move_alias", "remove_alias", "tag_version", "add_history")


def killed_at(monkeypatch, count):
    """Let the ``count``-th step that writes be the last one that is done."""
    done = []
    with monkeypatch.context() as patch:
        for name in STEPS:
            real = getattr(versions, name)

            def step(*args, real=real, **kwargs):
                if len(done) == count:
                    raise Killed
                done.append(real(*args, **kwargs))

            patch.setattr(promotion, name, step)
        yield


@pytest.mark.parametrize("count", range(4))
def test_a_killed_promotion_leaves_a_champion_and_is_completed(config, monkeypatch, count):
    promote(config, "1", reason="x")
    versions.move_alias(config, "challenger", "2")
    for _ in killed_at(monkeypatch, count):
        with pytest.raises(Killed):
            promote(config, "2", reason="x")
    assert aliases(config)[CHAMPION] in ("1", "2")
    promote(config, "2", reason="x")
    assert aliases(config) == {CHAMPION: "2", PREVIOUS: "1"}
    assert lines(config) == [("promote", "1", None), ("promote", "2", "1")]


@pytest.mark.parametrize("count", range(4))
def test_a_killed_rollback_leaves_a_champion_and_is_completed(config, monkeypatch, count):
    for version in ("1", "2", "3"):
        promote(config, version, reason="x")
    for _ in killed_at(monkeypatch, count):
        with pytest.raises(Killed):
            roll_back(config, reason="x")
    assert aliases(config)[CHAMPION] in ("2", "3")
    roll_back(config, reason="x")
    assert aliases(config) == {CHAMPION: "2", PREVIOUS: "1"}
    assert lines(config)[-1] == ("rollback", "2", "3")
    assert len(lines(config)) == 4
