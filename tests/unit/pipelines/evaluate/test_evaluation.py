import csv

import pyarrow.parquet as pq

from pipelines.evaluate.evaluation import COLUMNS


def test_every_arm_setting_clip_and_seed_has_a_row(finished):
    rows = finished.rows
    assert [row["arm"] for row in rows] == ["base"] * 16 + ["tuned"] * 16
    assert {(row["start_time"], row["analytic_init"]) for row in rows} == {(1.0, True), (0.9, True)}
    assert (
        len({(row["arm"], row["start_time"], row["clip_key"], row["seed"]) for row in rows}) == 32
    )
    assert tuple(rows[0])[: len(COLUMNS)] == COLUMNS
    assert pq.ParquetFile(finished.folder / "per_clip.parquet").read().to_pylist() == rows
    with (finished.folder / "per_clip.csv").open() as file:
        assert [float(row["motion"]) for row in csv.DictReader(file)] == [r["motion"] for r in rows]
