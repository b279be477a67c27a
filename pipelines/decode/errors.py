"""Refusals: whatever goes wrong while a video is read becomes a `DecodeError` that says where.

Decoders raise many kinds of errors: FFmpeg's, decord's own class, RuntimeError and IndexError from
C++. All of them mean the same here: this file cannot be read by this decoder.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from cil.errors import ConfigError, DataError
from pipelines.records import QuarantineRecord

__all__ = ["DecodeError", "as_refusal", "quarantine_record", "refusals"]

_LONGEST_MESSAGE = 300


class DecodeError(DataError):
    """A video that was refused: by which stage and decoder, after how many attempts."""

    def __init__(
        self,
        message: str,
        *,
        stage: str,
        decoder: str | None,
        exception: str,
        sha256: str | None = None,
        attempts: int = 1,
    ) -> None:
        super().__init__(message)
        self.stage = stage
        self.decoder = decoder
        self.exception = exception
        self.sha256 = sha256
        self.attempts = attempts


@contextmanager
def refusals(*, stage: str, decoder: str) -> Iterator[None]:
    """Turn every error of a decoder into a `DecodeError`; a user's mistake stays one.

    Raises:
        DecodeError: anything inside failed.
        ConfigError: a decoder that was asked for is not installed.
    """
    try:
        yield
    except (DecodeError, ConfigError):
        raise
    except Exception as error:
        raise as_refusal(error, stage=stage, decoder=decoder) from error


def as_refusal(error: BaseException, *, stage: str, decoder: str) -> DecodeError:
    """Describe an error by its first line, which is the same on every machine."""
    # not str(error): FFmpeg puts the whole path into it
    lines = (getattr(error, "strerror", None) or str(error)).strip().splitlines()
    return DecodeError(
        (lines[0] if lines else type(error).__name__)[:_LONGEST_MESSAGE],
        stage=stage,
        decoder=decoder,
        exception=type(error).__name__,
    )


def quarantine_record(name: str, error: DecodeError) -> QuarantineRecord:
    """Say why the video called ``name`` was refused."""
    return QuarantineRecord(
        path=name,
        sha256=error.sha256,
        stage=error.stage,
        decoder=error.decoder,
        exception=error.exception,
        message=str(error),
        attempts=error.attempts,
    )
