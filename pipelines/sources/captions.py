"""Captions beside videos: clip.txt or clip.json for clip.mp4."""

import json
import os
import unicodedata
from collections.abc import Iterable, Mapping

from pipelines.sources.place import Place

__all__ = [
    "CAPTION_KEYS",
    "CAPTION_SUFFIXES",
    "best_caption",
    "caption_in",
    "captions_beside",
    "clean_caption",
]

CAPTION_SUFFIXES = (".txt", ".json")
"""Suffixes of caption files; the first one with a caption wins."""
CAPTION_KEYS = ("caption", "text")
"""Keys of a JSON caption file."""


def clean_caption(text: str) -> str | None:
    """Return a caption in one line of valid text, or None if nothing is left.

    Control characters are dropped; what is no character becomes the replacement character.
    """
    line = "".join(_valid(character) for character in " ".join(text.split()))
    return line.strip() or None


def _valid(character: str) -> str:
    category = unicodedata.category(character)
    return "" if category == "Cc" else "\ufffd" if category == "Cs" else character


def caption_in(path: str, content: bytes) -> str | None:
    """Return the caption that a file holds, if it holds one."""
    text = content.decode("utf-8-sig", errors="replace")
    if not path.endswith(".json"):
        return clean_caption(text)
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        return None
    values = [raw.get(key) for key in CAPTION_KEYS] if isinstance(raw, dict) else []
    return next((clean_caption(value) for value in values if isinstance(value, str)), None)


def best_caption(stem: str, captions: Mapping[str, str | None]) -> str | None:
    """Return the caption of the first caption file of a stem that has one."""
    return next((c for suffix in CAPTION_SUFFIXES if (c := captions.get(stem + suffix))), None)


def captions_beside(
    place: Place, videos: Iterable[str], others: set[str] | None
) -> tuple[dict[str, str], set[str]]:
    """Read the captions beside videos.

    Args:
        place: where the videos are.
        videos: their paths.
        others: paths of the files that are there; None if that is not known.

    Returns:
        video path -> caption, and the caption files that were read.
    """
    stems = {video: os.path.splitext(video)[0] for video in videos}
    wanted = {stem + suffix for stem in stems.values() for suffix in CAPTION_SUFFIXES}
    if others is not None:
        wanted &= others
    contents = place.heads(sorted(wanted))
    captions = {path: caption_in(path, content) for path, content in contents.items()}
    found = {video: best_caption(stem, captions) for video, stem in stems.items()}
    return {video: text for video, text in found.items() if text}, set(contents)
