"""A decoder in a process of its own: a file that crashes, hangs or swells it costs that file only.

    with DecoderProcess(limits) as decoder:
        scanned = decoder.scan(path, settings)
        for clip in decoder.clips(path, wanted, ...): ...

The process (`pipelines.decode.child`) is started when first needed, kept for the next file, and
replaced when it dies, hangs, or has served many files. Frames come through a pipe, clip by clip, so
a slow reader holds it up instead of filling memory; only time spent waiting for it counts.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from pipelines.decode.child import HEADER
from pipelines.decode.clips import ReadClip, WantedClip
from pipelines.decode.config import DecodeConfig
from pipelines.decode.errors import DecodeError

__all__ = ["DecoderProcess", "Scanned"]

_FILES_PER_PROCESS = 1000
_START_LIMIT_S = 120.0
_PIPE_BYTES = 1 << 20
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Scanned:
    """What a scan found: hash of the content, container, codec and decoder, and the scan."""

    sha256: str
    probe: dict[str, str]
    scan: dict[str, Any]


class _StoppedError(Exception):
    """The process gave no proper answer: what happened, in words, and the name for it."""

    def __init__(self, message: str, exception: str) -> None:
        super().__init__(message)
        self.exception = exception


class DecoderProcess:
    """Decodes in another process, under limits."""

    def __init__(self, config: DecodeConfig) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._files = 0
        self._waited = 0.0
        self._sha256: str | None = None
        self._libraries: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scan(self, path: Path, settings: dict[str, Any]) -> Scanned:
        """Decode a video in order and return its clips and their scores.

        Args:
            path: video file.
            settings: `ScanSettings` as JSON.

        Raises:
            DecodeError: the file is broken, or stopped the decoder process in every attempt; with
                ``sha256`` set if it could be read.
        """
        request = {"operation": "scan", "path": str(path), "settings": settings}
        for attempt in range(1, self._config.max_attempts + 1):
            try:
                for answer, _ in self._ask(request):
                    fields = ("sha256", "probe", "scan")
                    return Scanned(**{name: answer[name] for name in fields})
            except _StoppedError as error:
                self._give_up(error, attempt, "scan")
        raise AssertionError("the loop ends by returning or raising")

    def clips(self, path: Path, wanted: Sequence[WantedClip], *, sha256: str) -> Iterator[ReadClip]:
        """Read clips that a scan found.

        Args:
            path: video file.
            wanted: the clips, by their start.
            sha256: hash of the content that was scanned.

        Raises:
            DecodeError: the file changed, cannot be read again, or stopped the decoder process
                in every attempt.
        """
        done = 0
        for attempt in range(1, self._config.max_attempts + 1):
            backend = self._config.backend if attempt == 1 else "pyav"
            request = {
                "operation": "clips",
                "path": str(path),
                "clips": [asdict(clip) for clip in wanted[done:]],
                "backend": backend,
                "sha256": sha256,
            }
            try:
                for answer, payload in self._ask(request):
                    if answer["kind"] == "result":
                        return
                    frames = np.frombuffer(payload, np.uint8).reshape(answer["shape"])
                    done += 1
                    yield ReadClip(frames=frames, decoder=answer["decoder"])
            except _StoppedError as error:
                self._give_up(error, attempt, "decode")

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _give_up(self, error: _StoppedError, attempt: int, stage: str) -> None:
        self.close()
        if attempt == self._config.max_attempts:
            times = f", in each of {attempt} attempts" if attempt > 1 else ""
            raise DecodeError(
                f"{error}{times}",
                stage=stage,
                decoder=None,
                exception=error.exception,
                sha256=self._sha256,
                attempts=attempt,
            ) from None

    def _ask(self, request: dict[str, Any]) -> Iterator[tuple[dict[str, Any], bytearray]]:
        """Send a request and yield its answers with their payloads; the last is the result."""
        if self._files >= _FILES_PER_PROCESS:
            self.close()
        self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        self._waited, self._sha256 = 0.0, request.get("sha256")
        self._files += 1
        finished = False
        try:
            try:
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                raise self._death() from None
            while not finished:
                answer, payload = self._receive(self._config.stall_s)
                finished = answer["kind"] not in ("progress", "clip")
                if answer["kind"] == "error":
                    self._raise_answer(answer)
                if answer["kind"] == "out_of_memory":
                    raise self._out_of_memory()
                self._sha256 = answer.get("sha256", self._sha256)
                if answer["kind"] != "progress":
                    yield answer, payload
        finally:
            if not finished:  # the reader stopped, or an answer is stuck half-way
                self.close()

    def _raise_answer(self, answer: dict[str, Any]) -> None:
        raise DecodeError(
            answer["message"],
            stage=answer["stage"],
            decoder=answer["decoder"],
            exception=answer["exception"],
            sha256=self._sha256,
        )

    def _start(self) -> None:
        if self._process is not None:
            return
        memory = int(self._config.memory_limit_gib * _GIB)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.decode.child", str(os.getpid()), str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=self._environment(),
        )
        assert self._process.stdout is not None
        _widen(self._process.stdout.fileno())
        self._files, self._waited = 0, 0.0
        self._receive(_START_LIMIT_S)

    def _environment(self) -> dict[str, str] | None:
        """Let torchcodec find FFmpeg; None leaves the environment as it is."""
        if self._config.backend != "torchcodec":
            return None
        from pipelines.config import child_environment, environment
        from pipelines.decode.ffmpeg_libraries import LIBRARY_PATH, link_ffmpeg

        if self._libraries is None:
            self._libraries = tempfile.TemporaryDirectory(prefix="cil-ffmpeg-")
            link_ffmpeg(Path(self._libraries.name))
        folders = [self._libraries.name, environment(LIBRARY_PATH)]
        return child_environment(**{LIBRARY_PATH: ":".join(filter(None, folders))})

    def _receive(self, stall_s: float) -> tuple[dict[str, Any], bytearray]:
        deadline = time.monotonic() + stall_s
        text_size, payload_size = HEADER.unpack(self._read(HEADER.size, deadline))
        answer = json.loads(self._read(text_size, deadline))
        return answer, self._read(payload_size, deadline)

    def _read(self, num_bytes: int, deadline: float) -> bytearray:
        """Read exactly so many bytes, waiting no longer than the limits allow."""
        assert self._process is not None
        assert self._process.stdout is not None
        pipe = self._process.stdout
        poll = select.poll()
        poll.register(pipe.fileno(), select.POLLIN)
        content = bytearray(num_bytes)
        view, got = memoryview(content), 0
        while got < num_bytes:
            started = time.monotonic()
            left = min(deadline - started, self._config.timeout_s - self._waited)
            ready = poll.poll(max(left, 0) * 1000)
            self._waited += time.monotonic() - started
            if not ready:
                raise self._hang()
            count = pipe.readinto(view[got:])  # type: ignore[attr-defined]
            if not count:
                raise self._death()
            got += count
        return content

    def _hang(self) -> _StoppedError:
        if self._waited >= self._config.timeout_s:
            return _StoppedError(
                f"decoding took longer than decode.timeout_s = {self._config.timeout_s:g} s",
                "Timeout",
            )
        return _StoppedError(
            f"the decoder gave no frame for decode.stall_s = {self._config.stall_s:g} s", "Hang"
        )

    def _out_of_memory(self) -> _StoppedError:
        return _StoppedError(
            f"the decoder needed more than decode.memory_limit_gib = "
            f"{self._config.memory_limit_gib:g} GiB",
            "OutOfMemory",
        )

    def _death(self) -> _StoppedError:
        assert self._process is not None
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return _StoppedError("the decoder process closed its pipe", "Crash")
        if code < 0:
            name = signal.Signals(-code).name
            return _StoppedError(f"the decoder process crashed ({name})", "Crash")
        return _StoppedError(f"the decoder process ended with exit code {code}", "Crash")


def _widen(descriptor: int) -> None:
    """Let the pipe hold a megabyte, so that fewer switches are needed."""
    import fcntl

    try:
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except (AttributeError, OSError):  # not on this system, or not that much
        return
