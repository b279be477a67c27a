import re
import sys
from pathlib import Path

import pytest

from pipelines import prometheus
from pipelines.metrics_log import ReportCallback

TABLE = Path(__file__).parents[3] / "infra" / "README.md"


@pytest.fixture
def sent(monkeypatch):
    """Stand in for Ray's metrics; returns (kind, name, labels declared, value, labels given)."""
    calls = []

    class Ray:
        @staticmethod
        def is_initialized():
            return True

    class Metric:
        def __init__(self, kind, name, labels):
            self._about = kind, name, labels

        def set(self, value, tags):
            calls.append((*self._about, value, tags))

        inc = set

    monkeypatch.setitem(sys.modules, "ray", Ray)
    monkeypatch.setattr(
        prometheus, "_made", lambda kind, name, _, labels: Metric(kind, name, labels)
    )
    return calls


def send_all():
    prometheus.set_loss(0.5, run_id="r")
    prometheus.set_clips_per_second(3, run_id="r", stage="train")
    prometheus.set_data_wait_share(0.1, run_id="r")
    prometheus.add_quarantined(2, run_id="r")
    prometheus.add_gate_decision(promoted=True)
    prometheus.add_gate_decision(promoted=False)


def test_names_kinds_and_labels_are_those_of_the_table(sent):
    send_all()
    rows = re.findall(r"^\| `(cil_\w+)` \| (\w+), [^|]*\| ([^|]*)\|", TABLE.read_text(), re.M)
    table = {
        (kind, name, tuple(re.findall(r"`(run_id|stage|decision)`", tags)))
        for name, kind, tags in rows
    }
    assert {(kind.lower(), name, labels) for kind, name, labels, _, _ in sent} == table
    for _, _, labels, value, given in sent:
        assert tuple(given) == labels
        assert isinstance(value, float)
    assert [call[4] for call in sent[-2:]] == [{"decision": "promoted"}, {"decision": "refused"}]


def test_nothing_is_counted_where_nothing_was_refused(sent):
    prometheus.add_quarantined(0, run_id="r")
    assert sent == []


def test_without_a_session_nothing_happens_and_ray_is_not_imported(monkeypatch):
    monkeypatch.setattr(prometheus, "_made", lambda *_: pytest.fail("a metric was made"))
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    send_all()
    assert "ray" not in sys.modules


@pytest.mark.parametrize("place", ["making", "sending"])
def test_a_metric_that_fails_fails_nothing(sent, monkeypatch, place):
    def fail(*_, **__):
        raise RuntimeError(place)

    class Broken:
        set = inc = fail

    monkeypatch.setattr(prometheus, "_made", fail if place == "making" else lambda *_: Broken())
    send_all()


def test_reports_of_workers_are_sent(sent, tmp_path, monkeypatch):
    class Board:
        is_away = False

        def __init__(self, *_):
            pass

        def add(self, rows):
            pass

        class post:
            remote = staticmethod(lambda *_: None)

    monkeypatch.setattr("pipelines.tracking.MetricsSender", Board)
    callback = ReportCallback(
        log_path=tmp_path / "m.jsonl", board=Board, tracking_uri="", run_id="r", num_steps=9
    )
    row = {"loss": 0.5, "grad_norm": 1.0, "clips": 4.0, "seconds": 2.0, "data_wait_s": 0.5}
    rows = [{**row, "step": 0}, {**row, "step": 1, "loss": 0.25}]
    callback.after_report(None, [{"rows": rows}], None)
    assert {(name, value, tuple(given.items())) for _, name, _, value, given in sent} == {
        ("cil_loss", 0.25, (("run_id", "r"),)),
        ("cil_clips_per_second", 2.0, (("run_id", "r"), ("stage", "train"))),
        ("cil_data_wait_share", 0.25, (("run_id", "r"),)),
    }
