"""Files of settings and options that are wrong, through the real command line with `--dry-run`.

A *judged* input is wrong by the judgement of this file, which looks at the annotations alone and
not at what pydantic makes of them: it must end with code 2 and name the setting. Of *mangled* bytes
nobody knows whether they are wrong: they must end with 0 or 2, and what is printed for 0 must be a
configuration that gives itself again.
"""

import dataclasses
import math
import types
import typing
from pathlib import Path

import annotated_types
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.config import RunConfig

ROOT = Path(__file__).parents[4]
SWEEPS = ("compare", "demo_arms", "demo_quick")
FILES = sorted(path for path in ROOT.glob("configs/*.yaml") if path.stem not in SWEEPS)
PLAIN = {path.name: yaml.safe_load(path.read_bytes()) for path in FILES}
BYTES = [path.read_bytes() for path in sorted(ROOT.glob("configs/*.yaml"))]
LONG = "x" * 3_000
QUICK, SLOW, SLOW_MANGLED, SLOW_OPTIONS = 120, 6000, 2000, 100
"""Examples of the tests below; with those of test_fuzzed_dataset.py the slow ones are 10,100."""


def profile(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# -- judged: the annotation says that it is wrong ------------------------------------------------


def leaves(owner=RunConfig, path=()):
    """Every setting as (path, annotation)."""
    for name, hint in typing.get_type_hints(owner, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            yield from leaves(hint, (*path, name))
        elif typing.get_origin(hint) is not typing.ClassVar:
            yield (*path, name), hint


LEAVES = list(leaves())
SECTIONS = sorted({path[0] for path, _ in LEAVES if len(path) > 1})
NAMES = {name for path, _ in LEAVES for name in path}
NO_NUMBER = ["fast", "", "1,5", "12 fps", "0x1g", [], [1], {}, {"a": 1}, True, False, math.nan]
NO_NUMBER += [math.inf, -math.inf, "nan", LONG, "1" * 5000]
NO_TEXT = [5, 1.5, True, [], ["a"], {}, {"a": "b"}]


def wrong_values(hint):
    """Values that no reading of an annotation allows."""
    parts = [hint]
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        nothing = []
    else:
        nothing = [None]
    (part,) = parts
    return nothing + wrong_of(part)


def wrong_of(hint):
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        outside = [value for rule in arguments[1:] for value in beyond(rule, arguments[0])]
        return [*wrong_of(arguments[0]), *outside]
    if origin is typing.Literal:
        return ["no such choice", [], {}, *([] if 17 in arguments else [17]), LONG]
    if origin is tuple:
        return ["text", 5, {"a": 1}, *([value] * 3 for value in wrong_of(arguments[0]))]
    return {
        bool: ["maybe", 2, -1, [], {}, 0.5, math.nan],
        int: [*NO_NUMBER, 2.5, "2.5"],
        float: [*NO_NUMBER, 10**400],
        str: NO_TEXT,
    }[hint]


def beyond(rule, hint):
    """Values just outside of a bound, and far."""
    step = 1 if hint is int else 1e-3
    if isinstance(rule, annotated_types.Ge):
        return [rule.ge - step, -(10**30)]
    if isinstance(rule, annotated_types.Gt):
        return [rule.gt, rule.gt - step]
    if isinstance(rule, annotated_types.Le):
        return [rule.le + step, 10**30]
    if isinstance(rule, annotated_types.Lt):
        return [rule.lt, 10**30]
    if isinstance(rule, annotated_types.MinLen):
        return [[]]
    raise AssertionError(rule)


@st.composite
def one_wrong_value(draw):
    """A real file with one setting that is wrong: (mapping, dotted path)."""
    path, hint = draw(st.sampled_from(LEAVES))
    value = draw(st.sampled_from(wrong_values(hint)))
    raw = with_value(PLAIN[draw(st.sampled_from(sorted(PLAIN)))], path, value)
    return raw, ".".join(path)


@st.composite
def one_unknown_key(draw):
    """A real file with a key that is none, in a section or beside them."""
    name = draw(st.text(st.characters(codec="utf-8", exclude_characters="."), max_size=30))
    name += draw(st.sampled_from(["", "_", "s", LONG[:500]]))
    raw = PLAIN[draw(st.sampled_from(sorted(PLAIN)))]
    section = draw(st.sampled_from([None, *SECTIONS]))
    path = (name or "?",) if section is None else (section, name or "?")
    if path[-1] in NAMES:
        path = (*path[:-1], path[-1] + "?")
    return with_value(raw, path, draw(st.sampled_from([1, None, "x", {}, [LONG] * 3]))), ""


@st.composite
def one_wrong_section(draw):
    """A real file with a section that is no mapping."""
    section = draw(st.sampled_from(SECTIONS))
    value = draw(st.sampled_from([None, 5, "x", [], [1, {"a": 2}], True, math.nan, LONG]))
    return with_value(PLAIN[draw(st.sampled_from(sorted(PLAIN)))], (section,), value), section


def with_value(raw, path, value):
    raw = {k: dict(v) if isinstance(v, dict) else v for k, v in raw.items()}
    place = raw
    for name in path[:-1]:
        place = place.setdefault(name, {})
    place[path[-1]] = value
    return raw


judged = st.one_of(one_wrong_value(), one_wrong_value(), one_unknown_key(), one_wrong_section())


def check_judged(folder, runs, example):
    raw, named = example
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(raw, allow_unicode=True), encoding="utf-8")
    code, out, err = runs("train", "--config", path, "--dry-run")
    assert (code, out) == (2, ""), raw
    assert "mistake" in err or "not valid YAML" in err, err
    said = all(part in err for part in named.split("."))
    assert said or "not valid YAML" in err, err


# -- mangled: bytes that nobody has an opinion about ---------------------------------------------

TOKENS = [
    *(b"\t", b": ", b"- ", b"? ", b"{", b"}", b"[", b"]", b"&a ", b"*a", b"<<: *a", b"!!int ''"),
    *(b"!!python/object/apply:os.system ['true']", b"!!binary x", b"!!timestamp x", b"!!bool x"),
    *(b"!!set {1}", b"!!omap [1]", b"!!float x", b"0x_", b"0b_", b"2024-13-45", b"1:99:99", b"~"),
    *(b"---\n", b"...\n", b"%YAML 9.9\n", b"%TAG ! x:\n", b"\xff\xfe", b"\xed\xa0\x80", b"\x00"),
    *(b'"\\ud800"', b'"\\x00"', b"\xe2\x80\xa8", b"#", b"|\n", b">-9\n", b"'", b'"', b"=", b"\r"),
    *(b"9" * 5000, b"1e999", b".nan", b".inf", b"-1", b"null", b"yes", b"\n  ", b"\x1b[2J"),
]


EDITS = ["token", "token", "flip", "cut", "drop", "copy", "noise", "line"]


@st.composite
def mangled_bytes(draw):
    """A real file with a few edits of bytes."""
    content = bytearray(draw(st.sampled_from(BYTES)))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(content)))
        kind = draw(st.sampled_from(EDITS))
        length = draw(st.integers(1, 60))
        if kind == "token":
            content[at:at] = draw(st.sampled_from(TOKENS))
        elif kind == "flip" and at < len(content):
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del content[at:]
        elif kind == "drop":
            del content[at : at + length]
        elif kind == "copy":
            content[at:at] = content[: length * 4]
        elif kind == "noise":
            content[at:at] = draw(st.binary(max_size=20))
        elif kind == "line":
            lines = content.split(b"\n")
            lines.insert(at % len(lines), lines[length % len(lines)])
            content = bytearray(b"\n".join(lines))
    return bytes(content)


def aliases(depth, first, inner, use="data: {fps: *LAST}"):
    """A document in which each line says the one before it twice."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{n}: &a{n} {inner.replace('*LAST', f'*a{n - 1}')}" for n in range(1, depth)]
    return "\n".join([*lines, use.replace("*LAST", f"*a{depth - 1}")]).encode()


SWEEP = "base: {data: {fps: *LAST}}\narms: {a: *LAST}"
MONSTERS = [
    lambda n: aliases(n, "[x, x]", "[*LAST, *LAST]"),
    lambda n: aliases(n, "{k: x, l: x}", "{k: *LAST, l: *LAST}"),
    lambda n: aliases(n, "{k: x, l: x}", "{<<: [*LAST, *LAST]}"),
    lambda n: aliases(n, "[x, x]", "[*LAST, *LAST]", SWEEP),
    lambda n: [b"data: &a {fps: *a}", b"&a [*a]", b"&a {*a : 1}", b"a: &a {<<: *a}"][n % 4],
    lambda n: b"data: " + b"[" * n**2 + b"]" * (n**2 - n % 2),
    lambda n: b"{data: " * n**2,
    lambda n: b"data: {videos: " + b"x" * n * 5000 + b", fps: " + b"y" * n * 100 + b"}",
    lambda n: b"data: {videos: '" + b"://" * n * 1400 + b"'}",
    lambda n: b"tracking: {uri: '" + b"?a;" * n * 1000 + b"'}",
    lambda n: b"".join(b"k%d: 1\n" % k for k in range(n * 40)),
    lambda n: b"#" * (2**18 - 30 + n),
    lambda n: b"train: {zero_stage: " + b"9" * n * 20 + b"}",
]
"""Files that are small and mean much, or are large and mean nothing, of a size from 1 to 60."""
monsters = st.builds(lambda make, n: make(n), st.sampled_from(MONSTERS), st.integers(1, 60))


def check_mangled(folder, runs, content):
    path = folder / "run.yaml"
    path.write_bytes(content)
    sweep = b"arms:" in content
    if sweep:
        (folder / "demo.yaml").write_bytes((ROOT / "configs" / "demo.yaml").read_bytes())
    words = ["sweep", path] if sweep else ["train", "--config", path]
    code, out, err = runs(*words, "--dry-run")
    assert code in (0, 2), (code, err)
    if code == 0 and not sweep:
        path.write_text(out, encoding="utf-8")
        assert runs("train", "--config", path, "--dry-run")[:2] == (0, out)


# -- options -------------------------------------------------------------------------------------


def flag(path):
    return "--" + ".".join(path).replace("_", "-")


@st.composite
def wrong_options(draw):
    """Words of a command line of which one is wrong."""
    path, hint = draw(st.sampled_from(LEAVES))
    scalars = [
        str(value)
        for value in wrong_values(hint)
        if not isinstance(value, list | dict | bool) and value is not None and value != ""
    ]
    if typing.get_origin(hint) is not tuple and "tuple" not in str(hint) and scalars:
        # a text is never wrong: what is no number is a name
        if hint is str or typing.get_args(hint)[:1] == (str,):
            return [flag(path)]
        return [flag(path), draw(st.sampled_from(scalars))]
    name = draw(st.sampled_from(["--", "-x", "--seed=", "--data", "--data.fsp", flag(path) + "x"]))
    return [name, draw(st.text(max_size=10))]


def check_options(runs, words):
    code, out, _ = runs("train", *words, "--dry-run")
    assert (code, out) == (2, ""), words


# -- the tests -----------------------------------------------------------------------------------


@pytest.fixture
def judged_examples(tmp_path, runs):
    return lambda count: profile(count)(given(judged)(lambda e: check_judged(tmp_path, runs, e)))()


@pytest.fixture
def mangled_examples(tmp_path, runs):
    examples = st.one_of(mangled_bytes(), mangled_bytes(), mangled_bytes(), monsters)
    return lambda count: profile(count)(
        given(examples)(lambda e: check_mangled(tmp_path, runs, e))
    )()


@pytest.fixture
def option_examples(runs):
    return lambda count: profile(count)(given(wrong_options())(lambda e: check_options(runs, e)))()


def test_what_is_wrong_ends_with_code_2(judged_examples, runs):
    judged_examples(QUICK)
    assert set(runs.codes) == {2}
    assert runs.total >= QUICK


def test_mangled_bytes_end_with_a_message_or_a_configuration(mangled_examples, runs):
    mangled_examples(QUICK)
    assert set(runs.codes) == {0, 2}
    assert runs.total >= QUICK


def test_wrong_options_end_with_code_2(option_examples, runs):
    option_examples(6)
    assert set(runs.codes) == {2}


def test_every_annotation_has_wrong_values():
    assert len(LEAVES) > 150
    for path, hint in LEAVES:
        assert wrong_values(hint), path


@pytest.mark.slow
def test_many_wrong_settings(judged_examples, runs):
    judged_examples(SLOW)
    assert runs.total >= SLOW


@pytest.mark.slow
def test_many_mangled_files(mangled_examples, runs):
    mangled_examples(SLOW_MANGLED)
    assert runs.total >= SLOW_MANGLED


@pytest.mark.slow
def test_many_wrong_options(option_examples, runs):
    option_examples(SLOW_OPTIONS)
    assert runs.total >= SLOW_OPTIONS
