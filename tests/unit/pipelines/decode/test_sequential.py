"""The strict pass over a video: its numbers and times, and what it refuses."""

import random

import numpy as np
import pytest

from cil.errors import ConfigError, DataError
from pipelines.decode import DECODERS, DecodeError, VideoProbe, probe_video, sequential
from pipelines.decode.clock import OrderCheck

NUM_FRAMES = 50
X265 = "log-level=none:pools=1"


def decode(path, **how):
    return list(sequential(path, probe_video(path), **how))


def numbers(drawn, path):
    """Numbers drawn into the frames; the frames must be counted from 0 on."""
    frames = decode(path)
    assert [frame.number for frame in frames] == list(range(len(frames)))
    return [drawn.number(frame.pixels) for frame in frames]


def refusal(path, **how):
    with pytest.raises(DecodeError) as caught:
        decode(path, **how)
    return caught.value


def make_probe(**changes):
    times = tuple(index / 25 for index in range(NUM_FRAMES))
    return VideoProbe(
        **{
            "container": "mov,mp4,m4a,3gp,3g2,mj2",
            "codec": "h264",
            "pixel_format": "yuv420p",
            "width": 64,
            "height": 32,
            "rotation": 0,
            "num_frames": NUM_FRAMES,
            "average_fps": 25.0,
            "duration_s": 2.0,
            "times_s": times,
            "has_edit_list": False,
            "has_open_gop": False,
            "key_times_s": (0.0, 1.0),
            **changes,
        }
    )


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_frames_are_upright_rgb_with_number_and_time(drawn, tmp_path, decoder):
    path = drawn.write(tmp_path / "a.mp4", options={"bf": "2"})
    frames = decode(path, decoder=decoder)
    assert [frame.number for frame in frames] == list(range(NUM_FRAMES))
    assert [frame.time_s for frame in frames] == pytest.approx([n / 25 for n in range(NUM_FRAMES)])
    assert {frame.pixels.shape for frame in frames} == {(32, 64, 3)}
    assert {frame.pixels.dtype for frame in frames} == {np.dtype(np.uint8)}
    assert [drawn.number(frame.pixels) for frame in frames] == list(range(NUM_FRAMES))


def test_frames_come_one_by_one(drawn, tmp_path):
    """A video is never held in memory: the first frame comes before the file is read."""
    path = drawn.write(tmp_path / "a.mkv", options={"bf": "0"})
    probe = probe_video(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames = sequential(path, probe)
    assert next(frames).number == 0
    with pytest.raises(DecodeError, match="of 50 frames could be decoded"):
        list(frames)


def test_where_a_decoder_is_not_right_pyav_decodes(drawn, tmp_path):
    path = drawn.write(tmp_path / "a.ts", options={"bf": "2"})
    probe = probe_video(path)
    assert not DECODERS["decord"].is_right_for(probe)
    frames = list(sequential(path, probe, decoder="decord"))
    assert [drawn.number(frame.pixels) for frame in frames] == list(range(NUM_FRAMES))


def test_an_unknown_decoder_is_a_mistake_of_the_user(drawn, tmp_path):
    path = drawn.write(tmp_path / "a.mp4", num_frames=2)
    with pytest.raises(ConfigError, match="no decoder 'vlc'; choose one of: decord, pyav, torch"):
        decode(path, decoder="vlc")


def test_two_frames_of_one_time_do_not_shift_the_others(drawn, tmp_path):
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
    frames = decode(path)
    assert [drawn.number(frame.pixels) for frame in frames] == list(range(50))
    assert [frame.time_s for frame in frames] == pytest.approx([time / 1000 for time in times_ms])
    assert not DECODERS["decord"].is_right_for(probe_video(path))


def test_frames_without_a_time_are_counted_only_if_the_others_agree(drawn, tmp_path):
    """The FLV reader loses two times at a long gap; to count on would jump over the gap."""
    times_ms = [*range(0, 400, 40), *range(3_600_000, 3_600_400, 40)]
    path = drawn.write(tmp_path / "gap.flv", num_frames=20, times_ms=times_ms, options={"bf": "2"})
    assert probe_video(path).times_s is None
    assert "Hz puts it, and other frames carry no time" in str(refusal(path))
    path = drawn.write(tmp_path / "raw.mpg", muxer="h264", options={"bf": "2"})
    assert probe_video(path).times_s is None
    assert numbers(drawn, path) == list(range(NUM_FRAMES))


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
        probe = probe_video(path)
        frames = list(sequential(path, probe))
    except DecodeError:
        return  # refused as a whole: fine as well
    shown = [drawn.number(frame.pixels) for frame in frames]
    assert shown == list(range(shown[0], 60))
    assert first - 3 <= shown[0] <= first + 12
    times = [frame.time_s - frames[0].time_s for frame in frames]
    assert times == pytest.approx([number / 25 for number in range(len(frames))], abs=1e-3)
    if len(frames) < probe.num_frames:
        assert not DECODERS["decord"].is_right_for(probe)
        assert not DECODERS["torchcodec"].is_right_for(probe)


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
        assert refusal(path).stage in ("probe", "decode"), number


def test_two_streams_after_each_other_are_refused(drawn, tmp_path):
    """Transport streams can be joined like texts, but then time begins again in the middle."""
    path = drawn.write(tmp_path / "joined.ts", options={"bf": "2"})
    path.write_bytes(path.read_bytes() * 2)
    assert refusal(path).stage in ("probe", "decode")


def test_a_picture_that_changes_its_size_is_refused(drawn, tmp_path):
    small = drawn.write(tmp_path / "small.h264", num_frames=5, options={"bf": "0"})
    large = drawn.write(tmp_path / "large.h264", num_frames=5, size=(64, 128), options={"bf": "0"})
    path = tmp_path / "both.h264"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    error = refusal(path)
    assert str(error).startswith("the picture changes from 64x32 to 128x64 at frame 5 ")
    assert error.stage == "decode"


def test_frames_that_come_in_another_order_than_their_times_are_refused(drawn, tmp_path):
    """A codec without references to the future hands out frames as they are stored."""
    whole = drawn.write(tmp_path / "whole.mkv", codec="ffv1", num_frames=10)

    def swap(number, packet):
        packet.dts = packet.pts - 80
        packet.pts = {4: 200, 5: 160}.get(number, packet.pts)
        return True

    path = drawn.remux(whole, tmp_path / "swapped.mkv", swap)
    assert str(refusal(path)) == "frame 5 at 0.160 s comes before 0.200 s"


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
        error = refusal(path)
        assert str(error) == "only 49 of 50 frames could be decoded"
        return
    frames = decode(path)
    assert [drawn.number(frame.pixels) for frame in frames] == [*range(20), *range(21, NUM_FRAMES)]
    assert frames[20].time_s == pytest.approx(21 / 25)  # frame 19 stays on screen until then


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
    order = OrderCheck(make_probe(codec=codec, container=container), decoder="pyav")
    for index in range(decoded):
        order.add(first_s + index / 1000)
    if refused:
        with pytest.raises(DataError, match=f"only {decoded} of 50 frames"):
            order.finish()
    else:
        order.finish()


@pytest.mark.parametrize("muxer", ["mp4", "mkv", "flv"])
def test_a_damaged_time_does_not_repeat_a_frame_for_days(drawn, tmp_path, muxer):
    times_ms = [*range(0, 400, 40), *range(3_600_000, 3_600_400, 40)]
    options = {"bf": "0"}
    path = drawn.write(tmp_path / f"gap.{muxer}", num_frames=20, times_ms=times_ms, options=options)
    error = refusal(path)
    assert str(error).startswith("the frame after 0.36 s comes 3600 s later, and 60 s are")
    assert (error.stage, error.decoder, error.exception) == ("decode", "pyav", "LongGap")


def test_a_frame_may_stay_for_a_minute(drawn, tmp_path):
    path = drawn.write(tmp_path / "still.mp4", num_frames=3, times_ms=[0, 40, 60_000])
    assert [frame.time_s for frame in decode(path)] == [0.0, 0.04, 60.0]


def test_a_single_frame(drawn, tmp_path):
    path = drawn.write(tmp_path / "one.mp4", num_frames=1)
    assert numbers(drawn, path) == [0]
    assert probe_video(path).duration_s == pytest.approx(1 / 25)


@pytest.mark.parametrize("seed", range(6))
def test_three_damaged_bytes_are_an_error(tmp_path, seed):
    """FFmpeg would paint over them, as it does in decord and torchcodec."""
    import av

    path = tmp_path / "a.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (16, 32, 3), np.uint8)
    picture = noise.repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"bf": "0", "crf": "10"})
        stream.height, stream.width, stream.pix_fmt = 128, 256, "yuv420p"
        for index in range(30):
            moved = np.ascontiguousarray(np.roll(picture, 3 * index, axis=1))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        file.mux(stream.encode())
    probe, content = probe_video(path), bytearray(path.read_bytes())
    place, begin = random.Random(seed), content.index(b"mdat") + 4
    for _ in range(3):
        content[place.randrange(begin + 2000, len(content) - 3000)] ^= 0x5A
    path.write_bytes(content)
    with pytest.raises(DecodeError) as caught:
        list(sequential(path, probe))
    assert caught.value.decoder == "pyav"
