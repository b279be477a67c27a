"""Where the videos are: folders, patterns, tables, tar files, local or in a store.

In: what `data.videos` says and `SourceOptions`. Out: a `Listing` of videos with their captions and
of all that was refused, and the bytes of one video as a local file. Nothing is decoded or hashed.
"""

from pipelines.sources.listing import check_source, list_videos
from pipelines.sources.local_copy import local_file, scratch_folder
from pipelines.sources.video import VIDEO_SUFFIXES, Listing, SourceOptions, SourceVideo

__all__ = [
    "VIDEO_SUFFIXES",
    "Listing",
    "SourceOptions",
    "SourceVideo",
    "check_source",
    "list_videos",
    "local_file",
    "scratch_folder",
]
