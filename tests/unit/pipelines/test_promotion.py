"""Aliases and their history in a real store."""

import dataclasses
import itertools

import pytest

from cil.errors import ConfigError, StageError
from pipelines import promotion
from pipelines.config import RunConfig
from pipelines.promotion import CHAMPION, GATE_TAG, PREVIOUS, next_rollback, promote, roll_back
from pipelines.settings import OutputConfig, TrackingConfig
from pipelines.tracking import moves, versions
from pipelines.tracking.client import client_of

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry")
    return RunConfig(
        tracking=TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db"),
        output=OutputConfig(dir=str(folder)),
    )


@pytest.fixture
def config(store):
    """A model of its own with three versions that the gate has passed."""
    name = f"model-{next(NUMBERS)}"
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


SOME = [pytest.param(n, marks=() if n in (2, 3) else pytest.mark.slow) for n in range(6)]
"""The steps beside the champion's own alias; each takes a second."""
STEPS = ("begin_move", "move_alias", "remove_alias", "judge_version", "add_history", "end_move")


def killed_at(monkeypatch, count):
    """Let the ``count``-th step that writes be the last one that is done."""
    done = []
    with monkeypatch.context() as patch:
        for name in STEPS:
            real = getattr(promotion, name)

            def step(*args, real=real, **kwargs):
                if len(done) == count:
                    raise Killed
                done.append(real(*args, **kwargs))

            patch.setattr(promotion, name, step)
        yield


@pytest.mark.parametrize("count", range(6))
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


@pytest.mark.parametrize("count", range(6))
def test_a_killed_rollback_leaves_a_champion_and_is_completed(config, monkeypatch, count):
    for version in ("1", "2", "3"):
        promote(config, version, reason="x")
    for _ in killed_at(monkeypatch, count):
        with pytest.raises(Killed):
            roll_back(config, reason="x")
    assert aliases(config)[CHAMPION] in ("2", "3")
    assert next_rollback(config) == "2"
    roll_back(config, reason="x")
    assert aliases(config) == {CHAMPION: "2", PREVIOUS: "1"}
    assert versions.version_of(config, "3").tags[GATE_TAG] == "rolled back"
    assert lines(config)[-1] == ("rollback", "2", "3")
    assert len(lines(config)) == 4


@pytest.mark.parametrize("count", SOME)
def test_a_rollback_after_a_killed_promotion_leaves_the_champion_that_is_there(
    config, monkeypatch, count
):
    promote(config, "1", reason="x")
    promote(config, "2", reason="x")
    versions.move_alias(config, "challenger", "3")
    for _ in killed_at(monkeypatch, count):
        with pytest.raises(Killed):
            promote(config, "3", reason="x")
    bad = aliases(config)[CHAMPION]
    good = {"2": "1", "3": "2"}[bad]
    assert next_rollback(config) == good
    move = roll_back(config, reason="x")
    assert (move.version, move.previous) == (good, bad)
    assert aliases(config)[CHAMPION] == good
    assert versions.version_of(config, bad).tags[GATE_TAG] == "rolled back"
    promoted = [("promote", "1", None), ("promote", "2", "1"), ("promote", "3", "2")]
    assert lines(config) == [*promoted[: int(bad)], ("rollback", good, bad)]
    assert moves.move_under_way(config) is None


@pytest.mark.parametrize("count", SOME)
def test_a_promotion_after_a_killed_rollback_knows_what_was_done(config, monkeypatch, count):
    promote(config, "1", reason="x")
    promote(config, "2", reason="x")
    for _ in killed_at(monkeypatch, count):
        with pytest.raises(Killed):
            roll_back(config, reason="x")
    before = aliases(config)[CHAMPION]
    promote(config, "3", reason="x")
    assert aliases(config) == {CHAMPION: "3", PREVIOUS: before}
    done = [("rollback", "1", "2")] if before == "1" else []
    assert lines(config)[2:] == [*done, ("promote", "3", before)]


def test_a_champion_that_is_its_own_predecessor_goes_back_by_the_history(config):
    for version in ("1", "2", "3"):
        promote(config, version, reason="x")
    versions.move_alias(config, PREVIOUS, "3")
    assert roll_back(config, reason="x").version == "2"
    assert aliases(config) == {CHAMPION: "2", PREVIOUS: "1"}
    assert lines(config)[3:] == [("rollback", "2", "3")]


def test_a_rollback_of_which_only_the_champion_has_moved_is_completed(config):
    for version in ("1", "2", "3"):
        promote(config, version, reason="x")
    versions.tag_version(config, "3", {GATE_TAG: "rolled back"})
    versions.move_alias(config, CHAMPION, "2")
    move = roll_back(config, reason="x")
    assert (move.version, move.previous) == ("2", "3")
    assert aliases(config) == {CHAMPION: "2", PREVIOUS: "1"}


def test_aliases_that_were_set_by_hand_can_be_rolled_back_without_a_history(config, monkeypatch):
    versions.move_alias(config, CHAMPION, "2")
    versions.move_alias(config, PREVIOUS, "1")
    for _ in killed_at(monkeypatch, 2):
        with pytest.raises(Killed):
            roll_back(config, reason="x")
    assert roll_back(config, reason="x").version == "1"
    assert aliases(config) == {CHAMPION: "1", "challenger": "3"}
    assert lines(config) == [("rollback", "1", "2")]
    versions.move_alias(config, PREVIOUS, "1")
    with pytest.raises(ConfigError, match=r"no champion before version 1 .* nothing to roll back"):
        roll_back(config, reason="x")
    assert aliases(config)[CHAMPION] == "1"


def test_a_rollback_never_returns_to_what_was_rolled_back(config):
    for version in ("1", "2", "1"):
        promote(config, version, reason="x")
    assert roll_back(config, reason="x").version == "2"
    assert aliases(config) == {CHAMPION: "2", "challenger": "3"}
    with pytest.raises(ConfigError, match="nothing to roll back to"):
        roll_back(config, reason="x")
    assert aliases(config)[CHAMPION] == "2"


def test_what_was_rolled_back_or_deleted_is_passed_over(config):
    for version in ("1", "2", "3"):
        promote(config, version, reason="x")
    versions.tag_version(config, "2", {GATE_TAG: "rolled back"})
    assert roll_back(config, reason="x").version == "1"
    assert aliases(config) == {CHAMPION: "1"}


def test_what_is_forced_after_a_rollback_may_be_returned_to(config):
    promote(config, "1", reason="x")
    promote(config, "2", reason="x")
    roll_back(config, reason="x")
    promote(config, "2", reason="it was the data", force=True)
    assert versions.version_of(config, "2").tags[GATE_TAG] == "forced"
    promote(config, "3", reason="x")
    assert roll_back(config, reason="x").version == "2"


@pytest.mark.parametrize("sign", ["\u00fc", "\U0001f3ac", "\0", '"', "\udcff"])
def test_a_long_reason_is_cut_to_what_fits_into_the_history(config, sign):
    promote(config, "1", reason=sign * 6000, evidence=sign * 6000)
    promote(config, "2", reason=sign * 6000)
    roll_back(config, reason=sign * 6000)
    shown = sign if sign.isprintable() or sign == "\0" else "?"
    for entry in moves.history(config):
        assert 250 < len(entry["reason"]) <= 1000
        assert set(entry["reason"]) == {shown}
    assert len(lines(config)) == 3
    model = client_of(config.tracking.uri).get_registered_model(config.tracking.model_name)
    assert max(len(text) for text in model.tags.values()) <= 5000, "the column in Postgres"


@pytest.mark.parametrize("text", ["{", "[]", "7", '{"a": 1}', '{"time": 1}'])
def test_a_damaged_entry_of_the_history_is_named_and_left_out(config, text, caplog):
    promote(config, "1", reason="x")
    promote(config, "2", reason="x")
    client, name = client_of(config.tracking.uri), config.tracking.model_name
    client.set_registered_model_tag(name, "history.000000", text)
    promote(config, "3", reason="x")
    assert lines(config) == [("promote", "2", "1"), ("promote", "3", "2")], "nothing overwritten"
    assert "the tag history.000000 is no entry of the history" in caplog.text


@pytest.mark.parametrize("text", ["{", '{"number": 1}', '{"number": 0, "then": null, "was": null}'])
def test_a_damaged_move_under_way_is_named_and_nothing_moves(config, text):
    promote(config, "1", reason="x")
    client, name = client_of(config.tracking.uri), config.tracking.model_name
    client.set_registered_model_tag(name, "move_under_way", text)
    with pytest.raises(StageError, match="the tag move_under_way is damaged"):
        promote(config, "2", reason="x")
    assert aliases(config)[CHAMPION] == "1"


@pytest.mark.parametrize("version", ["99", "abc", ""])
def test_a_version_that_is_not_there_is_a_mistake(config, version):
    with pytest.raises(ConfigError, match=f"has no version {version}; `cil status` lists"):
        promote(config, version, reason="x", force=True)
    assert aliases(config) == {"challenger": "3"}


def test_the_run_of_a_version_is_tagged_with_what_becomes_of_it(config):
    client, name = client_of(config.tracking.uri), config.tracking.model_name
    run = client.create_run("0", tags={GATE_TAG: "pending"}).info.run_id
    made = client.create_model_version(
        name, "file:///nowhere", run_id=run, tags={GATE_TAG: "pending"}
    )
    version = versions.version_of(config, str(made.version))
    versions.judge_version(config, version, {GATE_TAG: "passed", "gate_reason": "fewer leaks"})
    tags = client.get_run(run).data.tags
    assert (tags[GATE_TAG], tags["gate_reason"]) == ("passed", "fewer leaks")
    promote(config, "1", reason="x")
    promote(config, version.version, reason="x")
    client.delete_run(run)
    roll_back(config, reason="x")
    assert versions.version_of(config, version.version).tags[GATE_TAG] == "rolled back"
    client.restore_run(run)
    promote(config, version.version, reason="x", force=True)
    assert client.get_run(run).data.tags[GATE_TAG] == "forced"
