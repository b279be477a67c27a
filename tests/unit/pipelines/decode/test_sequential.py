import dataclasses
import itertools
import math
import random
import struct

import numpy as np
import pytest

from cil.errors import DataError
from pipelines.decode import (
    ClipTransform,
    DecodeError,
    VideoProbe,
    _check_number,
    _decord_is_right,
    decode_clips,
    probe_video,
)

NUM_FRAMES = 50
CONSTANT = [index / 25 for index in range(NUM_FRAMES)]
# libx265 and SVT-AV1 do not take frames below 64 pixels
LARGE = (64, 128)
X265 = "log-level=none:pools=1"
VP9 = {"crf": "20", "b:v": "0", "cpu-used": "8"}
OPEN_GOP = "open-gop=1:keyint=10:min-keyint=5"

WRITTEN = {
    "h264.mp4": {"options": {"bf": "0"}},
    "h264-b-frames.mp4": {"options": {"bf": "3", "b-adapt": "0", "g": "12"}},
    "h264-open-gop.mp4": {"options": {"bf": "4", "x264-params": f"{OPEN_GOP}:b-pyramid=normal"}},
    "h264-no-edit-list.mp4": {"options": {"bf": "3"}, "container": {"use_editlist": "0"}},
    "h264-fragments.mp4": {
        "options": {"bf": "2", "g": "12"},
        "container": {"movflags": "frag_keyframe+empty_moov"},
    },
    "h264.mov": {"options": {"bf": "2"}},
    "h264.mkv": {"options": {"bf": "3"}},
    "h264.avi": {"options": {"bf": "0"}},
    "h264-b-frames.avi": {"options": {"bf": "2"}},
    "h264.ts": {"options": {"bf": "2"}},
    "h264.flv": {"options": {"bf": "2"}},
    "h264-10-bit.mp4": {"pixel_format": "yuv420p10le"},
    "h264-444.mp4": {"pixel_format": "yuv444p"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": VP9},
    "vp9-hidden-frames.webm": {
        "codec": "libvpx-vp9",
        "options": {**VP9, "auto-alt-ref": "1", "lag-in-frames": "16"},
    },
    "vp9.mp4": {"codec": "libvpx-vp9", "options": VP9},
    "vp8.webm": {"codec": "libvpx", "options": {"crf": "10", "b:v": "1M", "cpu-used": "8"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"qscale": "2"}},
    "mpeg4-b-frames.avi": {"codec": "mpeg4", "options": {"qscale": "2", "bf": "2"}},
    "mpeg4-b-frames.mp4": {"codec": "mpeg4", "options": {"qscale": "2", "bf": "2"}},
    "mpeg4.mkv": {"codec": "mpeg4", "options": {"qscale": "2"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"qscale": "2", "bf": "2"}},
    "mpeg2.ts": {"codec": "mpeg2video", "options": {"qscale": "2", "bf": "2"}},
    "hevc.mp4": {"codec": "libx265", "size": LARGE, "options": {"x265-params": X265}},
    "hevc-open-gop.mkv": {
        "codec": "libx265",
        "size": LARGE,
        "options": {"x265-params": f"{X265}:open-gop=1:keyint=10:bframes=4"},
    },
    "hevc.ts": {"codec": "libx265", "size": LARGE, "options": {"x265-params": X265}},
    "av1.mp4": {"codec": "libsvtav1", "size": LARGE, "options": {"preset": "12"}},
    "av1.mkv": {"codec": "libsvtav1", "size": LARGE, "options": {"preset": "12"}},
    "ffv1.mkv": {"codec": "ffv1"},
    "mjpeg.mov": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
    "wmv2.wmv": {"codec": "wmv2", "options": {"qscale": "2"}},
}


def transform(drawn, num_frames=5, fps=25.0, **changes):
    return ClipTransform(
        **{
            "num_frames": num_frames,
            "fps": fps,
            "height": drawn.height,
            "width": drawn.width,
            **changes,
        }
    )


def numbers(drawn, video):
    return [drawn.number(frame) for clip in video.clips for frame in clip.frames]


@pytest.fixture(scope="module")
def written(drawn, tmp_path_factory):
    """Folder with one small video per pair of container and codec."""
    folder = tmp_path_factory.mktemp("written")
    for name, settings in WRITTEN.items():
        drawn.write(folder / name, num_frames=NUM_FRAMES, **settings)
    return folder


@pytest.mark.parametrize("name", WRITTEN)
def test_every_frame_of_every_container_and_codec_is_right(drawn, written, name):
    video = decode_clips(written / name, transform(drawn))
    assert numbers(drawn, video) == list(range(NUM_FRAMES))
    assert video.source_fps == pytest.approx(25, rel=0.02)


@pytest.mark.parametrize("name", [name for name in WRITTEN if name.startswith(("h264", "vp9"))])
def test_the_fallback_decoder_gives_the_same_frames(drawn, written, name, monkeypatch):
    """Whatever decord decodes, PyAV must be able to take over."""
    monkeypatch.setattr("pipelines.decode._decord_is_right", lambda probe: False)
    video = decode_clips(written / name, transform(drawn))
    assert video.decoder == "pyav"
    assert numbers(drawn, video) == list(range(NUM_FRAMES))


@pytest.mark.parametrize(
    ("name", "decoder"),
    [
        ("h264.mp4", "decord"),
        ("h264.mkv", "decord"),
        ("vp9.webm", "decord"),
        ("h264.ts", "pyav"),
        ("h264.avi", "pyav"),
        ("h264-10-bit.mp4", "pyav"),
        ("hevc.mp4", "pyav"),
        ("av1.mkv", "pyav"),
    ],
)
def test_decord_decodes_where_it_is_right_and_pyav_elsewhere(drawn, written, name, decoder):
    assert decode_clips(written / name, transform(drawn)).decoder == decoder


@pytest.mark.parametrize("name", ["h264.mp4", "mpeg4-b-frames.avi", "hevc.mp4"])
@pytest.mark.parametrize("fps", [1.0, 8.0, 12.5, 24.0, 25.0, 29.97, 60.0, 240.0])
def test_resampling_takes_the_frame_on_screen(drawn, written, name, fps):
    video = decode_clips(written / name, transform(drawn, num_frames=2, fps=fps))
    assert drawn.wrong(video, CONSTANT) == []
    # Every wanted time before the end at 2 s is used, but for a last clip that is incomplete.
    assert len(video.clips) == math.ceil(2 * fps) // 2


def test_a_slower_source_repeats_frames_and_says_so(drawn, written):
    video = decode_clips(written / "h264.mp4", transform(drawn, num_frames=8, fps=50.0))
    assert numbers(drawn, video)[:8] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert {clip.num_distinct_frames for clip in video.clips} == {4}


def test_a_faster_source_skips_frames(drawn, written):
    video = decode_clips(written / "h264.mp4", transform(drawn, num_frames=4, fps=5.0))
    assert numbers(drawn, video) == [0, 5, 10, 15, 20, 25, 30, 35]
    assert {clip.num_distinct_frames for clip in video.clips} == {4}


def test_clips_follow_each_other_and_do_not_overlap(drawn, written):
    video = decode_clips(written / "h264.mkv", transform(drawn, num_frames=7, fps=25.0))
    assert [clip.frames.shape for clip in video.clips] == [(7, 32, 64, 3)] * 7
    starts = [clip.start_s for clip in video.clips]
    assert starts == pytest.approx([0.28 * index for index in range(7)])
    assert [clip.end_s for clip in video.clips][:-1] == pytest.approx(starts[1:])
    assert numbers(drawn, video) == list(range(49))


def test_max_clips_keeps_the_first_ones(drawn, written):
    every = decode_clips(written / "vp9.webm", transform(drawn))
    first = decode_clips(written / "vp9.webm", transform(drawn, max_clips=3))
    assert len(first.clips) == 3
    for one, other in zip(first.clips, every.clips, strict=False):
        assert np.array_equal(one.frames, other.frames)
        assert (one.start_s, one.end_s) == (other.start_s, other.end_s)


@pytest.mark.parametrize("muxer", ["mp4", "mkv", "mov", "webm", "ts", "flv"])
@pytest.mark.parametrize("b_frames", ["0", "3"])
def test_variable_frame_rate_is_resampled_by_time(drawn, tmp_path, muxer, b_frames):
    gaps = random.Random(f"{muxer} {b_frames}")
    times_ms = [0]
    for _ in range(59):
        times_ms.append(times_ms[-1] + gaps.choice([7, 20, 33, 40, 41, 90, 250]))
    settings = {"options": {"bf": b_frames}}
    if muxer == "webm":
        hidden = {"auto-alt-ref": b_frames[0], "lag-in-frames": "8"} if b_frames != "0" else {}
        settings = {"codec": "libvpx-vp9", "options": {**VP9, **hidden}}
    path = drawn.write(tmp_path / f"vfr.{muxer}", num_frames=60, times_ms=times_ms, **settings)
    video = decode_clips(path, transform(drawn, num_frames=4, fps=30.0))
    assert drawn.wrong(video, [time / 1000 for time in times_ms]) == []
    assert len(video.clips) * 4 > 0.95 * 30 * times_ms[-1] / 1000


def test_two_frames_of_one_time_do_not_shift_the_others(drawn, tmp_path):
    """Of frames with the same time the last one is on screen; the others keep their times."""
    gaps = random.Random(3)
    times_ms = [0]
    for _ in range(49):
        times_ms.append(times_ms[-1] + gaps.choice([0, 0, 20, 40, 80, 120]))
    whole = drawn.write(tmp_path / "whole.mkv", options={"bf": "0", "g": "1"})
    path = tmp_path / "twice.mkv"

    def set_time(number, packet):
        packet.pts = packet.dts = times_ms[number]
        return True

    drawn.remux(whole, path, set_time)
    video = decode_clips(path, transform(drawn, num_frames=2, fps=20.0))
    assert drawn.wrong(video, [time / 1000 for time in times_ms]) == []
    assert len(video.clips) > 8 * times_ms[-1] / 1000


def test_frames_without_a_time_are_counted_only_if_the_others_agree(drawn, tmp_path):
    """The FLV reader loses two times at a long gap; to count on would jump over the gap."""
    times_ms = [*range(0, 400, 40), *range(3_600_000, 3_600_400, 40)]
    path = drawn.write(tmp_path / "gap.flv", num_frames=20, times_ms=times_ms, options={"bf": "2"})
    assert probe_video(path).times_s is None
    error = refusal(path, transform(drawn))
    assert "Hz puts it, and other frames carry no time" in str(error)
    path = drawn.write(tmp_path / "raw.mpg", muxer="h264", options={"bf": "2"})
    assert probe_video(path).times_s is None
    assert numbers(drawn, decode_clips(path, transform(drawn))) == list(range(NUM_FRAMES))


@pytest.mark.parametrize("muxer", ["mp4", "mkv", "ts"])
def test_a_late_start_does_not_shift_the_clips(drawn, tmp_path, muxer):
    times_ms = [5000 + 40 * index for index in range(20)]
    path = drawn.write(tmp_path / f"late.{muxer}", num_frames=20, times_ms=times_ms)
    video = decode_clips(path, transform(drawn))
    assert numbers(drawn, video) == list(range(20))
    assert video.clips[0].start_s == 0


@pytest.mark.parametrize("muxer", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("first", [5, 13, 24])
@pytest.mark.parametrize("kind", ["plain", "b-frames", "open-gop"])
def test_a_file_cut_between_key_frames_starts_late_or_is_refused(
    drawn, tmp_path, kind, first, muxer
):
    """Frames that refer to what was cut off cannot be shown; no other may take their place."""
    keys = "keyint=12:min-keyint=12:scenecut=0"
    options = {
        "plain": {"bf": "0", "x264-params": keys},
        "b-frames": {"bf": "3", "b-adapt": "0", "x264-params": keys},
        "open-gop": {"bf": "3", "b-adapt": "0", "x264-params": f"open-gop=1:{keys}"},
    }
    whole = drawn.write(tmp_path / "whole.mp4", num_frames=60, options=options[kind])
    path = tmp_path / f"cut.{muxer}"
    drawn.remux(whole, path, lambda number, packet: number >= first)
    try:
        video = decode_clips(path, transform(drawn, num_frames=4))
    except DecodeError:
        return  # refused as a whole: fine as well
    shown = numbers(drawn, video)
    assert shown == list(range(shown[0], shown[0] + len(shown)))
    assert first - 3 <= shown[0] <= first + 12
    assert len(shown) > 57 - shown[0] - 4


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
def test_a_transport_stream_with_half_a_frame_is_refused(drawn, tmp_path, codec):
    """Broadcasts lose packets; what is left of a frame is not a frame."""
    options = {"bf": "0", "g": "4", "x265-params": f"{X265}:keyint=4:bframes=0"}
    whole = drawn.write(
        tmp_path / "whole.ts", codec=codec, size=(256, 512), num_frames=12, options=options
    ).read_bytes()
    packets = [whole[start : start + 188] for start in range(0, len(whole), 188)]
    path = tmp_path / "lossy.ts"
    continued = [n for n, packet in enumerate(packets) if packet[1:3] == b"\x01\x00"]
    assert len(continued) >= 5
    for number in continued:  # packets of the video that do not begin a frame
        path.write_bytes(b"".join(packets[:number] + packets[number + 1 :]))
        assert refusal(path, transform(drawn)).stage in ("probe", "decode"), number


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "libvpx-vp9"])
def test_an_mp4_that_was_cut_off_while_it_was_copied_is_refused(drawn, tmp_path, codec):
    """Its index comes first, so all but the last frames could be read."""
    options = VP9 if codec == "libvpx-vp9" else {"bf": "0"}
    whole = drawn.write(
        tmp_path / "whole.mp4", codec=codec, options=options, container={"movflags": "faststart"}
    ).read_bytes()
    path = tmp_path / "cut.mp4"
    for missing in (1, 2, 3, 5):
        path.write_bytes(whole[:-missing])
        error = refusal(path, transform(drawn))
        assert (error.stage, error.exception) == ("probe", "CutOff"), missing


def test_two_streams_after_each_other_are_refused(drawn, written, tmp_path):
    """Transport streams can be joined like texts, but then time begins again in the middle."""
    path = tmp_path / "joined.ts"
    path.write_bytes((written / "h264.ts").read_bytes() * 2)
    assert refusal(path, transform(drawn)).stage in ("probe", "decode")


def test_frames_that_come_in_another_order_than_their_times_are_refused(drawn, tmp_path):
    """A codec without references to the future hands out frames as they are stored."""
    whole = drawn.write(tmp_path / "whole.mkv", codec="ffv1", num_frames=10)

    def swap(number, packet):
        packet.dts = packet.pts - 80
        packet.pts = {4: 200, 5: 160}.get(number, packet.pts)
        return True

    path = drawn.remux(whole, tmp_path / "swapped.mkv", swap)
    assert str(refusal(path, transform(drawn))) == "frame 5 at 0.160 s comes before 0.200 s"


@pytest.mark.parametrize(
    ("changes", "right"),
    [
        ({}, True),
        ({"container": "matroska,webm", "codec": "vp9"}, True),
        ({"container": "mpegts"}, False),
        ({"codec": "hevc"}, False),
        ({"pixel_format": "yuv420p10le"}, False),
        ({"has_edit_list": True}, False),
        ({"times_s": None}, False),
        ({"times_s": (0.0, 0.04, 0.04)}, False),
    ],
)
def test_decord_is_asked_only_where_it_was_measured_to_be_right(changes, right):
    probe = VideoProbe(
        container="mov,mp4,m4a,3gp,3g2,mj2",
        codec="h264",
        pixel_format="yuv420p",
        average_fps=25.0,
        times_s=(0.0, 0.04, 0.08),
        has_edit_list=False,
    )
    assert _decord_is_right(dataclasses.replace(probe, **changes)) is right


def skipped_mpeg4_frame(time):
    """A frame of MPEG-4 that says: nothing is coded here, keep showing the last one."""
    bits = f"0101{time:05b}10"
    bits += "0" + "1" * ((-len(bits) - 1) % 8)
    return b"\0\0\1\xb6" + int(bits, 2).to_bytes(len(bits) // 8, "big")


@pytest.mark.parametrize("muxer", ["mp4", "mkv", "avi"])
def test_a_frame_that_is_not_coded_does_not_shift_those_after_it(drawn, tmp_path, muxer):
    """DivX and Xvid write such frames; AVI counts frames instead of stating their times."""
    import av

    options = {"qscale": "2", "g": "1"}
    whole = drawn.write(tmp_path / f"whole.{muxer}", codec="mpeg4", options=options)
    path = tmp_path / f"skipped.{muxer}"
    with av.open(str(whole)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(video=0)):
            if not packet.size:
                continue
            copy = av.Packet(skipped_mpeg4_frame(20) if number == 20 else bytes(packet))
            copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
            copy.time_base, copy.is_keyframe, copy.stream = packet.time_base, True, stream
            new.mux(copy)
    if muxer == "avi":
        error = refusal(path, transform(drawn))
        assert str(error) == "only 49 of 50 frames could be decoded"
        return
    shown = numbers(drawn, decode_clips(path, transform(drawn)))
    assert shown == [*range(20), 19, *range(21, NUM_FRAMES)]


@pytest.mark.parametrize(
    ("codec", "container", "decoded", "first_s", "refused"),
    [
        ("h264", "mpegts", 50, 0.0, False),
        ("h264", "mpegts", 47, 0.12, False),  # three leading frames of an open group
        ("h264", "mpegts", 47, 0.08, True),  # two of them, and one that is missing later
        ("h264", "mpegts", 10, 1.6, True),
        ("hevc", "matroska,webm", 49, 0.0, True),
        ("vp8", "matroska,webm", 40, 0.0, False),  # hidden frames have packets of their own
        ("vp8", "matroska,webm", 10, 0.0, True),
        ("mpeg4", "avi", 49, 0.0, True),
    ],
)
def test_missing_frames_are_allowed_only_before_the_first(
    codec, container, decoded, first_s, refused
):
    probe = VideoProbe(
        container=container,
        codec=codec,
        pixel_format="yuv420p",
        average_fps=25.0,
        times_s=tuple(CONSTANT),
        has_edit_list=False,
    )
    if refused:
        with pytest.raises(DataError, match=f"only {decoded} of 50 frames"):
            _check_number(decoded, first_s, probe)
    else:
        assert _check_number(decoded, first_s, probe) is None


ROTATIONS = {
    "0": (1, 0, 0, 1),
    "90": (0, 1, -1, 0),
    "180": (-1, 0, 0, -1),
    "270": (0, -1, 1, 0),
}


def rotate_flag(content, degrees):
    """Set the display matrix in the track header of an mp4 file, clockwise."""
    place = content.index(b"tkhd") + 4
    place += 4 + (20 if content[place] == 0 else 32) + 16
    a, b, c, d = (65536 * value for value in ROTATIONS[degrees])
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    return content[:place] + matrix + content[place + len(matrix) :]


@pytest.fixture(params=["decord", "pyav"])
def decoder(request, monkeypatch):
    """Each decoder in turn, for files that both can read."""
    if request.param == "pyav":
        monkeypatch.setattr("pipelines.decode._decord_is_right", lambda probe: False)
    return request.param


@pytest.mark.parametrize("degrees", ROTATIONS)
def test_the_rotation_flag_is_applied(drawn, written, tmp_path, decoder, degrees):
    path = tmp_path / "rotated.mp4"
    path.write_bytes(rotate_flag((written / "h264.mp4").read_bytes(), degrees))
    turned = degrees in ("90", "270")
    size = {"height": 64, "width": 32} if turned else {}
    video = decode_clips(path, transform(drawn, **size))
    assert video.decoder == decoder
    upright = [np.rot90(frame, int(degrees) // 90) for clip in video.clips for frame in clip.frames]
    assert [drawn.number(frame) for frame in upright] == list(range(NUM_FRAMES))


def test_frames_are_resized_to_cover_and_cropped_in_the_centre(drawn, tmp_path):
    """A wide picture with red edges: the crop of a square from its middle shows none of them."""
    import av

    picture = np.zeros((48, 96, 3), np.uint8)
    picture[:, :20] = picture[:, -20:] = (255, 0, 0)
    picture[:, 28:68] = (0, 255, 0)
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"crf": "5"})
        stream.height, stream.width, stream.pix_fmt = 48, 96, "yuv420p"
        for _ in range(4):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    (clip,) = decode_clips(path, transform(drawn, 4, height=24, width=24)).clips
    assert clip.frames.shape == (4, 24, 24, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.frames[..., 0].max() < 100
    green = clip.frames[0, 12, :, 1] > 128
    # 28..68 of 96 columns, halved, minus the 12 that are cropped on the left: 2..22
    assert green.nonzero()[0].tolist() == list(range(2, 22))
    (whole,) = decode_clips(path, transform(drawn, 4, height=48, width=96)).clips
    assert np.abs(whole.frames[0].astype(int) - picture).mean() < 12
    (large,) = decode_clips(path, transform(drawn, 4, height=31, width=101)).clips
    assert large.frames.shape == (4, 31, 101, 3)


def test_a_single_frame_and_a_single_clip(drawn, tmp_path):
    path = drawn.write(tmp_path / "one.mp4", num_frames=1)
    (clip,) = decode_clips(path, transform(drawn, num_frames=1)).clips
    assert drawn.number(clip.frames[0]) == 0
    path = drawn.write(tmp_path / "five.mp4", num_frames=5)
    video = decode_clips(path, transform(drawn, num_frames=5))
    assert numbers(drawn, video) == [0, 1, 2, 3, 4]


def refusal(path, how):
    with pytest.raises(DecodeError) as caught:
        decode_clips(path, how)
    return caught.value


def test_too_short_says_how_much_is_missing(drawn, written):
    error = refusal(written / "h264.mp4", transform(drawn, num_frames=51))
    assert str(error) == "too short: 2.00 s, and one clip of 51 frames at 25 Hz needs 2.04 s"
    assert (error.stage, error.decoder, error.exception) == ("select", None, "TooShort")


@pytest.mark.parametrize("muxer", ["mp4", "mkv", "flv"])
def test_a_damaged_time_does_not_repeat_a_frame_for_days(drawn, tmp_path, muxer):
    times_ms = [*range(0, 400, 40), *range(3_600_000, 3_600_400, 40)]
    options = {"bf": "0"}
    path = drawn.write(tmp_path / f"gap.{muxer}", num_frames=20, times_ms=times_ms, options=options)
    error = refusal(path, transform(drawn))
    assert str(error).startswith("the frame after 0.36 s comes 3600 s later, and 60 s are")
    assert (error.stage, error.decoder, error.exception) == ("select", None, "LongGap")


def test_a_frame_may_stay_for_a_minute(drawn, tmp_path):
    path = drawn.write(tmp_path / "still.mp4", num_frames=3, times_ms=[0, 40, 60_000])
    video = decode_clips(path, transform(drawn, num_frames=3, fps=0.1))
    assert numbers(drawn, video) == [0, 1, 1, 1, 1, 1, 2, 2, 2]


def test_files_that_are_no_videos_are_refused(drawn, tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("This is not a video.\n" * 200)
    (tmp_path / "noise.mkv").write_bytes(random.Random(0).randbytes(5000))
    (tmp_path / "folder.mp4").mkdir()
    for name in ("empty.mp4", "text.mp4", "noise.mkv", "folder.mp4", "missing.mp4"):
        error = refusal(tmp_path / name, transform(drawn))
        assert (error.stage, error.decoder) == ("probe", "pyav"), name
        assert str(error), name


def test_a_script_that_names_other_files_is_no_video(drawn, written, tmp_path):
    """Its content hash would say nothing about its frames."""
    (tmp_path / "real.ts").write_bytes((written / "h264.ts").read_bytes())
    (tmp_path / "script.mp4").write_text("ffconcat version 1.0\nfile real.ts\n")
    (tmp_path / "playlist.m3u8.mp4").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nreal.ts\n#EXT-X-ENDLIST\n"
    )
    for name in ("script.mp4", "playlist.m3u8.mp4"):
        assert refusal(tmp_path / name, transform(drawn)).stage == "probe", name


def test_a_refusal_is_the_same_wherever_the_file_is(drawn, tmp_path):
    """It goes into the data set, which must not depend on the folder of the videos."""
    messages = set()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text.mp4").write_text("not a video\n" * 100)
        messages.add(str(refusal(tmp_path / folder / "text.mp4", transform(drawn))))
    assert messages == {"Invalid data found when processing input"}


def test_audio_without_video_is_refused(drawn, tmp_path):
    import av

    path = tmp_path / "audio.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=44100)
        samples = np.zeros((1, 44100), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.rate = 44100
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    error = refusal(path, transform(drawn))
    assert str(error) == "the file has no video stream"
    assert (error.stage, error.exception) == ("probe", "NoVideo")


def test_a_codec_that_nothing_decodes_is_refused(drawn, written, tmp_path):
    """One flipped bit in the name of the codec is enough: PyAV then has no codec context."""
    path = tmp_path / "unknown.mp4"
    path.write_bytes((written / "h264.mp4").read_bytes().replace(b"avc1", b"xvc1"))
    error = refusal(path, transform(drawn))
    assert str(error) == "the codec of the video stream is unknown"
    assert (error.stage, error.exception) == ("probe", "UnknownCodec")


def test_probe_reads_times_without_decoding(drawn, written):
    probe = probe_video(written / "h264-b-frames.mp4")
    assert probe.container == "mov,mp4,m4a,3gp,3g2,mj2"
    assert (probe.codec, probe.pixel_format) == ("h264", "yuv420p")
    assert probe.average_fps == pytest.approx(25)
    assert probe.times_s == pytest.approx(CONSTANT)


# -- the reference clips ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "num_frames", "decoder"),
    [
        ("mm_demo.mp4", 280, "decord"),
        ("mm_part0.mp4", 32, "decord"),
        ("mm_std.mp4", 57, "decord"),
        ("mm_test.avi", 164, "pyav"),
        ("pancake.mkv", 310, "decord"),
        ("tc_av1_video.mkv", 125, "pyav"),
        ("tc_h265_10bits.mp4", 30, "pyav"),
    ],
)
def test_real_clips_show_the_frames_of_their_times(drawn, reference, name, num_frames, decoder):
    """Against a plain decoding pass, by the order of the frames and the times of the packets."""
    import av

    path = reference / name
    times = probe_video(path).times_s
    assert times is not None
    assert len(times) == num_frames
    with av.open(str(path)) as file:
        stream = file.streams.best("video")
        plain = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
    height, width = plain[0].shape[:2]
    video = decode_clips(path, transform(drawn, 1, fps=6.0, height=height, width=width))
    assert video.decoder == decoder
    assert len(video.clips) == math.ceil(6 * (times[-1] - times[0] + np.median(np.diff(times))))
    for clip in video.clips:
        expected = plain[drawn.shown_at(clip.start_s, times)]
        assert np.abs(clip.frames[0].astype(int) - expected).mean() < 3


def test_the_rotated_phone_video_stands_upright(drawn, reference):
    import av

    with av.open(str(reference / "dec_video_90.mov")) as file:
        frame = next(file.decode(video=0))
        turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    assert frame.rotation
    height, width = turned.shape[:2]
    assert (height, width) == (frame.width, frame.height)
    size = {"height": height, "width": width}
    video = decode_clips(reference / "dec_video_90.mov", transform(drawn, 3, fps=24.0, **size))
    difference = video.clips[0].frames[0].astype(int) - turned
    assert np.abs(difference).mean() < 3


def test_the_best_of_two_video_streams_is_taken(drawn, reference):
    """The first stream is 320x180; the second, 480x270 at 29.97 Hz, is the better one."""
    import av

    size = {"height": 270, "width": 480}
    video = decode_clips(
        reference / "tc_nasa_13013.mp4", transform(drawn, 1, fps=1.0, max_clips=9, **size)
    )
    with av.open(str(reference / "tc_nasa_13013.mp4")) as file:
        best = next(stream for stream in file.streams.video if stream.width == 480)
        # frame 149 comes at 4.97 s, frame 150 at 5.005 s
        frame = next(itertools.islice(file.decode(best), 149, None))
    difference = video.clips[5].frames[0].astype(int) - frame.to_ndarray(format="rgb24")
    assert np.abs(difference).mean() < 3


def test_ten_bits_become_eight(drawn, reference):
    size = {"height": 200, "width": 200}
    video = decode_clips(reference / "tc_h265_10bits.mp4", transform(drawn, 30, fps=30.0, **size))
    assert video.clips[0].frames.shape == (30, 200, 200, 3)
    assert video.clips[0].frames.std() > 20


def test_a_corrupt_file_is_refused_whole_even_if_its_start_can_be_read(drawn, reference):
    path = reference / "dec_corrupted.mp4"
    error = refusal(path, transform(drawn, num_frames=1, fps=1.0, max_clips=1))
    assert error.stage == "decode"
    assert "Invalid data" in str(error)
