import dataclasses
import hashlib
import json

import pytest

from cil.errors import ConfigError, DataError
from pipelines.dataset import open_training_data
from pipelines.evaluate.clip_set import SET_FILE, freeze_images, open_set


def test_the_clips_are_held_out_and_in_the_order_of_their_hashes(held_out_config, tmp_path):
    chosen = open_set(held_out_config, tmp_path)
    (reader,) = open_training_data(held_out_config).held_out.values()
    keys = sorted(reader.sample_keys(), key=lambda key: hashlib.sha256(key.encode()).hexdigest())
    assert list(chosen.clips) == keys[:4]
    assert (chosen.bucket, chosen.fps, chosen.seeds) == ("32x32x8", 8.0, (0,))
    written = json.loads((tmp_path / SET_FILE).read_text())
    assert written["sha256"] == chosen.sha256


def test_seeds_follow_that_of_the_run(held_out_config, tmp_path, change):
    config = change(held_out_config, evaluate={"seeds_per_clip": 3})
    config = dataclasses.replace(config, seed=2**63 - 2)
    assert open_set(config, tmp_path).seeds == (2**63 - 2, 2**63 - 1, 0)


def test_without_held_out_clips_it_says_what_to_do(held_out_config, tmp_path, change):
    none = change(held_out_config, validate={"held_out_fraction": 0})
    with pytest.raises(ConfigError, match=r"held_out_fraction is 0.*set evaluate.clips to all"):
        open_set(none, tmp_path)
    everything = change(none, evaluate={"clips": "all", "num_clips": None})
    data = open_training_data(none)
    assert len(open_set(everything, tmp_path).clips) == data.num_clips
    both = change(held_out_config, evaluate={"clips": "all", "num_clips": None})
    assert len(open_set(both, tmp_path / "both").clips) == data.num_clips


def freeze_others(folder, chosen, clips):
    """Write a set of other clips, as an earlier data set would have led to."""
    earlier = dataclasses.replace(chosen, clips=clips)
    path = folder / SET_FILE
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "clips": list(clips), "sha256": earlier.sha256}))


def test_a_frozen_set_stays_when_videos_are_added(held_out_config, tmp_path):
    chosen = open_set(held_out_config, tmp_path)
    freeze_others(tmp_path, chosen, chosen.clips[1:3])  # the others came later
    assert open_set(held_out_config, tmp_path).clips == chosen.clips[1:3]


def test_other_settings_choose_anew(held_out_config, tmp_path, change):
    two = change(held_out_config, evaluate={"num_clips": 2})
    first = open_set(two, tmp_path)
    more = open_set(held_out_config, tmp_path)
    assert len(more.clips) == 4
    assert more.clips[:2] == first.clips


def test_a_data_set_that_lost_a_frozen_clip_is_refused(held_out_config, tmp_path):
    chosen = open_set(held_out_config, tmp_path)
    freeze_others(tmp_path, chosen, (*chosen.clips, "f" * 32))
    message = rf"1 of the 5 clips of .*set\.json are no longer among.*the first is {'f' * 32}"
    with pytest.raises(DataError, match=message):
        open_set(held_out_config, tmp_path)


@pytest.mark.parametrize("harm", ["clips", "torn"])
def test_a_set_that_was_changed_is_refused(held_out_config, tmp_path, harm):
    open_set(held_out_config, tmp_path)
    path = tmp_path / SET_FILE
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "clips": raw["clips"][:2]}) if harm == "clips" else "{")
    with pytest.raises(DataError, match=r"set\.json .*(by hand|damaged)"):
        open_set(held_out_config, tmp_path)


def test_images_are_frozen_too(held_out_config, tmp_path):
    chosen = open_set(held_out_config, tmp_path)
    images = {key: key * 2 for key in chosen.clips}
    freeze_images(tmp_path, chosen, images)
    freeze_images(tmp_path, chosen, images)
    assert open_set(held_out_config, tmp_path) == chosen
    assert json.loads((tmp_path / SET_FILE).read_text())["images"] == images
    with pytest.raises(DataError, match="conditioning image of clip"):
        freeze_images(tmp_path, chosen, {**images, chosen.clips[0]: "0" * 64})
