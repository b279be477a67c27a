import pytest

from pipelines.selection import CandidateClip, ClipScores, VideoScan, dataset_warnings


def scan(*clips):
    return VideoScan(
        clips=[
            CandidateClip(
                bucket="8x8x4",
                shot=0,
                start_s=float(place),
                end_s=place + 0.5,
                frames=frames,
                crc32=[0] * len(frames),
                scores=ClipScores(
                    motion=motion,
                    motion_consistent=motion,
                    consistent_share=1.0,
                    jump=1.0,
                    luma_mean=luma,
                    luma_max=255.0,
                    contrast=40.0,
                    perceptual_hash="0" * 16,
                ),
            )
            for place, (motion, luma, frames) in enumerate(clips)
        ],
        reason=None,
        num_frames=9,
        duration_s=1.0,
        width=8,
        height=8,
        source_fps=8.0,
        shots=[0.0],
        leftover_s=0.0,
    )


GOOD = (3.0, 100.0, [0, 1, 2, 3])
STILL = (0.05, 100.0, [0, 1, 2, 3])
DARK = (3.0, 5.0, [0, 1, 2, 3])
SLOW = (3.0, 100.0, [0, 0, 1, 1])
IMAGE = (0.0, 100.0, [0, 0, 0, 0])


@pytest.mark.parametrize(
    ("clips", "starts"),
    [
        ([], []),
        ([GOOD], []),
        ([GOOD] * 9 + [STILL], []),
        ([GOOD] * 3 + [STILL], ["25% of the clips move less than 0.1 px/frame"]),
        ([GOOD] * 9 + [DARK], ["10% of the clips are nearly black"]),
        ([GOOD] * 10 + [DARK], []),
        ([GOOD] * 3 + [SLOW], ["in 25% of the clips at least 25% of the frames repeat"]),
        ([GOOD, (3.0, 100.0, [0, 1, 2, 3, 4, 4])], []),
        ([IMAGE] * 3, ["every clip shows one picture"]),
        ([STILL, DARK, SLOW], ["33% of the clips move", "33% of the clips are", "in 33% of"]),
    ],
)
def test_warnings(clips, starts):
    half = len(clips) // 2
    found = dataset_warnings([scan(*clips[:half]), scan(), scan(*clips[half:])])
    assert len(found) == len(starts)
    assert all(line.startswith(start) for line, start in zip(found, starts, strict=True))
