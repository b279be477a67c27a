import pytest
from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from diffusers.models.resnet import AlphaBlender, ResnetBlock2D, TemporalResnetBlock

from cil.models import build


@pytest.fixture(scope="module")
def model():
    return build("tiny")


def parameters_inside(network, kinds):
    return {
        f"{path}.{name}"
        for path, module in network.named_modules()
        if isinstance(module, kinds)
        for name, _ in module.named_parameters()
    }


def test_all_layers_that_mix_frames_are_temporal(model):
    kinds = (TemporalBasicTransformerBlock, TemporalResnetBlock, AlphaBlender)
    inside = parameters_inside(model.network, kinds)
    assert len(inside) > 100
    assert inside <= model.temporal_parameters()
    others = {name.split(".")[-3] for name in model.temporal_parameters() - inside}
    assert others == {"time_pos_embed"}


def test_no_layer_that_sees_one_frame_is_temporal(model):
    spatial = parameters_inside(model.network, (ResnetBlock2D, BasicTransformerBlock))
    assert len(spatial) > 50
    assert not spatial & model.temporal_parameters()
    names = {name for name, _ in model.network.named_parameters()}
    assert model.temporal_parameters() < names
    assert {
        "conv_in.weight",
        "time_embedding.linear_1.weight",
    } <= names - model.temporal_parameters()
