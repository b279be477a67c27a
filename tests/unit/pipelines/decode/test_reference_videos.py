"""Real videos, some of them broken or unusual on purpose."""

import av
import numpy as np
import pytest

from pipelines.decode import DECODERS, DecodeError, probe_video, sequential

WHOLE = {  # frames, upright size, key frames
    "mm_demo.mp4": (280, (340, 256), 4),
    "mm_part0.mp4": (32, (340, 256), 1),
    "mm_std.mp4": (57, (340, 256), 2),
    "mm_test.avi": (164, (320, 240), 1),
    "pancake.mkv": (310, (426, 240), 3),
    "dec_video_90.mov": (3, (320, 568), 1),
    "dec_unordered.mov": (4, (50, 50), 1),
    "tc_nasa_13013.mp4": (390, (480, 270), 2),
    "tc_av1_video.mkv": (125, (640, 360), 1),
    "tc_h265_10bits.mp4": (30, (200, 200), 1),
}
RIGHT_FOR_DECORD = {
    *("mm_demo.mp4", "mm_part0.mp4", "mm_std.mp4", "pancake.mkv"),
    *("dec_video_90.mov", "dec_unordered.mov", "tc_nasa_13013.mp4"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_real_videos_show_all_their_frames(reference, name):
    """Against a plain decoding pass, and every trusted decoder against that, at random too."""
    path = reference / name
    num_frames, size, num_keys = WHOLE[name]
    probe = probe_video(path)
    assert (probe.num_frames, len(probe.times_s)) == (num_frames, num_frames)
    assert ((probe.width, probe.height), len(probe.key_times_s)) == (size, num_keys)
    assert not probe.has_edit_list
    assert DECODERS["decord"].is_right_for(probe) is (name in RIGHT_FOR_DECORD)
    wanted = sorted(np.random.default_rng(0).integers(0, num_frames, 5).tolist())
    times = [probe.times_s[number] for number in wanted]
    names = ["pyav", "decord"] if name in RIGHT_FOR_DECORD else ["pyav"]
    jumps = [
        iter(list(DECODERS[decoder].frames_at(path, probe, wanted, times_s=times)))
        for decoder in names
    ]
    frames = sequential(path, probe)
    with av.open(str(path)) as file:
        stream = file.streams.best("video")
        for number, plain in enumerate(file.decode(stream)):
            frame = next(frames)
            assert (frame.number, frame.time_s) == (number, probe.times_s[number])
            if number in wanted:
                expected = np.rot90(plain.to_ndarray(format="rgb24"), round(plain.rotation / 90))
                assert np.array_equal(frame.pixels, expected)
                for jump in jumps:
                    for _ in range(wanted.count(number)):
                        found = next(jump)
                        assert (found.number, found.time_s) == (number, frame.time_s)
                        assert np.array_equal(found.pixels, expected)
    assert list(frames) == []
    assert number == num_frames - 1


def test_the_rotated_phone_video_stands_upright(reference):
    probe = probe_video(reference / "dec_video_90.mov")
    assert (probe.rotation, probe.width, probe.height) == (-90, 320, 568)
    with av.open(str(reference / "dec_video_90.mov")) as file:
        lying = next(file.decode(video=0)).to_ndarray(format="rgb24")
    (first, *_) = sequential(reference / "dec_video_90.mov", probe)
    # clockwise: what was on the left is now on top
    assert np.array_equal(first.pixels[0, ::-1], lying[:, 0])


def test_the_best_of_two_video_streams_is_taken(reference):
    """The first stream is 320x180; the second, 480x270 at 29.97 Hz, is the better one."""
    probe = probe_video(reference / "tc_nasa_13013.mp4")
    assert (probe.width, probe.height) == (480, 270)
    assert probe.average_fps == pytest.approx(30000 / 1001, abs=1e-3)
    assert probe.duration_s == pytest.approx(390 * 1001 / 30000, abs=1e-3)


def test_ten_bits_become_eight(reference):
    probe = probe_video(reference / "tc_h265_10bits.mp4")
    assert probe.pixel_format == "yuv420p10le"
    for frame in sequential(reference / "tc_h265_10bits.mp4", probe):
        assert frame.pixels.dtype == np.uint8
        assert frame.pixels.std() > 20


def test_a_corrupt_file_is_refused_though_its_start_can_be_read(reference):
    path = reference / "dec_corrupted.mp4"
    probe = probe_video(path)
    assert (probe.num_frames, probe.width, probe.height) == (50, 1280, 720)
    with pytest.raises(DecodeError, match="Invalid data found") as caught:
        list(sequential(path, probe))
    assert (caught.value.stage, caught.value.decoder) == ("decode", "pyav")
    assert caught.value.exception == "InvalidDataError"


def test_avi_times_ascend_though_its_frames_are_reordered(reference):
    frames = sequential(reference / "mm_test.avi", probe_video(reference / "mm_test.avi"))
    times = [frame.time_s for frame in frames]
    assert np.diff(times) == pytest.approx(1 / 25)
