"""A file that stops its decoder costs that file only. The faults are put into PyAV by name."""

import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipelines.decode.clips import WantedClip
from pipelines.decode.config import DecodeConfig
from pipelines.decode.errors import DecodeError
from pipelines.decode.process import DecoderProcess
from pipelines.selection.bucket import Bucket
from pipelines.selection.scan import ScanSettings
from pipelines.storage import sha256_of_file

ROOT = Path(__file__).parents[4]
SETTINGS = ScanSettings(
    buckets=(Bucket(height=32, width=64, num_frames=8),), fps=8.0, shot_threshold=None
).to_json()

FAULTS = """
import os, signal, sys, time
if "pipelines.decode.child" in sys.orig_argv:
    import av
    real = av.open
    def opened(file, *args, **kwargs):
        name = os.path.basename(str(file))
        if name.startswith("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if name.startswith("once") and not os.path.exists(str(file) + ".seen"):
            open(str(file) + ".seen", "w").close()
            os.abort()
        if name.startswith("exit"):
            os._exit(3)
        if name.startswith("hang"):
            time.sleep(1000)
        if name.startswith("swell"):
            hoard = []
            while True:
                hoard.append(bytearray(1 << 24))
        if name.startswith("print"):
            os.write(1, b"a library that prints" * 1000)
        return real(file, *args, **kwargs)
    av.open = opened
"""


@pytest.fixture
def faults(tmp_path, monkeypatch):
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "sitecustomize.py").write_text(FAULTS)
    paths = [str(tmp_path / "faults"), str(ROOT)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


@pytest.fixture
def video(drawn, tmp_path):
    return drawn.write(tmp_path / "good.mp4", num_frames=50, fps=25)


def test_clips_are_what_the_scan_saw(video, drawn):
    with DecoderProcess(DecodeConfig()) as decoder:
        scanned = decoder.scan(video, SETTINGS)
        clips = scanned.scan["clips"]
        assert scanned.sha256 == sha256_of_file(video)
        assert [len(clip["frames"]) for clip in clips] == [8, 8]
        wanted = [
            WantedClip(height=32, width=64, frames=clip["frames"], crc32=clip["crc32"])
            for clip in clips
        ]
        read = list(decoder.clips(video, wanted, sha256=scanned.sha256))
    for clip, found in zip(clips, read, strict=True):
        assert found.frames.shape == (8, 32, 64, 3)
        assert [drawn.number(frame) for frame in found.frames] == clip["frames"]
        assert [zlib.crc32(frame.tobytes()) for frame in found.frames] == clip["crc32"]


def test_a_decoder_that_lies_is_not_believed(video, drawn):
    """Frame checksums that no fast way gives: the strict way reads what the file holds."""
    wanted = [WantedClip(height=32, width=64, frames=[3, 4], crc32=[1, 2])]
    with DecoderProcess(DecodeConfig()) as decoder:
        (clip,) = decoder.clips(video, wanted, sha256=sha256_of_file(video))
    assert clip.decoder == "pyav"
    assert [drawn.number(frame) for frame in clip.frames] == [3, 4]


@pytest.mark.parametrize("backend", ["pyav", "decord", "torchcodec"])
def test_the_decoder_that_is_asked_for_reads_the_clips(video, drawn, backend):
    with DecoderProcess(DecodeConfig(backend=backend)) as decoder:
        clips = decoder.scan(video, SETTINGS).scan["clips"]
        wanted = [
            WantedClip(height=32, width=64, frames=clip["frames"], crc32=clip["crc32"])
            for clip in clips
        ]
        read = list(decoder.clips(video, wanted, sha256=sha256_of_file(video)))
    assert {clip.decoder for clip in read} == {backend}
    assert [[drawn.number(f) for f in clip.frames] for clip in read] == [
        clip["frames"] for clip in clips
    ]


def test_a_file_that_is_not_the_scanned_one_is_refused(video):
    wanted = [WantedClip(height=32, width=64, frames=[3, 4], crc32=[1, 2])]
    with DecoderProcess(DecodeConfig()) as decoder, pytest.raises(DecodeError) as caught:
        list(decoder.clips(video, wanted, sha256="0" * 64))
    assert (caught.value.stage, caught.value.exception) == ("read", "Changed")


@pytest.mark.parametrize(
    ("name", "exception", "words"),
    [
        ("crash", "Crash", "the decoder process crashed (SIGSEGV), in each of 2 attempts"),
        ("exit", "Crash", "the decoder process ended with exit code 3, in each of 2 attempts"),
        ("hang", "Hang", "gave no frame for decode.stall_s = 1.5 s, in each of 2 attempts"),
        ("swell", "OutOfMemory", "needed more than decode.memory_limit_gib = 0.25 GiB"),
    ],
)
def test_a_stopped_decoder_is_a_refusal_and_the_next_file_is_fine(
    faults, video, name, exception, words
):
    bad = video.rename(video.with_name(f"{name}.mp4"))
    good = video.with_name("good.mp4")
    good.write_bytes(bad.read_bytes())
    limits = DecodeConfig(stall_s=1.5, memory_limit_gib=0.25)
    with DecoderProcess(limits) as decoder:
        with pytest.raises(DecodeError) as caught:
            decoder.scan(bad, SETTINGS)
        assert words in str(caught.value)
        assert caught.value.exception == exception
        assert caught.value.attempts == 2
        assert caught.value.sha256 == sha256_of_file(bad)
        assert len(decoder.scan(good, SETTINGS).scan["clips"]) == 2


def test_a_crash_that_does_not_repeat_is_forgiven(faults, video):
    unlucky = video.rename(video.with_name("once.mp4"))
    with DecoderProcess(DecodeConfig()) as decoder:
        assert len(decoder.scan(unlucky, SETTINGS).scan["clips"]) == 2


def test_a_slow_file_has_a_limit_in_all(faults, video):
    slow = video.rename(video.with_name("hang.mp4"))
    limits = DecodeConfig(timeout_s=1.0, stall_s=30.0, max_attempts=1)
    started = time.monotonic()
    with DecoderProcess(limits) as decoder, pytest.raises(DecodeError, match=r"timeout_s = 1 s"):
        decoder.scan(slow, SETTINGS)
    assert time.monotonic() - started < 25


def test_what_a_library_prints_does_not_spoil_the_answers(faults, video):
    loud = video.rename(video.with_name("print.mp4"))
    with DecoderProcess(DecodeConfig()) as decoder:
        assert len(decoder.scan(loud, SETTINGS).scan["clips"]) == 2


def test_a_crash_between_clips_repeats_none_of_them(faults, drawn, tmp_path):
    """The process is killed after the first clip; the second attempt gives the others."""
    video = drawn.write(tmp_path / "good.mp4", num_frames=100, fps=25)
    with DecoderProcess(DecodeConfig()) as decoder:
        clips = decoder.scan(video, SETTINGS).scan["clips"]
        wanted = [
            WantedClip(height=320, width=640, frames=clip["frames"], crc32=clip["crc32"])
            for clip in clips
        ]
        reading = decoder.clips(video, wanted, sha256=sha256_of_file(video))
        first = next(reading)
        decoder._process.kill()
        rest = list(reading)
    numbers = [[drawn.number(f) for f in clip.frames] for clip in [first, *rest]]
    assert numbers == [clip["frames"] for clip in clips]


def test_a_reader_that_stops_early_leaves_a_usable_decoder(video):
    with DecoderProcess(DecodeConfig()) as decoder:
        clips = decoder.scan(video, SETTINGS).scan["clips"]
        wanted = [
            WantedClip(height=32, width=64, frames=clip["frames"], crc32=clip["crc32"])
            for clip in clips
        ]
        reading = decoder.clips(video, wanted, sha256=sha256_of_file(video))
        assert np.any(next(reading).frames)
        reading.close()
        assert len(decoder.scan(video, SETTINGS).scan["clips"]) == 2


_PARENT = """
import os, sys, time
from pipelines.decode.config import DecodeConfig
from pipelines.decode.process import DecoderProcess
decoder = DecoderProcess(DecodeConfig())
decoder._start()
print(decoder._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_the_decoder_dies_with_its_parent():
    done = subprocess.run(
        [sys.executable, "-c", _PARENT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    child = int(done.stdout)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the decoder outlived its parent"
        time.sleep(0.05)


def test_no_torch_in_the_decoder():
    code = (
        "import sys, pipelines.decode.child, pipelines.decode.clips, pipelines.selection.scan\n"
        "import pipelines.decode.process\n"
        "assert not {'torch', 'ray', 'deepspeed'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
