import json
import subprocess
import sys

import pytest

from cil.errors import ConfigError, DataError, StageError
from pipelines.__main__ import _main, main
from pipelines.command_texts import COMMANDS, EXAMPLES
from pipelines.config import load_config, validate_config
from pipelines.report import RunReport

HEAVY = ("torch", "ray", "mlflow", "numpy", "pydantic", "tyro", "yaml", "rich", "deepspeed", "cil")


@pytest.fixture
def cil(capsys):
    """Run a command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        try:
            code = _main(list(arguments))
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def stages(monkeypatch):
    """Let the stages return or raise what a test wants; returns the calls."""
    from pipelines import stages

    calls = []

    def set_result(result):
        def run(command, config, *, debug=False):
            calls.append((command, config, debug))
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(stages, "run", run)
        return calls

    return set_result


def report(stage="encode", **changes):
    values = {
        "stage": stage,
        "reused": False,
        "inputs": {},
        "outputs": {"dataset": "build/x/dataset"},
        "metrics": {"clips": 12.0},
        "seconds": 1.5,
    }
    return RunReport(**{**values, **changes})


# -- help ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"], [], ["tarin"], ["--version"]])
def test_what_needs_no_command_imports_nothing_heavy(arguments):
    """That is what makes `cil --help` quick; a clock would only say how busy the machine is."""
    code = (
        "import sys\nfrom pipelines.__main__ import _main\n"
        f"code = _main({arguments!r})\n"
        f"print('loaded', sorted(set(sys.modules) & set({HEAVY!r})), len(sys.modules) < 400)\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "loaded [] True", done.stderr
    assert done.returncode == (2 if arguments in ([], ["tarin"]) else 0)


def test_help_names_every_command_and_an_example(cil):
    code, out, err = cil("--help")
    assert (code, err) == (0, "")
    for command, text in COMMANDS.items():
        assert f"  {command:<10}{text}" in out
    assert "cil run --config configs/demo.yaml" in out
    assert cil("help") == cil("-h") == (code, out, err)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_an_example_and_its_settings(cil, command):
    code, out, err = cil(command, "--help")
    assert (code, err) == (0, "")
    words = " ".join(out.split())
    example = EXAMPLES.get(command, "cil verify build/demo/run/dataset")
    assert " ".join(example.split()[:4]) in words
    assert f"cil {command}" in words
    settings = {
        "sample": "--start-time",
        "verify": "DATASET",
        "export": "--weights",
        "submit": "--submission-id",
        "import": "--tokenizer",
    }
    assert settings.get(command, "--train.learning-rate") in words


def test_no_command_shows_the_help_and_is_a_mistake(cil):
    code, out, _ = cil()
    assert code == 2
    assert out.startswith("cil: image-to-video models")


@pytest.mark.parametrize(
    ("command", "hint"),
    [("tarin", "did you mean train?"), ("zzz", "known: run, encode, train"), ("", "known: run")],
)
def test_an_unknown_command_comes_with_a_guess(cil, command, hint):
    code, out, err = cil(command)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: there is no command {command!r}; ")
    assert hint in err


# -- settings -----------------------------------------------------------------------------------


def test_dry_run_prints_a_configuration_that_loads_back(cil, tmp_path, stages):
    calls = stages([])
    (tmp_path / "run.yaml").write_text("data: {videos: clips, fps: 5}\ntrain: {num_steps: 9}")
    code, out, err = cil(
        "train",
        *("--config", str(tmp_path / "run.yaml"), "--dry-run"),
        *("--train.num-steps", "50", "--train.use-gpu", "--output.dir", str(tmp_path / "out")),
        *("--model.block-out-channels", "32", "64", "96"),
        *("--model.num-attention-heads", "1", "2", "3"),
        *("--train.micro-batch-size", "2", "--time-noise.preset", "paper-svd"),
    )
    assert (code, err) == (0, "")
    (tmp_path / "saved.yaml").write_text(out)
    assert load_config(tmp_path / "saved.yaml") == validate_config(
        {
            "data": {"videos": "clips", "fps": 5},
            "train": {"num_steps": 50, "use_gpu": True, "micro_batch_size": 2},
            "model": {"block_out_channels": (32, 64, 96), "num_attention_heads": (1, 2, 3)},
            "time_noise": {"preset": "paper-svd"},
            "output": {"dir": str(tmp_path / "out")},
        },
        source="test",
    )
    assert calls == []
    assert not (tmp_path / "out").exists()


def test_dry_run_hides_secrets(cil):
    code, out, err = cil("train", "--dry-run", "--tracking.uri", "postgresql://me:s3cret@host/db")
    assert code == 0
    assert "s3cret" not in out + err
    assert "uri: postgresql://me:***@host/db" in out


@pytest.mark.parametrize("style", ["--train.num-steps", "--train.num_steps"])
@pytest.mark.parametrize("joined", [True, False])
def test_overrides_may_be_written_in_each_usual_way(cil, style, joined):
    given = [f"{style}=7"] if joined else [style, "7"]
    code, out, _ = cil("train", *given, "--dry-run")
    assert code == 0
    assert "  num_steps: 7\n" in out


def test_an_override_wins_and_may_unset(cil, tmp_path):
    (tmp_path / "run.yaml").write_text("train: {micro_batch_size: 2}")
    config = ("--config", str(tmp_path / "run.yaml"), "--dry-run")
    assert "micro_batch_size: 2" in cil("train", *config)[1]
    assert "micro_batch_size: null" in cil("train", *config, "--train.micro-batch-size", "None")[1]


def test_an_override_can_mend_a_file_that_fits_no_more(cil, tmp_path):
    """Three workers do not divide a batch of 8; six clips they do."""
    (tmp_path / "run.yaml").write_text("train: {num_workers: 2}")
    config = ("--config", str(tmp_path / "run.yaml"), "--dry-run", "--train.num-workers", "3")
    assert cil("train", *config)[0] == 2
    code, out, _ = cil("train", *config, "--train.global-batch-size", "6")
    assert code == 0
    assert "num_workers: 3" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--train.numsteps", "3"], "--train.num-steps"),
        (["--num-steps", "3"], "--train.num-steps"),
        (["--data.fpss", "5"], "--data.fps"),
        (["--conf", "x.yaml"], "--conf"),
        (["extra"], "extra"),
        (["--data.fps", "fast"], "could not convert string to float: 'fast'"),
        (["--data.fps"], "Missing value for argument '--data.fps'"),
        (["--train.precision", "fp8"], "invalid choice 'fp8'"),
        (["--train.use-gpu", "True"], "True"),
        (["--dry-run=1"], "--dry-run"),
        (["--config"], "--config"),
        (["--time-noise.beta-m", "-5"], "beta_m must be > 0"),
    ],
)
def test_a_wrong_option_is_a_mistake_that_is_named(cil, stages, arguments, words):
    calls = stages([])
    code, out, err = cil("train", *arguments)
    assert (code, out, calls) == (2, "", [])
    assert words in " ".join(err.split())
    assert "Traceback" not in err


def test_all_mistakes_of_a_command_line_are_reported_at_once(cil, stages):
    calls = stages([])
    code, out, err = cil(
        *("train", "--train.num-workers", "3", "--train.num-steps", "0", "--data.fps", "-1")
    )
    assert (code, out, calls) == (2, "", [])
    assert err.splitlines() == [
        "error: the command line has 2 mistakes:",
        "  data.fps: must be greater than 0, got -1.0",
        "  train.num_steps: must be greater than or equal to 1, got 0",
    ]
    code, _, err = cil("train", "--train.num-workers", "3")
    assert code == 2
    assert "train.global_batch_size must be a multiple of train.num_workers = 3, got 8" in err


@pytest.mark.parametrize("content", ["[1, 2]", "data: {fps: 0}", "a: [", "zzz: 1"])
@pytest.mark.parametrize("command", ["run", "encode", "doctor"])
def test_a_wrong_file_is_one_message(cil, tmp_path, command, content):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    code, out, err = cil(command, "--config", str(path))
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {path}")
    assert "Traceback" not in err


# -- results and errors -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError("data.videos is not set"), 2, "error: data.videos is not set\n"),
        (DataError("shard is damaged"), 1, "error: shard is damaged\n"),
        (StageError("training failed"), 1, "error: training failed\n"),
        (ValueError("odd"), 1, "error: unexpected ValueError: odd\n"),
        (OSError(28, "No space left"), 1, "error: unexpected OSError: [Errno 28] No space left\n"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to go on\n"),
    ],
)
def test_an_error_is_one_message_and_a_code(cil, stages, error, code, words):
    stages(error)
    found, out, err = cil("encode", "--json")
    assert (found, out) == (code, "")
    assert err.startswith(words)
    assert "Traceback" not in err
    assert ("--debug" in err) == ("unexpected" in err)


@pytest.mark.parametrize("error", [ConfigError("wrong"), StageError("failed"), ValueError("odd")])
def test_debug_adds_the_traceback_and_changes_nothing_else(cil, stages, error):
    calls = stages(error)
    code, out, err = cil("train")
    debug_code, debug_out, debug_err = cil("train", "--debug")
    assert (debug_code, debug_out) == (code, out)
    assert debug_err.startswith("Traceback (most recent call last)")
    assert debug_err.endswith(err)
    assert [call[2] for call in calls] == [False, True]


@pytest.mark.parametrize("kind", [StageError, ConfigError, RuntimeError])
def test_an_error_never_shows_a_secret(cil, stages, kind):
    stages(kind("MLflow at https://me:s3cret@host:5000 failed: 500 for https://tok3n@host/api"))
    code, out, err = cil("train")
    assert code
    assert "s3cret" not in out + err
    assert "tok3n" not in out + err
    assert "https://me:***@host:5000" in err


def test_a_result_is_for_people_on_stderr_and_json_on_stdout(cil, stages):
    calls = stages([report(), report("train", reused=True, metrics={"loss": 0.25})])
    code, out, err = cil("run", "--train.num-steps", "7")
    assert (code, out) == (0, "")
    assert "encode (1.5 s)  clips 12" in err
    assert "    dataset: build/x/dataset" in err
    assert "train (was complete)  loss 0.25" in err
    code, out, err = cil("run", "--train.num-steps", "7", "--json")
    assert code == 0
    (line,) = out.splitlines()
    assert json.loads(line) == {
        "encode": report().to_json(),
        "train": report("train", reused=True, metrics={"loss": 0.25}).to_json(),
    }
    assert [call[0] for call in calls] == ["run", "run"]
    assert calls[0][1].train.num_steps == 7


def test_paths_with_brackets_are_shown_as_they_are(cil, stages):
    """Rich would take [red] for a colour and swallow it."""
    stages([report(outputs={"dataset": "[red]clips[/red]/x", "[bold]": "y"})])
    _, _, err = cil("encode")
    assert "    dataset: [red]clips[/red]/x" in err
    assert "    [bold]: y" in err


def test_wrong_places_exit_with_2_before_anything_starts(cil, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no video")
    before = sorted(path.name for path in tmp_path.iterdir())
    output = ("--output.dir", str(tmp_path / "out"))
    for videos, words in {
        "": "data.videos is not set",
        str(tmp_path / "missing"): "does not exist",
        str(tmp_path / "file"): "neither a video, a tar file nor a table by its suffix",
        str(tmp_path / "empty"): "has no video files (0 other files)",
        str(tmp_path / "texts"): "has no video files (1 other files, for example a.txt)",
    }.items():
        code, out, err = cil("encode", "--data.videos", videos, *output)
        assert (code, out) == (2, ""), videos
        assert words in err
        assert "Traceback" not in err
    # all of it at once
    code, _, err = cil("encode", "--data.videos", "", "--output.dir", str(tmp_path / "file" / "x"))
    assert code == 2
    assert "data.videos is not set" in err
    assert "output.dir: cannot write to" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", ["train", "estimate", "register"])
def test_a_stage_without_its_input_says_which_stage_to_run(cil, tmp_path, command):
    code, out, err = cil(command, "--output.dir", str(tmp_path / "out"))
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert "encode" in err or "train" in err
    assert "Traceback" not in err
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert left in ([], [".lock"])


def test_main_exits_with_the_code():
    with pytest.raises(SystemExit) as stop:
        main(["zzz"])
    assert stop.value.code == 2


# -- sweep --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [[], ["--only", "naive"], ["x.yaml", "--config", "configs/demo.yaml"]]
)
def test_a_sweep_takes_its_file_first(cil, arguments):
    code, out, err = cil("sweep", *arguments)
    assert (code, out) == (2, "")
    assert "give the sweep file first, without --config: cil sweep FILE" in err


@pytest.mark.parametrize(("failed", "code"), [(0.0, 0), (1.0, 1)])
def test_a_sweep_passes_its_options_on_and_fails_with_its_arms(
    cil, monkeypatch, tmp_path, failed, code
):
    from pipelines.sweep import command

    calls = []

    def run_sweep(sweep, options, *, debug):
        calls.append((sweep, options, debug))
        return report("sweep", metrics={"failed": failed})

    monkeypatch.setattr(command, "run_sweep", run_sweep)
    path = tmp_path / "two.yaml"
    path.write_text("base: {}\narms: {naive: {time_noise.preset: none}, base: {}}\n")
    options = ["--only", "naive", "--fail-fast", "--json", "--register"]
    found, out, _ = cil("sweep", str(path), *options, "--train.num-steps", "7")
    assert found == code
    assert json.loads(out.splitlines()[-1])["sweep"]["metrics"] == {"failed": failed}
    ((sweep, given, _),) = calls
    assert given == command.SweepOptions(only=("naive",), fail_fast=True, register=True)
    assert {run.config.train.num_steps for run in sweep.runs} == {7}


def test_a_sweep_shows_its_arms_without_running_them(cil, tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text("base: {}\narms: {naive: {time_noise.preset: none}, base: {}}\n")
    code, out, err = cil("sweep", str(path), "--dry-run", "--json")
    assert code == 0
    assert sorted(json.loads(out.splitlines()[-1])["sweep"]["outputs"]["arms"]) == ["base", "naive"]
    assert "time_noise.preset: mild -> none" in err
