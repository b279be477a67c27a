import io
import struct
import zlib

import av
import numpy as np
import pytest
from PIL import Image

from cil.errors import ConfigError
from pipelines.video_io import enlarge, read_image, side_by_side, write_gif, write_mp4


@pytest.fixture
def video(drawn):
    """Make (F, H, W, 3) videos whose frames show their numbers."""

    def make(num_frames, height=64, width=128):
        return np.stack([drawn.frame(number, height, width) for number in range(num_frames)])

    return make


def read_mp4(path):
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
        return np.stack(frames), float(stream.average_rate), stream.codec_context.pix_fmt


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# -- mp4 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [1.0, 8.0, 7.5, 23.976, 60.0])
@pytest.mark.parametrize("num_frames", [1, 9])
def test_an_mp4_has_the_frames_size_and_rate_it_was_given(tmp_path, drawn, video, num_frames, fps):
    path = tmp_path / "new" / "video.mp4"
    write_mp4(path, video(num_frames), fps=fps)
    frames, rate, pixels = read_mp4(path)
    assert frames.shape == (num_frames, 64, 128, 3)
    assert [drawn.number(frame) for frame in frames] == list(range(num_frames))
    assert pixels == "yuv420p"
    if num_frames > 1:
        assert rate == pytest.approx(fps, rel=1e-3)
    assert names(path.parent) == ["video.mp4"]


def test_a_sampled_video_can_be_encoded_again(tmp_path, drawn, video):
    """What we write, our own decoder reads exactly, and the scan finds one clip in it."""
    from pipelines.decode import sequential
    from pipelines.decode.probe import probe_video
    from pipelines.selection.bucket import Bucket
    from pipelines.selection.scan import ScanSettings, scan_frames

    path = tmp_path / "video.mp4"
    write_mp4(path, video(16), fps=8)
    probe = probe_video(path)
    frames = list(sequential(path, probe))
    assert [drawn.number(frame.pixels) for frame in frames] == list(range(16))
    bucket = Bucket(height=64, width=128, num_frames=16)
    settings = ScanSettings(buckets=(bucket,), fps=8.0, shot_threshold=None)
    (clip,) = scan_frames(frames, probe, settings).clips
    assert (clip.start_s, clip.end_s, clip.frames) == (0.0, 2.0, list(range(16)))


@pytest.mark.parametrize(("height", "width"), [(65, 128), (64, 129), (65, 129), (3, 3), (1, 1)])
def test_odd_sizes_grow_by_one_pixel(tmp_path, height, width):
    flat = np.full((3, height, width, 3), (200, 100, 50), np.uint8)
    write_mp4(tmp_path / "odd.mp4", flat, fps=8)
    frames, _, _ = read_mp4(tmp_path / "odd.mp4")
    assert frames.shape == (3, height + height % 2, width + width % 2, 3)
    # the added row and column repeat the edge: no dark line
    assert np.abs(frames.astype(int) - (200, 100, 50)).max() < 12


def test_the_same_video_gives_the_same_bytes(tmp_path, video):
    for name in ("one", "two"):
        write_mp4(tmp_path / f"{name}.mp4", video(5), fps=8)
        write_gif(tmp_path / f"{name}.gif", video(5), fps=8)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()
    assert (tmp_path / "one.gif").read_bytes() == (tmp_path / "two.gif").read_bytes()


@pytest.mark.parametrize("write", [write_mp4, write_gif])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, video, write, monkeypatch):
    path = tmp_path / "video.out"
    path.write_bytes(b"old")

    def disk_full(temporary, path):
        assert temporary.stat().st_size
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.video_io.commit", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write(path, video(3), fps=8)
    assert names(tmp_path) == ["video.out"]
    assert path.read_bytes() == b"old"


# -- GIF ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames", [1, 9])
@pytest.mark.parametrize("size", [(64, 128), (65, 129)])
def test_a_gif_has_the_frames_and_size_it_was_given(tmp_path, drawn, video, num_frames, size):
    height, width = size
    frames = np.pad(video(num_frames), ((0, 0), (0, height - 64), (0, width - 128), (0, 0)), "edge")
    write_gif(tmp_path / "new" / "video.gif", frames, fps=8)
    assert names(tmp_path / "new") == ["video.gif"]
    with Image.open(tmp_path / "new" / "video.gif") as image:
        assert (image.n_frames, image.size) == (num_frames, (width, height))
        shown = []
        for index in range(image.n_frames):
            image.seek(index)
            shown.append(drawn.number(np.array(image.convert("RGB"))))
            if num_frames > 1:
                assert image.info["duration"] == pytest.approx(125, abs=5)
        if num_frames > 1:
            assert image.info["loop"] == 0
    assert shown == list(range(num_frames))


@pytest.mark.parametrize("fps", [8.0, 24.0, 30.0, 50.0])
def test_a_gif_lasts_as_long_as_the_video(tmp_path, video, fps):
    """Times in a GIF are whole hundredths of a second; players slow down below two."""
    write_gif(tmp_path / "video.gif", video(48), fps=fps)
    with Image.open(tmp_path / "video.gif") as image:
        total = 0
        for index in range(image.n_frames):
            image.seek(index)
            total += image.info["duration"]
            assert image.info["duration"] >= 20
    assert total == pytest.approx(48_000 / fps, abs=20)


def test_a_still_gif_lasts_as_long_as_a_moving_one(tmp_path):
    """Equal frames may be stored once, but not shortened."""
    still = np.full((8, 16, 16, 3), 77, np.uint8)
    still[4:] = 99
    write_gif(tmp_path / "still.gif", still, fps=8)
    with Image.open(tmp_path / "still.gif") as image:
        total = 0
        for index in range(image.n_frames):
            image.seek(index)
            total += image.info["duration"]
    assert total == pytest.approx(1000, abs=20)


# -- layout ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "factor"), [(32, 8), (100, 3), (256, 1), (300, 1)])
def test_small_videos_are_enlarged_by_a_whole_number(video, drawn, size, factor):
    large = enlarge(video(3, size, 2 * size))
    assert large.shape == (3, size * factor, 2 * size * factor, 3)
    assert [drawn.number(frame) for frame in large] == [0, 1, 2]


def test_videos_stand_side_by_side_in_order_with_a_gap(video, drawn):
    videos = [np.roll(video(4, 256, 256), shift, axis=0) for shift in range(3)]
    shown = side_by_side(videos)
    assert shown.shape == (4, 256, 3 * 256 + 2 * 8, 3)
    for place in range(3):
        start = place * 264
        part = shown[:, :, start : start + 256]
        assert [drawn.number(frame) for frame in part] == [(n - place) % 4 for n in range(4)]
    assert (shown[:, :, 256:264] == 255).all()
    assert np.array_equal(side_by_side(videos[:1]), videos[0])


# -- images ---------------------------------------------------------------------------------------


def save(path, mode="RGB", size=(8, 6), **options):
    Image.new(mode, size, 0).save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.bmp"])
def test_usual_images_become_rgb(tmp_path, name):
    Image.new("RGB", (8, 6), (250, 10, 20)).save(tmp_path / name)
    image = read_image(tmp_path / name)
    assert (image.shape, image.dtype) == ((6, 8, 3), np.uint8)
    assert np.abs(image.astype(int) - (250, 10, 20)).max() < 12


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_images_of_every_mode_become_rgb(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    assert read_image(save(tmp_path / f"a.{suffix}", mode)).shape == (6, 8, 3)


def test_sixteen_bits_keep_their_brightness(tmp_path):
    """Pillow's own conversion clips at 255 of 65535: all white."""
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    image = read_image(tmp_path / "deep.png")
    assert np.abs(image[..., 0].astype(int) - ramp // 257).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_stands_as_its_camera_was_held(tmp_path, orientation):
    """Phones store the picture lying and say so in EXIF."""
    upright = np.zeros((6, 10, 3), np.uint8)
    upright[:3, :5] = 255
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "photo.png"), upright)


def png(*chunks):
    """Build a PNG from (name, content) pairs."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, content in chunks:
        check = struct.pack(">I", zlib.crc32(name + content))
        parts += [struct.pack(">I", len(content)), name, content, check]
    return b"".join(parts)


def whole_png():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def size(side):
    return (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))


HEADER = size(8)
BROKEN = {
    "empty.png": b"",
    "text.png": b"This is not an image.\n" * 20,
    "cut.png": whole_png()[:1000],
    "cut.jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    "no-pixels.png": png(HEADER),
    "bad-chunk.png": png(HEADER, (b"IDAT", b"not zlib"), (b"IEND", b"")),
    "huge.png": png(
        (b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)),
        (b"IDAT", b""),
        (b"IEND", b""),
    ),
    "no-size.png": png((b"IHDR", struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0)), (b"IEND", b"")),
    "bomb.png": png(HEADER, (b"zTXt", b"k\0\0" + zlib.compress(b"a" * 2**27)), (b"IEND", b"")),
    "bad.tif": b"II*\x00\x08\x00\x00\x00\xff\xff" + b"\x01" * 40,
    "bad.webp": b"RIFF\x10\x00\x00\x00WEBPVP8 " + b"\xff" * 20,
    "bad.gif": b"GIF89a\x08\x00\x08\x00\xf7\x00\x00",
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_a_config_error(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(BROKEN[name])
    with pytest.raises(ConfigError, match="; give a PNG, JPEG or WebP file") as caught:
        read_image(path)
    assert str(caught.value).startswith(f"cannot read the image {path}: ")


@pytest.mark.parametrize("name", ["missing.png", ".", "nul\0byte.png"])
def test_an_image_that_is_not_there_is_a_config_error(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot read the image"):
        read_image(tmp_path / name)
