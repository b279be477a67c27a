import pytest

from cil.errors import ConfigError
from pipelines.config import RunConfig, load_config
from pipelines.sweep.sweep_file import read_sweep_file, with_overrides


def refused(path):
    with pytest.raises(ConfigError) as caught:
        read_sweep_file(path)
    return str(caught.value)


def test_the_base_is_read_from_the_folder_of_the_file(write_sweep, tmp_path, monkeypatch):
    path = write_sweep({"a": {}})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    file = read_sweep_file(path)
    assert file.base == load_config(tmp_path / "base.yaml")
    assert (file.name, file.seeds, file.allow_different) == ("compare", None, False)


def test_the_base_may_stand_in_the_file(write_sweep):
    file = read_sweep_file(write_sweep({"a": {}}, base={"train.num_steps": 7, "seed": 3}))
    assert (file.base.train.num_steps, file.base.seed) == (7, 3)


def test_common_settings_change_the_base(write_sweep):
    file = read_sweep_file(write_sweep({"a": {}}, common={"train.num_steps": 9, "seed": 2}))
    assert (file.base.train.num_steps, file.base.train.global_batch_size) == (9, 4)
    assert file.base.seed == 2


def test_dotted_and_nested_overrides_are_the_same(write_sweep):
    file = read_sweep_file(
        write_sweep(
            {
                "dotted": {"time_noise.preset": "constant", "time_noise.beta_m": 3.0},
                "nested": {"time_noise": {"preset": "constant", "beta_m": 3.0}},
                "both": {"time_noise.beta_m": 3.0, "time_noise": {"preset": "constant"}},
                "empty": None,
            }
        )
    )
    assert file.arms["dotted"] == file.arms["nested"] == file.arms["both"]
    assert list(file.arms) == ["dotted", "nested", "both", "empty"]
    assert file.arms["empty"] == {}


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ({"time_noise.preset": "none", "time_noise": {"preset": "cdm"}}, "stands twice"),
        ({"time_noise": 5, "time_noise.preset": "cdm"}, "stands beside a value of time_noise"),
        ("mild", "must be a mapping of settings, got 'mild'"),
        ({3: 4}, "the name of a setting must be text, got 3"),
    ],
)
def test_overrides_that_say_two_things_are_refused(write_sweep, arm, words):
    message = refused(write_sweep({"one": arm}))
    assert "arm one" in message
    assert words in message


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../up", "a b", "-x", "x.", ".hidden", "é", "a" * 65, 3, True]
)
def test_names_that_are_no_safe_folder_are_refused(write_sweep, name):
    assert "the name of an arm becomes a folder" in refused(write_sweep({name: {}}))


def test_names_that_differ_in_capitals_are_refused(write_sweep):
    assert "Mild and mild differ in capitals only" in refused(write_sweep({"Mild": {}, "mild": {}}))


@pytest.mark.parametrize("arms", [None, {}, [], "naive"])
def test_a_sweep_needs_arms(write_sweep, arms):
    assert "arms must map names to settings" in refused(write_sweep(arms))


@pytest.mark.parametrize("seeds", [[], [0, 0], [-1], [True], [0.5], "0", 3, [2**63], [None]])
def test_seeds_that_are_none_are_refused(write_sweep, seeds):
    assert "seeds must be a list of different whole numbers" in refused(
        write_sweep({"a": {}}, seeds=seeds)
    )


def test_unknown_keys_of_the_file_come_with_a_guess(write_sweep):
    assert "did you mean seeds?" in refused(write_sweep({"a": {}}, seed=[1]))
    assert "allow_different must be true or false, got 'yes!'" in refused(
        write_sweep({"a": {}}, allow_different="yes!")
    )


def test_mistakes_of_the_base_are_those_of_any_configuration(write_sweep, tmp_path):
    message = refused(write_sweep({"a": {}}, common={"train.num_step": 9}))
    assert "(base and common)" in message
    assert "train.num_step: unknown key; did you mean train.num_steps?" in message
    assert "cannot read the config file" in refused(write_sweep({"a": {}}, base="missing.yaml"))
    assert "base must be the path" in refused(write_sweep({"a": {}}, base=[1]))


def test_null_takes_a_setting_of_the_base_back():
    base = with_overrides(RunConfig(), {"time_noise": {"beta_m": 1.0}}, source="test")
    with pytest.raises(ConfigError, match=r"time_noise.beta_m has no meaning for preset 'none'"):
        with_overrides(base, {"time_noise": {"preset": "none"}}, source="test")
    overrides = {"time_noise": {"preset": "none", "beta_m": None}}
    assert with_overrides(base, overrides, source="test").time_noise.beta_m is None
