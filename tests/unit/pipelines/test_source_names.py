import json
import os
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.sources.names import name_of_url, printable


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain name.mp4", "plain name.mp4"),
        (b"caf\xc3\xa9.mp4", "café.mp4"),
        (b"new\nline.mp4", r"new\nline.mp4"),
        (b"tab\tbell\x07del\x7f.mp4", r"tab\tbell\x07del\x7f.mp4"),
        (b"not utf-8 \xff\xfe.mp4", r"not utf-8 \xff\xfe.mp4"),
        (rb"back\slash.mp4", r"back\\slash.mp4"),
        (rb"a\nb", r"a\\nb"),
        ("right\u202eto left".encode(), r"right\u202eto left"),
        ("c1\x85".encode(), r"c1\u0085"),
        ("tag\U000e0001".encode(), r"tag\U000e0001"),
        (b"\x1b[31mred", r"\x1b[31mred"),
    ],
)
def test_what_cannot_be_shown_is_escaped(raw, shown):
    assert printable(os.fsdecode(raw)) == shown


def unescaped(shown):
    """Undo the escapes by reading them as Python would read a bytes or a text literal."""
    found, rest = b"", shown
    while rest:
        if rest[0] != "\\":
            found, rest = found + rest[0].encode(), rest[1:]
        elif rest[1] in "xuU":
            length = {"x": 4, "u": 6, "U": 10}[rest[1]]
            code = int(rest[2:length], 16)
            found += bytes([code]) if rest[1] == "x" else chr(code).encode(errors="surrogatepass")
            rest = rest[length:]
        else:
            found += {"n": b"\n", "r": b"\r", "t": b"\t", "\\": b"\\"}[rest[1]]
            rest = rest[2:]
    return found


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40) | st.text(max_size=20).map(lambda t: t.encode(errors="replace")))
def test_names_are_printable_and_no_two_files_share_one(raw):
    """That the bytes can be had back from the name proves that names differ where bytes do."""
    shown = printable(os.fsdecode(raw))
    assert shown.isprintable()
    assert json.loads(json.dumps(shown)) == shown
    shown.encode()
    assert unescaped(shown) == raw


@given(st.text(string.ascii_letters + "\\nx0\n", max_size=8))
def test_escapes_in_a_name_are_not_confused_with_our_own(text):
    assert unescaped(printable(text)) == text.encode()


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://host:8000/a/b.mp4", "https/host:8000/a/b.mp4"),
        ("s3://bucket/a?b#c.mp4", "s3/bucket/a?b#c.mp4"),
        ("https://host/a\n.mp4", r"https/host/a\n.mp4"),
    ],
)
def test_the_name_of_a_url(url, name):
    assert name_of_url(url) == name


def test_a_secret_of_a_url_is_not_shown_but_tells_names_apart():
    urls = [
        "https://host/a.mp4?token=hunter2",
        "https://host/a.mp4?token=hunter3",
        "https://user:hunter2@host/a.mp4",
        "https://host/a.mp4",
    ]
    names = [name_of_url(url) for url in urls]
    assert len(set(names)) == 4
    assert all(name.startswith("https/host/a.mp4") for name in names)
    assert not any("hunter" in name for name in names)
