"""The command line: `cil STAGE --config FILE [--dotted.override VALUE]`, or `python -m pipelines`.

Only the command that was asked for is imported, so `cil --help` is quick. Exit codes: 0 everything
asked for is done, 2 a mistake in command or configuration before anything started, 1 failed.
"""

import argparse
import dataclasses
import difflib
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from pipelines.command_texts import COMMANDS, EXAMPLES, HELP

if TYPE_CHECKING:
    from pipelines.config import RunConfig
    from pipelines.report import RunReport

__all__ = ["main"]

_LONG_FORMS = {"--max-bad-fraction": "--encode.max-bad-fraction"}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its code."""
    sys.exit(_main(list(sys.argv[1:] if arguments is None else arguments)))


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        names = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
        print(HELP.format(commands=names), end="")
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"cil {version('conditional-image-leakage')}")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(COMMANDS)}"
        print(f"error: there is no command {command!r}; {hint}", file=sys.stderr)
        return 2
    rest, job = _before_job(command, rest)
    common, rest = _common_options(rest)
    return _logged(command, common, lambda: _dispatch(command, common, rest + job))


def _logged(command: str, common: argparse.Namespace, action: Callable[[], int]) -> int:
    """Run a command with its stderr in the format that was asked for."""
    from cil.errors import ConfigError
    from pipelines.log_format import chosen_format, stderr_lines

    try:
        log_format = chosen_format(common.log_format)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with stderr_lines(log_format, command=command):
        return _guarded(action, debug=common.debug)


def _before_job(command: str, words: list[str]) -> tuple[list[str], list[str]]:
    """Split off what follows ``--`` in `cil submit`: its options are the job's, not ours."""
    split = words.index("--") if command == "submit" and "--" in words else len(words)
    return words[:split], words[split:]


def _common_options(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog="cil")
    parser.add_argument("--config")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("--log-format", choices=("text", "json"))
    known, rest = parser.parse_known_args(arguments)
    return known, [_LONG_FORMS.get(word, word) for word in _split(rest)]


def _split(words: list[str]) -> list[str]:
    """Write ``--name=value`` as two words where the name has a longer form."""
    split = []
    for word in words:
        name, equals, value = word.partition("=")
        split += [name, value] if equals and name in _LONG_FORMS else [word]
    return split


def _guarded(action: Callable[[], int], *, debug: bool) -> int:
    """Turn errors into one message, without secrets, and an exit code."""
    from cil.errors import CilError, ConfigError
    from pipelines.config import redact_uri
    from pipelines.termination import was_terminated

    try:
        return action()
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as error:  # tyro's, after it has explained a mistake or printed its help
        return int(error.code or 0)
    except Exception as error:
        if debug:
            sys.stderr.write(redact_uri(traceback.format_exc()))
        if was_terminated():
            return _interrupted()
        if isinstance(error, CilError):
            print(f"error: {redact_uri(str(error))}", file=sys.stderr)
            return 2 if isinstance(error, ConfigError) else 1
        print(
            f"error: unexpected {type(error).__name__}: {redact_uri(str(error))}\n"
            "run again with --debug for the traceback, and please report it",
            file=sys.stderr,
        )
        return 1


def _interrupted() -> int:
    from pipelines.termination import TERMINATED, was_terminated

    what = "ended by SIGTERM" if was_terminated() else "interrupted"
    print(f"{what}; run the same command again to go on", file=sys.stderr)
    return TERMINATED if was_terminated() else 130


def _own_options(command: str, rest: list[str]) -> tuple[argparse.Namespace, list[str]]:
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog=f"cil {command}")
    if command == "plan":
        flags.add_argument("--probe", type=int)
        flags.add_argument("--stage", choices=("encode", "train"), default="encode")
        flags.add_argument("--gpu-memory-gib", type=float)
    if command == "train":
        flags.add_argument("--replay")
    if command == "validate":
        flags.add_argument("--checkpoint")
    return flags.parse_known_args(rest)


def _dispatch(command: str, common: argparse.Namespace, rest: list[str]) -> int:
    without_config = {
        "sample": _sample,
        "verify": _verify,
        "export": _export,
        "import": _import,
        "sweep": _sweep,
        "submit": _submit,
        "evaluate": _evaluate,
        "leak": _leak,
    }
    if command in without_config:
        return without_config[command](common, rest)
    if command in ("retrain", "promote", "rollback", "status"):
        return _registry(command, common, rest)
    own, rest = _own_options(command, rest)
    if command == "validate":
        common.config = common.config or _own_config(rest)
    needs_parts = not (common.dry_run or getattr(own, "stage", None) == "train")
    config = _resolve(command, common, rest, needs_parts=needs_parts)
    if common.dry_run:
        from pipelines.config import config_to_yaml

        print(config_to_yaml(config), end="")
        return 0
    if command == "doctor":
        from pipelines import doctor

        return doctor.run(config, as_json=common.json)
    if command == "plan" or getattr(own, "replay", None) is not None:
        return _look(config, own, common)
    if command == "validate":
        from pipelines.validate_command import run_command as run_validation

        reports = [run_validation(config, checkpoint=own.checkpoint)]
    else:
        from pipelines import stages

        reports = stages.run(command, config, debug=common.debug)
    _finish(reports, common)
    return 0


def _registry(command: str, common: argparse.Namespace, rest: list[str]) -> int:
    from pipelines import registry_commands

    options, rest = registry_commands.parse_options(rest, command)
    config = _resolve(command, common, rest)
    if common.dry_run:
        from pipelines.config import config_to_yaml

        print(config_to_yaml(config), end="")
        return 0
    report, code = registry_commands.run_command(command, config, options, debug=common.debug)
    _finish([report], common)
    return code


def _own_config(rest: list[str]) -> str | None:
    """Find the settings of the training in the folder that ``--output.dir`` names."""
    from pathlib import Path

    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--output.dir", dest="folder")
    folder = flags.parse_known_args(rest)[0].folder
    path = Path(folder or "") / "train" / "config.yaml"
    return str(path) if folder and path.exists() else None


def _look(config: "RunConfig", own: argparse.Namespace, common: argparse.Namespace) -> int:
    """Run what writes nothing and shows one report."""
    if "replay" in own:
        from pipelines.replay import replay_step, show_replay

        return _show(replay_step(config, own.replay), show_replay, common)
    if own.stage == "train":
        from pipelines.plan_training import plan_training
        from pipelines.plan_training_table import show_training_plan

        report = plan_training(config, gpu_memory_gib=own.gpu_memory_gib)
        return _show(report, show_training_plan, common)
    from pipelines.plan import plan_encoding
    from pipelines.plan_table import show_plan

    return _show(plan_encoding(config, num_probed=own.probe), show_plan, common)


def _show(
    report: "RunReport", show: "Callable[[RunReport], None]", common: argparse.Namespace
) -> int:
    show(report)
    _print_json([report], common)
    return 0


def _sample(common: argparse.Namespace, rest: list[str]) -> int:
    from pipelines.option_parser import parse_with_tyro
    from pipelines.sample import SampleArguments, run_command

    if common.config or common.dry_run:
        from cil.errors import ConfigError

        raise ConfigError("cil sample takes no --config and no --dry-run; see cil sample --help")
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog="cil sample")
    flags.add_argument("--analytic-init", action=argparse.BooleanOptionalAction)
    given, rest = flags.parse_known_args(rest)
    arguments = parse_with_tyro(
        SampleArguments, rest, prog="cil sample", description=_description("sample")
    )
    arguments = dataclasses.replace(arguments, analytic_init=given.analytic_init)
    _finish([run_command(arguments)], common)
    return 0


def _verify(common: argparse.Namespace, rest: list[str]) -> int:
    import tempfile
    from pathlib import Path

    from pipelines.verify import verify

    parser = argparse.ArgumentParser(
        prog="cil verify",
        description=f"{COMMANDS['verify']}. Exit code 1 if anything is wrong.",
        epilog="examples: cil verify build/demo/run/dataset; cil verify s3://bucket/clips --json",
    )
    parser.add_argument("dataset", metavar="DATASET", help="folder or URL of the data set")
    if common.config or common.dry_run:
        from cil.errors import ConfigError

        raise ConfigError("cil verify takes no --config and no --dry-run; see cil verify --help")
    dataset = parser.parse_args(rest).dataset
    with tempfile.TemporaryDirectory() as cache:
        report = verify(dataset, Path(cache))
    faults = report.outputs["faults"]
    _finish([report], common)
    if faults:
        print(f"error: {len(faults)} faults:", *faults, sep="\n  ", file=sys.stderr)
    return int(bool(faults))


def _sweep(common: argparse.Namespace, rest: list[str]) -> int:
    from cil.errors import ConfigError
    from pipelines.config import RunConfig
    from pipelines.sweep import command

    if {"-h", "--help"} & set(rest):
        _overridden("sweep", RunConfig(), ["--help"])
    if common.config or not rest or rest[0].startswith("-"):
        raise ConfigError("give the sweep file first, without --config: cil sweep FILE [options]")
    options, settings = command.parse_options(rest[1:])
    sweep = command.prepare(
        rest[0],
        options,
        lambda base: _overridden("sweep", base, settings),
        needs_parts=not common.dry_run,
    )
    if common.dry_run:
        _note_missing(sweep.base)
        _print_json([command.show_sweep(sweep, options)], common)
        return 0
    report = command.run_sweep(sweep, options, debug=common.debug)
    kept = command.keep_arm(sweep, options, report, debug=common.debug)
    _finish([report, *kept], common)
    return int(report.metrics["failed"] > 0)


def _submit(common: argparse.Namespace, rest: list[str]) -> int:
    from pipelines.submit import run_command

    command = "submit"
    if common.config:
        from cil.errors import ConfigError

        raise ConfigError("--config belongs to the job: cil submit -- COMMAND --config FILE")
    return run_command(
        rest,
        dry_run=common.dry_run,
        as_json=common.json,
        description=f"{COMMANDS[command]}. Example: {EXAMPLES[command]}. Also: --dry-run, --json.",
    )


def _evaluate(common: argparse.Namespace, rest: list[str]) -> int:
    from pipelines.evaluate.command import run_command

    return _on_arms("evaluate", run_command, common, rest)


def _leak(common: argparse.Namespace, rest: list[str]) -> int:
    from pipelines.leak.command import run_command

    return _on_arms("leak", run_command, common, rest)


def _on_arms(
    command: str,
    run_command: "Callable[..., RunReport]",
    common: argparse.Namespace,
    rest: list[str],
) -> int:
    """Run a command that takes arms, or the sweep that they are of."""
    if {"-h", "--help"} & set(rest):
        _resolve(command, common, ["--help"])
    from pipelines.evaluate import options as arm_options

    options, settings = arm_options.parse_options(rest, command=command)
    base = arm_options.sweep_base(options, common.config)
    if base is None:
        config = _resolve(command, common, settings)
    else:
        config = _overridden(command, base, settings)
    if common.dry_run:
        from pipelines.config import config_to_yaml

        print(config_to_yaml(config), end="")
        return 0
    _finish([run_command(config, options, debug=common.debug)], common)
    return 0


def _import(common: argparse.Namespace, rest: list[str]) -> int:
    from pipelines.import_checkpoint import run_command

    if common.config or common.dry_run:
        from cil.errors import ConfigError

        raise ConfigError("cil import takes no --config and no --dry-run; see cil import --help")
    _finish([run_command(rest, description=COMMANDS["import"])], common)
    return 0


def _export(common: argparse.Namespace, rest: list[str]) -> int:
    from pipelines.export import run_command

    if common.config or common.dry_run:
        from cil.errors import ConfigError

        raise ConfigError("cil export takes no --config and no --dry-run; see cil export --help")
    report = run_command(rest, description=COMMANDS["export"])
    show = _print_json if "checkpoints" in report.outputs else _finish  # a list was shown already
    show([report], common)
    return 0


def _resolve(
    command: str, common: argparse.Namespace, rest: list[str], *, needs_parts: bool = True
) -> "RunConfig":
    """File, then overrides, then everything validated together.

    What only looks at settings (``needs_parts`` False) goes on without published weights.
    """
    from pipelines.config import load_config
    from pipelines.pretrained_parts import with_parts_if_there, with_pretrained_parts

    config = _overridden(command, load_config(common.config), rest)
    if needs_parts:
        return with_pretrained_parts(config)
    _note_missing(config)
    return with_parts_if_there(config)


def _note_missing(config: "RunConfig") -> None:
    from pipelines.pretrained_parts import is_missing

    if is_missing(config):
        print(
            f"note: model.pretrained {config.model.pretrained} is not there, so the first stage "
            "and the encoders that a run would take from it are not named here",
            file=sys.stderr,
        )


def _overridden(command: str, config: "RunConfig", rest: list[str]) -> "RunConfig":
    if not rest:
        return config
    from dataclasses import asdict

    from pipelines.config import RunConfig, validate_config
    from pipelines.option_parser import parse_with_tyro

    overridden = parse_with_tyro(
        RunConfig,
        rest,
        default=config,
        prog=f"cil {command}",
        description=_description(command),
    )
    return validate_config(asdict(overridden), source="the command line")


def _description(command: str) -> str:
    common = " Also: --config FILE, --dry-run, --json, --debug, --log-format json."
    common = "" if command == "sample" else common
    return f"{COMMANDS[command]}. Example: {EXAMPLES[command]}.{common}"


def _finish(reports: "list[RunReport]", common: argparse.Namespace) -> None:
    """Show where everything is; with --json also print one object on stdout."""
    from pipelines.progress import console

    for report in reports:
        state = "was complete" if report.reused else f"{report.seconds:.1f} s"
        counts = ", ".join(f"{key} {value:g}" for key, value in report.metrics.items())
        console.print(f"[bold]{report.stage}[/bold] ({state})  {counts}")
        for name, value in report.outputs.items():
            console.print(f"    {name}: {value}", markup=False)
        if report.stage == "register":
            console.print(_how_to_use(report), markup=False)
    _print_json(reports, common)


def _print_json(reports: "list[RunReport]", common: argparse.Namespace) -> None:
    if common.json:
        from pipelines.config import redact_uri

        result: dict[str, Any] = {report.stage: report.to_json() for report in reports}
        print(redact_uri(json.dumps(result, sort_keys=True)))


def _how_to_use(report: "RunReport") -> str:
    name, alias = report.outputs["name"], report.outputs["alias"]
    store = report.outputs["tracking_uri"]
    return (
        f"    try it: cil sample --model models:/{name}@{alias} --tracking-uri {store} "
        "--image FILE\n"
        f"    look at the run: mlflow ui --backend-store-uri {store}"
    )


if __name__ == "__main__":
    main()
