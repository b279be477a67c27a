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
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)#]+)(?:#[^)]*)?\)")


def blocks(language: str) -> list[tuple[str, str]]:
    """Return (page, code) of every code block in a language."""
    return [
        (page.relative_to(ROOT).as_posix(), code)
        for page in PAGES
        for found, code in BLOCK.findall(page.read_text(encoding="utf-8"))
        if found == language
    ]


def commands(program: str) -> list[list[str]]:
    """Return the arguments of every call of a program in the shell blocks, each once."""
    lines = [
        line
        for _, code in blocks("bash")
        for line in code.replace("\\\n", " ").splitlines()
        if line.startswith(f"{program} ")
    ]
    return [shlex.split(line, comments=True)[1:] for line in dict.fromkeys(lines)]


@pytest.mark.parametrize("arguments", commands("make"), ids=" ".join)
def test_make_targets_exist(arguments):
    done = subprocess.run(
        ["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", commands("cil"), ids=" ".join)
def test_cil_commands_parse(arguments, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    command, *rest = arguments
    if command == "submit":
        assert _main(["submit", "--dry-run", *rest]) == 0
    elif "--config" in rest and (ROOT / rest[rest.index("--config") + 1]).exists():
        if "pretrained" in (ROOT / rest[rest.index("--config") + 1]).read_text():
            for part in ("unet", "image_encoder", "text_encoder", "tokenizer"):
                (tmp_path / part).mkdir()  # stands for the weights that a user has downloaded
            arguments = [*arguments, "--model.pretrained", str(tmp_path)]
        assert _main([*arguments, "--dry-run"]) == 0
        assert "time_noise:" in capsys.readouterr().out
    elif command == "sweep":
        assert _main([*arguments, "--dry-run"]) == 0
    elif command == "sample":
        assert tyro.cli(SampleArguments, args=rest).model
    else:
        assert command in {*COMMANDS, "STAGE"}


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
