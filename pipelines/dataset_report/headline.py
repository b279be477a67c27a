"""One or two sentences that say what happened."""

from pipelines.dataset_report.details import ClipCounts, VideoCounts

__all__ = ["headline"]


def headline(videos: VideoCounts, clips: ClipCounts, num_buckets: int) -> str:
    """Say in words what happened.

    Args:
        videos: counts of videos.
        clips: counts of clips.
        num_buckets: sizes of clips in the data set.
    """
    here = clips.total - clips.of_gone_videos
    if videos.encoded < videos.total:
        who = f"{videos.encoded:,} of {_counted(videos.total, 'video')}"
    else:
        who = "The only video" if videos.total == 1 else f"All {videos.total:,} videos"
    what = f"{who} gave {_counted(here, 'clip')}"
    if num_buckets > 1:
        what += f" of {num_buckets} sizes"
    rest = []
    if videos.quarantined:
        rest.append(f"{videos.quarantined:,} {_are(videos.quarantined)} in quarantine")
    if videos.without_clips:
        rest.append(f"{videos.without_clips:,} gave no clip that was kept")
    text = f"{what}; {' and '.join(rest) or 'nothing is in quarantine'}."
    if videos.gone:
        text += (
            f" The data set also holds {_counted(clips.of_gone_videos, 'clip')} of "
            f"{_counted(videos.gone, 'video')} that the source no longer has."
        )
    return text


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
