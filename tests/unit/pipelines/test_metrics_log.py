import json
import math
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from cil.errors import DataError
from pipelines import metrics_log
from pipelines.metrics_log import (
    MetricsLog,
    ProgressBoard,
    ReportCallback,
    SessionRate,
    run_and_watch,
    training_note,
)
from pipelines.termination import Terminated


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
    assert ProgressBoard(3).read() == (3, ""), "what an earlier command has done"


@pytest.mark.parametrize("asked", [False, True])
def test_a_sigterm_that_ray_made_another_error_of_ends_the_waiting(monkeypatch, asked):
    end = threading.Event()

    def lost(*_, **__):
        end.set() if not asked else None
        raise ray.exceptions.RayError("returned a result with an exception set")

    monkeypatch.setattr(metrics_log, "_POLL_INTERVAL_S", 0.01)
    monkeypatch.setattr(metrics_log, "was_terminated", lambda: asked)
    monkeypatch.setattr(ray, "get", lost)
    board = SimpleNamespace(read=SimpleNamespace(remote=lambda: None))

    def watch():
        return run_and_watch(lambda: end.wait(30), board, title="train: steps", total=8)

    try:
        if asked:
            with pytest.raises(Terminated):
                watch()
        else:
            assert watch() is True
    finally:
        end.set()


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

    class Sender:
        is_away = False

        def __init__(self, uri, run, log):
            self.where = (uri, run)

        def add(self, rows):
            assert log.rows()[-len(rows) :] == rows, "not in the file yet"
            sent.append((*self.where, rows))

    monkeypatch.setattr(metrics_log.tracking, "MetricsSender", Sender)

    def make(**more):
        return ReportCallback(
            log_path=log.path,
            board=FakeBoard(),
            tracking_uri="sqlite:///x",
            run_id="run",
            num_steps=10,
            **more,
        )

    make.sent = sent
    return make


def test_a_report_goes_to_file_board_and_tracking(callback, log):
    made = callback()
    made.after_report(None, [{"rows": [row(0), row(1)]}, {"rows": [row(0, 7.0)]}], None)
    assert log.rows() == [row(0), row(1)]
    assert callback.sent == [("sqlite:///x", "run", [row(0), row(1)])]
    # two steps of half a second are done, eight are left
    note = "loss 1.0000  grad 1.00  16.0 clips/s  data wait 0%  about 4 s left"
    assert made._board.posted == [(2, note)]


def test_a_report_says_that_the_server_is_away(callback):
    made = callback()
    made.after_report(None, [{"rows": [row(0)]}], None)
    made._sender.is_away = True
    made.after_report(None, [{"rows": [row(1)]}], None)
    notes = [note for _, note in made._board.posted]
    assert ["MLflow is away" in note for note in notes] == [False, True]


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


def test_the_rate_is_that_of_this_session():
    """A resumed run has done 900 steps before; they took it no time."""
    now = [1000.0]
    rate = SessionRate(lambda: now[0])
    rate.add([row(900), row(901)])  # two steps of half a second
    assert rate.seconds_left(98) == pytest.approx(49)
    now[0] += 4  # with what is between the steps: checkpoints, reports
    rate.add([row(902), row(903)])
    assert rate.seconds_left(96) == pytest.approx(96 * 5 / 4)


def test_the_rate_forgets_what_was_long_ago():
    now = [0.0]
    rate = SessionRate(lambda: now[0])
    for step in range(100):
        now[0] += 10.0 if step < 50 else 1.0
        rate.add([row(step)])
    assert rate.seconds_left(7) == pytest.approx(7)


def test_the_note_says_what_waited_for_data():
    rows = [{**row(0), "data_wait_s": 0.3}, {**row(1), "data_wait_s": 0.1}]
    assert training_note(rows, 90.4) == (
        "loss 1.0000  grad 1.00  16.0 clips/s  data wait 40%  about 90 s left"
    )
    assert training_note(rows, 0.0).endswith("data wait 40%")


def test_committed_checkpoints_are_kept_for_validation(callback):
    kept = []
    made = callback(keep=kept.append)
    made.after_report(None, [{"rows": [row(0)]}], None)
    made.after_report(None, [{"rows": [row(1)]}], SimpleNamespace(path="/ray/checkpoint"))
    assert kept == [Path("/ray/checkpoint")]


@pytest.mark.parametrize("error", [OSError("no room"), DataError("damaged")])
def test_a_checkpoint_that_cannot_be_kept_is_a_warning(callback, log, caplog, error):
    def keep(path):
        raise error

    made = callback(keep=keep)
    made.after_report(None, [{"rows": [row(0)]}], SimpleNamespace(path="/ray/checkpoint"))
    assert "a checkpoint will not be validated: " in caplog.text
    assert log.rows() == [row(0)]
