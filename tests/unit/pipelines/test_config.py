import dataclasses
import hashlib
import json

import pytest
import yaml

from cil.errors import ConfigError
from pipelines.command_settings import overridden
from pipelines.config import (
    RunConfig,
    config_to_yaml,
    content_hash,
    environment,
    load_config,
    redact_uri,
    validate_config,
)
from pipelines.settings import TrackingConfig


@pytest.fixture
def mistakes(tmp_path):
    """Write a YAML file and return the lines of the error that reading it gives."""

    def read(text):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        return str(caught.value).replace(str(path), "FILE").splitlines()

    return read


def leaves(config, prefix=""):
    """Every setting as (dotted path, value)."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", value


def test_defaults_are_valid_and_need_no_file(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_config(None) == load_config(tmp_path / "empty.yaml") == RunConfig()
    assert validate_config({}, source="test") == RunConfig()


def test_every_mistake_is_reported_at_once_with_its_path(mistakes):
    found = mistakes(
        """
        seed: -1
        data: {fps: fast, num_frames: 0, hieght: 32}
        trian: {num_steps: 3}
        train: {learning_rate: -1, zero_stage: 4, betas: [1, 2]}
        model: {block_out_channels: [32, wide, 64]}
        num_steps: 7
        """
    )
    assert found[0] == "FILE has 10 mistakes:"
    assert sorted(line.split(":")[0].strip() for line in found[1:]) == [
        "data.fps",
        "data.hieght",
        "data.num_frames",
        "model.block_out_channels.1",
        "num_steps",
        "seed",
        "train.betas",
        "train.learning_rate",
        "train.zero_stage",
        "trian",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("data: {fps: fast}", "data.fps: must be a valid number, unable to parse string"),
        ("data: {num_frames: 0}", "data.num_frames: must be greater than or equal to 1, got 0"),
        ("data: {num_frames: 2.5}", "data.num_frames: must be an integer, got a number with a"),
        ("data: {videos: 5}", "data.videos: must be a valid string, got 5"),
        ("data: {videos: [a, b]}", "data.videos: must be a valid string, got ['a', 'b']"),
        ("data: 5", "data: must be a dictionary"),
        ("data:", "data: must be a dictionary"),
        ("seed: 9223372036854775808", "seed: must be less than 9223372036854775808"),
        ("train: {precision: fp8}", "train.precision: must be 'fp32', 'bf16' or 'fp16', got 'fp8'"),
        ("model: {block_out_channels: 32}", "model.block_out_channels: must be a valid tuple"),
        ("sample: {start_time: 0}", "sample.start_time: must be greater than 0, got 0"),
        ("sample: {start_time: 1.01}", "sample.start_time: must be less than or equal to 1"),
        ("train: {ema_decay: 1}", "train.ema_decay: must be less than 1, got 1"),
        ("output: {dir: null}", "output.dir: must be a valid string, got None"),
        ("time_noise: {preset: wild}", "time_noise.preset: must be 'none', 'mild', 'constant'"),
    ],
)
def test_a_wrong_value_says_what_it_must_be_and_what_it_is(mistakes, text, line):
    found = mistakes(text)
    assert found[0] == "FILE has 1 mistake:"
    assert found[1].startswith(f"  {line}")
    assert len(found) == 2


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
@pytest.mark.parametrize("path", ["data.fps", "model.p_mean", "train.learning_rate"])
def test_numbers_must_be_finite(mistakes, path, value):
    """A hash of the settings cannot be made of anything else."""
    section, name = path.split(".")
    (line,) = mistakes(f"{section}: {{{name}: {value}}}")[1:]
    assert line.startswith(f"  {path}: must be ")


@pytest.mark.parametrize("value", ["true", "yes", "off"])
def test_yes_is_no_number(mistakes, value):
    found = mistakes(f"seed: {value}\ndata: {{num_frames: {value}, fps: {value}}}")
    assert found[0] == "FILE has 3 mistakes:"
    shown = str(value != "off")
    assert found[1:] == [
        f"  {path}: must not be true or false, got {shown}"
        for path in ("seed", "data.num_frames", "data.fps")
    ]


def test_numbers_may_be_written_as_people_do(tmp_path):
    """YAML takes 1e-3 for a text, and whole numbers may have a point."""
    path = tmp_path / "run.yaml"
    path.write_text("seed: 3.0\ntrain: {learning_rate: 1e-3}\ndata: {fps: '12', num_frames: 4}")
    config = load_config(path)
    assert (config.seed, config.train.learning_rate) == (3, 0.001)
    assert isinstance(config.seed, int)
    assert isinstance(config.data.fps, float)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("data: {vidoes: x}", "data.vidoes: unknown key; did you mean data.videos?"),
        ("dta: {}", "dta: unknown key; did you mean data?"),
        ("train: {batch_size: 8}", "did you mean train."),
        ("num_workers: 2", "num_workers: unknown key; did you mean encode.num_workers?"),
        ("data: {num_steps: 5}", "data.num_steps: unknown key; did you mean data.num_frames?"),
        ("time_noise: {beta: 5}", "time_noise.beta: unknown key; did you mean time_noise.beta_m?"),
        ("train.num_steps: 5", "train.num_steps: unknown key; write train: {num_steps: ...}"),
        (
            "zzz: 1",
            "zzz: unknown key; known here: seed, data, decode, select, condition, first_stage",
        ),
    ],
)
def test_an_unknown_key_comes_with_a_guess(mistakes, text, hint):
    (line,) = mistakes(text)[1:]
    assert hint in line


@pytest.mark.parametrize("text", ["1: 2", "null: 2", "data: {1: 2}", "? [a, b]\n: 1"])
def test_keys_that_are_no_names_are_mistakes(mistakes, text):
    assert mistakes(text)


def test_settings_that_do_not_fit_each_other_are_counted_one_by_one(mistakes):
    found = mistakes(
        """
        data: {height: 30, width: 34}
        first_stage: {patch_size: 4, latent_channels: 49}
        model: {block_out_channels: [32, 64, 64], sigma_min: 2, sigma_max: 1}
        train: {num_workers: 3, micro_batch_size: 2}
        """
    )
    assert found == [
        "FILE has 6 mistakes:",
        "  data.height must be a multiple of first_stage.patch_size = 4, got 30",
        "  data.width must be a multiple of first_stage.patch_size = 4, got 34",
        "  first_stage.latent_channels must be < 3 * patch_size^2 = 48, got 49",
        "  model.num_attention_heads must have one number per level of model.block_out_channels, "
        "got 2 and 3",
        "  model.sigma_max must be > sigma_min = 2.0, got 1.0",
        "  train.global_batch_size must be a multiple of train.num_workers = 3 * "
        "micro_batch_size = 2, got 8",
    ]


def test_a_noise_setting_without_meaning_is_a_mistake(mistakes):
    (line,) = mistakes("time_noise: {preset: none, beta_m: 5}")[1:]
    assert line.startswith("  time_noise: time_noise.beta_m has no meaning for preset 'none'")
    assert "{" not in line  # it says what was given; the whole section adds nothing


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1, 2]", "must hold a mapping of sections, got list"),
        (b"just text", "must hold a mapping of sections, got str"),
        (b"data: [1\nseed: 2", "is not valid YAML: while parsing a flow sequence"),
        (b"seed: 1\n\tdata: 2", "is not valid YAML"),
        (b"--- 1\n--- 2", "is not valid YAML"),
        (b"\xff\xfe", "cannot read the config file"),
        (b"seed: !!python/object/apply:os.getcwd []", "is not valid YAML"),
        (b"data: {fps: 8}\ndata: {num_frames: 4}", "the key 'data' stands twice"),
        (b"data: {fps: 8, fps: 9}", "the key 'fps' stands twice"),
        (b"[" * 5000, "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_anchors_and_merges_still_work(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data: &base {fps: 4}\nsample: {<<: {num_steps: 3}, num_steps: 5}\n")
    config = load_config(path)
    assert (config.data.fps, config.sample.num_steps) == (4.0, 5)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read_is_a_config_error(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot read the config file"):
        load_config(tmp_path / name)


def test_the_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().data.fps = 3.0


# -- dump and hash ----------------------------------------------------------------------------


CHANGED = {
    "seed": 7,
    "data": {"videos": "caf\u00e9/\u52d5\u753b", "fps": 12.5, "buckets": ["32x64x8", "64x32x16"]},
    "decode": {"backend": "pyav", "stall_s": 2.5},
    "select": {"shot_threshold": None, "max_clips_per_video": 3, "clip_sampling": "spread"},
    "condition": {"text_encoder": "models/t5", "text_length": 77},
    "output": {"dataset": "s3://bucket/clips"},
    "model": {"block_out_channels": [32, 64, 96], "num_attention_heads": [1, 2, 3]},
    "time_noise": {"preset": "paper-svd", "beta_m": 3.0},
    "train": {"learning_rate": 1e-9, "micro_batch_size": 2, "use_gpu": True},
    "cluster": {"address": "ray://head:10001"},
}


@pytest.mark.parametrize("raw", [{}, CHANGED])
def test_the_dump_loads_back_to_the_same(tmp_path, raw):
    config = validate_config(raw, source="test")
    path = tmp_path / "saved.yaml"
    path.write_text(config_to_yaml(config), encoding="utf-8")
    assert load_config(path) == config
    assert "!!" not in path.read_text(encoding="utf-8")


def test_the_dump_holds_every_setting():
    dumped = yaml.safe_load(config_to_yaml(RunConfig()))
    for path, value in leaves(RunConfig()):
        found = dumped
        for part in path.split("."):
            found = found[part]
        assert found == (list(value) if isinstance(value, tuple) else value), path


SECRETS = {
    "postgresql://user:s3cret@host:5432/db": "postgresql://user:***@host:5432/db",
    "postgresql+psycopg2://user:s3cret@host/db": "postgresql+psycopg2://user:***@host/db",
    "https://s3cret@host/path": "https://***@host/path",
    "https://user:s3@cret@host": "https://user:***@host",
    "https://user:s3/cret@host": "https://user:***@host",
    "https://user:s3:cret@host": "https://user:***@host",
    "https://user:@host": "https://user:***@host",
    "mysql://host/db?user=me&password=s3cret": "mysql://host/db?user=me&password=***",
    "https://host/?access_token=s3cret&x=1": "https://host/?access_token=***&x=1",
    "cannot reach https://u:s3cret@host: timed out": "cannot reach https://u:***@host: timed out",
    "'https://u:s3cret@host' and 'https://v:s3cret@host'": (
        "'https://u:***@host' and 'https://v:***@host'"
    ),
}


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_in_uris_are_hidden(text):
    assert redact_uri(text) == SECRETS[text]
    assert "cret" not in redact_uri(text)
    assert redact_uri(redact_uri(text)) == redact_uri(text)


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////data/mlflow.db",
        "sqlite:////home/me@work/runs:2/mlflow.db",
        "file:///home/me@work/x",
        "http://127.0.0.1:5000",
        "models:/tiny-i2v@challenger",
        "C:/videos",
        "me@example.org wrote",
        "",
    ],
)
def test_what_is_no_secret_is_shown(text):
    assert redact_uri(text) == text


def test_the_dump_hides_secrets():
    config = RunConfig(tracking=TrackingConfig(uri="postgresql://user:s3cret@host/db"))
    assert "uri: postgresql://user:***@host/db" in config_to_yaml(config)
    assert config.tracking.uri.count("s3cret") == 1


def test_a_mistake_beside_a_secret_hides_it(mistakes):
    found = mistakes("tracking: {uri: ['https://user:s3cret@host']}")
    assert "https://user:***@host" in found[1]


def test_the_hash_is_the_sha256_of_canonical_json():
    value = {"b": [1, 2.5, None, True], "a": "\u00e9"}
    text = '{"a":"\\u00e9","b":[1,2.5,null,true]}'
    assert content_hash(value) == hashlib.sha256(text.encode()).hexdigest()
    assert content_hash({"a": "\u00e9", "b": (1, 2.5, None, True)}) == content_hash(value)


def test_the_hash_changes_with_every_setting():
    """One changed leaf, whatever it is, must give another hash."""
    base = json.loads(json.dumps(dataclasses.asdict(RunConfig())))
    hashes = {content_hash(base)}
    paths = [path for path, _ in leaves(RunConfig())]
    for path in paths:
        changed = json.loads(json.dumps(base))
        *sections, name = path.split(".")
        owner = changed
        for section in sections:
            owner = owner[section]
        owner[name] = [owner[name]]
        hashes.add(content_hash(changed))
    assert len(hashes) == len(paths) + 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": "1"}),
        ({"a": 1}, {"a": True}),
        ({"a": 1}, {"a": 1.0}),
        ({"a": None}, {}),
        ({"a": [1, 2]}, {"a": [2, 1]}),
        ({"a": [[1], 2]}, {"a": [1, [2]]}),
        ({"a": "b"}, {"b": "a"}),
    ],
)
def test_different_data_has_different_hashes(one, other):
    assert content_hash(one) != content_hash(other)


def test_a_hash_of_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        content_hash({"loss": float("nan")})


def test_file_and_command_line_give_the_same_hash(tmp_path):
    """8 in a file is an integer and 8.0 on the command line is not: both are 8 Hz."""
    (tmp_path / "run.yaml").write_text("data: {fps: 8}")
    from_file = dataclasses.asdict(load_config(tmp_path / "run.yaml"))
    from_line = dataclasses.asdict(validate_config({"data": {"fps": 8.0}}, source="test"))
    assert content_hash(from_file) == content_hash(from_line)


def test_an_empty_environment_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("CIL_TEST_VARIABLE", "")
    assert environment("CIL_TEST_VARIABLE") is None
    monkeypatch.setenv("CIL_TEST_VARIABLE", "x")
    assert environment("CIL_TEST_VARIABLE") == "x"
    monkeypatch.delenv("CIL_TEST_VARIABLE")
    assert environment("CIL_TEST_VARIABLE") is None


@pytest.mark.parametrize(
    "name",
    ["", " ", "a/b", "o'brien", ":", "a:b", "a@b", "-a", ".", "a b", "\u00fc", "a\n", "a" * 201],
)
def test_a_name_that_no_registry_takes_is_a_mistake(mistakes, name):
    (line,) = mistakes(f"tracking: {json.dumps({'model_name': name})}")[1:]
    assert line.startswith("  tracking.model_name must be letters (a-z, A-Z), digits, dots, dashes")
    with pytest.raises(ConfigError, match=r"tracking\.model_name must be letters"):
        overridden("train", RunConfig(), [f"--tracking.model-name={name}"])


@pytest.mark.parametrize("name", ["tiny-i2v", "A", "7", "svd_1024.v2-", "a" * 200])
def test_a_usual_name_of_a_model_is_none(name):
    assert validate_config({"tracking": {"model_name": name}}, source="test").tracking


@pytest.mark.parametrize("name", ["", " ", "a" * 251])
def test_an_experiment_has_a_name(mistakes, name):
    (line,) = mistakes(f"tracking: {json.dumps({'experiment': name})}")[1:]
    assert line.startswith("  tracking.experiment must have 1 to 250 signs, got ")
