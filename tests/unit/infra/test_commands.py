"""Every command of ours that a file of infra/ starts is one that our parser takes."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
import yaml

from pipelines.__main__ import _main
from pipelines.command_texts import COMMANDS

ROOT = Path(__file__).parents[3]
FILES = [
    path
    for path in sorted([*ROOT.glob("infra/**/*"), *ROOT.glob("ray_cluster*.yaml")])
    if path.suffix in {".yaml", ".yml", ".service", ".timer", ".example", ".py", ""}
    and path.is_file()
]
INSTALLED = {"/etc/cil/retrain.yaml": ROOT / "infra" / "kubernetes" / "retrain.yaml"}
ON_ONE_HOST = {"/etc/cil/retrain.yaml": ROOT / "infra" / "systemd" / "retrain.yaml"}
"""What stands at a place of a node: a ConfigMap of kustomization.yaml, or an operator's copy."""
CALL = re.compile(r"(?:python3? -m pipelines|(?<![\w/.-])cil) ((?:[a-z]+)(?: -.*)?)$", re.MULTILINE)


def calls():
    """Commands of ours as (file, words), as they stand in lines of text."""
    found = []
    for path in FILES:
        for match in CALL.finditer(path.read_text(encoding="utf-8")):
            words = shlex.split(match.group(1), comments=True)
            if words[0] in COMMANDS or len(words) > 1:
                found.append((path.relative_to(ROOT).as_posix(), words))
    return found


def check(words, file=""):
    """Let our parser read a command, with what is installed in its place."""
    there = INSTALLED | (ON_ONE_HOST if "systemd" in file else {})
    words = [str(there.get(word, word)) for word in words]
    for option, value in itertools.pairwise(words):
        if option == "--config":
            assert (ROOT / value).is_file(), f"{value} is not there"
    before = words.index("--") if "--" in words else len(words)
    return _main([*words[:before], "--dry-run", *words[before:]])


@pytest.mark.parametrize(("file", "words"), calls(), ids=str)
def test_our_parser_takes_it(file, words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert check(words, file) == 0, capsys.readouterr().err
    if words[0] == "submit":
        assert check(words[words.index("--") + 1 :]) == 0, capsys.readouterr().err


def test_the_commands_are_found():
    places = {file for file, words in calls() if words[0] == "retrain"}
    assert places >= {
        "infra/kubernetes/rayjob.yaml",
        "infra/kubernetes/raycronjob.yaml",
        "infra/systemd/cil-retrain.service",
    }
    assert {words[0] for _, words in calls()} >= {"retrain", "submit"}


@pytest.mark.parametrize(
    "line",
    ["retrian --config /etc/cil/retrain.yaml", "retrain --data.fsp 8", "retrain --configs x"],
)
def test_a_wrong_command_would_be_found(line, capsys):
    assert check(shlex.split(line)) == 2


def test_what_images_and_pods_start_is_there():
    for instruction in re.findall(r"^CMD (\[.*\])$", (ROOT / "infra/Dockerfile").read_text(), re.M):
        program, *words = yaml.safe_load(instruction)
        assert program == "cil"
        assert check(words) == 0
    (cron, *_) = yaml.safe_load_all((ROOT / "infra/kubernetes/cronjob.yaml").read_text())
    (container,) = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    program, script, manifest = container["command"]
    assert (program, manifest) == ("python", "/etc/cil/rayjob.yaml")
    assert (ROOT / script).is_file()
