import json
import math

import pytest

from pipelines import metrics_log
from pipelines.metrics_log import MetricsLog, ProgressBoard, ReportCallback


def row(step, loss=None):
    return {
        "step": step,
        "loss": float(step) if loss is None else loss,
        "grad_norm": 1.0,
        "learning_rate": 0.1,
        "sigma_cond": 0.5,
        "clips": 8.0,
        "seconds": 0.5,
    }


@pytest.fixture
def log(tmp_path):
    return MetricsLog(tmp_path / "new" / "metrics.jsonl")


def test_a_log_that_is_not_there_is_empty(log):
    assert log.rows() == []
    assert log.losses() == []
    assert not log.path.parent.exists()


def test_rows_come_back_in_the_order_of_their_steps(log):
    log.append([row(2), row(3)])
    log.append([])
    log.append([row(0), row(1)])
    assert log.rows() == [row(step) for step in range(4)]
    assert log.losses() == [0.0, 1.0, 2.0, 3.0]
    lines = log.path.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 3, 0, 1]


def test_a_repeated_step_counts_once_as_it_was_first_written(log):
    log.append([row(0), row(1)])
    log.append([row(1, loss=99.0), row(2)])
    assert log.losses() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("cut", [1, 2, 20, -2, -1])
def test_a_torn_last_line_is_left_out_and_written_again(log, cut):
    log.append([row(0), row(1)])
    whole = log.path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    log.path.write_bytes(whole[: -len(last)] + last[:cut])
    complete = cut == -1  # all but the end of the line is there: nothing is lost
    assert log.losses() == ([0.0, 1.0] if complete else [0.0])
    log.append([row(1), row(2)])
    assert log.losses() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("junk", [b"", b"\0\0\0", b"\xff\xfe", b"5", b"[]", b"{}", b'{"step": 9'])
def test_lines_that_are_no_rows_are_left_out(log, junk):
    """After a power cut, blocks of a file may hold zeros."""
    log.append([row(0)])
    with log.path.open("ab") as file:
        file.write(junk + b"\n")
    log.append([row(1)])
    assert log.losses() == [0.0, 1.0]


def test_an_empty_file_gets_no_empty_line(log):
    log.path.parent.mkdir()
    log.path.touch()
    log.append([row(0)])
    assert log.path.read_text().startswith("{")


def test_a_loss_that_is_no_number_survives(log):
    log.append([row(0, loss=float("nan")), row(1, loss=float("inf"))])
    losses = MetricsLog(log.path).losses()
    assert math.isnan(losses[0])
    assert losses[1] == math.inf


def test_the_board_holds_the_latest_news():
    board = ProgressBoard()
    assert board.read() == (0, "")
    board.post(3, "loss 0.5")
    board.post(4, "loss 0.4")
    assert board.read() == (4, "loss 0.4")


class FakeBoard:
    """The handle of a board actor."""

    def __init__(self):
        self.posted = []
        self.post = self

    def remote(self, done, note):
        self.posted.append((done, note))


@pytest.fixture
def callback(log, monkeypatch):
    """A callback whose tracking only takes notes."""
    sent = []
    monkeypatch.setattr(
        metrics_log.tracking, "log_rows", lambda uri, run, rows: sent.append((uri, run, rows))
    )

    def make():
        return ReportCallback(
            log_path=log.path, board=FakeBoard(), tracking_uri="sqlite:///x", run_id="run"
        )

    make.sent = sent
    return make


def test_a_report_goes_to_file_board_and_tracking(callback, log):
    made = callback()
    made.after_report(None, [{"rows": [row(0), row(1)]}, {"rows": [row(0, 7.0)]}], None)
    assert log.rows() == [row(0), row(1)]
    assert callback.sent == [("sqlite:///x", "run", [row(0), row(1)])]
    assert made._board.posted == [(2, "loss 1.0000  grad 1.00  16.0 clips/s")]


def test_steps_that_a_resumed_run_repeats_are_written_once(callback, log):
    first = callback()
    first.after_report(None, [{"rows": [row(0), row(1), row(2)]}], None)
    second = callback()  # the controller was started again; the checkpoint was of step 1
    second.after_report(None, [{"rows": [row(1, 99.0), row(2, 99.0), row(3)]}], None)
    assert log.losses() == [0.0, 1.0, 2.0, 3.0]
    assert len(log.path.read_text().splitlines()) == 4
    assert [[r["step"] for r in rows] for _, _, rows in callback.sent] == [[0, 1, 2], [3]]


def test_a_worker_that_restarts_under_the_same_controller_repeats_nothing(callback, log):
    made = callback()
    made.after_report(None, [{"rows": [row(0), row(1)]}], None)
    made.after_report(None, [{"rows": [row(0), row(1)]}], None)
    made.after_report(None, [{"rows": [row(1), row(2)]}], None)
    assert log.losses() == [0.0, 1.0, 2.0]
    assert len(log.path.read_text().splitlines()) == 3
    assert made._board.posted[-1][0] == 3


def test_a_report_without_rows_changes_nothing(callback, log):
    made = callback()
    made.after_report(None, [{"rows": []}], None)
    assert not log.path.exists()
    assert made._board.posted == callback.sent == []
