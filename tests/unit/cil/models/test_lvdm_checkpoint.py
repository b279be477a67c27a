"""Checkpoints of DynamiCrafter: parts and back, and OpenCLIP's halves against a plain OpenCLIP."""

import dataclasses
import json

import pytest
import torch
from tokenizers import pre_tokenizers
from torch import nn

from cil.errors import DataError
from cil.models import load_first_stage
from cil.models.checkpoint_files import read_checkpoint, write_checkpoint
from cil.models.condition_encoders import ImageEncoder, TextEncoder
from cil.models.lvdm import LVDMConfig, LVDMUNet, Resampler
from cil.models.lvdm.checkpoint import averaged_unet, join_lvdm, split_lvdm
from cil.models.lvdm.open_clip import (
    text_from_open_clip,
    text_to_open_clip,
    vision_from_open_clip,
    vision_to_open_clip,
)
from cil.models.lvdm.open_clip_folders import (
    read_text_folder,
    read_vision_folder,
    write_text_folder,
    write_vision_folder,
)
from cil.models.lvdm.schedule_buffers import schedule_buffers
from cil.models.lvdm.vae import read_vae_folder, vae_from_ldm, vae_to_ldm, write_vae_folder
from cil.models.strict_loading import load_strict
from cil.noise_schedule import VPSchedule

HEADS, WORDS, LENGTH = 4, 519, 12


class Block(nn.Module):
    """OpenCLIP's residual block: torch's own attention, pre-norm, exact GELU."""

    def __init__(self, width, inner):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, HEADS)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, inner), "c_proj": nn.Linear(inner, width)}
        )

    def forward(self, x, mask=None):  # (L, B, D)
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        hidden = nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x)))
        return x + self.mlp["c_proj"](hidden)


class Blocks(nn.Module):
    def __init__(self, width, inner, layers):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, inner) for _ in range(layers))


class Vision(nn.Module):
    def __init__(self, *, width=40, out=24, size=224, patch=56, inner=72, layers=3):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((size // patch) ** 2 + 1, width))
        self.proj = nn.Parameter(torch.randn(width, out))
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Blocks(width, inner, layers)
        self.ln_post = nn.LayerNorm(width)

    def tokens(self, pixels):
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
        x = self.ln_pre(x + self.positional_embedding).transpose(0, 1)
        for block in self.transformer.resblocks:
            x = block(x)
        return x.transpose(0, 1)

    def pooled(self, pixels):
        return self.ln_post(self.tokens(pixels)[:, 0]) @ self.proj


class OpenCLIP(nn.Module):
    """The whole model; wrappers of the release delete one half of it."""

    def __init__(self, *, width=32, out=24, length=LENGTH, words=WORDS, inner=48, layers=4):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(length, width))
        self.text_projection = nn.Parameter(torch.randn(width, out))
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        self.visual = Vision(out=out)
        self.transformer = Blocks(width, inner, layers)
        self.token_embedding = nn.Embedding(words, width)
        self.ln_final = nn.LayerNorm(width)

    def text(self, ids, *, skip):
        """Encode as the release does: leave the last ``skip`` blocks out, then the final norm."""
        x = (self.token_embedding(ids) + self.positional_embedding).transpose(0, 1)
        mask = torch.full((LENGTH, LENGTH), -torch.inf).triu(1)
        blocks = self.transformer.resblocks
        for block in blocks[: len(blocks) - skip]:
            x = block(x, mask)
        return self.ln_final(x.transpose(0, 1))


def drawn(module, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for value in module.parameters():
            value.data = value.data + 0.2 * torch.randn(value.shape)
    return module.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def clip():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = OpenCLIP()
    return drawn(model, 2)


def half(clip, deleted):
    """Return what the wrapper's state dict has: all but one half."""
    state = clip.state_dict()
    return {f"model.{k}": v for k, v in state.items() if not k.startswith(f"{deleted}.")}


@pytest.fixture(scope="module")
def text(clip):
    return half(clip, "visual")


@pytest.fixture(scope="module")
def vision(clip):
    return half(clip, "transformer")


def same(found, wanted):
    assert sorted(found) == sorted(wanted)
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_text_is_that_of_open_clip(clip, text):
    network = text_from_open_clip(text, source="x", heads=HEADS)
    ids = torch.randint(0, WORDS, (3, LENGTH), generator=torch.Generator().manual_seed(5))
    found = network(ids, output_hidden_states=True)
    close(found.last_hidden_state, clip.text(ids, skip=0))
    close(network.final_layer_norm(found.hidden_states[-2]), clip.text(ids, skip=1))
    assert not torch.allclose(clip.text(ids, skip=1), clip.text(ids, skip=0), atol=0.1)
    assert (network.config.bos_token_id, network.config.eos_token_id) == (WORDS - 2, WORDS - 1)


def test_text_weights_are_not_copied(text):
    network = text_from_open_clip(text, source="x", heads=HEADS)
    fused = text["model.transformer.resblocks.2.attn.in_proj_weight"]
    attention = network.encoder.layers[2].self_attn
    parts = [attention.q_proj, attention.k_proj, attention.v_proj]
    step = fused.nbytes // 3
    assert [p.weight.data_ptr() - fused.data_ptr() for p in parts] == [0, step, 2 * step]


def test_vision_is_that_of_open_clip(clip, vision):
    network = vision_from_open_clip(vision, source="x", heads=HEADS)
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(5))
    found = network(pixels, output_hidden_states=True)
    close(found.hidden_states[-1], clip.visual.tokens(pixels))
    torch.testing.assert_close(found.image_embeds, clip.visual.pooled(pixels), rtol=1e-5, atol=1e-5)


def test_back_to_open_clip(text, vision):
    network = text_from_open_clip(text, source="x", heads=HEADS)
    rest = {n: v for n, v in text.items() if "projection" in n or "scale" in n}
    same(text_to_open_clip(network, rest), text)
    network = vision_from_open_clip(vision, source="x", heads=HEADS)
    rest = {n: v for n, v in vision.items() if "visual" not in n}
    same(vision_to_open_clip(network, rest), vision)


def test_vit_h_14_at_full_size():
    with torch.device("meta"):
        clip = OpenCLIP(width=1024, out=1024, length=77, words=49408, inner=4096, layers=24)
        clip.visual = Vision(width=1280, out=1024, patch=14, inner=5120, layers=32)
    assert sum(p.numel() for p in clip.parameters()) == 986_109_441  # as OpenCLIP publishes it
    text, vision = half(clip, "visual"), half(clip, "transformer")
    network = text_from_open_clip(text, source="x")
    assert network.num_parameters() == 352_984_064
    config = network.config
    assert (config.num_hidden_layers, config.num_attention_heads) == (24, 16)
    assert (config.vocab_size, config.max_position_embeddings) == (49408, 77)
    assert (config.bos_token_id, config.eos_token_id) == (49406, 49407)
    back = text_to_open_clip(network)
    rest = ("model.logit_scale", "model.text_projection")
    wanted = {n: v.shape for n, v in text.items() if n not in rest}
    assert wanted == {n: v.shape for n, v in back.items()}
    network = vision_from_open_clip(vision, source="x")
    assert network.num_parameters() == 632_076_800  # as in the folder of Stable Video Diffusion
    config = network.config
    assert (config.num_hidden_layers, config.num_attention_heads) == (32, 16)
    assert (config.image_size, config.patch_size, config.projection_dim) == (224, 14, 1024)
    back = vision_to_open_clip(network)
    wanted = {n: v.shape for n, v in vision.items() if ".visual." in n}
    assert wanted == {n: v.shape for n, v in back.items()}


def write_tokenizer(folder, *, more=()):
    """Write a byte-pair vocabulary that pads with its end mark, as CLIP's does."""
    folder.mkdir()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d</w>"), ("k", "i"), ("t", "e</w>"), ("ki", "te</w>")]
    words = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), *more]
    vocab = {w: i for i, w in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines))
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    settings = {"tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>", **marks}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return vocab


def test_text_folder(tmp_path, clip, text):
    vocab = write_tokenizer(tmp_path / "words")
    folder = tmp_path / "text"
    write_text_folder(text, folder, tokenizer=tmp_path / "words", source="x", heads=HEADS)
    same(read_text_folder(folder), text)
    found = TextEncoder.from_folder(folder, layer="penultimate").encode("red kite")
    # as open_clip.tokenize writes it: marks around the words, then zeros
    ids = [WORDS - 2, vocab["red</w>"], vocab["kite</w>"], WORDS - 1]
    ids = torch.tensor([ids + [0] * (LENGTH - len(ids))])
    close(found.tokens, clip.text(ids, skip=1)[0])


def test_text_folder_wants_the_tokenizer_of_its_vocabulary(tmp_path, text):
    write_tokenizer(tmp_path / "words", more=("more",))
    with pytest.raises(DataError, match=r"has 520 words .* give CLIP's tokenizer"):
        write_text_folder(
            text, tmp_path / "text", tokenizer=tmp_path / "words", source="x", heads=HEADS
        )
    assert not (tmp_path / "text").exists()


def test_vision_folder(tmp_path, clip, vision):
    write_vision_folder(vision, tmp_path, source="x", heads=HEADS)
    same(read_vision_folder(tmp_path), vision)
    frame = torch.full((224, 224, 3), 128, dtype=torch.uint8)
    found = ImageEncoder.from_folder(tmp_path, tokens="hidden").encode(frame)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    pixels = ((torch.full((3, 224, 224), 128 / 255) - mean) / std)[None]
    torch.testing.assert_close(found, clip.visual.tokens(pixels)[0], rtol=0, atol=5e-5)


def test_encoders_that_are_not_open_clip(text, vision):
    theirs = {"text_model.x": torch.ones(1)}
    with pytest.raises(DataError, match=r"1 tensors that .* \(text_model.x\).*of transformers"):
        text_from_open_clip(theirs, source="x")
    pooled = vision | {"model.visual.attn_pool.query": torch.ones(1)}
    with pytest.raises(DataError, match=r"1 tensors that .* \(model.visual.attn_pool.query\)"):
        vision_from_open_clip(pooled, source="x", heads=HEADS)
    with pytest.raises(DataError, match=r"lacks model.token_embedding.weight"):
        text_from_open_clip({"model.logit_scale": torch.ones(())}, source="x")
    with pytest.raises(DataError, match=r"lacks model.visual.conv1.weight"):
        vision_from_open_clip(
            {n: v for n, v in text.items() if ".transformer." not in n}, source="x"
        )
    with pytest.raises(DataError, match="40 wide, which 16 heads do not divide"):
        vision_from_open_clip(vision, source="x")
    less = {n: v for n, v in text.items() if n != "model.ln_final.bias"}
    with pytest.raises(DataError, match=r"1 missing \(final_layer_norm.bias\)"):
        text_from_open_clip(less, source="x", heads=HEADS)
    more = text | {"model.transformer.resblocks.0.ls_1.gamma": torch.ones(1)}
    with pytest.raises(DataError, match="1 unexpected"):
        text_from_open_clip(more, source="x", heads=HEADS)


CONFIG = LVDMConfig(
    model_channels=32,
    attention_resolutions=(2, 1),
    num_res_blocks=1,
    channel_mult=(1, 2),
    num_head_channels=16,
    context_dim=24,
    fs_condition=True,
)
VAE = dict(block_out_channels=(32, 64, 64), layers_per_block=2, latent_channels=4)


def first_stage():
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        **VAE,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )
    return vae_to_ldm(drawn(vae, 3))


@pytest.fixture(scope="module")
def whole(text, vision):
    """A checkpoint as the release writes it, in its order."""
    unet = drawn(LVDMUNet(CONFIG), 4).state_dict()
    projector = drawn(
        Resampler(
            dim=16, depth=1, dim_head=8, heads=2, num_queries=16, embedding_dim=40, output_dim=24
        ),
        5,
    ).state_dict()
    schedule = VPSchedule(zero_terminal_snr=True, base_scale=0.7)
    parts = {
        "": schedule_buffers(schedule, v_prediction=True),
        "model.diffusion_model.": unet,
        "first_stage_model.": first_stage(),
        "cond_stage_model.": text,
        "embedder.": vision,
        "image_proj_model.": projector,
    }
    return {prefix + n: v for prefix, part in parts.items() for n, v in part.items()}


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_a_checkpoint_goes_in_and_out(tmp_path, whole, suffix):
    path = tmp_path / f"model.{suffix}"
    write_checkpoint(path, whole)
    state = read_checkpoint(path)
    parts = split_lvdm(state, source=path)
    with torch.device("meta"):
        unet = LVDMUNet(CONFIG)
    load_strict(unet, parts.unet, source=path)
    with torch.no_grad():
        unet.out[2].bias += 1
    changed = parts.replace(
        unet=unet.state_dict(), first_stage=vae_to_ldm(vae_from_ldm(parts.first_stage, source="x"))
    )
    again = join_lvdm(changed)
    assert list(again) == list(state)
    if suffix == "ckpt":
        assert list(again) == list(whole)
    assert again["betas"].shape == (1000,)
    for name, value in whole.items():
        shift = 1 if name == "model.diffusion_model.out.2.bias" else 0
        assert torch.equal(again[name], value + shift), name
    write_checkpoint(path, again)
    same(read_checkpoint(path), again)


def test_parts_without_an_order_come_in_that_of_the_release(whole):
    parts = split_lvdm(whole, source="x")
    assert list(join_lvdm(parts.replace(order=()))) == list(whole)


def test_the_small_model_has_another_name_for_the_frame_stride(whole):
    renamed = {n.replace("fps_embedding", "framestride_embed"): v for n, v in whole.items()}
    assert renamed.keys() != whole.keys()
    parts = split_lvdm(renamed, source="x")
    assert parts.unet.keys() == LVDMUNet(CONFIG).state_dict().keys()
    assert list(join_lvdm(parts)) == list(renamed)


def test_averages(whole):
    prefix = "model.diffusion_model."
    names = {n.removeprefix(prefix): v for n, v in whole.items() if n.startswith(prefix)}
    averages = {
        f"model_ema.diffusion_model{n.replace('.', '')}": v + 1 for n, v in list(names.items())[5:]
    }
    counts = {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(7)}
    parts = split_lvdm(whole | counts | averages, source="x")
    found = averaged_unet(parts)
    assert list(found) == list(names)
    for number, (name, value) in enumerate(names.items()):
        assert torch.equal(found[name], value + (number >= 5)), name
    assert list(join_lvdm(parts)) == [*whole, *counts, *averages]
    with pytest.raises(DataError, match="holds no averages"):
        averaged_unet(split_lvdm(whole, source="x"))


def test_checkpoints_that_are_not_whole(whole):
    with pytest.raises(DataError, match=r"1 names belong to no part of it \(control_model.x\)"):
        split_lvdm(whole | {"control_model.x": torch.ones(1)}, source="x")
    unet = {"input_blocks.0.0.weight": torch.ones(1), "init_attn.0.norm.weight": torch.ones(1)}
    with pytest.raises(DataError, match=r"no tensor begins with model\..*LVDM .* UNet"):
        split_lvdm(unet, source="x")
    parts = split_lvdm(whole, source="x")
    schedule = {n: v for n, v in parts.schedule.items() if n != "betas"}
    changed = parts.replace(schedule=schedule | {"logvar": torch.ones(1)})
    with pytest.raises(DataError, match=r"1 missing \(betas\), 1 added \(logvar\)"):
        join_lvdm(changed)


def test_a_checkpoint_of_the_other_family(whole):
    parts = split_lvdm(whole, source="dynamicrafter.ckpt")
    with torch.device("meta"):
        other = LVDMUNet(dataclasses.replace(CONFIG, in_channels=4))
    with pytest.raises(DataError) as caught:
        load_strict(other, parts.unet, source="dynamicrafter.ckpt")
    assert "names are those of: LVDM (DynamiCrafter or VideoCrafter1) UNet" in str(caught.value)
    shapes = "input_blocks.0.0.weight (32, 8, 3, 3) in place of (32, 4, 3, 3)"
    assert f": 1 of another shape ({shapes}). Give" in str(caught.value)
    with pytest.raises(DataError, match=r"autoencoder in its original format\): \d+ missing"):
        load_strict(other, parts.first_stage, source="x")


def test_first_stage_folder(tmp_path, whole):
    part = split_lvdm(whole, source="x").first_stage
    write_vae_folder(part, tmp_path, source="x")
    found = load_first_stage(tmp_path)
    assert (found.scaling_factor, found.latent_channels, found.downsampling) == (0.18215, 4, 4)
    back = read_vae_folder(tmp_path)
    assert list(back) == list(part)
    same(back, part)
    with pytest.raises(DataError, match=r"1 are missing or too many \(encoder.conv_out.bias\)"):
        vae_from_ldm({n: v for n, v in part.items() if n != "encoder.conv_out.bias"}, source="x")
    with pytest.raises(DataError, match=r"lacks 'encoder.conv_in.weight'"):
        vae_from_ldm({"encoder.down_blocks.0": torch.ones(1)}, source="x")
