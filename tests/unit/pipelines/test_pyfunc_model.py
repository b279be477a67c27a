import types

import numpy as np
import pytest
import torch

from cil.analytic_init import AnalyticInit
from cil.errors import ConfigError, DataError
from cil.generate import generate
from cil.models import load

IMAGE = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)


@pytest.fixture(scope="module")
def served(model_folder):
    """The served class with the model folder among its artifacts, as MLflow loads it."""
    from pipelines.pyfunc_model import ImageToVideo

    made = ImageToVideo()
    made.load_context(types.SimpleNamespace(artifacts={"model": str(model_folder)}))
    return made


def test_an_image_becomes_a_video(served):
    video = served.predict(None, IMAGE)
    assert isinstance(video, np.ndarray)
    assert (video.shape, video.dtype) == ((8, 32, 32, 3), np.uint8)
    assert video.std() > 0


def test_it_is_what_sampling_with_the_folder_gives(served, model_folder):
    expected = generate(
        load("tiny", model_folder),
        IMAGE,
        seed=7,
        start_time=0.5,
        num_steps=3,
        analytic_init=AnalyticInit.load(model_folder / "analytic_init.safetensors"),
    )
    params = {"seed": 7, "start_time": 0.5, "num_steps": 3, "analytic_init": True}
    assert np.array_equal(served.predict(None, IMAGE, params), expected[0].numpy())


def test_the_seed_decides_and_its_default_is_zero(served):
    plain = served.predict(None, IMAGE)
    assert np.array_equal(served.predict(None, IMAGE, {"seed": 0}), plain)
    assert np.array_equal(served.predict(None, IMAGE, {}), plain)
    assert not np.array_equal(served.predict(None, IMAGE, {"seed": 1}), plain)


@pytest.mark.parametrize(
    "params", [{"start_time": 0.3}, {"num_steps": 5}, {"analytic_init": False}]
)
def test_each_parameter_counts(served, params):
    plain = served.predict(None, IMAGE)
    assert not np.array_equal(served.predict(None, IMAGE, params), plain)


def test_parameters_may_be_numpy_numbers(served):
    """MLflow casts the parameters to the types of the signature."""
    params = {"seed": np.int64(0), "num_steps": np.int64(2), "analytic_init": np.bool_(True)}
    assert np.array_equal(served.predict(None, IMAGE, params), served.predict(None, IMAGE))


def test_every_size_and_layout_of_image_is_taken(served):
    flipped = np.random.default_rng(0).integers(0, 255, (33, 200, 3), np.uint8)[::-1, ::2]
    assert not flipped.flags["C_CONTIGUOUS"]
    assert np.array_equal(served.predict(None, flipped), served.predict(None, flipped.copy()))
    assert served.predict(None, IMAGE[:1, :1]).shape == (8, 32, 32, 3)


@pytest.mark.parametrize(
    "image",
    [
        IMAGE[..., :1],
        IMAGE[..., 0],
        IMAGE.astype(np.float32),
        IMAGE[None],
        IMAGE[:0],
        np.dstack([IMAGE, IMAGE[..., :1]]),
    ],
)
def test_what_is_no_image_is_refused(served, image):
    with pytest.raises(DataError, match=r"\(H, W, 3\) uint8 RGB"):
        served.predict(None, image)


@pytest.mark.parametrize(
    "params", [{"start_time": 0.0}, {"start_time": 1.5}, {"num_steps": 0}, {"seed": 2**64}]
)
def test_settings_out_of_range_are_refused(served, params):
    with pytest.raises(ConfigError):
        served.predict(None, IMAGE, params)


def test_an_unknown_parameter_is_refused(served):
    with pytest.raises(ConfigError, match="no parameter foo; there are analytic_init, num_steps"):
        served.predict(None, IMAGE, {"seed": 1, "foo": 1})


def test_mlflow_leaves_unknown_parameters_out_before_they_are_seen():
    """What docs/serving.md says of a server; if this changes, the model refuses them there too."""
    from mlflow.models.utils import _enforce_params_schema
    from mlflow.types import ParamSchema, ParamSpec

    schema = ParamSchema([ParamSpec("seed", "long", 0)])
    assert _enforce_params_schema({"seed": 1, "foo": 1}, schema) == {"seed": 1}


def test_serving_leaves_the_global_generator_alone(served):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    served.predict(None, IMAGE)
    assert torch.equal(torch.get_rng_state(), before)
