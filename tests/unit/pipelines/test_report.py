import json
from importlib.metadata import version

import pytest

from cil.errors import DataError
from pipelines.report import RunReport, Stopwatch

REPORT = RunReport(
    stage="encode",
    reused=False,
    inputs={"videos": "clips"},
    outputs={"dataset": "out/dataset"},
    metrics={"clips": 3.0},
    seconds=1.25,
)


def test_a_report_comes_back_as_it_was_and_names_the_versions(tmp_path):
    path = tmp_path / "new" / "report.json"
    REPORT.save(path)
    assert RunReport.load(path) == REPORT
    versions = json.loads(path.read_bytes())["versions"]
    assert versions["torch"] == version("torch")
    assert {"ray", "deepspeed", "mlflow", "av", "decord", "webdataset"} <= set(versions)


def test_reusing_a_result_keeps_its_first_report(tmp_path):
    path = tmp_path / "report.json"
    REPORT.save(path)
    again = RunReport(**{**REPORT.to_json(), "reused": True, "seconds": 0.1})
    again.save(path)
    assert RunReport.load(path) == REPORT
    path.unlink()
    again.save(path)
    assert RunReport.load(path) == again


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        None,
        {**REPORT.to_json(), "inputs": None},
        {**REPORT.to_json(), "outputs": ["out"]},
        {**REPORT.to_json(), "seconds": "1.25"},
    ],
)
def test_a_damaged_report_is_named(tmp_path, content):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"report\.json is damaged: .*; delete it"):
        RunReport.load(path)


def test_a_report_refuses_what_json_cannot_hold(tmp_path):
    report = RunReport(**{**REPORT.to_json(), "metrics": {"loss": float("nan")}})
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.save(tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []


def test_a_stopwatch_starts_at_zero_and_never_runs_back():
    watch = Stopwatch()
    first = watch.seconds()
    assert 0 <= first <= watch.seconds()
    assert first == round(first, 2)
