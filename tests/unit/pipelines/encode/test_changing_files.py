"""Files that are broken, or change under our hands."""

import shutil

import pytest

from cil.errors import StageError
from pipelines.shard_reader import ShardReader
from pipelines.shards import load_manifest
from tests.unit.pipelines.encode.data_set_files import (
    assert_counts_add_up,
    changed,
    quarantined,
    records,
)


def test_too_many_broken_videos_end_the_run(copied, run_encode, tmp_path):
    for name in ("x.mp4", "y.mp4"):
        (copied.videos / name).write_text("not a video either " + name)
    (copied.videos / "empty.mp4").touch()
    config = changed(
        copied.config, encode={"max_bad_fraction": 0.3}, output={"dir": str(tmp_path / "new")}
    )
    with pytest.raises(StageError) as caught:
        run_encode(config)
    message = str(caught.value)
    assert "4 of 11 videos are broken, more than encode.max_bad_fraction = 0.3 allows" in message
    assert "  4 probe, InvalidDataError, for example broken.mp4\n" in message
    dataset = tmp_path / "new" / "dataset"
    assert message.endswith(f"every reason is in {dataset}/quarantine.jsonl")
    broken = {r.path for r in quarantined(dataset) if r.stage not in ("select", "duplicate")}
    assert broken == {"broken.mp4", "x.mp4", "y.mp4", "empty.mp4"}
    assert not (dataset / "manifest.json").exists()
    # short videos and copies are not broken, and what was scanned is not scanned again
    log = []
    run_encode(changed(config, encode={"max_bad_fraction": 0.4}), log)
    assert "scanning" not in {doing for doing, _ in log}
    assert_counts_add_up(dataset)


def test_videos_that_change_or_vanish_while_encoding_are_refused(copied, during_encode, tmp_path):
    config = changed(copied.config, output={"dir": str(tmp_path / "new")})

    def disturb():
        (copied.videos / "a.mp4").write_bytes((copied.videos / "b.mp4").read_bytes())
        (copied.videos / "sub" / "c.mp4").unlink()
        (copied.videos / "-d e.mp4").write_text("no longer a video")

    report = during_encode(config, disturb)
    dataset = tmp_path / "new" / "dataset"
    late = {r.path: (r.stage, r.exception, r.message) for r in quarantined(dataset)}
    stage, exception, message = late["a.mp4"]
    assert (stage, exception) == ("read", "Changed")
    assert message.startswith("the file changed while the data set was encoded")
    stage, exception, message = late["sub/c.mp4"]
    assert (stage, exception) == ("read", "FileNotFoundError")
    assert message == "cannot be read: No such file or directory"
    assert late["-d e.mp4"][:2] == ("read", "Changed")
    totals = assert_counts_add_up(dataset)
    assert (totals["videos_encoded"], totals["videos_quarantined"]) == (2, 6)
    assert report.metrics["clips"] == 4
    found = {record.path: 0 for record in records(dataset)}
    for record in records(dataset):
        found[record.path] += 1
    assert found == {"b.mp4": 2, "f\\nf.mp4": 2}
    ShardReader(dataset).check_all()


def test_a_video_wanted_by_several_shards_is_refused_once(
    mixed, during_encode, tmp_path, encoded_run
):
    """Its clips of eight frames are in one shard, that of four in another."""
    shutil.copytree(mixed.videos, tmp_path / "videos")
    config = changed(
        mixed.config,
        data={"videos": str(tmp_path / "videos")},
        output={"dir": str(tmp_path / "run")},
    )
    during_encode(config, (tmp_path / "videos" / "s.mp4").unlink)
    dataset = tmp_path / "run" / "dataset"
    (only,) = quarantined(dataset)
    assert (only.path, only.stage) == ("s.mp4", "read")
    assert load_manifest(dataset).quarantined_by_stage == {"read": 1}
    totals = load_manifest(dataset).totals
    assert (totals["videos_encoded"], totals["videos_quarantined"]) == (4, 1)
    assert totals["clips"] == 9


def test_a_video_is_in_a_shard_whole_or_not_at_all(copied, during_encode, tmp_path, monkeypatch):
    """The first clip was encoded when the second one failed."""
    from pipelines.decode.errors import DecodeError
    from pipelines.decode.process import DecoderProcess

    real = DecoderProcess.clips

    def clips(self, path, wanted, **settings):
        for number, clip in enumerate(real(self, path, wanted, **settings)):
            if number == 1 and path.name == "b.mp4":
                raise DecodeError("odd", stage="decode", decoder="pyav", exception="Odd")
            yield clip

    config = changed(copied.config, output={"dir": str(tmp_path / "new")})
    during_encode(config, lambda: monkeypatch.setattr(DecoderProcess, "clips", clips))
    dataset = tmp_path / "new" / "dataset"
    assert "b.mp4" not in {record.path for record in records(dataset)}
    assert {r.path: r.stage for r in quarantined(dataset)}["b.mp4"] == "decode"
    assert load_manifest(dataset).totals["clips"] == 8
    assert_counts_add_up(dataset)
