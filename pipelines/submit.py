"""`cil submit -- COMMAND ...`: run one of our commands as a job of a Ray cluster.

In: the command line behind `--`, and the working directory, which is packed without what
`infra/runtime_env.yaml` and .gitignore leave out. Out: the job's log on stderr, and its driver's
exit code. The id of a job is the hash of its command, its settings and the working directory, so
the same command twice is one job: the second call follows the first one's.

    cil submit --address http://127.0.0.1:8265 -- train --config configs/svd-512.yaml
"""

import argparse
import hashlib
import json
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

from cil.errors import ConfigError
from pipelines.command_texts import COMMANDS
from pipelines.config import environment, load_config, redact_uri
from pipelines.job_client import (
    Ending,
    Job,
    Jobs,
    check_address,
    connect,
    end_of,
    explained,
    follow,
    send_once,
)
from pipelines.job_secrets import place_of_secret
from pipelines.progress import console
from pipelines.remote import is_url
from pipelines.report import RunReport, Stopwatch
from pipelines.termination import TERMINATED, sigterm_raises, was_terminated
from pipelines.yaml_file import read_mapping

__all__ = ["make_job", "run_command"]

RUNTIME_ENV = "infra/runtime_env.yaml"
_KNOWN = {"config", "env_vars", "excludes", "pip", "py_modules"}


def run_command(words: list[str], *, dry_run: bool, as_json: bool, description: str) -> int:
    """Run the command line, and return the exit code of the job.

    Args:
        words: options, then ``--``, then a command of ours with its arguments.
        dry_run: show what would be submitted, and stop.
        as_json: print one JSON object on stdout at the end.
        description: for ``--help``.

    Raises:
        ConfigError: a mistake in the options, the command or the token; nothing was submitted.
        StageError: the cluster cannot be reached, or refuses the job.
    """
    options, command = _parse(words, description)
    watch = Stopwatch()
    job = make_job(command, Path(options.working_dir), options.runtime_env, options.submission_id)
    if dry_run:
        _say(f"{job.submission_id}: {job.entrypoint}")
        if as_json:
            nothing = Ending(status="NOT SUBMITTED", exit_code=None, message="")
            _print(_report(job, nothing, watch))
        return 0
    client = connect(options.address)
    name, known = send_once(client, job, again=options.again)
    _say_sent(job, name, known=known, address=client.get_address())
    if not known:
        _check_unchanged(job)
    ending = end_of(client, name) if options.no_wait else _follow(client, name)
    if as_json:
        _print(_report(job, ending, watch, name=name, known=known, address=client.get_address()))
    if options.no_wait:
        return 0
    return _conclude(name, ending)


def _parse(words: list[str], description: str) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="cil submit",
        description=f"{description} Exit code: that of the command, as if it had run here.",
        usage="cil submit [options] -- COMMAND [arguments]",
        allow_abbrev=False,
    )
    parser.add_argument("--address", help="http://HOST:8265; unset takes RAY_ADDRESS")
    parser.add_argument("--working-dir", default=".", help="what the job takes along (default: .)")
    parser.add_argument("--runtime-env", help=f"default: {RUNTIME_ENV}, if it is there")
    parser.add_argument("--submission-id", help="default: made of the content of all this")
    parser.add_argument("--again", action="store_true", help="run once more if it has ended")
    parser.add_argument("--no-wait", action="store_true", help="submit, and do not follow")
    split = words.index("--") if "--" in words else len(words)
    options, unknown = parser.parse_known_args(words[:split])
    command = words[split + 1 :]
    if unknown or not command:
        what = f"cil submit does not know {' '.join(unknown)!r}" if unknown else "nothing to run"
        raise ConfigError(f"{what}; write: cil submit [options] -- COMMAND [arguments]")
    if command[0] not in COMMANDS or command[0] == "submit":
        known = ", ".join(name for name in COMMANDS if name != "submit")
        raise ConfigError(f"cil submit runs commands of cil, got {command[0]!r}; known: {known}")
    if options.address is not None:
        check_address(options.address)
    return options, command


def make_job(
    command: list[str], folder: Path, runtime_env: str | None, submission_id: str | None
) -> Job:
    """Describe the job of a command of ours.

    Args:
        command: one of `COMMANDS` and its arguments.
        folder: the working directory.
        runtime_env: YAML file of Ray; None takes the folder's own, if there is one.
        submission_id: None makes one of the content.

    Raises:
        ConfigError: something is not there, or cannot be taken along.
    """
    if not (folder / "pipelines" / "__main__.py").exists():
        raise ConfigError(f"--working-dir must be a checkout with pipelines/ in it, got {folder}")
    environment_of_job = _runtime_env(folder, runtime_env)
    outside = _check_config(command, folder)
    _warn_of_relative_output(command, folder)
    entrypoint = shlex.join(["python", "-m", "pipelines", *command])
    if redact_uri(entrypoint) != entrypoint:
        raise ConfigError(
            "the command holds a password or token, which the dashboard would show; give it to the "
            "nodes by environment variable, as SECURITY.md says"
        )
    package = _package(folder, environment_of_job["excludes"])
    content = json.dumps([entrypoint, package, environment_of_job, outside], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    return Job(
        submission_id=submission_id or f"cil-{command[0]}-{digest}",
        entrypoint=entrypoint,
        runtime_env={**environment_of_job, "working_dir": str(folder.resolve())},
        metadata={"cil_command": command[0], "cil_package": package},
    )


def _runtime_env(folder: Path, given: str | None) -> dict[str, Any]:
    path = Path(given) if given else folder / RUNTIME_ENV
    found = read_mapping(path) if given or path.exists() else {}
    variables, excludes = found.get("env_vars", {}), found.get("excludes", [])
    unknown = sorted(str(name) for name in set(found) - _KNOWN)
    if unknown:
        raise ConfigError(f"{path} has settings that are not used here: {', '.join(unknown)}")
    if not isinstance(variables, dict) or not isinstance(excludes, list):
        raise ConfigError(f"{path}: excludes must be a list, and env_vars a mapping")
    for name, value in variables.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ConfigError(
                f"{path}: env_vars must map text to text, {name!r} has a value of type "
                f"{type(value).__name__}; put it in quotes"
            )
    place = place_of_secret(found)
    if place is not None:
        raise ConfigError(
            f"{path} must hold no secret, but {place} is one or has one in an address; a job's "
            "environment is shown in the dashboard. Give secrets to the nodes"
        )
    return {**found, "excludes": [str(pattern) for pattern in excludes]}


def _package(folder: Path, excludes: list[str]) -> str:
    """Return the name of Ray's package of a folder: a hash of what is taken along."""
    from ray._private.runtime_env.packaging import get_uri_for_directory

    logging.getLogger("ray").setLevel(logging.WARNING)  # it names every file that git ignores
    ignore = environment("RAY_RUNTIME_ENV_IGNORE_GITIGNORE") != "1"
    uri: str = get_uri_for_directory(str(folder), ignore, excludes=excludes)
    return uri


def _option(command: list[str], name: str) -> str | None:
    """Return the value of an option of the job's command line."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(name, dest="value")
    value: str | None = parser.parse_known_args(command)[0].value
    return value


def _check_config(command: list[str], folder: Path) -> str:
    """Return the hash of a configuration that is not part of the working directory.

    Raises:
        ConfigError: the job would not find its configuration.
    """
    config = _option(command, "--config")
    if config is None:
        return ""
    path = Path(config)
    inside = (folder / path).resolve()
    if not path.is_absolute():
        if inside.is_relative_to(folder.resolve()) and inside.is_file():
            return ""
        raise ConfigError(
            f"--config {config} is not in the working directory {folder}, which is all that the "
            "job takes along; give a path below it, or an absolute one that the head node has"
        )
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _warn_of_relative_output(command: list[str], folder: Path) -> None:
    output, config = _option(command, "--output.dir"), _option(command, "--config")
    if output is None and config is not None and (folder / config).is_file():
        output = load_config(folder / config).output.dir
    if output is not None and not is_url(output) and not Path(output).is_absolute():
        _say(
            f"warning: output.dir = {output} is relative: it will be in the job's copy of the "
            "working directory on the head node, and go with it; give an absolute path on storage "
            "that all nodes mount"
        )


def _say_sent(job: Job, name: str, *, known: bool, address: str) -> None:
    if known:
        _say(
            f"{name} is on {address} already: following it (--again starts it once more if it has "
            "ended)"
        )
    else:
        _say(f"submitted {name} to {address}: {job.entrypoint}")


def _check_unchanged(job: Job) -> None:
    package = _package(Path(job.runtime_env["working_dir"]), job.runtime_env["excludes"])
    if package != job.metadata["cil_package"]:
        _say(
            "warning: the working directory changed while it was packed, so the job may not find "
            "its package; write logs and results elsewhere"
        )


def _follow(client: Jobs, name: str) -> Ending:
    def show(piece: str) -> None:
        sys.stderr.writelines(piece.splitlines(keepends=True))  # a line may be JSON of its own
        sys.stderr.flush()

    address = client.get_address()
    try:
        with sigterm_raises(), explained(address):
            return follow(client, name, show)
    except KeyboardInterrupt:
        code = TERMINATED if was_terminated() else 130
        return Ending(status="LEFT RUNNING", exit_code=code, message=address)


def _conclude(name: str, ending: Ending) -> int:
    if ending.status == "LEFT RUNNING":
        _say(
            f"{name} goes on; to follow it, run the same command again; to stop it: "
            f"ray job stop --address {ending.message} {name}"
        )
    elif ending.status == "SUCCEEDED":
        _say(f"{name} has succeeded")
    else:
        first = ending.message.splitlines()[0] if ending.message else "no reason given"
        _say(f"error: {name} ended as {ending.status}: {first}")
    return 1 if ending.exit_code is None else ending.exit_code


def _report(
    job: Job,
    ending: Ending,
    watch: Stopwatch,
    *,
    name: str | None = None,
    known: bool = False,
    address: str = "",
) -> RunReport:
    outputs: dict[str, Any] = {
        "submission_id": name or job.submission_id,
        "address": address,
        "status": ending.status,
        "exit_code": ending.exit_code,
    }
    return RunReport(
        stage="submit",
        reused=known,
        inputs={"entrypoint": job.entrypoint, "package": job.metadata["cil_package"]},
        outputs=outputs,
        metrics={},
        seconds=watch.seconds(),
    )


def _print(report: RunReport) -> None:
    print(redact_uri(json.dumps({report.stage: report.to_json()}, sort_keys=True)))


def _say(text: str) -> None:
    console.print(redact_uri(text), markup=False)
