import io
import json
import logging
import sys
import threading
from contextlib import ExitStack
from datetime import UTC, datetime

import pytest

from pipelines.__main__ import _main
from pipelines.log_format import (
    FORMATS,
    JsonLines,
    chosen_format,
    log_fields,
    logs_as_json,
    note_run,
    stderr_lines,
)
from pipelines.progress import console, stage_progress
from pipelines.worker_logs import label_records, label_training_worker, logging_options

KEYS = ["time", "level", "message", "command", "stage", "run_id"]


def read(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def lines(capsys):
    """Run something with stderr as JSON and return its lines."""

    def run(action):
        with stderr_lines("json", command="try"):
            action()
        out, err = capsys.readouterr()
        assert out == ""
        return read(err)

    return run


def test_a_line_has_all_keys_in_order_and_a_time_in_utc(lines):
    started = datetime.now(UTC)
    (line,) = lines(lambda: console.print("[bold]two [red]colours[/][/]"))
    assert list(line) == KEYS
    assert line["message"] == "two colours"
    assert (line["level"], line["command"], line["stage"], line["run_id"]) == (
        "info",
        "try",
        None,
        None,
    )
    stamp = datetime.fromisoformat(line["time"])
    assert stamp.utcoffset().total_seconds() == 0
    assert abs((stamp - started).total_seconds()) < 60


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("error: no such file", "error"),
        ("fail  mlflow: away", "error"),
        ("warning: nothing moves", "warning"),
        ("warning loss spike: step 3", "warning"),
        ("warn  gpu: none", "warning"),
        ("ended by SIGTERM; run again", "warning"),
        ("pipelines/x.py:3: UserWarning: old", "warning"),
        ("errors are rare", "info"),
        ("train: 3/4, no error: good", "info"),
    ],
)
def test_the_level_is_read_from_the_first_word(lines, text, level):
    (line,) = lines(lambda: print(text, file=sys.stderr))
    assert (line["level"], line["message"]) == (level, text)


def test_one_print_is_one_line_also_of_several_rows_and_parts(lines):
    def action():
        console.print("a\nb", markup=False)
        console.print("[yellow]warning[/]", end=" ")
        console.print("stalled", markup=False)
        sys.stderr.write("no end")

    assert [line["message"] for line in lines(action)] == ["a\nb", "warning stalled", "no end"]


def test_logging_comes_with_its_level_and_traceback(lines):
    def action():
        logging.getLogger("pipelines.some").warning("kept %s", "for later")
        try:
            raise KeyError("x")
        except KeyError:
            logging.getLogger("pipelines.some").exception("broken")

    kept, broken = lines(action)
    assert (kept["level"], kept["message"]) == ("warning", "kept for later")
    assert kept["logger"] == "pipelines.some"
    assert broken["level"] == "error"
    assert "KeyError: 'x'" in broken["message"]


def test_what_a_command_is_doing_is_put_back_also_from_other_threads(lines):
    def say(text):
        thread = threading.Thread(target=lambda: console.print(text))
        thread.start()
        thread.join()

    def action():
        with log_fields(stage="train"):
            note_run("r1")
            say("one")
        say("two")
        with log_fields(run_id=None):
            note_run("r2")
            say("three")
        say("four")

    found = [(line["message"], line["stage"], line["run_id"]) for line in lines(action)]
    assert found == [
        ("one", "train", "r1"),
        ("two", None, "r1"),
        ("three", None, "r2"),
        ("four", None, "r1"),
    ]
    assert lines(lambda: console.print("next command"))[0]["run_id"] is None


def test_lines_of_threads_are_not_mixed():
    stream = io.StringIO()
    lines = JsonLines(stream)

    def work(number):
        for _ in range(200):
            print("thread", number, "says", file=lines)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    messages = [line["message"] for line in read(stream.getvalue())]
    assert sorted(messages) == sorted(f"thread {n} says" for n in range(4) for _ in range(200))


def test_passwords_are_replaced_in_both_formats(lines, capsys):
    text = "MLflow at http://me:pl4nted@host/x?token=pl4nted2 is away"

    def action():
        console.print(text, markup=False)
        sys.stderr.write(text + "\n")
        logging.getLogger("pipelines.some").warning("%s", text)
        sys.stderr.write(json.dumps({"message": text, "more": text}) + "\n")

    found = lines(action)
    assert len(found) == 4
    assert "pl4nted" not in json.dumps(found)
    with stderr_lines("text", command="try"):
        console.print(text, markup=False)
    assert capsys.readouterr().err == "MLflow at http://me:***@host/x?token=*** is away\n"


def test_lines_of_ray_and_of_other_commands_keep_their_keys(lines):
    ray = {
        "asctime": "2026-01-31 02:00:07,123",
        "levelname": "WARNING",
        "message": "m",
        "name": "pipelines.x",
        "node_id": "abc",
        "rank": 1,
        "timestamp_ns": 1769824807123000000,
    }
    ours = {"time": "2026-01-31T02:00:07.123+00:00", "level": "error", "message": "o", "stage": "s"}

    def action():
        sys.stderr.write(json.dumps(ray) + "\n" + json.dumps(ours) + "\n")
        sys.stderr.write('{"no": "message"}\n{broken\n')

    first, second, third = lines(action)
    assert (first["level"], first["rank"], first["node_id"]) == ("warning", 1, "abc")
    assert (first["time"], first["logger"]) == ("2026-01-31T02:00:07.123+00:00", "pipelines.x")
    assert not {"asctime", "levelname", "name", "timestamp_ns"} & set(first)
    assert (second["time"], second["level"], second["stage"]) == (
        "2026-01-31T02:00:07.123+00:00",
        "error",
        "s",
    )
    assert third["message"] == '{"no": "message"}\n{broken'


def test_progress_is_plain_lines_also_where_colours_are_forced(lines, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("pipelines.progress._PLAIN_INTERVAL_S", 0.0)

    def action():
        with stage_progress("train: steps", 4, eta=False) as progress:
            progress.update(2, "loss 0.5")

    (line,) = lines(action)
    assert line["message"] == "train: steps: 2/4, 0 s  loss 0.5"


def test_stderr_and_the_root_logger_are_put_back():
    before = sys.stderr, logging.getLogger().handlers[:]
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(KeyboardInterrupt))
        with stderr_lines("json", command="try"):
            assert logs_as_json()
            assert not sys.stderr.isatty()
            raise KeyboardInterrupt
    assert (sys.stderr, logging.getLogger().handlers) == before
    assert not logs_as_json()


@pytest.mark.parametrize("given", ["option", "variable"])
def test_a_mistake_is_one_json_line_with_the_command(capsys, monkeypatch, given):
    arguments = ["encode", "--config", "nowhere.yaml"]
    if given == "variable":
        monkeypatch.setenv("CIL_LOG_FORMAT", "json")
    else:
        arguments += ["--log-format", "json"]
    assert _main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = read(err)
    assert (line["level"], line["command"]) == ("error", "encode")
    assert line["message"].startswith("error: ")


def test_the_option_comes_before_the_variable(monkeypatch):
    monkeypatch.setenv("CIL_LOG_FORMAT", "json")
    assert chosen_format("text") == "text"
    assert chosen_format(None) == "json"
    monkeypatch.setenv("CIL_LOG_FORMAT", "")
    assert chosen_format(None) == "text"
    assert FORMATS == ("text", "json")


def test_an_unknown_format_is_refused(capsys, monkeypatch):
    monkeypatch.setenv("CIL_LOG_FORMAT", "xml")
    assert _main(["doctor"]) == 2
    assert "CIL_LOG_FORMAT must be one of text, json, got 'xml'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        _main(["doctor", "--log-format", "xml"])
    assert stop.value.code == 2


def test_workers_log_json_only_with_the_command():
    assert logging_options() == {}
    with stderr_lines("json", command="try"):
        config = logging_options()["logging_config"]
    assert (config.encoding, config.log_level) == ("JSON", "INFO")


def test_plain_lines_of_a_training_worker_become_json_and_files_stay(monkeypatch, capsys, tmp_path):
    from ray._private.log import PlainRayHandler

    loggers = {name: logging.Logger(str(name)) for name in (None, "ray", "ray.train")}
    file, plain = logging.FileHandler(tmp_path / "app.log"), PlainRayHandler()
    for logger in loggers.values():
        logger.handlers = [file, plain]
    own = logging.getLogger("pipelines.worker_logs")
    monkeypatch.setattr(own, "parent", loggers[None])
    monkeypatch.setattr(own, "level", logging.INFO)
    monkeypatch.setattr(logging, "getLogger", lambda name=None: loggers[name])
    label_training_worker("r1", 1, 4, as_json=True)
    (line,) = read(capsys.readouterr().err)
    assert (line["message"], line["rank"]) == ("worker 1 of 4 has started", 1)
    assert (line["run_id"], line["stage"], line["level"]) == ("r1", "train", "info")
    assert (tmp_path / "app.log").read_text() == "worker 1 of 4 has started\n"
    for logger in loggers.values():
        assert file in logger.handlers
        assert plain not in logger.handlers
    file.close()


def test_records_of_a_worker_are_labelled_once_and_show_no_password(monkeypatch):
    from ray._common.formatters import JSONFormatter

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONFormatter())
    root = logging.Logger("root of a worker")
    root.addHandler(handler)
    monkeypatch.setattr(logging, "getLogger", lambda name=None: root)
    label_records(rank=0, run_id="before")
    label_records(rank=3, run_id="r1", node="10.0.0.7")
    root.warning("at http://me:pl4nted@host/%s", "x")
    (line,) = read(stream.getvalue())
    assert (line["rank"], line["run_id"], line["node"]) == (3, "r1", "10.0.0.7")
    assert (line["level"], line["message"]) == ("warning", "at http://me:***@host/x")
    assert line["time"].endswith("+00:00")
