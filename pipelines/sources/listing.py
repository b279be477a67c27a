"""Which videos a source holds.

A source is one text: a folder, a pattern, a video, a table or a tar file, local or as a URL.

    FOLDER                         all videos in it and in its sub-folders; tars if there is none
    day-*/**/*.mp4                 files that match; ** stands for any number of folders
    shards/{000..003}.tar          the videos in WebDataset tar files
    videos.csv (.jsonl, .parquet)  the files that the rows name, with their captions
    s3://bucket/any-of-these       the same through fsspec
"""

import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from cil.errors import ConfigError
from pipelines.records import QuarantineRecord
from pipelines.remote import is_url, scheme_of, shown_url
from pipelines.sources.captions import captions_beside
from pipelines.sources.names import fingerprint, printable
from pipelines.sources.patterns import Pattern, expand_braces, fixed_folder, has_wildcards
from pipelines.sources.place import Place, is_video
from pipelines.sources.remote_place import RemotePlace
from pipelines.sources.rows import check_table, place_of, read_table
from pipelines.sources.tables import TABLE_SUFFIXES
from pipelines.sources.tars import TAR_SUFFIX, TarContents, check_tar, read_tar
from pipelines.sources.video import (
    VIDEO_SUFFIXES,
    Listing,
    SourceOptions,
    SourceVideo,
    UnusableFileError,
)

__all__ = ["check_source", "list_videos"]

_COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
_MAX_PATTERNS = 1000
_NUM_TARS_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """A source, taken apart."""

    text: str
    place: Place
    folder: str
    """The root of `place`, as it was given."""
    files: tuple[str, ...]
    """Files that were named, relative to the root."""
    pattern: Pattern | None
    """Which files of the root count, if it is not all of them."""

    @property
    def shown(self) -> str:
        """The source, for a message."""
        return printable(shown_url(self.text))


def list_videos(source: str, *, options: SourceOptions) -> Listing:
    """List the videos of a source, without reading their content.

    Args:
        source: what `data.videos` says.
        options: how tables are read.

    Returns:
        The videos, sorted by name, and all that was refused, each with the reason.

    Raises:
        ConfigError: the source is not there, cannot be read, or has no video that can be used.
    """
    parsed = _parse(source)
    table = _table_suffix(parsed)
    if table is not None:
        videos, refused = read_table(
            parsed.place, parsed.files[0], table, options, folder=parsed.folder
        )
        num_others = 0
    else:
        videos, refused, num_others = _list_files(parsed)
    if not videos:
        raise _nothing_to_use(parsed, refused, num_others)
    return Listing(
        videos=_with_unique_names(videos),
        refused=tuple(sorted(refused, key=lambda record: (record.path, record.message))),
        num_other_files=num_others,
    )


def check_source(source: str, options: SourceOptions) -> None:
    """Check quickly that a source is there and may hold videos.

    Raises:
        ConfigError: it is not set, missing, unreadable, empty, or a table without the columns.
    """
    parsed = _parse(source)
    table = _table_suffix(parsed)
    if table is not None:
        check_table(parsed.place, parsed.files[0], table, options)
        return
    problems: list[QuarantineRecord] = []
    for path in parsed.files:
        try:
            if _is_tar(parsed.place.bare(path)):
                check_tar(parsed.place, path)
            else:
                _check_suffix(parsed.place.bare(path))
                parsed.place.find(path)
            return
        except UnusableFileError as error:
            problems.append(error.record(_name(parsed.place, path)))
    others = []
    if not parsed.files:
        for path in parsed.place.walk(parsed.pattern):
            if is_video(path) or _is_tar(path):
                return
            others.append(path)
    raise _nothing_to_use(parsed, problems, len(others), example=min(others, default=""))


def _parse(source: str) -> _Source:
    if not source:
        raise ConfigError(
            "data.videos is not set; give a folder with videos, a pattern, a table or tar files: "
            "--data.videos FOLDER"
        )
    if "\0" in source:
        raise ConfigError(f"data.videos: {printable(source)} holds a zero byte")
    if scheme_of(source) and not is_url(source):
        source = source.partition("://")[2]
    if is_url(source):
        return _parse_url(source)
    if os.path.isdir(source):
        return _Source(text=source, place=place_of(source), folder=source, files=(), pattern=None)
    if os.path.lexists(source):
        return _named_files(source, [source], _folder_of(source))
    return _parse_pattern(source) or _missing(source)


def _parse_url(source: str) -> _Source:
    suffix = os.path.splitext(source.partition("?")[0])[1].lower()
    known = suffix in VIDEO_SUFFIXES or suffix in (TAR_SUFFIX, *TABLE_SUFFIXES)
    if scheme_of(source) in ("http", "https"):
        names = expand_braces(source)
        if not known:
            raise ConfigError(
                f"data.videos: {printable(shown_url(source))} is on a web server, which cannot "
                "list folders; name a video, a tar file or a table"
            )
        return _named_files(source, names, fixed_folder(source.partition("?")[0]))
    found = _parse_pattern(source)
    if found is not None:
        return found
    place = RemotePlace(source)
    if place.is_folder():
        return _Source(text=source, place=place, folder=source, files=(), pattern=None)
    named = _named_files(source, [source], _folder_of(source))
    try:
        named.place.find(named.files[0])
    except UnusableFileError as error:
        raise ConfigError(f"data.videos: {named.shown} cannot be used: {error.message}") from error
    return named


def _parse_pattern(source: str) -> _Source | None:
    """Take a pattern apart; None if it is none."""
    folder = fixed_folder(source)
    if not has_wildcards(source):
        names = expand_braces(source)
        return _named_files(source, names, folder) if len(names) > 1 else None
    if not is_url(source) and not os.path.isdir(folder or "."):
        return _missing(source, folder)
    texts = expand_braces(source[len(folder) :], at_most=_MAX_PATTERNS)
    return _Source(
        text=source,
        place=place_of(folder or "."),
        folder=folder or ".",
        files=(),
        pattern=Pattern(*texts),
    )


def _named_files(source: str, names: list[str], folder: str) -> _Source:
    """Take named files apart; all names begin with the folder, which ends with a slash."""
    return _Source(
        text=source,
        place=place_of(folder or "."),
        folder=folder or ".",
        files=tuple(name[len(folder) :] for name in names),
        pattern=None,
    )


def _folder_of(path: str) -> str:
    return path[: path.rfind("/") + 1]


def _missing(source: str, what: str = "") -> _Source:
    missing = f": there is no folder {printable(shown_url(what))}" if what else " does not exist"
    raise ConfigError(
        f"data.videos: {printable(shown_url(source))}{missing}; give a folder with videos, a "
        "pattern, a table or tar files"
    )


def _table_suffix(source: _Source) -> str | None:
    bare = [source.place.bare(path) for path in source.files]
    suffixes = [os.path.splitext(path)[1].lower() for path in bare]
    if not any(suffix in TABLE_SUFFIXES for suffix in suffixes):
        return None
    if len(suffixes) > 1:
        raise ConfigError(f"data.videos: {source.shown} names several tables; give one")
    return suffixes[0]


def _is_tar(path: str) -> bool:
    return path.lower().endswith(TAR_SUFFIX)


def _list_files(source: _Source) -> tuple[list[SourceVideo], list[QuarantineRecord], int]:
    """Return the videos, what was refused, and the number of other files."""
    place = source.place
    if source.files:
        tars = [path for path in source.files if _is_tar(place.bare(path))]
        found = [path for path in source.files if not _is_tar(place.bare(path))]
        others: set[str] = set()
        captions, _ = captions_beside(place, found, None)
    else:
        paths = list(place.walk(source.pattern))
        found = [path for path in paths if is_video(path)]
        tars = [] if found else [path for path in paths if _is_tar(path)]
        others = set(paths).difference(found, tars)
        beside = None if source.pattern is not None else others
        captions, used = captions_beside(place, found, beside)
        others -= used
    place.find_many([*found, *tars])
    refused = place.refused
    videos: list[SourceVideo] = []
    num_others = len(others)
    for path in found:
        try:
            videos.append(_plain_video(place, path, captions.get(path)))
        except UnusableFileError as error:
            refused.append(error.record(_name(place, path)))
    with ThreadPoolExecutor(_NUM_TARS_AT_ONCE) as pool:  # a store makes wait for every header
        for contents in pool.map(lambda path: _read_tar(place, path), tars):
            videos += contents.videos
            refused += contents.refused
            num_others += contents.num_other_files
    return videos, refused, num_others


def _read_tar(place: Place, path: str) -> TarContents:
    name = _name(place, path)
    try:
        return read_tar(place, path, name=name)
    except UnusableFileError as error:
        return TarContents(refused=[error.record(name)])


def _plain_video(place: Place, path: str, caption: str | None) -> SourceVideo:
    _check_suffix(place.bare(path))
    found = place.find(path)
    return SourceVideo(
        name=_name(place, path),
        location=found.location,
        offset=None,
        num_bytes=found.num_bytes,
        version=found.version,
        caption=caption,
    )


def _check_suffix(path: str) -> None:
    if path.lower().endswith(_COMPRESSED_TARS):
        raise UnusableFileError(
            "CompressedTar", "a compressed tar file; unpack the compression, videos have their own"
        )
    if not is_video(path):
        suffixes = ", ".join(sorted(VIDEO_SUFFIXES))
        raise UnusableFileError(
            "NotAVideo", f"neither a video, a tar file nor a table by its suffix: {suffixes}"
        )


def _name(place: Place, path: str) -> str:
    """Return a path as it is shown: printable, and with a hash in place of a query."""
    bare = place.bare(path)
    return printable(bare) + ("" if bare == path else f"~{fingerprint(path)}")


def _with_unique_names(videos: Iterable[SourceVideo]) -> tuple[SourceVideo, ...]:
    """Mark names that several videos have by a hash of where the videos are; sort by name."""
    found = list(videos)
    counts = Counter(video.name for video in found)
    named = [
        replace(video, name=f"{video.name}~{fingerprint(f'{video.location}:{video.offset}')}")
        if counts[video.name] > 1
        else video
        for video in found
    ]
    return tuple(sorted(named, key=lambda video: video.name))


def _nothing_to_use(
    source: _Source, refused: list[QuarantineRecord], num_others: int, *, example: str = ""
) -> ConfigError:
    if refused:
        first = refused[0]
        count = f"{len(refused)} were refused" if len(refused) > 1 else "it was refused"
        return ConfigError(
            f"data.videos: {source.shown} has no video that can be used; {count}, "
            f"{first.path}: {first.message}"
        )
    what = "matches" if source.pattern is not None else "has"
    shown = f", for example {printable(example)}" if example else ""
    suffixes = ", ".join(sorted(VIDEO_SUFFIXES))
    return ConfigError(
        f"data.videos: {source.shown} {what} no video files ({num_others} other files{shown}); "
        f"files with these suffixes count: {suffixes}; or tar files, or name a table "
        f"({', '.join(TABLE_SUFFIXES)})"
    )
