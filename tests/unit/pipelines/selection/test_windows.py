from hypothesis import given
from hypothesis import strategies as st

from pipelines.selection.windows import WindowCutter


def cut(num_frames, lengths, stride=None):
    cutter = WindowCutter(lengths, stride)
    found = [window for _ in range(num_frames) if (window := cutter.add())]
    return found + cutter.finish(), cutter.num_uncovered


def expected(num_frames, lengths, stride):
    """The definition, with the whole shot in view."""
    found, start, end = [], 0, 0
    while any(start + length <= num_frames for length in lengths):
        length = max(length for length in lengths if start + length <= num_frames)
        if start + length > end:
            found.append((start, length))
            end = start + length
        start += stride or length
    return found


def test_examples():
    assert cut(0, [4]) == ([], 0)
    assert cut(3, [4]) == ([], 3)
    assert cut(9, [4]) == ([(0, 4), (4, 4)], 1)
    assert cut(7, [4, 2]) == ([(0, 4), (4, 2)], 1)
    assert cut(8, [4], stride=2) == ([(0, 4), (2, 4), (4, 4)], 0)
    assert cut(8, [3], stride=4) == ([(0, 3), (4, 3)], 2)
    # a window of 2 at frame 2 would show nothing that the one before does not
    assert cut(5, [4, 2], stride=2) == ([(0, 4), (2, 2)][:1], 1)


lengths = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@given(st.integers(0, 60), lengths, st.none() | st.integers(1, 12))
def test_windows_follow_the_definition(num_frames, lengths, stride):
    found, uncovered = cut(num_frames, lengths, stride)
    assert found == expected(num_frames, lengths, stride)
    shown = {frame for start, length in found for frame in range(start, start + length)}
    assert shown <= set(range(num_frames))
    assert len(shown) + uncovered == num_frames
    assert found == sorted(found)


@given(st.integers(0, 60), lengths, st.none() | st.integers(1, 12))
def test_what_is_forgotten_is_in_no_later_window(num_frames, lengths, stride):
    cutter = WindowCutter(lengths, stride)
    forgotten = 0
    for _ in range(num_frames):
        if (window := cutter.add()) is not None:
            assert window[0] >= forgotten
        forgotten = cutter.start
    assert all(start >= forgotten for start, _ in cutter.finish())
