"""What the documentation tells a reader to type exists, parses and, where it is quick, runs."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from pipelines.__main__ import _main
from pipelines.command_texts import COMMANDS
from pipelines.sample import SampleArguments

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("infra/*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)#]+)(?:#[^)]*)?\)")


def blocks(*languages: str) -> list[tuple[str, str]]:
    """Return (page, code) of every code block in these languages."""
    return [
        (page.relative_to(ROOT).as_posix(), code)
        for page in PAGES
        for found, code in BLOCK.findall(page.read_text(encoding="utf-8"))
        if found in languages
    ]


def lines(*languages: str) -> list[str]:
    """Return every line of these blocks once; one that is continued is one line."""
    code = "\n".join(code.replace("\\\n", " ") for _, code in blocks(*languages))
    return [line for line in dict.fromkeys(code.splitlines()) if line.strip()]


def commands(program: str) -> list[list[str]]:
    """Return the arguments of every call of a program, run or not, each once."""
    starting = [line for line in lines("bash", "sh") if line.startswith(f"{program} ")]
    return [shlex.split(line, comments=True)[1:] for line in starting]


@pytest.mark.parametrize("arguments", commands("make"), ids=" ".join)
def test_make_targets_exist(arguments):
    done = subprocess.run(
        ["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def parses(monkeypatch, capsys, tmp_path):
    """Let our own parser read the words after `cil`; a file of the reader's own is an empty one."""

    def check(arguments):
        command, *rest = arguments
        monkeypatch.chdir(ROOT)
        if command == "submit":
            assert _main(["submit", "--dry-run", *rest]) == 0, capsys.readouterr().err
            check(rest[rest.index("--") + 1 :])
        elif command == "sample":
            assert tyro.cli(SampleArguments, args=rest).model
        elif command in ("verify", "export", "import"):
            monkeypatch.chdir(tmp_path)  # where nothing is that could be read
            assert _main(list(arguments)) == 1
            assert "usage:" not in capsys.readouterr().err
        else:
            assert _main([*_with_files(arguments, tmp_path), "--dry-run"]) == 0, (
                capsys.readouterr().err
            )
            assert command == "sweep" or "time_noise:" in capsys.readouterr().out

    return check


def _with_files(arguments, folder):
    """Name an empty file for a configuration of the reader's own, and weights that are there."""
    arguments = list(arguments)
    if "--config" in arguments:
        at = arguments.index("--config") + 1
        if not arguments[at].startswith("configs/"):
            (folder / "own.yaml").write_text("")
            arguments[at] = str(folder / "own.yaml")
            return arguments
        assert (ROOT / arguments[at]).is_file(), f"{arguments[at]} is not there"
        if "pretrained" in (ROOT / arguments[at]).read_text():
            for part in ("unet", "transformer", "image_encoder", "text_encoder", "tokenizer"):
                (folder / part).mkdir(exist_ok=True)
            if "--model.pretrained" not in arguments:
                arguments += ["--model.pretrained", ""]
            arguments[arguments.index("--model.pretrained") + 1] = str(folder)
    return arguments


@pytest.mark.parametrize("arguments", commands("cil"), ids=" ".join)
def test_cil_commands_parse(arguments, parses):
    parses(arguments)


def test_a_command_that_does_not_parse_is_found(parses):
    for wrong in ("trian", "train --config configs/demo.yaml --train.steps 5", "export --outs x"):
        with pytest.raises(AssertionError):
            parses(wrong.split())
    with pytest.raises(AssertionError):
        parses(["train", "--config", "configs/none.yaml"])


@pytest.mark.parametrize("arguments", commands("python"), ids=" ".join)
def test_python_commands_name_what_is_there(arguments):
    if arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]), arguments
    else:
        assert (ROOT / arguments[0]).is_file(), arguments


@pytest.mark.slow  # two heavy imports
def test_the_commands_of_ray_and_mlflow_parse(parses):
    import click
    from mlflow.cli import cli as mlflow
    from ray.dashboard.modules.job.cli import job_cli_group as ray_job

    for arguments in commands("ray"):
        assert arguments[:2] == ["job", "submit"]
        words = arguments[arguments.index("--") + 1 :]
        ray_job.commands["submit"].make_context("submit", [*arguments[2:]])
        assert words[:3] == ["python", "-m", "pipelines"]
        parses(words[3:])
    for program, *words in commands("mlflow"):
        command = mlflow.get_command(click.Context(mlflow), program)
        assert command is not None, program
        command.make_context(program, words)


PARSED = ("cil", "make", "python", "ray", "mlflow")
LANGUAGES = ("bash", "sh", "python", "yaml", "json", "text")
SHELL = ("source", "export", "tar")
"""Nothing of ours; what they are given is checked here, as far as it is in the repository."""


def test_every_command_is_checked_or_marked():
    """The rule of CONTRIBUTING: `bash` is what tests parse, `sh` what needs more than they have."""
    for line in lines("bash"):
        assert line.split()[0] in (*PARSED, *SHELL), f"fence it as sh: {line}"
        assert not NEEDS_MORE.search(line), f"fence it as sh: {line}"
    for page, code in blocks("sh"):
        assert NEEDS_MORE.search(code), f"{page}: fence it as bash: {code}"
    for page in PAGES:
        for language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
            assert language in {*LANGUAGES, ""}, (page, language)
            if language in ("text", ""):
                assert not re.search(r"^(cil [a-z]|make |python |kubectl )", code, re.MULTILINE)


NEEDS_MORE = re.compile(r"kubectl|docker|systemctl|sudo|curl|audit|bench-gpu|test-gpu|ray up")
"""A cluster, a daemon, root, a server, the network, or a GPU."""


def test_commands_within_sentences_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
        assert set(re.findall(r"`cil ([a-z]+)", text)) <= {*COMMANDS, "help"}, page
        assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets, page


def test_the_commands_at_the_head_of_configurations_parse(parses):
    found = []
    for path in sorted(ROOT.glob("configs/*.yaml")):
        head = path.read_text(encoding="utf-8")
        for line in re.findall(r"^#.*?\b(cil [a-z]+ .*?)(?:[,;]|$)", head, re.MULTILINE):
            found.append(line)
            parses(shlex.split(line)[1:])
    assert len(found) >= 5


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_command_has_help(command, capsys):
    assert _main([command, "--help"]) == 0
    assert f"usage: cil {command}" in capsys.readouterr().out


def test_there_are_commands_to_check():
    assert ["demo"] in commands("make")
    assert ["test"] in commands("make")
    assert any(arguments[0] == "run" for arguments in commands("cil"))
    assert any(arguments[0] == "sample" for arguments in commands("cil"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    local = [target for target in targets if not target.startswith(("http://", "https://"))]
    assert [target for target in local if not (page.parent / target).exists()] == []


def headless_tables(text: str) -> list[str]:
    """Return the rules (|---|---|) without a header of as many cells right above."""
    lines = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE).splitlines()
    return [
        line
        for above, line in zip(["", *lines], lines, strict=False)
        if re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", line.strip())
        and not (above.startswith("|") and above.count("|") == line.count("|"))
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_tables_have_headers(page):
    assert headless_tables(page.read_text(encoding="utf-8")) == []


def test_a_table_without_a_header_is_found():
    assert headless_tables("text\n\n|---|---|\n| 1 | 2 |\n") == ["|---|---|"]
    assert headless_tables("| a |\n|---|---|\n| 1 | 2 |\n") == ["|---|---|"]
    assert headless_tables("| a | b |\n|---|---|\n| 1 | 2 |\n") == []


def test_the_method_snippet_of_readme_runs():
    (code,) = [code for page, code in blocks("python") if page == "README.md" and "cil" in code]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code + "assert start.isfinite().all()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_python_blocks_are_python():
    for page, code in blocks("python"):
        compile(code, page, "exec")


def test_the_table_of_settings_has_every_setting():
    spec = importlib.util.spec_from_file_location("settings", ROOT / "docs" / "settings_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.on_page_markdown((ROOT / "docs" / "configuration.md").read_text())
    assert module.MARK not in page
    for line in (
        "| `train.num_steps` | integer >= 1 | 400 | Optimiser steps. |",
        "| `sample.start_time` | number > 0, <= 1 | 0.94 |",
        "| `first_stage.path` | text, or null | null |",
        "| `model.block_out_channels` | list of integer >= 1 (2 or more), or null | null |",
        "| `time_noise.beta_m` | number, or null | null |",
    ):
        assert line in page
