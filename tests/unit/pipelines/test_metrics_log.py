"""The metrics file: one row per step whatever is repeated or torn."""

from pipelines.metrics_log import MetricsLog


def row(step: int, loss: float) -> dict[str, float]:
    return {"step": step, "loss": loss}


def test_no_file_is_no_rows(tmp_path):
    assert MetricsLog(tmp_path / "metrics.jsonl").rows() == []


def test_rows_come_back_in_order_once(tmp_path):
    log = MetricsLog(tmp_path / "deep" / "metrics.jsonl")
    log.append([row(0, 3.0), row(1, 2.0)])
    log.append([row(1, 2.0), row(2, 1.0)])
    assert log.rows() == [row(0, 3.0), row(1, 2.0), row(2, 1.0)]
    assert log.losses() == [3.0, 2.0, 1.0]


def test_a_torn_line_is_left_out_and_does_not_spoil_the_next(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append([row(0, 3.0)])
    with log.path.open("a") as file:
        file.write('{"step": 1, "lo')
    assert log.rows() == [row(0, 3.0)]
    log.append([row(1, 2.0)])
    assert log.rows() == [row(0, 3.0), row(1, 2.0)]
