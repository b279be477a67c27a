import types

import pytest

from cil.errors import ConfigError
from cil.models import load
from pipelines.evaluate.arms import check_model, parse_arms, sweep_arms
from pipelines.evaluate.clip_set import EvaluationSet
from pipelines.evaluate.worker import _open_model

CLIPS = EvaluationSet(
    clips=("a",), seeds=(0,), bucket="32x32x4", fps=3.0, reference="source", chosen_from={}
)


@pytest.fixture(scope="module")
def svd_folder(toy_svd, tmp_path_factory):
    """A model folder of Stable Video Diffusion at toy size, made for 7 frames per second."""
    folder = tmp_path_factory.mktemp("svd") / "model"
    load("svd", toy_svd, num_frames=4, height=32, width=32, downsampling=2, fps=7.0).save(folder)
    return folder


def test_a_published_family_is_told_what_the_clips_are(svd_folder, held_out_config):
    import torch

    (arm,) = parse_arms([f"svd={svd_folder}"], held_out_config)
    with pytest.raises(ConfigError, match="fps 7 where the clips have 3"):
        check_model(arm, CLIPS)
    check_model(arm, CLIPS, as_clips=True)
    assert _open_model(svd_folder, CLIPS, torch.device("cpu")).config.fps == 3
    assert _open_model(svd_folder, None, torch.device("cpu")).config.fps == 7


def test_a_tiny_model_of_another_size_is_always_refused(model_folder, held_out_config):
    (arm,) = parse_arms([f"tiny={model_folder}"], held_out_config)
    with pytest.raises(ConfigError, match="num_frames 8 where the clips have 4"):
        check_model(arm, CLIPS, as_clips=True)


def sweep_of(folder, names, seeds=(0,), *, shares_data=True):
    """A sweep as far as its arms are asked for."""
    arms = []
    for name in names:
        runs = [
            types.SimpleNamespace(
                seed=seed,
                folder=folder / name / f"seed-{seed}",
                label=f"{name}, seed {seed}",
                shares_data=shares_data,
                config=None,
            )
            for seed in seeds
        ]
        arms.append(types.SimpleNamespace(name=name, runs=runs))
    return types.SimpleNamespace(arms=arms, file="sweep.yaml")


@pytest.fixture
def trained(monkeypatch):
    """Let every training with a model count as finished."""
    from pipelines.sweep import results

    monkeypatch.setattr(results, "finished_training", lambda config: "a report")


def leave_model(folder):
    (folder / "register" / "model").mkdir(parents=True)
    (folder / "register" / "model" / "model.json").write_text("{}")


def test_finished_trainings_of_a_sweep_are_arms(tmp_path, trained):
    leave_model(tmp_path / "naive" / "seed-0")
    arms, missing = sweep_arms(sweep_of(tmp_path, ["naive", "timenoise"]))
    assert [arm.name for arm in arms] == ["naive"]
    assert missing == ["timenoise, seed 0"]
    leave_model(tmp_path / "naive" / "seed-1")
    arms, _ = sweep_arms(sweep_of(tmp_path, ["naive"], (0, 1)))
    assert [arm.name for arm in arms] == ["naive/seed-0", "naive/seed-1"]


def test_a_sweep_without_a_finished_arm_or_with_other_data_is_refused(tmp_path, trained):
    with pytest.raises(ConfigError, match=r"no arm of sweep\.yaml is finished"):
        sweep_arms(sweep_of(tmp_path, ["naive"]))
    leave_model(tmp_path / "naive" / "seed-0")
    with pytest.raises(ConfigError, match="has a data set of its own"):
        sweep_arms(sweep_of(tmp_path, ["naive"], shares_data=False))


def test_a_model_of_another_training_is_not_the_arms(tmp_path, monkeypatch):
    from pipelines.sweep import results

    monkeypatch.setattr(results, "finished_training", lambda config: None)
    leave_model(tmp_path / "naive" / "seed-0")
    with pytest.raises(ConfigError, match="is finished"):
        sweep_arms(sweep_of(tmp_path, ["naive"]))
