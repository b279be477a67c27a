"""Containers x codecs x frame rates, each with numbers drawn into its frames; none may be wrong."""

import importlib.util

import av
import pytest

from pipelines.decode import DECODERS, probe_video

SEEKABLE = ("mp4", "mov", "mkv", "webm")
STREAMS = ("ts", "mpg")
# What the muxers of FFmpeg refuse, or write in a way that its demuxers do not know as video.
CANNOT_BE_WRITTEN = {
    "mp4": {"vp8"},
    "mov": {"vp8", "vp9", "vp9, hidden frames", "av1", "ffv1"},
    "mkv": set(),
    "webm": {
        *("h264", "h264, B-frames", "h264, open GOP", "h264, 10 bit"),
        *("hevc, closed GOP", "hevc, open GOP"),
        *("mpeg4", "mpeg4, B-frames", "mpeg2video", "mjpeg", "ffv1"),
    },
    "avi": {"hevc, closed GOP", "hevc, open GOP"},
    "ts": set(),
    "mpg": set(),
}
UNKNOWN_IN_STREAMS = {"vp8", "vp9", "vp9, hidden frames", "av1", "mjpeg", "ffv1"}
NO_VARIABLE_RATE = {"mpeg2video"}  # its encoder takes standard rates only


def expected(row):
    """What must come of a file, and a part of the reason."""
    has_b_frames = row.encoding.startswith(("h264, ", "mpeg4, "))
    if row.encoding in CANNOT_BE_WRITTEN.get(row.container, ()):
        return "cannot be written", ""
    if row.container in STREAMS and row.encoding in UNKNOWN_IN_STREAMS:
        return "refused", "stream"
    if row.encoding in NO_VARIABLE_RATE and row.rate == "variable":
        return "cannot be written", ""
    if row.container == "avi" and row.rate == "variable" and has_b_frames:
        return "refused", "does not state when frames are shown"
    odd_rate = row.rate == "23.976" and row.encoding.startswith("mpeg4")
    if row.container == "mpg" and (row.rate == "variable" or odd_rate):
        return "refused", "no time"
    return "right", ""


def test_no_frame_is_wrong_and_what_is_refused_is_known(rows):
    surprises = []
    for row in rows:
        result, reason = expected(row)
        if not row.result.startswith(result) or reason not in row.result:
            surprises.append((row, result, reason))
    assert surprises == []


def test_every_combination_was_measured(rows, table):
    names = {(row.container, row.encoding, row.rate, row.what) for row in rows}
    assert len(names) == len(rows)
    assert names >= {
        (container, encoding, rate, "")
        for container in table.CONTAINERS
        for encoding in table.ENCODINGS
        for rate in table.RATES
        if encoding not in table.RARE
    }
    assert sum(row.result == "right" for row in rows) > 300


def test_files_have_key_frames_and_b_frames_where_they_say_so(rows, table):
    """Without them the table would say little."""
    for row in rows:
        if row.result == "right":
            assert row.num_keys >= 3, row
            if table.ENCODINGS[row.encoding].reorders and row.container not in ("avi", "mpg"):
                assert row.reorders, row


@pytest.mark.parametrize(
    ("encoding", "access"),
    [
        ("h264", {"pyav seeks", "decord", "torchcodec"}),
        ("h264, B-frames", {"pyav seeks", "decord", "torchcodec"}),
        ("h264, open GOP", {"pyav from the start"}),
        ("h264, intra refresh", {"pyav from the start"}),
        ("h264, 10 bit", {"pyav seeks"}),
        ("hevc, closed GOP", {"pyav seeks", "torchcodec"}),
        ("hevc, open GOP", {"pyav seeks", "torchcodec"}),
        ("vp9", {"pyav seeks", "decord", "torchcodec"}),
        ("av1", {"pyav seeks", "torchcodec"}),
        ("mpeg4", {"pyav from the start"}),
    ],
)
def test_who_may_find_single_frames_again(rows, encoding, access):
    if importlib.util.find_spec("torchcodec") is None:
        access = access - {"torchcodec"}
    found = {
        row.random_access
        for row in rows
        if row.encoding == encoding
        and row.container in SEEKABLE
        and row.result == "right"
        and not row.what.startswith("edit list")
    }
    assert {frozenset(names) for names in found} == {frozenset(access)}


def test_nobody_but_pyav_is_asked_for_streams_and_edit_lists(rows):
    special = [row for row in rows if row.what.startswith("edit list")]
    assert len(special) == 3
    for row in [*special, *(row for row in rows if row.container in ("avi", *STREAMS))]:
        assert row.random_access in ((), ("pyav from the start",)), row


def test_the_page_shows_what_was_measured(rows, table):
    if importlib.util.find_spec("torchcodec") is None:
        pytest.fail("install torchcodec: docs/decoding.md says how it does")
    assert table.PAGE.read_text(encoding="utf-8") == table.page(rows)


def test_the_check_finds_the_wrong_frames_of_a_decoder_that_is_not_trusted(table, tmp_path):
    """decord jumps wrongly into open groups of pictures, without an error."""
    path, special = tmp_path / "open.mp4", table.Special("mp4", "h264, open GOP", "")
    table.write(path, table.ENCODINGS[special.encoding], "25", special)
    probe = probe_video(path)
    assert probe.has_open_gop
    assert not DECODERS["decord"].is_right_for(probe)
    numbers = [5, 7, 12, 14, 15, 24, 27, 29, 32]
    times = [probe.times_s[number] for number in numbers]
    found = list(DECODERS["decord"].frames_at(path, probe, numbers, times_s=times))
    assert list(table.mistakes(found, numbers, special, "25"))
    right = list(DECODERS["pyav"].frames_at(path, probe, numbers, times_s=times))
    assert list(table.mistakes(right, numbers, special, "25")) == []


def test_a_shifted_time_and_a_damaged_picture_are_found(table, tmp_path):
    special = table.Special("mp4", "h264", "")
    table.write(tmp_path / "a.mp4", table.ENCODINGS["h264"], "25", special)
    probe = probe_video(tmp_path / "a.mp4")
    frames = list(DECODERS["pyav"].frames(tmp_path / "a.mp4", probe))
    assert list(table.mistakes(frames, list(range(40)), special, "25")) == []
    (complaint, *_) = table.mistakes(frames, list(range(40)), special, "60")
    assert "frame 1 is at 0.0400, not 0.0167 s" in complaint
    frames[7].pixels[:16, :16] = 128
    assert list(table.mistakes(frames, list(range(40)), special, "25")) == ["frame 7 shows None"]


@pytest.mark.parametrize("encoder", ["libx264", "libx265", "libvpx-vp9", "libvpx", "libsvtav1"])
def test_the_encoders_of_the_table_are_there(encoder):
    assert encoder in av.codecs_available
