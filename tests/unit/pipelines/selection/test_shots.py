import numpy as np
import pytest

from pipelines.selection.shots import find_cuts, with_cuts


def shots(videos, *lengths, step=2, **size):
    """Pans over textures that have nothing in common, one after the other."""
    return [
        frame
        for seed, length in enumerate(lengths)
        for frame in videos.pan(length, seed=3 * seed, step=step, **size)
    ]


def cuts(videos, pictures, threshold=27.0):
    return find_cuts(videos.source(pictures), threshold)


@pytest.mark.parametrize("size", [{}, {"height": 160, "width": 96}, {"height": 300, "width": 500}])
def test_hard_cuts(videos, size):
    assert cuts(videos, shots(videos, 12, 9, 15, **size)) == [12, 21]


@pytest.mark.parametrize("lengths", [(1, 10), (10, 1), (2, 10), (10, 2), (10, 4, 10), (5, 6)])
def test_cuts_near_the_ends_and_near_each_other(videos, lengths):
    assert cuts(videos, shots(videos, *lengths)) == list(np.cumsum(lengths[:-1]))


@pytest.mark.parametrize("num_frames", [0, 1, 2, 3, 4])
def test_every_frame_comes_out_once_and_in_order(videos, num_frames):
    pictures = videos.pan(num_frames)
    found = list(with_cuts(videos.source(pictures), 27.0))
    assert [frame.number for frame, _ in found] == list(range(num_frames))
    assert not any(starts for _, starts in found)


def test_fast_motion_is_no_cut(videos):
    # 13 pixels of 160 per frame; each frame changes by more than the threshold
    pictures = videos.pan(30, step=13)
    from scenedetect import FrameTimecode
    from scenedetect.detectors import ContentDetector

    plain = ContentDetector(threshold=15.0, min_scene_len=0)
    fooled = [plain.process_frame(FrameTimecode(n, 25.0), f) for n, f in enumerate(pictures)]
    assert sum(map(bool, fooled)) > 20
    assert cuts(videos, pictures, threshold=15.0) == []


@pytest.mark.parametrize("step", [3, 5, 8])
def test_cuts_within_fast_motion(videos, step):
    """The camera turns at the cut; PySceneDetect's ratio alone finds 2, 0 and 0 of these."""
    found = [
        cuts(
            videos,
            videos.pan(15, seed=seed, step=step) + videos.pan(15, seed=seed + 1, step=-step),
        )
        for seed in range(0, 20, 2)
    ]
    assert found.count([15]) >= 9
    assert found.count([15]) + found.count([]) == 10


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("level", [0, 255])
def test_a_flash_is_no_cut(videos, length, level):
    pictures = videos.pan(24, step=1)
    for index in range(10, 10 + length):
        pictures[index] = np.full_like(pictures[index], level)
    assert cuts(videos, pictures) == []


def test_a_flash_on_a_cut_is_one_short_shot_at_most(videos):
    pictures = shots(videos, 12, 12)
    pictures.insert(12, np.full_like(pictures[0], 255))
    assert set(cuts(videos, pictures)) in ({12, 13}, {12}, {13})


def test_still_and_noisy_pictures_have_no_cuts(videos):
    rng = np.random.default_rng(0)
    still = videos.texture()
    noisy = [
        np.clip(still + rng.normal(0, 8, still.shape), 0, 255).astype(np.uint8) for _ in range(20)
    ]
    assert cuts(videos, [still] * 20) == []
    assert cuts(videos, noisy) == []
    assert cuts(videos, [np.zeros_like(still)] * 20) == []


def test_no_threshold_finds_no_cuts(videos):
    found = list(with_cuts(videos.source(shots(videos, 5, 5)), None))
    assert [frame.number for frame, _ in found] == list(range(10))
    assert not any(starts for _, starts in found)


def test_the_size_may_change_within_a_video(videos):
    small = videos.pan(8, step=1)
    large = videos.pan(8, seed=5, step=1, height=192, width=320)
    assert cuts(videos, small + large) == [8]


@pytest.mark.parametrize("shape", [(1, 1), (1, 1000), (1000, 2), (3, 129)])
def test_odd_sizes(videos, shape):
    pictures = [np.full((*shape, 3), 10, np.uint8)] * 5 + [np.full((*shape, 3), 200, np.uint8)] * 5
    assert cuts(videos, pictures) == [5]
