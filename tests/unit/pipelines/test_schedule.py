"""The next scheduled run: what a systemd would say, played by a program of that name."""

import json
from datetime import UTC, datetime

import pytest

from pipelines.retrain.schedule import TIMER, next_start

NEXT = datetime(2026, 2, 3, 1, 34, 5, tzinfo=UTC)
TIMERS = [
    {
        "next": int(NEXT.timestamp() * 1e6),
        "left": 12345678,
        "last": 1,
        "passed": 2,
        "unit": TIMER,
        "activates": "cil-retrain.service",
    }
]


@pytest.fixture
def systemctl(tmp_path, monkeypatch):
    """Play systemctl: what it prints, and with which code it ends."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def play(output, code=0):
        program = tmp_path / "systemctl"
        words = tmp_path / "words"
        answer = tmp_path / "answer"
        answer.write_text(output)
        program.write_text(
            f'#!/bin/sh\necho "$@" > {words}\nwhile IFS= read -r l || [ -n "$l" ]; do '
            f'echo "$l"; done < {answer}\nexit {code}\n'
        )
        program.chmod(0o755)
        return words

    return play


def test_the_next_start_is_that_of_the_timer(systemctl):
    words = systemctl(json.dumps(TIMERS))
    assert next_start() == NEXT
    assert words.read_text().split() == ["list-timers", "--all", "--output=json", TIMER]


@pytest.mark.parametrize(
    ("output", "code"),
    [
        ("[]", 0),
        ("", 0),
        ("System has not been booted with systemd", 1),
        (json.dumps([{**TIMERS[0], "next": None}]), 0),
        (json.dumps([{**TIMERS[0], "next": 0}]), 0),
        (json.dumps([{**TIMERS[0], "next": 2**64 - 1}]), 0),
        (json.dumps(TIMERS), 1),
        (json.dumps({"next": 5}), 0),
    ],
)
def test_nobody_knows(systemctl, output, code):
    systemctl(output, code)
    assert next_start() is None


def test_a_host_without_systemd(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert next_start() is None
