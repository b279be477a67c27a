"""Videos that are written open again with other readers."""

import av
import numpy as np
import pytest
from PIL import Image

from cil.errors import ConfigError
from pipelines.video_io import enlarge, read_image, side_by_side, write_gif, write_mp4


def moving_square(height: int, width: int, frames: int = 5) -> np.ndarray:
    video = np.zeros((frames, height, width, 3), np.uint8)
    for number in range(frames):
        video[number, 2:6, number : number + 4] = (250, 120, 40)
    return video


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (256, 320)])
def test_mp4_has_all_frames_at_their_rate_and_close_to_what_was_given(tmp_path, height, width):
    video = moving_square(height, width)
    path = tmp_path / "deep" / "video.mp4"
    write_mp4(path, video, fps=7.5)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert float(stream.average_rate) == 7.5
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)])
    assert frames.shape == (5, height + height % 2, width + width % 2, 3)
    error = np.abs(frames[:, :height, :width].astype(int) - video.astype(int)).mean()
    assert error < 6  # chroma is stored at half resolution
    assert [path.name for path in path.parent.iterdir()] == ["video.mp4"]


def test_gif_has_all_frames_and_their_colours(tmp_path):
    video = moving_square(32, 32)
    write_gif(tmp_path / "video.gif", video, fps=8)
    with Image.open(tmp_path / "video.gif") as gif:
        assert gif.n_frames == 5
        assert gif.info["loop"] == 0
        for number in range(5):
            gif.seek(number)
            assert gif.info["duration"] == pytest.approx(125, abs=10)
            frame = np.array(gif.convert("RGB")).astype(int)
            assert np.abs(frame - video[number]).max() < 20


def test_enlarge_keeps_large_videos_and_multiplies_small_ones():
    assert enlarge(moving_square(256, 300)).shape == (5, 256, 300, 3)
    assert enlarge(moving_square(32, 48)).shape == (5, 256, 384, 3)


def test_side_by_side_puts_videos_in_a_row():
    assert side_by_side(np.stack([moving_square(32, 32)] * 3)).shape == (5, 256, 3 * 256 + 16, 3)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "RGB"])
def test_images_of_any_mode_become_rgb(tmp_path, mode):
    Image.new(mode, (5, 4)).save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png").shape == (4, 5, 3)


@pytest.mark.parametrize("content", [None, b"", b"not an image"])
def test_what_is_no_image_is_refused(tmp_path, content):
    path = tmp_path / "image.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot read the image"):
        read_image(path)
