"""What the probe says of a file, and what it refuses before anything is decoded."""

import random
import socket
import struct

import numpy as np
import pytest

from pipelines.decode import DecodeError, probe_video
from pipelines.decode.av_file import check_dimensions

VP9 = {"crf": "20", "b:v": "0", "cpu-used": "8"}


def refusal(path):
    with pytest.raises(DecodeError) as caught:
        probe_video(path)
    return caught.value


def test_probe_reads_what_the_container_says(drawn, tmp_path):
    options = {"bf": "3", "g": "20", "sc_threshold": "0"}
    path = drawn.write(tmp_path / "a.mp4", num_frames=50, options=options)
    probe = probe_video(path)
    assert probe.container == "mov,mp4,m4a,3gp,3g2,mj2"
    assert (probe.codec, probe.pixel_format) == ("h264", "yuv420p")
    assert (probe.width, probe.height, probe.rotation) == (64, 32, 0)
    assert probe.num_frames == 50
    assert probe.average_fps == pytest.approx(25)
    assert probe.duration_s == pytest.approx(2)
    assert probe.times_s == pytest.approx([index / 25 for index in range(50)])
    assert probe.key_times_s == pytest.approx([0, 0.8, 1.6])
    assert not probe.has_edit_list
    assert not probe.has_open_gop


@pytest.mark.parametrize("muxer", ["mp4", "mkv", "ts", "avi"])
@pytest.mark.parametrize(
    ("parameters", "is_open"),
    [("open-gop=0", False), ("open-gop=1", True), ("intra-refresh=1:bframes=0", True)],
)
def test_an_open_group_of_pictures_is_seen_in_every_container(
    drawn, tmp_path, muxer, parameters, is_open
):
    """Both as lengths and as start codes before the units of H.264."""
    x264 = f"keyint=12:min-keyint=12:scenecut=0:b-adapt=0:bframes=3:{parameters}"
    path = drawn.write(tmp_path / f"a.{muxer}", options={"x264-params": x264})
    assert probe_video(path).has_open_gop is is_open


@pytest.mark.parametrize(
    ("angle", "size"), [(0, (64, 32)), (90, (32, 64)), (180, (64, 32)), (270, (32, 64))]
)
def test_the_size_is_upright(table, tmp_path, angle, size):
    special = table.Special("mp4", "h264", "", rotation=angle)
    table.write(tmp_path / "a.mp4", table.ENCODINGS["h264"], "25", special)
    probe = probe_video(tmp_path / "a.mp4")
    assert (probe.width, probe.height) == size
    assert probe.rotation % 360 == angle


def test_an_edit_list_hides_frames(table, tmp_path):
    path, special = tmp_path / "a.mp4", table.Special("mp4", "h264", "", hidden_frames=5)
    table.write(path, table.ENCODINGS["h264"], "25", special)
    table.hide(path, 5, "25")
    probe = probe_video(path)
    assert probe.has_edit_list
    assert probe.num_frames == len(probe.times_s) == 35
    assert probe.key_times_s == pytest.approx([0.28, 0.76, 1.24])


def test_a_variable_rate_ends_with_a_frame_of_middle_length(drawn, tmp_path):
    path = drawn.write(tmp_path / "a.mkv", num_frames=4, times_ms=[0, 10, 50, 140])
    probe = probe_video(path)
    assert probe.duration_s == pytest.approx(0.18)
    assert probe.average_fps == pytest.approx(3 / 0.14)


@pytest.mark.parametrize(
    ("height", "width", "exception"),
    [
        (0, 100, "NoSize"),
        (100, 0, "NoSize"),
        (1, 16385, "TooLarge"),
        (16385, 1, "TooLarge"),
        (16384, 16384, "TooLarge"),
    ],
)
def test_absurd_sizes_are_refused(height, width, exception):
    with pytest.raises(DecodeError, match=f"{width}x{height}") as caught:
        check_dimensions(height, width)
    assert (caught.value.stage, caught.value.exception) == ("probe", exception)


def test_8k_is_no_absurd_size():
    check_dimensions(4320, 7680)
    check_dimensions(7680, 4320)


def test_a_picture_that_is_too_wide_is_refused(drawn, tmp_path):
    path = drawn.write(
        tmp_path / "wide.mkv",
        codec="mjpeg",
        pixel_format="yuvj420p",
        size=(16, 16400),
        num_frames=1,
    )
    error = refusal(path)
    assert str(error) == (
        "the picture is 16400x16, and 16384 per side and 67108864 pixels are allowed"
    )
    assert (error.stage, error.exception) == ("probe", "TooLarge")


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
        error = refusal(path)
        assert (error.stage, error.exception) == ("probe", "CutOff"), missing


def test_files_that_are_no_videos_are_refused(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("This is not a video.\n" * 200)
    (tmp_path / "noise.mkv").write_bytes(random.Random(0).randbytes(5000))
    (tmp_path / "folder.mp4").mkdir()
    for name in ("empty.mp4", "text.mp4", "noise.mkv", "folder.mp4", "missing.mp4"):
        error = refusal(tmp_path / name)
        assert (error.stage, error.decoder) == ("probe", "pyav"), name
        assert str(error), name


def test_a_script_that_names_other_files_is_no_video(drawn, tmp_path):
    """Its content hash would say nothing about its frames."""
    drawn.write(tmp_path / "real.ts", options={"bf": "2"})
    (tmp_path / "script.mp4").write_text("ffconcat version 1.0\nfile real.ts\n")
    (tmp_path / "playlist.m3u8").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nreal.ts\n#EXT-X-ENDLIST\n"
    )
    for name in ("script.mp4", "playlist.m3u8"):
        assert refusal(tmp_path / name).stage == "probe", name
    error = refusal(tmp_path / "playlist.m3u8")
    assert str(error) == "the file is a script (hls) that names other files"
    assert error.exception == "Script"


def test_a_script_cannot_reach_out_to_the_network(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        path = tmp_path / "playlist.m3u8"
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{url}\n#EXT-X-ENDLIST\n")
        assert refusal(path).stage == "probe"
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_name_that_looks_like_a_url_is_a_file(drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = drawn.write(tmp_path / "a.mp4", num_frames=3)
    path = written.rename(tmp_path / "concat:a.mp4")
    assert probe_video(path.relative_to(tmp_path)).num_frames == 3


def test_a_refusal_is_the_same_wherever_the_file_is(tmp_path):
    """It goes into the data set, which must not depend on the folder of the videos."""
    messages = set()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text.mp4").write_text("not a video\n" * 100)
        messages.add(str(refusal(tmp_path / folder / "text.mp4")))
    assert messages == {"Invalid data found when processing input"}


def test_audio_without_video_is_refused(tmp_path):
    import av

    path = tmp_path / "audio.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=44100)
        samples = np.zeros((1, 44100), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.rate = 44100
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    error = refusal(path)
    assert str(error) == "the file has no video stream"
    assert (error.stage, error.exception) == ("probe", "NoVideo")


def test_a_codec_that_nothing_decodes_is_refused(drawn, tmp_path):
    """One flipped bit in the name of the codec is enough: PyAV then has no codec context."""
    path = drawn.write(tmp_path / "unknown.mp4", options={"bf": "0"})
    path.write_bytes(path.read_bytes().replace(b"avc1", b"xvc1"))
    error = refusal(path)
    assert str(error) == "the codec of the video stream is unknown"
    assert (error.stage, error.exception) == ("probe", "UnknownCodec")


@pytest.mark.parametrize(
    ("matrix", "exception"),
    [((-1, 0, 0, 1), "Mirrored"), ((0, 1, 1, 0), "Mirrored"), ((0.7, 0.7, -0.7, 0.7), "OddTurn")],
)
def test_pictures_that_no_decoder_turns_upright_are_refused(drawn, tmp_path, matrix, exception):
    """The display matrix in the track header of an MP4, in 16.16 fixed point."""
    path = drawn.write(tmp_path / "turned.mp4", num_frames=4)
    content = path.read_bytes()
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    place = content.index(upright, content.index(b"tkhd"))
    a, b, c, d = (round(value * (1 << 16)) for value in matrix)
    turned = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:place] + turned + content[place + 36 :])
    with pytest.raises(DecodeError) as caught:
        probe_video(path)
    assert caught.value.exception == exception
