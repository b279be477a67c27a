"""Parts of the inventory, which a stopped scan leaves."""

import json

import pytest

from pipelines.config import dataset_of
from pipelines.scan import scan_videos
from pipelines.source_state import source_options
from pipelines.sources import list_videos
from pipelines.store import open_store
from tests.unit.pipelines.encode.data_set_files import changed, inventory, records


def test_what_a_stopped_scan_has_found_is_not_scanned_again(copied, here, run_encode, tmp_path):
    config = changed(copied.config, output={"dir": str(tmp_path / "new")})
    store = open_store(dataset_of(config))
    listing = list_videos(config.data.videos, options=source_options(config))
    names = ["a.mp4", "broken.mp4", "short.mp4"]
    some = [video for video in listing.videos if video.name in names]
    with here():
        scan_videos(config, store, some, {})
    parts = [name for name in store.list() if name.startswith("scan/")]
    assert len(parts) == 3
    assert store.list() == parts  # no inventory yet
    log = []
    run_encode(config, log)
    scanned = [v["name"] for d, row in log if d == "scanning" for v in json.loads(row["videos"])]
    assert sorted([*scanned, *names]) == sorted(video.name for video in listing.videos)
    assert store.list("scan") == []
    assert [record.name for record in inventory(tmp_path / "new" / "dataset")] == sorted(
        video.name for video in listing.videos
    )
    assert (tmp_path / "new" / "dataset" / "manifest.json").read_bytes() == (
        copied.dataset / "manifest.json"
    ).read_bytes()


@pytest.mark.parametrize("damage", ["cut off", "other settings"])
def test_a_damaged_or_foreign_part_is_not_believed(two_videos, here, run_encode, tmp_path, damage):
    config = changed(two_videos, output={"dir": str(tmp_path / "new")})
    store = open_store(dataset_of(config))
    listing = list_videos(config.data.videos, options=source_options(config))
    with here():
        other = changed(config, data={"fps": 4.0}) if damage == "other settings" else config
        scan_videos(other, store, listing.videos[:1], {})
    (part,) = store.list("scan")
    if damage == "cut off":
        store.write(part, store.read(part)[:-20])
    log = []
    run_encode(config, log)
    assert sum(doing == "scanning" for doing, _ in log) == len(listing.videos) == 2
    found = records(tmp_path / "new" / "dataset")
    assert sorted((r.path, r.start_s, r.fps) for r in found) == [
        (name, start, 8.0) for name in ("a.mp4", "b.mp4") for start in (0.0, 1.0)
    ]
