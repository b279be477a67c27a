import io

import pytest
from rich.console import Console

from pipelines import progress
from pipelines.progress import stage_progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves it."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def shown(monkeypatch):
    """What is printed, on a terminal or not."""

    def use(*, terminal):
        console = Console(
            file=io.StringIO(), force_terminal=terminal, width=100, soft_wrap=True, highlight=False
        )
        monkeypatch.setattr(progress, "console", console)
        return console.file.getvalue

    return use


def test_away_from_a_terminal_there_are_plain_lines_now_and_then(shown, clock):
    text = shown(terminal=False)
    with stage_progress("encode: shards", 100) as bar:
        bar.update(1)
        assert text() == ""
        clock.now += 4.9
        bar.advance()
        assert text() == ""
        clock.now += 0.1
        bar.update(50, "12 clips")
        assert text() == "encode: shards: 50/100, 5 s, about 5 s left  12 clips\n"
        bar.advance("13 clips")
        clock.now += 5
        bar.update(100)
    assert text().splitlines()[1:] == ["encode: shards: 100/100, 10 s"]
    assert "\x1b" not in text()


def test_no_time_is_promised_before_anything_is_done(shown, clock):
    text = shown(terminal=False)
    with stage_progress("train: steps", 10) as bar:
        clock.now += 6
        bar.update(0, "starting")
    assert text() == "train: steps: 0/10, 6 s  starting\n"


def test_brackets_in_titles_and_notes_are_no_markup(shown, clock):
    text = shown(terminal=False)
    with stage_progress("[red]title", 1) as bar:
        clock.now += 6
        bar.update(1, "[bold]note[/bold]")
    assert text() == "[red]title: 1/1, 6 s  [bold]note[/bold]\n"


def test_in_a_terminal_there_is_a_bar(shown):
    text = shown(terminal=True)
    with stage_progress("sample: steps", 4) as bar:
        bar.update(3, "almost [/there]")
    assert "sample: steps" in text()
    assert "3/4" in text()
    assert "almost [/there]" in text()


def test_nothing_to_do_is_no_error(shown, clock):
    for terminal in (True, False):
        text = shown(terminal=terminal)
        with stage_progress("empty", 0) as bar:
            clock.now += 6
            bar.update(0)
        assert "0/0" in text()


def test_an_error_inside_passes_through(shown):
    for terminal in (True, False):
        shown(terminal=terminal)
        with pytest.raises(RuntimeError, match="inside"), stage_progress("x", 3):
            raise RuntimeError("inside")


def test_without_eta_the_notes_say_how_long_it_takes(shown, clock):
    """Pieces of an earlier command would make it a lie."""
    text = shown(terminal=False)
    with stage_progress("train: steps", 1000, eta=False) as bar:
        clock.now += 5
        bar.update(900, "about 70 s left")
    assert text() == "train: steps: 900/1000, 5 s  about 70 s left\n"
    text = shown(terminal=True)
    with stage_progress("train: steps", 1000, eta=False) as bar:
        bar.update(900, "about 70 s left")
    assert "0:00:00" in text()
    assert "-:--:--" not in text()
