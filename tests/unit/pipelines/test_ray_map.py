"""What a worker of Ray Data tells of its error; Ray itself is not started."""

import numpy as np
import pytest

from pipelines.ray_map import _ERROR, _stopped, _telling, _telling_class


def fails(columns, *, word):
    raise ValueError(f"{word} {columns['n'][0]}")


class Fails:
    def __init__(self, *, word):
        self.word = word

    def __call__(self, columns):
        if columns["n"][0] == 0:
            return {"n": np.array([7])}
        return fails(columns, word=self.word)


COLUMNS = {"n": np.array([3])}


def test_an_error_becomes_a_row():
    (text,) = _telling(fails)(COLUMNS, word="no")[_ERROR]
    assert text == "ValueError: no 3"
    (text,) = _telling_class(Fails)(word="not")(COLUMNS)[_ERROR]
    assert text == "ValueError: not 3"


def test_without_an_error_nothing_is_changed():
    assert _telling_class(Fails)(word="not")({"n": np.array([0])})["n"].tolist() == [7]
    assert _telling(fails).__name__ == "fails"
    assert _telling_class(Fails).__name__ == "Fails"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_process_still_ends_it(error):
    def ends(_columns):
        raise error

    with pytest.raises(error):
        _telling(ends)(COLUMNS)


def test_the_message_says_how_to_go_on():
    assert _stopped("encoding", "ValueError: no 3") == (
        "encoding stopped: ValueError: no 3; what is finished is kept, run the same command again "
        "to go on"
    )
