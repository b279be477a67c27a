"""Videos made of arrays: textures that move by known amounts, and shots that follow each other."""

import types

import cv2
import numpy as np
import pytest

from pipelines.decode.frame import SourceFrame


class Videos:
    """Makers of frames."""

    @staticmethod
    def texture(seed=0, height=96, width=160):
        """A smooth colour texture that wraps around."""
        rng = np.random.default_rng(seed)
        noise = rng.normal(size=(height, width, 3))
        tall, wide = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
        low = np.exp(-(tall**2 + wide**2) / (2 * 0.05**2))[..., None]
        smooth = np.fft.ifft2(np.fft.fft2(noise, axes=(0, 1)) * low, axes=(0, 1)).real
        smooth /= smooth.std(axis=(0, 1))
        base = np.random.default_rng(seed + 1000).uniform(60, 200, 3)
        return np.clip(base + 35 * smooth, 0, 255).astype(np.uint8)

    @classmethod
    def pan(cls, num_frames, *, seed=0, step=2, **size):
        """A texture that moves ``step`` pixels to the left per frame."""
        picture = cls.texture(seed, **size)
        return [np.roll(picture, -step * index, axis=1) for index in range(num_frames)]

    @staticmethod
    def source(pictures, *, fps=8.0, start_s=0.0, times=None):
        """Source frames of pictures, at an even rate or at given times."""
        for number, pixels in enumerate(pictures):
            time_s = start_s + number / fps if times is None else times[number]
            yield SourceFrame(number=number, time_s=time_s, pixels=pixels)

    @staticmethod
    def probe(pictures, *, fps=8.0):
        """What the container of such a video says, as far as a scan reads it."""
        height, width = pictures[0].shape[:2]
        return types.SimpleNamespace(width=width, height=height, average_fps=fps, time_base_s=0.0)


@pytest.fixture(scope="session")
def videos():
    cv2.setNumThreads(1)
    return Videos
