"""Two hundred files, forty of them bad; one kills its decoder, one lets it hang."""

import json
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

pytestmark = pytest.mark.slow

NUM_GOOD = 160
_FAULTS = """
import os, signal, sys, time
if "pipelines.decode.child" in sys.orig_argv:
    import av
    real = av.open
    def opened(file, *args, **kwargs):
        name = os.path.basename(str(file))
        if name.startswith("kills"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if name.startswith("hangs"):
            time.sleep(1000)
        return real(file, *args, **kwargs)
    av.open = opened
"""


def write_video(path: Path, seed: int, *, size=(32, 32), num_frames=16, audio_only=False) -> bytes:
    """Write one second of drifting noise, or of silence."""
    with av.open(str(path), "w") as file:
        if audio_only:
            stream = file.add_stream("aac", rate=16000, layout="mono")
            for _ in range(16):
                frame = av.AudioFrame.from_ndarray(
                    np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
                )
                frame.sample_rate = 16000
                file.mux(stream.encode(frame))
        else:
            stream = file.add_stream("libx264", rate=16, options={"crf": "20"})
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            colours = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
            picture = np.kron(colours, np.ones((8, 8, 1), np.uint8))
            for index in range(num_frames):
                shown = np.ascontiguousarray(np.roll(picture, index, 1)[: size[0], : size[1]])
                file.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        file.mux(stream.encode())
    return path.read_bytes()


def enormous(path: Path, number: int) -> None:
    """Write JPEG pictures that claim 65500 x 65500 pixels."""
    write_jpegs(path, size=(32, 32))
    content, marker = path.read_bytes(), b"\xff\xc0\x00\x11\x08"
    claim = marker + (65500 - number).to_bytes(2, "big") + (65500).to_bytes(2, "big")
    assert content.count(marker + bytes([0, 32, 0, 32])) == 16
    path.write_bytes(content.replace(marker + bytes([0, 32, 0, 32]), claim))


def write_jpegs(path: Path, size: tuple[int, int]) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mjpeg", rate=16)
        stream.height, stream.width, stream.pix_fmt = *size, "yuvj444p"
        for _ in range(16):
            picture = np.zeros((*size, 3), np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("poison") / "videos"
    folder.mkdir()
    for number in range(NUM_GOOD):
        write_video(folder / f"good-{number:03d}.mp4", number)
    content = write_video(folder / "spare.mp4", 999)
    (folder / "spare.mp4").unlink()
    noise = np.random.default_rng(0).bytes
    for number in range(4):
        cut = [len(content) // 4, len(content) // 2, len(content) - 300, 48][number]
        (folder / f"cut-{number}.mp4").write_bytes(content[:cut])
        (folder / f"empty-{number}.mp4").write_bytes(b"")
        (folder / f"text-{number}.mp4").write_text("this is not a video " * (number + 1))
        (folder / f"image-{number}.avi").write_bytes(b"\x89PNG\r\n\x1a\n" + noise(200 + number))
        middle = content.index(b"mdat") + 720 + 20 * number  # after the notes of the encoder
        (folder / f"damaged-{number}.mp4").write_bytes(
            content[:middle] + noise(200) + content[middle + 200 :]
        )
        enormous(folder / f"enormous-{number}.avi", number)
        write_video(folder / f"audio-{number}.mp4", number, audio_only=True)
        (folder / f"audio-{number}.mp4").open("ab").write(b"\0\0\0\x09free" + bytes([number]))
        write_video(folder / f"one-frame-{number}.mp4", 1000 + number, num_frames=1)
    for number in range(2):
        write_jpegs(folder / f"pixel-{number}.avi", (1, 1))
        (folder / f"pixel-{number}.avi").open("ab").write(bytes(number))
        (folder / f"folder-{number}.mp4").mkdir()
        (folder / f"loop-{number}.mp4").symlink_to(f"loop-{number}.mp4")
        os.mkfifo(folder / f"pipe-{number}.mp4")
    shutil.copy(folder / "good-000.mp4", folder / "kills.mp4")
    (folder / "kills.mp4").open("ab").write(b"\0\0\0\x09free1")
    shutil.copy(folder / "good-001.mp4", folder / "hangs.mp4")
    (folder / "hangs.mp4").open("ab").write(b"\0\0\0\x09free2")
    return folder


def test_each_bad_file_costs_itself_only(cil, poisoned, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(_FAULTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    output = tmp_path / "out"
    arguments = ["--data.videos", str(poisoned), "--output.dir", str(output)]
    arguments += ["--data.num-frames", "8", "--encode.videos-per-shard", "16"]
    arguments += ["--decode.stall-s", "6"]
    done = subprocess.run(
        cil.command("encode", *arguments, "--json"),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    totals = json.loads(done.stdout.splitlines()[-1])["encode"]["metrics"]
    lines = (output / "dataset" / "quarantine.jsonl").read_text().splitlines()
    refused = [json.loads(line) for line in lines]
    bad = [path for path in poisoned.iterdir() if not path.name.startswith("good")]
    expected = {path.name for path in bad}
    assert Counter(item["path"] for item in refused) == Counter(expected)
    assert all(item["message"] and item["exception"] for item in refused)
    by_kind: dict[str, set[tuple[str, str]]] = {}
    for item in refused:
        kind = item["path"].rsplit("-", 1)[0].removesuffix(".mp4")
        by_kind.setdefault(kind, set()).add((item["stage"], item["exception"]))
    print(json.dumps({kind: sorted(found) for kind, found in by_kind.items()}, indent=1))
    assert by_kind["kills"] == {("scan", "Crash")}
    assert by_kind["hangs"] == {("scan", "Hang")}
    assert by_kind["one-frame"] == {("select", "TooShort")}
    assert totals["videos"] == NUM_GOOD + len(expected)
    assert totals["videos_encoded"] == NUM_GOOD == totals["clips"]
    assert totals["videos_quarantined"] == len(expected)
    names = Counter(json.loads(record)["path"] for record in _records(output / "dataset"))
    assert names == Counter(f"good-{number:03d}.mp4" for number in range(NUM_GOOD))


def _records(dataset: Path):
    import tarfile

    for path in sorted((dataset / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.count(".") == 1 and member.name.endswith(".json"):
                    yield tar.extractfile(member).read()


def test_too_many_bad_files_end_the_run(cil, poisoned, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("good-000.mp4", "good-001.mp4", "text-0.mp4", "empty-1.mp4"):
        shutil.copy(poisoned / name, videos / name)
    arguments = ["--data.videos", str(videos), "--output.dir", str(tmp_path / "out")]
    done = subprocess.run(
        cil.command("encode", *arguments, "--data.num-frames", "8", "--max-bad-fraction", "0.4"),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 1
    assert "2 of 4 videos are broken, more than encode.max_bad_fraction = 0.4" in done.stderr
    assert "for example" in done.stderr
    assert not (tmp_path / "out" / "dataset" / "manifest.json").exists()
