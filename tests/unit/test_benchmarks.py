"""Benchmarks that stand on formats of ours still run; what they measure is not looked at."""

from pathlib import Path

import pytest

from pipelines.shards import sealed_manifest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def importable(monkeypatch):
    """Scripts import each other by their folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_our_reader_and_webdataset_read_the_data_set_of_the_benchmark(importable, tmp_path):
    import reader

    reader.write_dataset(tmp_path, 2 * reader.BATCH)
    assert sealed_manifest(tmp_path).totals["clips"] == 2 * reader.BATCH
    ours = reader.Ours(tmp_path, num_batches=2)
    ours.epoch()
    ours.epoch()
    tars = sorted(str(path) for path in tmp_path.glob("shards/*.tar"))
    assert len(tars) == 1
    reader.webdataset_epoch(tars)


def test_too_few_runs_for_quartiles_are_refused_at_the_start(importable, monkeypatch, capsys):
    import train_step

    monkeypatch.setattr("sys.argv", ["train_step.py", "--runs", "1"])
    with pytest.raises(SystemExit):
        train_step.main()
    assert "--runs must be at least 2" in capsys.readouterr().err
