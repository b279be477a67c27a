import dataclasses
import json
import shutil
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cil.errors import DataError
from pipelines import estimate
from pipelines.shard_reader import ShardReader
from pipelines.shards import moments_name, read_moments, sidecar_name
from pipelines.storage import sha256_of_file


def batch(name, first, count):
    return {"name": np.array([name]), "first": np.array([first]), "count": np.array([count])}


def elsewhere(config, dataset):
    return dataclasses.replace(
        config, output=dataclasses.replace(config.output, dataset=str(dataset))
    )


def all_batches(dataset):
    first = 0
    for entry in ShardReader(dataset).manifest.entries():
        yield batch(entry.name, first, entry.count)
        first += entry.count


def test_the_moments_of_the_shards_are_those_that_encoding_stored(encoded_run):
    for row in all_batches(encoded_run.dataset):
        found = estimate.shard_moments(row, config=encoded_run.config)
        assert found["name"].tolist() == row["name"].tolist()
        stored = read_moments(encoded_run.dataset, str(row["name"][0])).state_dict()
        assert sorted(found) == sorted([*stored, "name"])
        for key, value in stored.items():
            assert torch.allclose(torch.from_numpy(found[key][0:1])[0], value, rtol=1e-12)


def test_the_moments_of_other_clips_are_refused(encoded_run):
    """One clip fewer than was stored: the sums cannot agree."""
    row = next(iter(all_batches(encoded_run.dataset)))
    short = batch(str(row["name"][0]), 0, int(row["count"][0]) - 1)
    with pytest.raises(DataError, match="the stored moments of shard-000000 are not those of its"):
        estimate.shard_moments(short, config=encoded_run.config)


@pytest.mark.parametrize("key", ["mean", "m2"])
def test_moments_that_are_off_by_a_billionth_are_refused(encoded_run, tmp_path, key):
    """The file agrees with its sidecar, but the clips were changed since."""
    dataset = tmp_path / "dataset"
    shutil.copytree(encoded_run.dataset, dataset)
    path, note = dataset / moments_name("shard-000000"), dataset / sidecar_name("shard-000000")
    tensors = load_file(path)
    tensors[key] = tensors[key] * (1 + 1e-9)
    save_file(tensors, path)
    raw = json.loads(note.read_bytes())
    raw["moments"]["sha256"] = sha256_of_file(path)
    note.write_text(json.dumps(raw))
    row = next(iter(all_batches(dataset)))
    with pytest.raises(DataError, match=f"are not those of its clips: {key}"):
        estimate.shard_moments(row, config=elsewhere(encoded_run.config, dataset))


def test_damaged_moments_are_refused(encoded_run, tmp_path):
    shutil.copytree(encoded_run.dataset, tmp_path / "dataset")
    path = tmp_path / "dataset" / moments_name("shard-000000")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="not what its sidecar states"):
        estimate.shard_moments(
            batch("shard-000000", 0, 1), config=elsewhere(encoded_run.config, tmp_path / "dataset")
        )


def test_there_must_be_a_data_set(encoded_run, tmp_path):
    config = dataclasses.replace(
        encoded_run.config,
        output=dataclasses.replace(encoded_run.config.output, dir=str(tmp_path / "nothing")),
    )
    with ExitStack() as session, pytest.raises(DataError, match="run encode first"):
        estimate.run(config, session=session)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["{}", "[]"])
def test_a_damaged_report_of_before_is_named(encoded_run, tmp_path, content):
    config = elsewhere(encoded_run.config, encoded_run.dataset)
    config = dataclasses.replace(
        config, output=dataclasses.replace(config.output, dir=str(tmp_path))
    )
    folder = tmp_path / estimate.ESTIMATE_FOLDER
    folder.mkdir()
    (folder / "report.json").write_text(content)
    (folder / estimate.STATISTICS_FILE).touch()
    with ExitStack() as session, pytest.raises(DataError, match=r"report\.json is damaged"):
        estimate.run(config, session=session)
