"""From the words of a command line to the command: each imports what it needs, and nothing else."""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipelines.command_settings import description_of, note_missing, overridden, resolve
from pipelines.command_texts import COMMANDS, EXAMPLES
from pipelines.show_reports import finish, print_json

if TYPE_CHECKING:
    from pipelines.config import RunConfig
    from pipelines.report import RunReport

__all__ = ["dispatch"]


def dispatch(command: str, common: argparse.Namespace, rest: list[str]) -> int:
    """Run a command.

    Args:
        command: its name, a known one.
        common: options of every command.
        rest: the other words.

    Returns:
        The exit code.

    Raises:
        CilError: what the command raises.
    """
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
    config = resolve(command, common, rest, needs_parts=needs_parts)
    if common.dry_run:
        return _print_config(config)
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
    finish(reports, common)
    return 0


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


def _registry(command: str, common: argparse.Namespace, rest: list[str]) -> int:
    from pipelines import registry_commands

    options, rest = registry_commands.parse_options(rest, command)
    needs_parts = command == "retrain" and not common.dry_run
    config = resolve(command, common, rest, needs_parts=needs_parts)
    if common.dry_run:
        return _print_config(config)
    report, code = registry_commands.run_command(command, config, options, debug=common.debug)
    finish([report], common)
    return code


def _print_config(config: "RunConfig") -> int:
    from pipelines.config import config_to_yaml

    print(config_to_yaml(config), end="")
    return 0


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
    print_json([report], common)
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
        SampleArguments, rest, prog="cil sample", description=description_of("sample")
    )
    arguments = dataclasses.replace(arguments, analytic_init=given.analytic_init)
    finish([run_command(arguments)], common)
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
    finish([report], common)
    if faults:
        print(f"error: {len(faults)} faults:", *faults, sep="\n  ", file=sys.stderr)
    return int(bool(faults))


def _sweep(common: argparse.Namespace, rest: list[str]) -> int:
    from cil.errors import ConfigError
    from pipelines.config import RunConfig
    from pipelines.sweep import command

    if {"-h", "--help"} & set(rest):
        overridden("sweep", RunConfig(), ["--help"])
    if common.config or not rest or rest[0].startswith("-"):
        raise ConfigError("give the sweep file first, without --config: cil sweep FILE [options]")
    options, settings = command.parse_options(rest[1:])
    sweep = command.prepare(
        rest[0],
        options,
        lambda base: overridden("sweep", base, settings),
        needs_parts=not common.dry_run,
    )
    if common.dry_run:
        note_missing(sweep.base)
        print_json([command.show_sweep(sweep, options)], common)
        return 0
    report = command.run_sweep(sweep, options, debug=common.debug)
    kept = command.keep_arm(sweep, options, report, debug=common.debug)
    finish([report, *kept], common)
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
        resolve(command, common, ["--help"])
    from pipelines.evaluate import options as arm_options

    options, settings = arm_options.parse_options(rest, command=command)
    base = arm_options.sweep_base(options, common.config)
    if base is None:
        config = resolve(command, common, settings, needs_parts=not common.dry_run)
    else:
        config = overridden(command, base, settings)
    if common.dry_run:
        return _print_config(config)
    finish([run_command(config, options, debug=common.debug)], common)
    return 0


def _import(common: argparse.Namespace, rest: list[str]) -> int:
    from pipelines.import_checkpoint import run_command

    if common.config or common.dry_run:
        from cil.errors import ConfigError

        raise ConfigError("cil import takes no --config and no --dry-run; see cil import --help")
    finish([run_command(rest, description=COMMANDS["import"])], common)
    return 0


def _export(common: argparse.Namespace, rest: list[str]) -> int:
    from pipelines.export import run_command

    if common.config or common.dry_run:
        from cil.errors import ConfigError

        raise ConfigError("cil export takes no --config and no --dry-run; see cil export --help")
    report = run_command(rest, description=COMMANDS["export"])
    show = print_json if "checkpoints" in report.outputs else finish  # a list was shown already
    show([report], common)
    return 0
