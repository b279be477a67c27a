"""The report of the encode stage: a page for people and the same numbers as JSON.

    manifest, scanned source, run report -> details -> report.json, report.html

Both lie in the data set. The page is one file without scripts that can be sent to somebody.
"""

import json
from dataclasses import replace

from pipelines.config import RunConfig
from pipelines.dataset_identity import PLAN_NAME
from pipelines.dataset_report.counting import details
from pipelines.dataset_report.extremes import thumbnails
from pipelines.dataset_report.page import render
from pipelines.planning import changes
from pipelines.records import Manifest
from pipelines.report import RunReport, versions
from pipelines.scan import INVENTORY_NAME
from pipelines.selection.candidates import VideoScan
from pipelines.selection.data_warnings import dataset_warnings
from pipelines.shards import FIRST_STAGE_NAME, MANIFEST_NAME
from pipelines.source_state import DROPPED_NAME, QUARANTINE_NAME, SourceState, planned
from pipelines.store import Store

__all__ = ["DATA_NAME", "PAGE_NAME", "warnings_of", "write"]

PAGE_NAME = "report.html"
DATA_NAME = "report.json"
_REPEATED_SHARE = 0.1
"""Share of repeated frames that is worth a warning."""
_NAMES = 3


def warnings_of(store: Store, config: RunConfig, source: SourceState) -> list[str]:
    """Return one line for each thing that speaks against training on this data set as it is.

    Args:
        store: the data set, with its plan.
        config: the run.
        source: the source as it is now, and the choice of clips.
    """
    return [*_of_clips(config, source), *_of_changes(store, source)]


def _of_clips(config: RunConfig, source: SourceState) -> list[str]:
    """Look at the clips that were chosen; what the settings leave out is no cause for a warning."""
    scans = []
    for sha256, video in source.videos.items():
        assert video.scan is not None
        bare = VideoScan.from_json({**video.scan, "clips": []})
        scans.append(replace(bare, clips=source.selection.kept[sha256]))
    lines = dataset_warnings(scans)
    frames = [clip.frames for scan in scans for clip in scan.clips]
    repeated = sum(len(numbers) - len(set(numbers)) for numbers in frames)
    share = repeated / max(sum(map(len, frames)), 1)
    if share >= _REPEATED_SHARE and not any("repeat" in line or "image" in line for line in lines):
        lines.append(
            f"{share:.0%} of the frames of the clips repeat the one before, since their videos are "
            f"slower than data.fps = {config.data.fps:g}"
        )
    return lines


def _of_changes(store: Store, source: SourceState) -> list[str]:
    gone, changed, retold = changes(planned(store), source.records)
    lines = []
    if gone:
        lines.append(
            f"the source no longer has {_named(gone)}, which the data set was made from; clips of "
            "them stay in it"
        )
    if changed:
        lines.append(
            f"the source has another content now for {_named(changed)}; clips of the old content "
            "stay in the data set beside those of the new one"
        )
    if retold:
        lines.append(
            f"the source has another caption now for {_named(retold)}; their clips keep the old "
            "one, make a new data set to use the new one"
        )
    return lines


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES:,} more" if len(names) > _NAMES else ""
    return ", ".join(names[:_NAMES]) + more


def write(
    store: Store, config: RunConfig, manifest: Manifest, source: SourceState, report: RunReport
) -> None:
    """Write the page and its numbers into the data set.

    Args:
        store: the data set, complete.
        config: the run.
        manifest: of the data set.
        source: the source as it is now, and the choice of clips.
        report: of the stage; its inputs hold the warnings.

    Raises:
        DataError: a shard that a picture is taken from is missing or damaged.
    """
    shown, libraries = details(store, config, manifest, source, report), versions()
    raw = {**report.to_json(), "versions": libraries, "details": shown.to_json()}
    text = json.dumps(raw, indent=1, sort_keys=True, allow_nan=False)
    store.write(DATA_NAME, f"{text}\n".encode())
    files = {
        "Data set": store.url(),
        "Shards with the clips": store.url("shards"),
        "Order, hashes and counts": store.url(MANIFEST_NAME),
        "What goes to which shard": store.url(PLAN_NAME),
        "Codec of the latents": store.url(FIRST_STAGE_NAME),
        "Every video and its scan": store.url(INVENTORY_NAME),
        "Refused videos, all of them": store.url(QUARANTINE_NAME),
        "Dropped clips, all of them": store.url(DROPPED_NAME),
        "Numbers of this page": store.url(DATA_NAME),
    }
    page = render(shown, report, libraries, thumbnails(store, shown.extremes), files)
    store.write(PAGE_NAME, page.encode())
