"""URLs of stores: opening them, and saying what went wrong without showing a secret.

In: a URL that fsspec knows (s3://bucket/key, https://host/file). Out: a file system and a path in
it, errors as one line for a user, and the version of an object from its description.
Keys and passwords come from the environment or from fsspec's own configuration, never from a URL,
because URLs are written into reports.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from cil.errors import CilError, ConfigError
from pipelines.config import redact_uri

__all__ = [
    "OBJECT_STORES",
    "explain",
    "is_url",
    "object_version",
    "open_url",
    "remote_errors",
    "scheme_of",
    "shown_url",
]

OBJECT_STORES = frozenset(["abfs", "abfss", "az", "gcs", "gs", "s3", "s3a"])
"""Schemes whose URLs are scheme://bucket/key."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_UNREACHABLE = (
    "ClientConnectorDNSError",
    "ClientConnectorError",
    "ConnectTimeoutError",
    "ConnectionClosedError",
    "EndpointConnectionError",
    "FSTimeoutError",
    "ReadTimeoutError",
    "ServerDisconnectedError",
)
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")


def is_url(text: str) -> bool:
    """Tell a URL from a local path; file:// and local:// are local paths too."""
    return bool(scheme_of(text)) and scheme_of(text) not in ("file", "local")


def scheme_of(text: str) -> str:
    """Return the scheme of a URL in lower case, or nothing for a path."""
    match = _URL.fullmatch(text)
    return match.group(1).lower() if match else ""


def shown_url(url: str) -> str:
    """Return a URL as it may be shown: no password, and of a web address no query."""
    scheme = scheme_of(url)
    if scheme in ("http", "https"):
        url = re.sub(r"\?.*", "?***", url, flags=re.DOTALL)
    return redact_uri(url)


def open_url(url: str, setting: str) -> tuple[Any, str]:
    """Find the file system of a URL; nothing is sent yet.

    Args:
        url: a URL of one file or folder.
        setting: the setting it comes from, for the message.

    Returns:
        An fsspec file system, which keeps no listings, and the path in it.

    Raises:
        ConfigError: the URL is wrong, holds a password, or needs a package that is not installed.
    """
    from fsspec.core import url_to_fs

    match = _URL.fullmatch(url)
    assert match, url
    scheme, host = match.group(1).lower(), match.group(2).partition("/")[0]
    if "::" in url and not host.startswith("arn:"):
        raise ConfigError(
            f"{setting}: {shown_url(url)} chains two URLs by '::', which is not supported; give "
            "one URL"
        )
    if _holds_password(scheme, host):
        raise ConfigError(
            f"{setting}: {shown_url(url)} holds a user name or password, and URLs are written "
            "into reports; give credentials by the environment (for s3 AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY) or by fsspec's configuration"
        )
    if scheme in OBJECT_STORES and not host:
        raise ConfigError(f"{setting}: {shown_url(url)} names no bucket; write {scheme}://bucket/…")
    try:
        return url_to_fs(url, use_listings_cache=False)  # type: ignore[no-any-return]
    except ImportError as error:
        raise ConfigError(f"{setting}: {shown_url(url)} needs a package: {error}") from error
    except Exception as error:
        raise ConfigError(
            f"{setting}: cannot use {shown_url(url)}: {explain(error)}; check how it is written"
        ) from error


def _holds_password(scheme: str, host: str) -> bool:
    if host.startswith("arn:"):
        return False
    name, colon, port = host.rpartition(":")
    return "@" in host or bool(colon and name and not port.isdigit() and not port.endswith("]"))


def explain(error: BaseException) -> str:
    """Say in one line what a remote operation met and what to do, without secrets.

    The text of an error may repeat the whole request, so addresses in it lose their queries.
    """
    name = type(error).__name__
    cause = error.__cause__
    if getattr(error, "status", None) in (401, 403):  # a web server's
        error = PermissionError()
    if isinstance(error, FileNotFoundError):
        # Of a web server, fsspec reports so whatever it met.
        if getattr(cause, "status", None) in (401, 403) or type(cause).__name__ in _UNREACHABLE:
            return explain(cast("BaseException", cause))
        return "it does not exist; check the bucket and the path"
    if isinstance(error, PermissionError):
        return "access is denied; check the credentials and what they may do"
    if name in ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError"):
        return "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    text = re.sub(r"\?[^\s'\"]+", "?***", redact_uri(str(error)))
    text = " ".join(text.split())[:300]
    if isinstance(error, ConnectionError | TimeoutError) or name in _UNREACHABLE:
        return (
            f"the server cannot be reached ({name}: {text}); check the network and the endpoint "
            "(for s3 AWS_ENDPOINT_URL)"
        )
    return f"{name}: {text}" if text else name


@contextmanager
def remote_errors(kind: type[CilError], what: str) -> Iterator[None]:
    """Turn whatever a file system raises into one of our errors: "WHAT: reason".

    File systems raise what their libraries raise, which has no common base; only our own errors
    and a stop from outside pass.
    """
    try:
        yield
    except CilError:
        raise
    except Exception as error:
        raise kind(f"{what}: {explain(error)}") from error


def object_version(info: Mapping[str, Any]) -> str:
    """Return a text that changes when the content of an object may have changed.

    Args:
        info: what fsspec states about the object.

    Returns:
        The etag where there is one, else size and time.
    """
    etag = info.get("ETag") or info.get("etag")
    if etag:
        return str(etag).strip('"')
    time = next((info[key] for key in _TIMES if info.get(key)), "")
    return f"{info.get('size')}:{time.isoformat() if hasattr(time, 'isoformat') else time}"
