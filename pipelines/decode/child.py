"""The process that touches the bytes of videos: requests on stdin, answers on stdout.

`DecoderProcess` starts it and may kill it at any time. It has no torch and no Ray, keeps no state
between files but which decoders it trusts, and dies with its parent. A request is one line of JSON;
an answer is a header of eight bytes (sizes of JSON and payload), JSON, and raw frames.
Run: `python -m pipelines.decode.child PARENT_PID MEMORY_BYTES`, by `DecoderProcess` alone.
"""

import hashlib
import json
import os
import resource
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipelines.allocator import keep_freed_memory
from pipelines.decode.errors import DecodeError
from pipelines.dependent import die_with

if TYPE_CHECKING:
    from pipelines.decode.clips import Trust

__all__ = ["HEADER", "main"]

HEADER = struct.Struct("<II")
"""Sizes in bytes of the JSON and of the payload of an answer."""

_PROGRESS_INTERVAL_S = 0.5
_CHUNK_BYTES = 1 << 20


@dataclass(slots=True)
class _Answers:
    """The pipe to the parent."""

    pipe: IO[bytes]
    said: float = field(default_factory=time.monotonic)

    def send(self, value: dict[str, Any], payload: bytes | memoryview = b"") -> None:
        text = json.dumps(value).encode()
        self.pipe.write(HEADER.pack(len(text), len(payload)))
        self.pipe.write(text)
        self.pipe.write(payload)
        self.pipe.flush()
        self.said = time.monotonic()

    def watched(self, frames: Iterator[Any]) -> Iterator[Any]:
        """Pass frames on; say now and then that they keep coming."""
        for frame in frames:
            if time.monotonic() - self.said > _PROGRESS_INTERVAL_S:
                self.send({"kind": "progress"})
            yield frame


def main() -> None:
    """Answer requests until stdin ends."""
    parent, memory = int(sys.argv[1]), int(sys.argv[2])
    die_with(parent)
    keep_freed_memory()
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=1 << 20)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # a library that prints must not spoil the answers
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"  # read when NumPy is imported
    import av  # before decord: the first one loaded brings the codec libraries
    import cv2

    from pipelines.decode.clips import Trust

    av.logging.set_level(None)
    cv2.setNumThreads(1)
    _limit_memory(memory)
    answers, trust = _Answers(pipe), Trust()
    answers.send({"kind": "ready"})
    for line in sys.stdin.buffer:
        _answer(json.loads(line), answers, trust)


def _limit_memory(num_bytes: int) -> None:
    """Let the address space grow by so much from here, and no further."""
    with Path("/proc/self/statm").open() as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + num_bytes, now + num_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(request: dict[str, Any], answers: _Answers, trust: "Trust") -> None:
    from pipelines.decode.clips import read_clips

    path = Path(request["path"])
    try:
        if request["operation"] == "scan":
            sha256 = _sha256(path, answers)
            answers.send({"kind": "progress", "sha256": sha256})
            answers.send({"kind": "result", "sha256": sha256, **_scan(path, request, answers)})
            return
        for number, clip in enumerate(read_clips(path, request, trust, answers.watched)):
            header = {"kind": "clip", "number": number, "decoder": clip.decoder}
            answers.send({**header, "shape": clip.frames.shape}, clip.frames.data.cast("B"))
        answers.send({"kind": "result"})
    except DecodeError as error:
        if error.exception == "MemoryError" or _is_out_of_memory(error):
            answers.send({"kind": "out_of_memory"})
            raise SystemExit(1) from None
        about = {"stage": error.stage, "decoder": error.decoder, "exception": error.exception}
        answers.send({"kind": "error", "message": str(error), **about})
    except OSError as error:
        about = {"stage": "read", "decoder": None, "exception": type(error).__name__}
        message = f"cannot be read: {error.strerror or error}"
        answers.send({"kind": "error", "message": message, **about})
    except MemoryError:
        answers.send({"kind": "out_of_memory"})
        raise SystemExit(1) from None
    except Exception as error:  # ours or a library's; it must cost this file only
        if _is_out_of_memory(error):
            answers.send({"kind": "out_of_memory"})
            raise SystemExit(1) from None
        stage = "scan" if request["operation"] == "scan" else "decode"
        about = {"stage": stage, "decoder": None, "exception": type(error).__name__}
        answers.send({"kind": "error", "message": f"unexpected: {error}"[:300], **about})


def _is_out_of_memory(error: Exception) -> bool:
    """Recognise what C++ and FFmpeg say; they do not raise Python's own error."""
    return any(words in str(error) for words in ("bad_alloc", "Cannot allocate memory"))


def _sha256(path: Path, answers: _Answers) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in answers.watched(iter(lambda: file.read(_CHUNK_BYTES), b"")):
            total.update(chunk)
    return total.hexdigest()


def _scan(path: Path, request: dict[str, Any], answers: _Answers) -> dict[str, Any]:
    from pipelines.decode.decoders import sequential
    from pipelines.decode.probe import probe_video
    from pipelines.selection.scan import scan_frames, settings_from_json

    probe = probe_video(path, answers.watched)
    frames = answers.watched(sequential(path, probe))
    scan = scan_frames(frames, probe, settings_from_json(request["settings"]))
    about = {"container": probe.container, "codec": probe.codec, "decoder": "pyav"}
    return {"scan": scan.to_json(), "probe": about}


if __name__ == "__main__":
    main()
