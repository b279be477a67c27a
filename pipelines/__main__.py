"""The command line: `cil STAGE --config FILE [--dotted.override VALUE]`, or `python -m pipelines`.

Only the command that was asked for is imported, so `cil --help` is quick. Exit codes: 0 everything
asked for is done, 2 a mistake in command or configuration before anything started, 1 failed.
"""

import argparse
import difflib
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from pipelines.command_texts import COMMANDS, HELP

__all__ = ["main"]

_LONG_FORMS = {"--max-bad-fraction": "--encode.max-bad-fraction"}
_LONGEST_MESSAGE = 30_000


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
    from pipelines.dispatch import dispatch

    return _logged(command, common, lambda: dispatch(command, common, rest + job))


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
    from pipelines.shown_text import redact_uri, shortened
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
            print(f"error: {shortened(str(error), _LONGEST_MESSAGE)}", file=sys.stderr)
            return 2 if isinstance(error, ConfigError) else 1
        print(
            f"error: unexpected {type(error).__name__}: "
            f"{shortened(str(error), _LONGEST_MESSAGE)}\n"
            "run again with --debug for the traceback, and please report it",
            file=sys.stderr,
        )
        return 1


def _interrupted() -> int:
    from pipelines.termination import TERMINATED, was_terminated

    what = "ended by SIGTERM" if was_terminated() else "interrupted"
    print(f"{what}; run the same command again to go on", file=sys.stderr)
    return TERMINATED if was_terminated() else 130


if __name__ == "__main__":
    main()
