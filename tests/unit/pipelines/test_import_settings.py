"""`cil import --settings`: types and ranges, before any checkpoint is read."""

import pytest
import yaml

from cil.errors import ConfigError
from cil.models import config_class
from cil.models.lvdm.config import LVDMConfig
from pipelines.__main__ import _main
from pipelines.import_settings import typed_settings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model_channels": "abc"}, r"model_channels: must be a valid integer.*got 'abc'"),
        ({"height": "tall"}, r"height: must be a valid integer.*got 'tall'"),
        ({"channel_mult": 3}, r"channel_mult: must be a valid tuple, got 3"),
        ({"channel_mult": [1, "b"]}, r"channel_mult\[1\]: must be a valid integer.*got 'b'"),
        ({"attention_resolutions": 2}, r"attention_resolutions: must be a valid tuple, got 2"),
        ({"projector": 5}, r"projector: must be a mapping of settings, got 5"),
        ({"network": 3}, r"network: must be a mapping of settings, got 3"),
        ({"num_res_blocks": [2, 2]}, r"num_res_blocks: must be a valid integer, got \[2, 2\]"),
        ({"guidance_scale": "x"}, r"guidance_scale: must be a valid number.*got 'x'"),
        ({"guidance_scale": float("inf")}, r"guidance_scale: must be a finite number, got inf"),
        ({"network": {"dropout": None}}, r"network\.dropout: must be a valid number, got None"),
        ({"projector": {"depth": 0}}, r"projector\.depth: must be greater than or equal to 1"),
        ({"height": True}, r"height: must not be true or false, got True"),
        ({"use_image_attention": "no idea"}, r"use_image_attention: must be a valid boolean"),
        ({3: 4}, r"3: must be the name of a setting"),
    ],
)
def test_a_wrong_type_is_named_with_what_was_given(tmp_path, capsys, given, said):
    with pytest.raises(ConfigError, match=rf"--settings has 1 mistake:\n  {said}"):
        typed_settings("dynamicrafter", given, source="--settings")
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(given))
    words = ["import", "dynamicrafter", str(tmp_path / "none.ckpt"), "--settings", str(path)]
    assert _main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "--settings has 1 mistake" in capsys.readouterr().err


def test_all_mistakes_are_said_at_once():
    with pytest.raises(ConfigError, match=r"has 2 mistakes:\n  height: .*\n  width: "):
        typed_settings("videocrafter1", {"height": "a", "width": "b"}, source="--settings")


def test_what_fits_is_converted_and_unknown_names_are_left_to_the_class():
    given = {
        "height": 576,
        "fps": 10,
        "channel_mult": [1, 2],
        "use_image_attention": True,
        "projector": {"depth": 2, "video_length": None},
        "network": {"temporal_length": 8},
        "sizee": 3,
    }
    found = typed_settings("dynamicrafter", given, source="--settings")
    assert found == {**given, "channel_mult": (1, 2)}
    assert isinstance(found["fps"], float)
    with pytest.raises(ConfigError, match="unknown setting sizee"):
        config_class("dynamicrafter").of(found)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_head_channels": 0}, "num_head_channels must be >= 1, or -1 for the other, got 0"),
        ({"num_res_blocks": 0}, "num_res_blocks must be >= 1, got 0"),
        ({"channel_mult": (2, 4)}, r"channel_mult must begin with 1, .* = 320, got \[2, 4\]"),
        ({"channel_mult": ()}, r"channel_mult must begin with 1, .*got \[\]"),
        ({"channel_mult": (1, 0)}, r"every number of channel_mult must be >= 1, got \[1, 0\]"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_a_network_that_cannot_be_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        LVDMConfig(**given)


@pytest.mark.parametrize("family", ["dynamicrafter", "videocrafter1"])
def test_latents_must_divide_by_the_levels(family):
    settings = config_class(family)
    assert settings.of({"height": 576, "width": 1024}).latents_shape[-2:] == (72, 128)
    said = r"model.height 360 makes latents of 45 .* divide by 8 .* 4 levels .* multiple of 64"
    with pytest.raises(ConfigError, match=said):
        settings.of({"height": 360})
