"""Random access, and for which files each decoder is trusted."""

import dataclasses
import re
import sys

import pytest

from cil.errors import ConfigError
from pipelines.decode import DECODERS, DecodeError, VideoProbe, probe_video
from pipelines.decode.ffmpeg_libraries import link_ffmpeg
from pipelines.decode.pyav_decoder import PyavDecoder

PROBE = VideoProbe(
    container="mov,mp4,m4a,3gp,3g2,mj2",
    codec="h264",
    pixel_format="yuv420p",
    width=64,
    height=32,
    rotation=0,
    num_frames=3,
    average_fps=25.0,
    duration_s=0.12,
    times_s=(0.0, 0.04, 0.08),
    has_edit_list=False,
    has_open_gop=False,
    key_times_s=(0.0,),
)


@pytest.mark.parametrize(
    ("changes", "decord", "torchcodec", "seeks"),
    [
        ({}, True, True, True),
        ({"pixel_format": "yuvj420p"}, True, True, True),
        ({"container": "matroska,webm", "codec": "vp9"}, True, True, True),
        ({"codec": "hevc"}, False, True, True),
        ({"codec": "hevc", "has_open_gop": True}, False, True, True),
        ({"codec": "av1"}, False, True, True),
        ({"codec": "mpeg4"}, False, False, False),
        ({"container": "mpegts"}, False, False, False),
        ({"container": "avi"}, False, False, False),
        ({"pixel_format": "yuv420p10le"}, False, False, True),
        ({"pixel_format": "yuv444p"}, False, False, True),
        ({"has_edit_list": True}, False, False, False),
        ({"has_open_gop": True}, False, False, False),
        ({"times_s": None}, False, False, False),
        ({"times_s": (0.0, 0.04, 0.04)}, False, False, False),
        ({"key_times_s": ()}, False, False, False),
        ({"key_times_s": (0.04,)}, False, False, False),
    ],
)
def test_decoders_are_asked_only_where_they_were_measured_to_be_right(
    changes, decord, torchcodec, seeks
):
    probe = dataclasses.replace(PROBE, **changes)
    assert DECODERS["pyav"].is_right_for(probe)
    assert DECODERS["decord"].is_right_for(probe) is decord
    assert DECODERS["torchcodec"].is_right_for(probe) is torchcodec
    assert PyavDecoder().seeks(probe) is seeks


@pytest.fixture(scope="module")
def long_video(drawn, tmp_path_factory):
    """200 frames with a key frame every 10."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    options = {"g": "10", "bf": "2", "sc_threshold": "0"}
    return drawn.write(path, num_frames=200, options=options)


def find(decoder, path, numbers):
    probe = probe_video(path)
    times = [probe.times_s[number] for number in numbers]
    return list(DECODERS[decoder].frames_at(path, probe, numbers, times_s=times))


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize(
    "numbers",
    [[], [0], [199], [7, 7, 7], [0, 1, 2, 3], [3, 99, 100, 101, 190], [*range(0, 200, 7)]],
)
def test_the_frames_that_are_asked_for_come(drawn, long_video, decoder, numbers):
    frames = find(decoder, long_video, numbers)
    assert [frame.number for frame in frames] == numbers
    assert [drawn.number(frame.pixels) for frame in frames] == numbers
    assert [frame.time_s for frame in frames] == pytest.approx([n / 25 for n in numbers])


def test_pyav_decodes_few_frames_to_find_one(long_video, monkeypatch):
    from pipelines.decode import pyav_decoder

    counts = []
    real = pyav_decoder.decoded

    def counting(packets):
        for frame in real(packets):
            counts.append(1)
            yield frame

    monkeypatch.setattr(pyav_decoder, "decoded", counting)
    find("pyav", long_video, [55, 198])
    assert len(counts) <= 2 * 10


def test_decord_holds_few_frames_at_a_time(long_video, monkeypatch):
    import decord

    sizes = []
    real = decord.VideoReader.get_batch

    def watched(self, numbers):
        sizes.append(len(numbers))
        assert list(numbers) == sorted(set(numbers))
        return real(self, numbers)

    monkeypatch.setattr(decord.VideoReader, "get_batch", watched)
    assert len(find("decord", long_video, sorted([*range(0, 200, 4)] * 2))) == 100
    assert max(sizes) <= 8
    assert sum(sizes) == 50


@pytest.mark.parametrize("decoder", ["pyav", "decord", "torchcodec"])
@pytest.mark.parametrize(
    ("numbers", "times"), [([3, 2], [0.12, 0.08]), ([0, 1], [0.0]), ([-1], [0.0])]
)
def test_numbers_must_ascend_and_have_times(long_video, decoder, numbers, times):
    """decord takes any order, and then decodes for minutes."""
    probe = probe_video(long_video)
    with pytest.raises(ValueError, match="frame number"):
        list(DECODERS[decoder].frames_at(long_video, probe, numbers, times_s=times))


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize(("number", "time_s"), [(5, 0.24), (5, 0.21), (200, 8.0)])
def test_a_frame_that_is_not_where_it_was_is_an_error(long_video, decoder, number, time_s):
    probe = probe_video(long_video)
    with pytest.raises(DecodeError) as caught:
        list(DECODERS[decoder].frames_at(long_video, probe, [number], times_s=[time_s]))
    assert caught.value.decoder == decoder


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_a_file_that_vanished_is_a_refusal(long_video, tmp_path, decoder):
    probe = probe_video(long_video)
    with pytest.raises(DecodeError) as caught:
        list(DECODERS[decoder].frames(tmp_path / "gone.mp4", probe))
    assert (caught.value.stage, caught.value.decoder) == ("decode", decoder)


def test_a_decoder_that_counts_other_frames_is_not_believed(long_video):
    probe = probe_video(long_video)
    short = dataclasses.replace(probe, num_frames=199, times_s=probe.times_s[:-1])
    with pytest.raises(DecodeError, match="decord counts 200 frames, the container 199"):
        list(DECODERS["decord"].frames(long_video, short))


def test_a_decoder_that_turns_the_picture_otherwise_is_not_believed(long_video):
    probe = dataclasses.replace(probe_video(long_video), width=32, height=64)
    with pytest.raises(DecodeError, match="frame 0 is 64x32, not 32x64"):
        list(DECODERS["decord"].frames(long_video, probe))


def test_pyav_decodes_from_the_start_where_a_jump_fails(drawn, long_video, monkeypatch):
    from pipelines.decode import pyav_decoder

    def fail(*_):
        raise OSError("cannot seek")

    monkeypatch.setattr(pyav_decoder, "_packets_from", fail)
    numbers = [3, 50, 120]
    assert [drawn.number(frame.pixels) for frame in find("pyav", long_video, numbers)] == numbers


def test_a_missing_torchcodec_says_what_to_install(long_video, monkeypatch):
    for name in ("torchcodec", "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"Install the package torchcodec .* set the decoder to"):
        find("torchcodec", long_video, [0])
    with pytest.raises(ConfigError, match="torchcodec cannot be loaded"):
        list(DECODERS["torchcodec"].frames(long_video, probe_video(long_video)))


def test_the_libraries_of_pyav_are_linked_by_their_plain_names(tmp_path):
    """The table in docs/decoding.md is measured with torchcodec on top of them."""
    link_ffmpeg(tmp_path)
    assert link_ffmpeg(tmp_path) == tmp_path  # once more over what is there
    names = sorted(re.sub(r"\.so\.\d+$", "", link.name) for link in tmp_path.iterdir())
    assert {"libavcodec", "libavformat", "libavutil", "libswscale"} <= set(names)
    assert all(link.is_symlink() and link.resolve().is_file() for link in tmp_path.iterdir())


def test_torchcodec_without_ffmpeg_says_so_too(long_video, monkeypatch):
    """Then its package is there, and to import it is a RuntimeError."""

    def fail(name):
        raise RuntimeError("Could not load libtorchcodec. Likely causes:\n 1. FFmpeg is not ...")

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(ConfigError, match=r"Could not load libtorchcodec.* FFmpeg's shared"):
        find("torchcodec", long_video, [0])
