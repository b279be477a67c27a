"""What every number of the report means, in one line each, and what a report cannot say."""

from collections.abc import Mapping, Sequence

from pipelines.leak.resamples import FEWEST_CLIPS

__all__ = ["MEANINGS", "TITLES", "UNITS", "limits"]

TITLES: Mapping[str, str] = {
    "motion_transfer_ratio": "Motion transfer",
    "condition_dominance": "Condition dominance",
    "one_step_mse": "One-step error",
    "frame_zero_mse": "One-step error of the first frame",
    "frame_difference_ratio": "One-step frame difference",
    "one_step_motion": "One-step motion",
    "motion": "Motion of the videos",
    "motion_real": "Motion of the real clips",
    "motion_error": "Motion error",
    "alignment_mse": "Alignment error",
    "ssim": "SSIM with the image",
}
UNITS: Mapping[str, str] = {
    "motion_transfer_ratio": "ratio",
    "condition_dominance": "ratio",
    "one_step_mse": "latent units squared",
    "frame_zero_mse": "latent units squared",
    "frame_difference_ratio": "ratio",
    "one_step_motion": "ratio",
    "motion": "px/frame",
    "motion_real": "px/frame",
    "motion_error": "px/frame",
    "alignment_mse": "0..1 scale, squared",
    "ssim": "-1..1",
}
MEANINGS: Mapping[str, str] = {
    "motion_transfer_ratio": "share of the motion in the noisy video that a one-step prediction "
    "takes over, measured against the same noise on a still video; higher is less leak",
    "condition_dominance": "change by another image over change by another image or another noisy "
    "video; lower is less leak, but never alone",
    "one_step_mse": "mean squared error of a one-step prediction, all frames; lower is better",
    "frame_zero_mse": "the same of the first frame alone, against the image; lower is better",
    "frame_difference_ratio": "energy of frame differences, prediction over clip; blind to "
    "direction",
    "one_step_motion": "optical flow, decoded prediction over clip; blind to direction",
    "motion": "mean optical flow of a sampled video at a short side of 256 pixels, inconsistent "
    "pixels counted as still; neither direction is better by itself",
    "motion_real": "the same of the real clips, decoded from their latents",
    "motion_error": "mean distance of a video's motion from that of its clip; lower is better",
    "alignment_mse": "squared error of a video's first frame against the image; lower is better",
    "ssim": "mean structural similarity of all frames with the image; falls with motion too",
}


def limits(
    *, num_probed: int, num_sampled: int, level: float, seeds: Sequence[str], num_arms: int
) -> list[str]:
    """Say what the numbers of a report do not show.

    Args:
        num_probed: clips that were probed.
        num_sampled: clips that videos were sampled from.
        level: of the intervals.
        seeds: of the trainings, one name each; empty names stand for one training per arm.
        num_arms: arms.
    """
    percent = f"{100 * level:g}%"
    found = [
        f"Intervals hold {percent} of {num_probed} resampled held-out clips (videos: "
        f"{num_sampled}). They say what other clips of this data set would give.",
    ]
    if min(num_probed, num_sampled) < FEWEST_CLIPS:
        found.append(
            f"Nothing is called lower or higher that is of fewer than {FEWEST_CLIPS} clips: their "
            "intervals are too short."
        )
    if len(set(seeds)) > 1:
        found.append(
            f"Each arm was trained with {len(set(seeds))} seeds, which are shown one by one; so "
            "few say little about the spread between trainings."
        )
    else:
        found.append(
            "Each arm was trained once. What another seed of training would give is not in any "
            "interval: a difference can be clear between these networks and not between methods."
        )
    if num_arms > 2:
        found.append(
            "Intervals and p values are not corrected for the number of comparisons on this page."
        )
    found += [
        "A perfect network too has motion transfer 0 and condition dominance 1 as t nears 1: only "
        "differences at the same t mean anything, there is no threshold to pass.",
        "A lower leak does not promise more motion in the videos: a network that plays a motion by "
        "heart moves as much, and the same for every noise.",
        "Alignment is measured in pixels of the first frame. Whether people prefer the videos was "
        "not asked.",
    ]
    return found
