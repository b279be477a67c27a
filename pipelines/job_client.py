"""A job on a Ray cluster, over HTTP: send it once, follow its log, take its driver's exit code.

In: a `Job` (id, command line, folder) and the address of a dashboard. Out: how it ended. Ray's own
client is behind the protocol `Jobs`, so tests need no cluster; `connect` makes it, and says what
is wrong with an address or a token.
"""

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from cil.errors import CilError, ConfigError, StageError
from pipelines.shown_text import shortened

__all__ = ["Ending", "Job", "Jobs", "check_address", "connect", "end_of", "follow", "send_once"]

_RETRY_S = 2.0
_LOST_AFTER_S = 120.0
_LONGEST_CONNECT_S = 600.0
_POLL_S = 0.5
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_LONGEST_NAME = 99


class Details(Protocol):
    """What Ray tells of a job."""

    @property
    def status(self) -> Any:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""

    @property
    def entrypoint(self) -> str:
        """The command line."""

    @property
    def message(self) -> str | None:
        """The status in words; after a failure with the end of the log."""

    @property
    def driver_exit_code(self) -> int | None:
        """What the command line returned; None if it never ran or was stopped."""


class Jobs(Protocol):
    """The part of ray.job_submission.JobSubmissionClient that is used."""

    def submit_job(self, **settings: Any) -> str:
        """Pack, upload and start a job; a RuntimeError if its id is taken."""

    def get_job_info(self, job_id: str) -> Details:
        """Return the state of a job; a RuntimeError with 404 if there is none."""

    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        """Yield a job's log from its beginning until it ends."""

    def get_address(self) -> str:
        """Return the address of the dashboard."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is to run."""

    submission_id: str
    """Unique on the cluster."""
    entrypoint: str
    """The command line, for a shell on the head node."""
    runtime_env: dict[str, Any]
    """Working directory, what of it stays here, and environment variables."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Stored with the job."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a job stands, or stood when it ended."""

    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    exit_code: int | None
    """What this command should exit with; None while the job goes on."""
    message: str
    """Ray's words."""


def check_address(address: str) -> None:
    """Refuse what Ray would take for another kind of address, and wait for.

    Raises:
        ConfigError: it is not http(s)://host:port.
    """
    try:
        parts = urlsplit(address)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits:
        raise ConfigError(
            f"--address must be http://HOST:8265 or https://HOST, got {shortened(address)}"
        )


def connect(address: str | None) -> Jobs:
    """Open the job port of a cluster.

    Args:
        address: http(s)://host:port of the dashboard; None leaves it to RAY_API_SERVER_ADDRESS,
            RAY_ADDRESS and, without both, to a cluster on this machine.

    Raises:
        ConfigError: the token is missing or wrong, or the address cannot be one.
        StageError: nobody answers there.
    """
    if address is not None:
        check_address(address)
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray prefers it to its client's argument
    shown = address or "the address in RAY_API_SERVER_ADDRESS or RAY_ADDRESS, or on this machine"
    with explained(shown):
        from ray.job_submission import JobSubmissionClient

        client: Jobs = JobSubmissionClient(address)
        return client


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Turn what Ray and HTTP raise into errors that say what to do."""
    from ray.exceptions import AuthenticationError, RpcError

    try:
        yield
    except CilError:
        raise
    except AuthenticationError as error:
        raise ConfigError(_about_token(str(error), address)) from error
    except (ConnectionError, RpcError) as error:
        raise StageError(_nobody(address, error)) from error
    except (RuntimeError, ValueError, OSError) as error:
        text = str(error)
        if (
            "token" in text.lower() and "RAY_AUTH" in text
        ):  # raised by Ray's core, with another type
            raise ConfigError(_about_token(text, address)) from error
        if "exceeds the maximum size" in text:
            raise ConfigError(
                f"the working directory is too large: {_first_line(text)}; leave out what the job "
                "does not need, by `excludes` in infra/runtime_env.yaml or by .gitignore"
            ) from error
        if isinstance(error, OSError):
            raise StageError(_nobody(address, error)) from error
        raise StageError(f"Ray at {address} refuses: {_first_line(text)}") from error


def _about_token(text: str, address: str) -> str:
    if "Authentication failed" in text or "Forbidden" in text:
        what = f"Ray at {address} refuses the token (403)"
    elif "Authentication required" in text:
        what = f"Ray at {address} asks for a token (401)"
    else:
        what = f"the token for Ray at {address} cannot be read: {_first_line(text)}"
    return (
        f"{what}; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the cluster's "
        "token, or RAY_AUTH_TOKEN to the token itself"
    )


def _nobody(address: str, error: BaseException) -> str:
    return (
        f"cannot reach Ray's job port at {address}: {_first_line(str(error))}; check --address "
        "(http://HOST:8265), that the cluster is up, and the tunnel (`ray dashboard`, "
        "`kubectl port-forward`)"
    )


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")


def send_once(client: Jobs, job: Job, *, again: bool) -> tuple[str, bool]:
    """Submit a job unless the cluster has it already.

    Args:
        client: the cluster.
        job: what to run.
        again: if the job has ended, start it once more under the next free number.

    Returns:
        The id to follow, and whether it was there before.

    Raises:
        ConfigError: the id is that of another command.
        StageError: Ray refuses the job.
    """
    name = job.submission_id
    address = client.get_address()
    for number in range(1, _LONGEST_NAME + 1):
        name = job.submission_id if number == 1 else f"{job.submission_id}-{number}"
        there = _find(client, name)
        if there is None:
            break
        if there.entrypoint != job.entrypoint:
            raise ConfigError(
                f"{name} at {address} is another job ({there.entrypoint}); choose another "
                "--submission-id, or leave it out"
            )
        if not (again and _word(there.status) in _ENDED):
            return name, True
    else:
        raise StageError(f"{job.submission_id} has run {_LONGEST_NAME} times; give --submission-id")
    with explained(address):
        try:
            client.submit_job(
                entrypoint=job.entrypoint,
                submission_id=name,
                runtime_env=job.runtime_env,
                metadata=dict(job.metadata),
            )
        except RuntimeError as error:
            if "already exists" in str(error):  # somebody else was faster, with the same content
                return name, True
            raise
    return name, False


def _find(client: Jobs, name: str) -> Details | None:
    with explained(client.get_address()):
        try:
            return client.get_job_info(name)
        except RuntimeError as error:
            if re.search(r"status code 404", str(error)):
                return None
            raise


def _word(status: Any) -> str:
    return str(getattr(status, "value", status))


def end_of(client: Jobs, name: str) -> Ending:
    """Return how a job stands."""
    with explained(client.get_address()):
        details = client.get_job_info(name)
    status = _word(details.status)
    return Ending(status=status, exit_code=_exit_code(details), message=details.message or "")


def _exit_code(details: Details) -> int | None:
    status = _word(details.status)
    if status not in _ENDED:
        return None
    if status == "SUCCEEDED":
        return 0
    code = details.driver_exit_code
    if status == "STOPPED":
        return 128 + signal.SIGTERM
    if code is None or code == 0:  # it never started, or Ray failed it afterwards
        return 1
    return 128 - code if code < 0 else code  # as shells report a signal


def follow(
    client: Jobs,
    name: str,
    show: Callable[[str], None],
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Ending:
    """Show a job's log from its beginning until it ends.

    A connection that breaks is opened again, and what was shown is not shown twice. Silence begins
    when a connection breaks, not with the last line: a job may work for hours without a word.

    Args:
        client: the cluster.
        name: the job's id.
        show: takes pieces of the log.
        sleep: waits for so many seconds.
        clock: seconds.

    Raises:
        StageError: the cluster has not answered for two minutes.
    """
    shown = _Shown(show)
    silent_since: float | None = None
    while True:
        began = clock()
        try:
            asyncio.run(shown.tail(client.tail_job_logs(name)))
            ending = end_of(client, name)
            silent_since = None
        except ConfigError:
            raise
        except Exception as error:  # a connection breaks in many ways, by several libraries
            now = clock()
            stood = shown.take_heard() or now - began > _LONGEST_CONNECT_S
            if silent_since is None or stood:
                silent_since = now
            if now - silent_since > _LOST_AFTER_S:
                raise StageError(
                    f"lost contact with {name} at {client.get_address()}: {_first_line(str(error))}"
                    "; the job may go on: run the same command again to follow it"
                ) from error
            sleep(_RETRY_S)
            continue
        if ending.exit_code is not None:
            return ending
        sleep(_POLL_S)


class _Shown:
    """Passes on the part of a log that has not been shown yet."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show, self._length, self._heard = show, 0, False

    def take_heard(self) -> bool:
        """Tell whether anything was received since the last call."""
        heard, self._heard = self._heard, False
        return heard

    async def tail(self, log: AsyncIterator[str]) -> None:
        position = 0
        async for piece in log:
            self._heard = True
            new = piece[max(0, self._length - position) :]
            position += len(piece)
            if new:
                self._show(new)
                self._length = position
