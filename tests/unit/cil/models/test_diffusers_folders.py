"""Folders of the networks of diffusers: sharded, half precision, into a network without memory."""

import pytest
import torch
from diffusers import I2VGenXLUNet, UNetSpatioTemporalConditionModel

from cil.errors import DataError
from cil.models.checkpoint_files import read_checkpoint
from cil.models.strict_loading import load_strict, looks_like

WIDTHS = {"block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 16}
NETWORKS = {
    "Stable Video Diffusion": (
        UNetSpatioTemporalConditionModel,
        {
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            "num_attention_heads": (2, 4),
            "projection_class_embeddings_input_dim": 96,
            "addition_time_embed_dim": 32,
            **WIDTHS,
        },
    ),
    "I2VGen-XL": (
        I2VGenXLUNet,
        {
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
            "num_attention_heads": 16,
            **WIDTHS,
        },
    ),
}


@pytest.mark.parametrize("family", list(NETWORKS))
def test_a_sharded_folder(tmp_path, family):
    kind, settings = NETWORKS[family]
    saved = kind(**settings).half()
    saved.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    state = read_checkpoint(tmp_path)
    assert looks_like(list(state)) == f"{family} UNet of diffusers"
    with torch.device("meta"):
        network = kind(**kind.load_config(tmp_path))
    load_strict(network, state, source=tmp_path)
    wanted = saved.state_dict()
    for name, value in network.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, wanted[name].float()), name


def test_a_folder_of_the_other_family(tmp_path):
    kind, settings = NETWORKS["I2VGen-XL"]
    kind(**settings).save_pretrained(tmp_path)
    other, settings = NETWORKS["Stable Video Diffusion"]
    with torch.device("meta"):
        network = other(**settings)
    state = read_checkpoint(tmp_path)
    with pytest.raises(DataError, match=r"names are those of: I2VGen-XL UNet.*\d+ missing \("):
        load_strict(network, state, source=tmp_path)
