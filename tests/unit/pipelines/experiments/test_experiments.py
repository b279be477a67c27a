"""Experiments: their files, what is gathered from reports, the table, its place in the docs."""

import json
import sys
from pathlib import Path

import pytest
from scipy import stats

from cil.errors import ConfigError, DataError, StageError
from pipelines.__main__ import _main
from pipelines.experiments.__main__ import main
from pipelines.experiments.discs import REAL
from pipelines.experiments.page import figure, placed, table
from pipelines.experiments.plan import Experiment, read_experiment
from pipelines.experiments.results import gather, read_results, spread_of
from pipelines.sweep.sweep_file import read_sweep_file

ROOT = Path(__file__).parents[4]
CONFIGS = ROOT / "configs" / "experiments"
EXPERIMENTS = sorted(
    path for path in CONFIGS.glob("*.yaml") if "sources:" in path.read_text(encoding="utf-8")
)


def raw(folder: Path, **changes):
    return {
        "title": "Toy",
        "folder": str(folder),
        "seeds": [0, 1, 2],
        "commands": ["python -c 'print({seed})'"],
        "sources": [
            {"reports": ["{folder}/leak.json"], "arms": {"none": "plain", "tn": "TimeNoise"}}
        ],
        "columns": {
            "MTR": {"measure": "motion_transfer_ratio", "t": 0.7, "in_figure": True},
            "motion": {"measure": "motion", "start": 1.0},
            "of plain": {"measure": "motion", "start": 1.0, "relative_to": "plain"},
            "AI": {"measure": "motion", "start": 0.9, "analytic_init": True, "in_table": False},
        },
        **changes,
    }


def row(arm, measure, value, *, t=None, start=None, gaussian=None):
    where = {"t": t, "start_time": start, "analytic_init": gaussian}
    return {"arm": arm, "measure": measure, "value": value, **where}


def write_report(folder: Path, seed: int):
    rows = []
    for arm, factor in (("none", 1.0), ("tn", 2.0)):
        rows += [
            row(arm, "motion_transfer_ratio", 0.2 * factor + 0.1 * seed, t=0.7),
            row(arm, "motion_transfer_ratio", 9.0, t=0.8),
            row(arm, "motion", 3.0 * factor, start=1.0, gaussian=False),
            row(arm, "motion", 9.0, start=0.9, gaussian=False),
        ]
    rows.append(row("tn", "motion", 0.5 + seed, start=0.9, gaussian=True))
    place = folder / f"seed-{seed}"
    place.mkdir(parents=True)
    report = {
        "arms": [{"name": "none"}, {"name": "tn"}],
        "clips": {"probed": ["a", "b"], "sampled": ["a"]},
        "values": rows,
    }
    (place / "leak.json").write_text(json.dumps(report))


@pytest.fixture
def toy(tmp_path):
    for seed in (0, 1, 2):
        write_report(tmp_path, seed)
    return Experiment.of(raw(tmp_path), source="toy")


def test_numbers_are_those_of_the_right_arm_place_and_seed(toy):
    results = gather(toy, (0, 1, 2))
    assert results.arms == ("plain", "TimeNoise")
    assert results.values["MTR"]["plain"] == pytest.approx((0.2, 0.3, 0.4))
    assert results.values["MTR"]["TimeNoise"] == pytest.approx((0.4, 0.5, 0.6))
    assert results.values["motion"]["TimeNoise"] == (6.0, 6.0, 6.0)
    assert results.values["of plain"]["TimeNoise"] == (2.0, 2.0, 2.0)
    assert results.values["AI"] == {"plain": (None,) * 3, "TimeNoise": (0.5, 1.5, 2.5)}
    assert results.clips[0] == {"num_probed": 2, "num_sampled": 1}


def test_the_spread_is_mean_extremes_and_students_interval():
    values = [0.3, 0.9, 0.45]
    spread = spread_of(values)
    low, high = stats.t.interval(0.95, 2, loc=0.55, scale=stats.sem(values))
    assert (spread.n, spread.mean, spread.low, spread.high) == (3, pytest.approx(0.55), 0.3, 0.9)
    assert (spread.t_low, spread.t_high) == pytest.approx((low, high), rel=1e-4)
    assert spread_of([0.3]).t_low is None
    assert spread_of([]) is None


def test_the_table_has_mean_and_extremes_and_leaves_empty_what_is_absent(toy):
    lines = table(gather(toy, (0, 1, 2)), toy.columns).splitlines()
    assert lines[0] == "| arm | MTR | motion | of plain |"
    assert lines[2] == (
        "| plain | 0.30 (0.20 to 0.40) | 3.00 (3.00 to 3.00) | 1.00 (1.00 to 1.00) |"
    )
    one = table(gather(toy, (1,)), toy.columns).splitlines()
    assert one[3] == "| TimeNoise | 0.50 | 6.00 | 2.00 |"


def test_an_arm_that_is_missing_for_a_seed_is_counted(toy, tmp_path):
    path = tmp_path / "seed-2" / "leak.json"
    report = json.loads(path.read_text())
    report["values"] = [row for row in report["values"] if row["arm"] != "tn"]
    path.write_text(json.dumps(report))
    results = gather(toy, (0, 1, 2))
    assert results.values["motion"]["TimeNoise"] == (6.0, 6.0, None)
    last = table(results, toy.columns).splitlines()[-1]
    assert last.startswith(
        "| TimeNoise | 0.45 (0.40 to 0.50), n = 2 | 6.00 (6.00 to 6.00), n = 2 |"
    )


def test_an_arm_without_numbers_is_said_to_be_not_run(tmp_path):
    write_report(tmp_path, 0)
    arms = {"none": "plain", "tn": "TimeNoise", "constant": "constant"}
    source = {"reports": ["{folder}/leak.json"], "arms": arms}
    toy = Experiment.of(raw(tmp_path, sources=[source]), source="toy")
    assert table(gather(toy, (0,)), toy.columns).splitlines()[-1] == "| constant | not run |  |  |"


def test_results_survive_their_file(toy, tmp_path):
    results = gather(toy, (0, 2))
    path = tmp_path / "results.json"
    path.write_text(results.as_json())
    assert read_results(path).as_json() == results.as_json()
    assert read_results(path).seeds == (0, 2)
    path.write_text(json.dumps({"format_version": 0}))
    with pytest.raises(DataError, match="format 1"):
        read_results(path)


def test_the_figure_is_the_same_twice_and_differs_with_the_numbers(toy):
    three, one = gather(toy, (0, 1, 2)), gather(toy, (0,))
    assert figure(three, toy.columns) == figure(three, toy.columns)
    assert figure(three, toy.columns) != figure(one, toy.columns)
    assert figure(three, toy.columns).startswith(b"<?xml")


def test_missing_reports_and_columns_are_errors(toy, tmp_path):
    with pytest.raises(StageError, match="no report"):
        gather(toy, (7,))
    empty = Experiment.of(
        raw(tmp_path, columns={"x": {"measure": "motion", "start": 0.5}}), source="toy"
    )
    with pytest.raises(DataError, match=r"column x: no arm has motion there"):
        gather(empty, (0,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [1, 1]}, "seeds must be different"),
        ({"commands": ["rm -r {folder}"]}, "commands begin with cil or python"),
        ({"columns": {"x": {"measure": "motion"}}}, "of a rank t or of a start time"),
        (
            {"columns": {"x": {"measure": "motion", "start": 1.0, "relative_to": "me"}}},
            "relative_to must be one of",
        ),
        ({"titel": "x"}, "titel"),
    ],
)
def test_wrong_files_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        Experiment.of(raw(tmp_path, **changes), source="toy")


def test_the_command_runs_each_seed_and_writes_what_is_finished(tmp_path, capfd):
    file = tmp_path / "toy.yaml"
    values = raw(
        tmp_path / "out",
        commands=['python -c \'import pathlib; pathlib.Path("{folder}/ran").write_text("")\''],
    )
    for seed in (0, 1, 2):
        write_report(tmp_path / "out", seed)
    file.write_text(json.dumps(values))
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "experiments.md").write_text("a\n<!-- results toy -->\nold\n<!-- end of toy -->\nb\n")
    assert main([str(file), "--seed", "1", "--docs", str(docs)]) == 0
    assert [(tmp_path / "out" / f"seed-{seed}" / "ran").exists() for seed in (0, 1, 2)] == [
        False,
        True,
        False,
    ]
    page = (docs / "experiments.md").read_text()
    assert page.startswith("a\n<!-- results toy -->\n\n| arm | MTR")
    assert page.endswith("|\n\n<!-- end of toy -->\nb\n")
    assert "old" not in page
    assert (docs / "experiments" / "toy.svg").exists()
    assert main([str(file), "--seed", "5"]) == 2
    assert main([str(file), "--dry-run", "--seed", "2"]) == 0
    assert f"{tmp_path}/out/seed-2/ran" in capfd.readouterr().out


def test_a_command_that_fails_ends_the_experiment(tmp_path, capfd):
    file = tmp_path / "toy.yaml"
    values = raw(
        tmp_path / "out", commands=["python -c 'raise SystemExit(3)'", "python -c 'print(77)'"]
    )
    file.write_text(json.dumps(values))
    assert main([str(file)]) == 1
    said = capfd.readouterr()
    assert "ended with exit code 3" in said.err
    assert "\n77\n" not in said.out


def test_a_page_without_the_place_is_refused():
    with pytest.raises(ConfigError, match="no place"):
        placed("text", "toy", "table")


def test_programs_are_this_python(toy):
    assert toy.arguments(2) == [[sys.executable, "-c", "print(2)"]]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_commands_and_arms_of_the_experiments_are_right(path, tmp_path, monkeypatch, capsys):
    experiment = read_experiment(path)
    assert len(experiment.seeds) == 3
    monkeypatch.chdir(ROOT)
    (tmp_path / "unet").mkdir()
    for command in experiment.arguments(1):
        words = command[1:]
        if words[:2] != ["-m", "pipelines"]:
            continue
        if "--model.pretrained" in words:
            words[words.index("--model.pretrained") + 1] = str(tmp_path)
        assert _main([*words[2:], "--dry-run"]) == 0, capsys.readouterr().err
    known = {name for file in CONFIGS.glob("*_arms.yaml") for name in read_sweep_file(file).arms}
    for source in experiment.sources:
        assert set(source.arms) - {REAL} <= known


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_page_shows_the_numbers_of_the_committed_results(path):
    experiment = read_experiment(path)
    page = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    file = ROOT / "docs" / "experiments" / f"{path.stem}.json"
    if not file.exists():
        assert placed(page, path.stem, "Not run.") == page
        return
    results = read_results(file)
    assert placed(page, path.stem, table(results, experiment.columns)) == page
