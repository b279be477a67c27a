"""Data sets with a report."""

from types import SimpleNamespace

import pytest

from tests.unit.pipelines.dataset_report.drawn_data_sets import (
    SMALL,
    data_set,
    rich,
    video,
    write,
)


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    made = rich(tmp_path_factory.mktemp("reported") / "dataset")
    raw, page = write(made)
    return SimpleNamespace(made=made, raw=raw, details=raw["details"], page=page)


@pytest.fixture(scope="module")
def all_good(tmp_path_factory):
    records = [video(f"{n}.mp4", [(SMALL, 1.0 + n, 90.0), (SMALL, 2.5, 99.0)]) for n in range(3)]
    made = data_set(tmp_path_factory.mktemp("good") / "dataset", records)
    raw, page = write(made)
    return SimpleNamespace(made=made, raw=raw, details=raw["details"], page=page)
