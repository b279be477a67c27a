import glob
import itertools
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cil.errors import ConfigError
from pipelines.sources.patterns import Pattern, expand_braces, fixed_folder


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("plain.tar", ["plain.tar"]),
        ("s-{000..002}.tar", ["s-000.tar", "s-001.tar", "s-002.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{098..101}", ["098", "099", "100", "101"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("{a,}x", ["ax", "x"]),
        ("{one}", ["{one}"]),
        ("{}", ["{}"]),
        ("{..}", ["{..}"]),
        ("{a..c}", ["{a..c}"]),
        ("{1..2", ["{1..2"]),
    ],
)
def test_brace_lists_are_written_out(text, names):
    assert expand_braces(text) == names


@pytest.mark.parametrize(
    "text", ["{0..99999999}", "{0..999}" * 3, "{0..9999999999999999999999}", "{1..2}" * 40]
)
def test_an_endless_brace_list_is_refused_before_it_is_written_out(text):
    with pytest.raises(ConfigError, match=r"^data\.videos"):
        expand_braces(text)


@pytest.mark.parametrize(
    ("pattern", "folder"),
    [
        ("*.mp4", ""),
        ("a/b/*.mp4", "a/b/"),
        ("a/b*/c.mp4", "a/"),
        ("s3://bucket/x/{0..3}.tar", "s3://bucket/x/"),
        ("/{a,b}/x?", "/"),
        ("a/{one}/b.mp4", "a/{one}/"),
    ],
)
def test_the_folder_before_a_pattern(pattern, folder):
    assert fixed_folder(pattern) == folder


FILES = [
    "/".join((*folders, f"{name}.mp4"))
    for depth in range(4)
    for folders in itertools.product(["a", "ab"], repeat=depth)
    for name in ("x", "y")
]

components = st.sampled_from(["**", "*", "a", "a*", "?", "[ab]", "[!a]", "*b"])
last = st.sampled_from(["**", "*.mp4", "x.mp4", "?.mp4", "[!y].mp4", "*", "z"])


@settings(max_examples=60, deadline=None)
@given(st.lists(components, max_size=4), last)
def test_patterns_agree_with_the_shell_like_matching_of_python(tmp_path_factory, folders, name):
    root = tmp_path_factory.getbasetemp() / "tree"
    for file in FILES if not root.exists() else ():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    text = "/".join([*folders, name])
    expected = glob.glob(text, root_dir=root, recursive=True)
    files = {path for path in expected if os.path.isfile(root / path)}
    assert {file for file in FILES if Pattern(text).matches(file)} == files


def test_many_wildcards_do_not_take_for_ever():
    assert not Pattern("/".join(["**", "a"] * 20 + ["b"])).matches("/".join(["a"] * 60))
