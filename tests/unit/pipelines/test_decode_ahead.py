import gc
import threading
import time
import weakref

import numpy as np
import pytest

from cil.errors import DataError
from pipelines import decode_ahead
from pipelines.decode.clips import ReadClip
from pipelines.decode.config import DecodeConfig
from pipelines.decode.errors import DecodeError
from pipelines.decode_ahead import DecodeAhead, PlannedVideo
from pipelines.selection.bucket import Bucket

BUCKET = Bucket(height=4, width=4, num_frames=2)
LIMIT_S = 20


class Counting(np.ndarray):
    """An array that can be watched."""


class FakeDecoders:
    """Decoder processes without processes: what they gave, what is still in memory."""

    def __init__(self):
        self.given = 0
        self.alive = 0
        self.most_alive = 0
        self.closed = 0
        self.threads = set()
        self.lock = threading.RLock()
        self.errors = {}
        self.delays = {}

    def made(self, *_):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with self.lock:
            self.closed += 1

    def clips(self, path, wanted, *, sha256):
        self.threads.add(threading.get_ident())
        for number in range(len(wanted)):
            time.sleep(self.delays.get(sha256, 0))
            if (sha256, number) in self.errors:
                raise self.errors[sha256, number]
            frames = np.full((2, 4, 4, 3), number, np.uint8).view(Counting)
            weakref.finalize(frames, self._freed)
            with self.lock:
                self.given += 1
                self.alive += 1
                self.most_alive = max(self.most_alive, self.alive)
            yield ReadClip(frames=frames, decoder=sha256)
            del frames

    def _freed(self):
        with self.lock:
            self.alive -= 1


@pytest.fixture
def decoders(monkeypatch):
    fake = FakeDecoders()
    monkeypatch.setattr(decode_ahead, "DecoderProcess", fake.made)
    return fake


@pytest.fixture
def planned(tmp_path):
    """Make videos with so many clips each, called video 0, video 1, ..."""

    def make(*counts, location=None):
        path = tmp_path / "video.mp4"
        path.touch()
        place = {
            "name": "video.mp4",
            "location": str(location or path),
            "offset": None,
            "num_bytes": 0,
            "version": "1",
            "caption": None,
        }
        clip = {"frames": [0, 1], "crc32": [0, 0]}
        return [
            PlannedVideo.of(
                {"sha256": f"video {number}", "decoder": "pyav", "clips": [clip] * count},
                place,
                BUCKET,
            )
            for number, count in enumerate(counts)
        ]

    return make


def ahead_of(count):
    return DecodeAhead(DecodeConfig(), count)


def wait_until(what):
    deadline = time.monotonic() + LIMIT_S
    while not what():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def numbers(clips):
    return [int(clip.frames[0, 0, 0, 0]) for clip in clips]


def test_the_wanted_clips_are_those_of_the_plan(planned):
    (video,) = planned(3)
    assert len(video.wanted) == 3
    (first, *_) = video.wanted
    assert (first.height, first.width, first.frames, first.crc32) == (4, 4, [0, 1], [0, 0])


@pytest.mark.parametrize("num_decoders", [1, 2, 5])
def test_videos_and_clips_come_in_their_order(decoders, planned, num_decoders):
    """Also where later videos are decoded faster."""
    decoders.delays = {"video 0": 0.05, "video 2": 0.02}
    counts = (3, 1, 2, 0, 4, 1)
    found = []
    for video, clips in ahead_of(num_decoders).read(planned(*counts)):
        read = list(clips)
        assert {clip.decoder for clip in read} <= {video.planned["sha256"]}
        found.append((video.planned["sha256"], numbers(read)))
    assert found == [(f"video {n}", list(range(count))) for n, count in enumerate(counts)]
    assert 1 <= len(decoders.threads) <= num_decoders


def test_it_works_ahead(decoders, planned):
    """Videos are decoded while the first one is not even looked at."""
    ahead = ahead_of(2)
    reading = ahead.read(planned(1, 1, 1, 1, 1, 1))
    next(reading)
    wait_until(lambda: decoders.given >= 3)
    time.sleep(0.2)
    assert decoders.given == 3  # two decoders, and one video more


@pytest.mark.parametrize("num_decoders", [1, 2, 4])
def test_only_a_few_clips_are_held(decoders, planned, num_decoders):
    most = 3 * num_decoders + 4  # two wait and one is in the hand of each; the reader has one
    taken = 0
    for _, clips in ahead_of(num_decoders).read(planned(*[40] * 6)):
        for clip in clips:
            taken += 1
            if taken % 40 == 20:
                time.sleep(0.05)  # time enough to decode all of them
            del clip
    assert taken == 240
    assert decoders.most_alive <= most


def test_a_reader_that_waits_stops_the_decoders(decoders, planned):
    ahead = ahead_of(2)
    reading = ahead.read(planned(*[1000] * 4))
    _, clips = next(reading)
    next(clips)
    time.sleep(0.3)
    before = decoders.given
    assert before <= 10
    time.sleep(0.7)  # longer than a decoder waits before it looks again
    assert decoders.given == before


@pytest.mark.parametrize("num_decoders", [1, 3])
def test_the_error_of_one_video_does_not_disturb_the_next(decoders, planned, num_decoders):
    broken = DecodeError("damaged", stage="decode", decoder="pyav", exception="Odd")
    decoders.errors = {("video 1", 1): broken, ("video 3", 0): ValueError("unforeseen")}
    found = []
    for _, clips in ahead_of(num_decoders).read(planned(2, 3, 2, 1, 2)):
        read = []
        try:
            read.extend(numbers([clip])[0] for clip in clips)
        except DecodeError as error:
            found.append((error.stage, str(error)))
        else:
            found.append(read)
    assert found == [
        [0, 1],
        ("decode", "damaged"),
        [0, 1],
        ("read", "cannot be read: ValueError: unforeseen"),
        [0, 1],
    ]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(2, "No such file or directory"), "No such file or directory"),
        (DataError("it changed; list it again"), "it changed; list it again"),
        (RuntimeError("odd"), "RuntimeError: odd"),
    ],
)
def test_whatever_goes_wrong_names_the_video_and_its_content(decoders, planned, error, words):
    decoders.errors = {("video 0", 0): error}
    reading = ahead_of(1).read(planned(1))
    _, clips = next(reading)
    with pytest.raises(DecodeError) as caught:
        list(clips)
    found = caught.value
    assert str(found) == f"cannot be read: {words}"
    assert (found.stage, found.decoder, found.sha256) == ("read", None, "video 0")
    assert found.exception == type(error).__name__


def test_a_video_that_cannot_be_copied_is_refused(decoders, planned):
    reading = ahead_of(1).read(planned(1, location="memory://nothing/here.mp4"))
    _, clips = next(reading)
    with pytest.raises(DecodeError, match="cannot be read"):
        list(clips)


@pytest.mark.parametrize("num_decoders", [1, 2])
def test_what_is_left_of_a_video_is_skipped(decoders, planned, num_decoders):
    found = []
    for video, clips in ahead_of(num_decoders).read(planned(*[50] * 4)):
        found.append((video.planned["sha256"], numbers([next(clips)])))
    assert found == [(f"video {number}", [0]) for number in range(4)]
    assert decoders.given < 30


def test_an_abandoned_reading_leaves_the_decoders_ready_for_the_next(decoders, planned):
    ahead = ahead_of(2)
    reading = ahead.read(planned(*[50] * 5))
    _, clips = next(reading)
    next(clips)
    reading.close()
    found = [numbers(clips) for _, clips in ahead.read(planned(3, 2))]
    assert found == [[0, 1, 2], [0, 1]]
    assert decoders.given < 30


def own_threads(before):
    return [t for t in threading.enumerate() if t not in before and t.name.startswith("decoder-")]


@pytest.mark.parametrize("how", ["unused", "used", "half-way"])
def test_threads_and_decoders_end_with_the_object(decoders, planned, how):
    before = set(threading.enumerate())
    ahead = ahead_of(3)
    assert len(own_threads(before)) == 3
    if how == "used":
        assert [numbers(clips) for _, clips in ahead.read(planned(2, 1))] == [[0, 1], [0]]
    if how == "half-way":
        reading = ahead.read(planned(*[50] * 6))
        _, clips = next(reading)
        next(clips)
        del reading, clips
    del ahead
    gc.collect()
    wait_until(lambda: not own_threads(before))
    assert decoders.closed == 3
    gc.collect()
    assert decoders.alive == 0
