"""A small evaluation without Ray: a run with held-out clips, two models, and the table of rows."""

import dataclasses
import shutil
from contextlib import ExitStack, nullcontext

import numpy as np
import pytest

from pipelines.evaluate import evaluation
from pipelines.evaluate.arms import parse_arms


def changed(config, **sections):
    """Return the configuration with some settings of some sections changed."""
    return dataclasses.replace(
        config,
        **{
            name: dataclasses.replace(getattr(config, name), **values)
            for name, values in sections.items()
        },
    )


@pytest.fixture(scope="session")
def change():
    """Changer of settings: configuration, section={setting: value} -> configuration."""
    return changed


@pytest.fixture(scope="session")
def held_out_config(encoded_run):
    """The encoded run with some videos held out, and a short evaluation."""
    return changed(
        encoded_run.config,
        validate={"held_out_fraction": 0.6},
        evaluate={"num_clips": 4, "clips_per_unit": 2, "num_steps": 2, "bootstrap_samples": 100},
    )


def map_rows_here(log):
    """Stand in for Ray Data: the same functions on the same rows, in this process."""

    def map_rows(rows, work, *, settings, **_):
        for row in rows:
            log.append(row)
            yield work(
                {name: np.array([value], dtype=object) for name, value in row.items()}, **settings
            )

    return map_rows


@pytest.fixture(scope="session")
def evaluate_here():
    """Evaluate in this process; rows that were worked on go to ``log``."""

    def evaluate(config, arms, folder, *, log=None, **named):
        with pytest.MonkeyPatch.context() as patch, ExitStack() as session:
            patch.setattr(evaluation, "map_rows", map_rows_here([] if log is None else log))
            patch.setattr(evaluation, "ray_session", lambda *_, **__: nullcontext())
            return evaluation.evaluate_arms(config, arms, folder=folder, session=session, **named)

    return evaluate


@pytest.fixture(scope="session")
def other_model(model_folder, tmp_path_factory):
    """The model with other weights in its network."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(model_folder, folder)
    (weights,) = (folder / "unet").glob("*.safetensors")
    save_file({name: 0.5 * value for name, value in load_file(weights).items()}, weights)
    return folder


@pytest.fixture(scope="session")
def two_arms(held_out_config, model_folder, other_model):
    """Both models as arms."""
    return parse_arms([f"base={model_folder}", f"tuned={other_model}"], held_out_config)


@pytest.fixture(scope="session")
def finished(held_out_config, two_arms, evaluate_here, tmp_path_factory):
    """An evaluation of both arms at two start times; tests must not change its folder."""
    folder = tmp_path_factory.mktemp("evaluation") / "evaluate"
    config = changed(held_out_config, evaluate={"seeds_per_clip": 2, "videos": "npz"})
    return evaluate_here(config, two_arms, folder, start_times=(1.0, 0.9), analytic_init=(True,))
