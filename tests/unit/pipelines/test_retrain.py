"""A night's end, against a real registry; the stages are played. tests/distributed runs them."""

import dataclasses
import json
import os
import tempfile

import pytest

from cil.errors import DataError
from pipelines import encode, promotion
from pipelines.config import RunConfig
from pipelines.promotion import CHAMPION, GATE_TAG, roll_back
from pipelines.report import RunReport
from pipelines.retrain import command, night
from pipelines.retrain.config import RetrainConfig
from pipelines.retrain.tidy import remove_old_nights
from pipelines.settings import OutputConfig, TrackingConfig
from pipelines.tracking import versions
from pipelines.tracking.client import client_of

# MLflow's own use of SQLAlchemy
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


class Killed(BaseException):
    """What SIGKILL is to the program: nothing after it runs."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"


class Nights:
    """Scheduled runs whose training, judgement and data are played."""

    def __init__(self, config):
        self.config, self.data, self.verdict, self.trained = config, "1", "passed", 0
        self.client = client_of(config.tracking.uri)
        self.client.create_registered_model(config.tracking.model_name)

    def encode(self, config, **_):
        outputs = {"fingerprint": self.data}
        return RunReport(
            stage="encode", reused=False, inputs={}, outputs=outputs, metrics={}, seconds=0.0
        )

    def train(self, begun, *_, **__):
        self.trained += 1
        tags = {GATE_TAG: "pending", command.FINGERPRINT_TAG: begun.fingerprint}
        name = self.config.tracking.model_name
        made = self.client.create_model_version(name, "file:///nowhere", tags=tags)
        return versions.version_of(self.config, str(made.version))

    def judge(self, begun, challenger, *_, **__):
        tags = {"gate_reason": "as played", GATE_TAG: self.verdict}
        versions.tag_version(self.config, challenger.version, tags)

    def run(self):
        report = command.run_retrain(self.config)
        return command.exit_code(report), report.outputs["status"]

    def reports(self):
        return sorted((night.folder_of_night(self.config, "x").parent).glob("*/report.json"))

    def champion(self):
        found = versions.aliased(self.config, CHAMPION)
        return None if found is None else found.version


@pytest.fixture
def nights(store, request, monkeypatch, tmp_path):
    name = request.node.name[:60].replace("[", "-").replace("]", "")
    played = Nights(
        RunConfig(
            tracking=TrackingConfig(uri=store, model_name=name),
            output=OutputConfig(dir=str(tmp_path)),
        )
    )
    monkeypatch.setattr(command, "check_before_start", lambda *_: None)
    monkeypatch.setattr(night, "_fetch", lambda *_: None)
    monkeypatch.setattr(encode, "run", played.encode)
    monkeypatch.setattr(command, "_trained", played.train)
    monkeypatch.setattr(command, "_judged", played.judge)
    return played


def kill(*_):
    raise Killed


def killed_before_the_report(monkeypatch, nights):
    with monkeypatch.context() as patch:
        patch.setattr(RunReport, "save", kill)
        with pytest.raises(Killed):
            nights.run()
    assert nights.reports() == []


def test_a_refusal_is_told_though_the_night_was_killed_before_its_report(nights, monkeypatch):
    nights.verdict = "refused"
    killed_before_the_report(monkeypatch, nights)
    assert nights.run() == (3, "refused")
    (path,) = nights.reports()
    outputs = json.loads(path.read_text())["outputs"]
    assert (outputs["status"], outputs["reason"]) == ("refused", "as played")
    assert nights.run() == (0, "nothing new")
    assert nights.trained == 1


def test_a_promotion_whose_report_is_missing_moves_no_alias_again(nights, monkeypatch):
    killed_before_the_report(monkeypatch, nights)
    versions.move_alias(nights.config, CHAMPION, nights.train(SomeNight).version)  # by hand
    assert nights.run() == (0, "promoted")
    assert nights.champion() == "2"
    assert len(nights.reports()) == 1
    assert nights.run() == (0, "nothing new")


class SomeNight:
    fingerprint = "of another night"


def test_a_night_that_was_killed_before_its_promotion_is_promoted(nights, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(promotion, "move_alias", kill)
        with pytest.raises(Killed):
            nights.run()
    assert nights.champion() is None
    assert nights.run() == (0, "promoted")
    assert (nights.champion(), nights.trained) == ("1", 1)


def test_what_was_rolled_back_stays_so(nights):
    nights.run()
    nights.data = "2"
    assert nights.run() == (0, "promoted")
    roll_back(nights.config, reason="users complain")
    for path in nights.reports():
        path.unlink()
    assert nights.run() == (0, "nothing new")
    assert nights.champion() == "1"


# -- what a night finds -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[]",
        "null",
        '{"fingerprint": "of another night", "parent": null, "format": 1}',
        '{"fingerprint": "abc", "parent": 3, "format": 1}',
        '{"fingerprint": "abc", "format": 1}',
        '{"fingerprint": "abc", "parent": null, "format": 9}',
    ],
)
def test_a_damaged_plan_is_named(tmp_path, content):
    config = RunConfig(output=OutputConfig(dir=str(tmp_path)))
    folder = night.folder_of_night(config, "abc")
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(content)
    with pytest.raises(DataError, match=r"plan\.json is damaged: .*delete the folder"):
        night.open_night(config, "abc", None)


def test_a_plan_is_read_as_it_was_written(tmp_path):
    config = RunConfig(output=OutputConfig(dir=str(tmp_path)))
    first = night.open_night(config, "abc", None)
    assert night.open_night(config, "abc", None) == first
    assert first.parent is None


# -- what a night leaves ------------------------------------------------------------------------


def test_a_champion_is_fetched_below_the_night_and_no_copy_stays(nights, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    source = tmp_path / "source" / "artifacts" / "model"
    source.mkdir(parents=True)
    (source / "model.json").write_text("{}")
    name = nights.config.tracking.model_name
    made = nights.client.create_model_version(name, (tmp_path / "source").as_uri())
    champion = versions.version_of(nights.config, str(made.version))
    folder = tmp_path / "retrain" / "abc"
    (folder / "champion" / "half").mkdir(parents=True)  # of a killed command
    with night.fetched(nights.config, champion, folder / "champion") as found:
        assert found.is_relative_to(folder / "champion")
        assert (found / "model.json").read_text() == "{}"
        assert not (folder / "champion" / "half").exists()
    assert list(folder.iterdir()) == []
    begun = night.open_night(nights.config, "abc", champion)
    assert begun.parent == champion.version
    assert sorted(path.name for path in begun.folder.iterdir()) == ["parent", "plan.json"]
    assert (begun.folder / "parent" / "model.json").exists()
    assert (source / "model.json").exists()
    assert list((tmp_path / "tmp").iterdir()) == []


def keeping(root, count):
    return RunConfig(output=OutputConfig(dir=str(root)), retrain=RetrainConfig(keep_nights=count))


def make_night(config, number, *, settled=True, unsent=False):
    """Lay down a night of that hour: `number` is its fingerprint's first digit."""
    fingerprint = f"{number:x}" + "0" * 63
    folder = night.folder_of_night(config, fingerprint)
    for name in ("train/checkpoint/weights", "gate/decision.json", "gate/units/1", "plan.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
        os.utime(folder / name, (number * 3600, number * 3600))
    if settled:
        (folder / "report.json").write_text("{}")
        os.utime(folder / "report.json", (number * 3600, number * 3600))
    if unsent:
        (folder / "train" / "unsent.json").write_text("{}")
    return fingerprint, folder


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.json"))


def test_old_nights_lose_all_but_what_became_of_them(tmp_path):
    config = keeping(tmp_path, 2)
    made = {number: make_night(config, number, settled=number != 4) for number in range(1, 9)}
    _, waiting = make_night(config, 9, unsent=True)
    for path in (waiting / "plan.json", waiting / "report.json"):
        os.utime(path, (1, 1))
    other = tmp_path / night.RETRAIN_FOLDER / "of-somebody-else"
    other.mkdir()
    (other / "notes.json").write_text("{}")
    fingerprints = [made[2][0], made[5][0]]  # the champion and the one before it
    removed = remove_old_nights(config, fingerprints)
    assert sorted(removed) == sorted(made[number][1] for number in (1, 3, 4, 6))
    whole = ["gate/decision.json", "plan.json", "report.json"]
    for number in (2, 5, 7, 8):
        assert files(made[number][1]) == whole
        assert (made[number][1] / "train" / "checkpoint" / "weights").exists()
    for number in (1, 3, 6):
        assert files(made[number][1]) == ["gate/decision.json", "report.json"]
        assert sorted(path.name for path in made[number][1].iterdir()) == ["gate", "report.json"]
    assert not made[4][1].exists()
    assert (waiting / "train" / "unsent.json").exists()
    assert (other / "notes.json").exists()
    assert list((tmp_path / night.RETRAIN_FOLDER).glob(".*.tmp")) == []
    assert remove_old_nights(config, fingerprints) == []


def test_the_running_night_stays_though_its_files_are_old(tmp_path):
    config = keeping(tmp_path, 1)
    running, folder = make_night(config, 1)
    make_night(config, 2)
    assert remove_old_nights(config, [running]) == []
    assert (folder / "plan.json").exists()


def test_all_nights_stay_if_that_is_set(tmp_path):
    config = keeping(tmp_path, None)
    for number in range(1, 9):
        make_night(config, number)
    assert remove_old_nights(config, []) == []


def test_old_nights_are_removed_when_a_night_is_settled(nights):
    nights.config = dataclasses.replace(nights.config, retrain=RetrainConfig(keep_nights=1))
    _, old = make_night(nights.config, 1)
    nights.verdict = "refused"
    assert nights.run() == (3, "refused")
    assert files(old) == ["gate/decision.json", "report.json"]
    assert nights.run() == (0, "nothing new")
