"""Image and text encoders, against diffusers and transformers called directly."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as svd
from diffusers.video_processor import VideoProcessor
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from cil.errors import ConfigError, DataError
from cil.models.antialiased_resize import antialiased_resize
from cil.models.condition_encoders import ImageEncoder, TextEncoder

LONG = "red kite " * 20
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}


def fresh(network, config):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = network(config).eval()
        for value in made.parameters():
            value.data += 0.05 * torch.randn(value.shape)
    return made.requires_grad_(requires_grad=False)


def vision():
    config = CLIPVisionConfig(
        **SMALL, num_attention_heads=4, image_size=224, patch_size=56, projection_dim=24
    )
    return fresh(CLIPVisionModelWithProjection, config)


def clip_text(network=CLIPTextModel):
    marks = {"bos_token_id": 517, "eos_token_id": 518, "pad_token_id": 518}
    config = CLIPTextConfig(
        **SMALL,
        **marks,
        num_attention_heads=4,
        vocab_size=519,
        max_position_embeddings=12,
        projection_dim=24,
    )
    return fresh(network, config)


def t5_text(network=T5EncoderModel, settings=T5Config):
    config = settings(
        vocab_size=20, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.1
    )
    return fresh(network, config)


def write_clip_tokenizer(folder):
    """Write a byte-pair vocabulary of all bytes and the words red and kite."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d</w>"), ("k", "i"), ("t", "e</w>"), ("ki", "te</w>")]
    words = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
    vocab = {w: i for i, w in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines))
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    settings = {"tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>", **marks}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_t5_tokenizer(folder):
    words = ["<pad>", "</s>", "<unk>", "red", "kite", "a"]
    rules = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    rules.pre_tokenizer = pre_tokenizers.Whitespace()
    rules.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=rules, **marks).save_pretrained(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Make one folder with a pipeline of image encoder and text encoder, and a T5 of its own."""
    root = tmp_path_factory.mktemp("pipeline")
    vision().save_pretrained(root / "image_encoder")
    CLIPImageProcessor().save_pretrained(root / "feature_extractor")
    clip_text().save_pretrained(root / "text_encoder")
    write_clip_tokenizer(root / "tokenizer")
    t5_text().save_pretrained(root / "t5")
    write_t5_tokenizer(root / "t5")
    return root


@pytest.fixture(scope="module")
def frame():
    generator = torch.Generator().manual_seed(8)
    return torch.randint(0, 256, (320, 512, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("rows", "columns"), [(320, 512), (576, 1024), (224, 224), (64, 96), (700, 225), (2, 3)]
)
def test_resize_is_that_of_diffusers(rows, columns):
    images = torch.rand(2, 3, rows, columns, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = svd._resize_with_antialiasing(images, (224, 224))
    torch.testing.assert_close(antialiased_resize(images, 224, 224), expected, rtol=0, atol=2e-6)


def test_resize_keeps_rows_and_columns_apart():
    images = torch.rand(1, 3, 300, 500, generator=torch.Generator().manual_seed(1))
    expected = svd._resize_with_antialiasing(images, (30, 200))
    torch.testing.assert_close(antialiased_resize(images, 30, 200), expected, rtol=0, atol=2e-6)
    with pytest.raises(DataError, match="at least 2 x 2 pixels"):
        antialiased_resize(images[..., :1], 30, 200)


def test_pooled_token_is_that_of_the_svd_pipeline(root, frame):
    pipeline = SimpleNamespace(
        image_encoder=vision(),
        video_processor=VideoProcessor(do_resize=True, vae_scale_factor=8),
        feature_extractor=CLIPImageProcessor(),
    )
    expected = StableVideoDiffusionPipeline._encode_image(
        pipeline, Image.fromarray(frame.numpy()), "cpu", 1, do_classifier_free_guidance=False
    )
    tokens = ImageEncoder.from_folder(root).encode(frame)
    assert tokens.shape == (1, 24)
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens, expected[0], rtol=0, atol=1e-5)
    assert float(expected.abs().max()) > 0.05


@pytest.mark.parametrize(("layer", "blocks"), [("last", 3), ("penultimate", 2)])
def test_hidden_tokens_are_neither_normed_nor_projected(root, frame, layer, blocks):
    network = vision().vision_model
    pixels = svd._resize_with_antialiasing(
        frame.permute(2, 0, 1)[None].float() / 127.5 - 1, (224, 224)
    )
    mean, std = torch.tensor(CLIPImageProcessor().image_mean), CLIPImageProcessor().image_std
    pixels = (pixels / 2 + 0.5 - mean[:, None, None]) / torch.tensor(std)[:, None, None]
    hidden = network.pre_layrnorm(network.embeddings(pixels))
    for block in network.encoder.layers[:blocks]:
        hidden = block(hidden, attention_mask=None)
        hidden = hidden if isinstance(hidden, torch.Tensor) else hidden[0]
    encoder = ImageEncoder.from_folder(root / "image_encoder", tokens="hidden", layer=layer)
    tokens = encoder.encode(frame.numpy())
    assert tokens.shape == (17, 32)
    torch.testing.assert_close(tokens, hidden[0], rtol=0, atol=2e-5)


def test_colours_are_normalised_as_the_folder_says(root, frame, tmp_path):
    folder = Path(shutil.copytree(root / "image_encoder", tmp_path / "image_encoder"))
    alone = ImageEncoder.from_folder(folder)
    assert alone.fingerprint() == ImageEncoder.from_folder(root).fingerprint()
    described = folder / "preprocessor_config.json"
    described.write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}))
    other = ImageEncoder.from_folder(folder)
    assert other.fingerprint() != alone.fingerprint()
    assert not torch.equal(other.encode(frame), alone.encode(frame))
    described.write_text(json.dumps({"image_mean": [0.5, "x", 0.5]}))
    with pytest.raises(DataError, match="as 3 numbers"):
        ImageEncoder.from_folder(folder)


def test_image_fingerprint_names_weights_and_settings(root, tmp_path):
    encoders = [
        ImageEncoder.from_folder(root),
        ImageEncoder.from_folder(root, tokens="hidden"),
        ImageEncoder.from_folder(root, tokens="hidden", layer="penultimate"),
    ]
    folder = Path(shutil.copytree(root / "image_encoder", tmp_path / "moved"))
    assert ImageEncoder.from_folder(folder).fingerprint() == encoders[0].fingerprint()
    half = ImageEncoder.from_folder(folder, dtype="bfloat16")
    assert half.fingerprint() == encoders[0].fingerprint()
    tensors = load_file(folder / "model.safetensors")
    tensors["visual_projection.weight"][0, 0] += 1e-3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    encoders.append(ImageEncoder.from_folder(folder))
    assert len({encoder.fingerprint() for encoder in encoders}) == 4


def test_bfloat16_tokens_are_near(root, frame):
    exact = ImageEncoder.from_folder(root).encode(frame)
    near = ImageEncoder.from_folder(root, dtype="bfloat16").encode(frame)
    assert near.dtype == torch.float32
    assert 1e-5 < float((near - exact).abs().max() / exact.abs().max()) < 0.05


def tokenized(folder, text, length):
    """Tokenise with truncation and padding done by hand."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer(text)["input_ids"]
    if len(ids) > length:
        ids = [*ids[: length - 1], ids[-1]]
    mask = [1] * len(ids) + [0] * (length - len(ids))
    padded = ids + [tokenizer.pad_token_id] * (length - len(ids))
    return torch.tensor([padded]), torch.tensor([mask])


@pytest.mark.parametrize("text", ["a red kite", "", LONG])
@pytest.mark.parametrize("projected", [False, True])
def test_clip_tokens_are_those_of_transformers(root, tmp_path, text, projected):
    folder, network = root, clip_text()
    if projected:
        folder = tmp_path
        network = clip_text(CLIPTextModelWithProjection)
        network.save_pretrained(folder)
        write_clip_tokenizer(folder)
    ids, _ = tokenized(root / "tokenizer", text, 12)
    expected = network(ids, output_hidden_states=True)
    encoded = TextEncoder.from_folder(folder).encode(text)
    assert encoded.tokens.shape == (12, 32)
    assert torch.equal(encoded.tokens, expected.last_hidden_state[0])
    skipped = TextEncoder.from_folder(folder, layer="penultimate").encode(text)
    norm = getattr(network, "text_model", network).final_layer_norm
    assert torch.equal(skipped.tokens, norm(expected.hidden_states[-2])[0])
    assert not torch.equal(skipped.tokens, encoded.tokens)


@pytest.mark.parametrize(
    ("network", "settings"), [(T5EncoderModel, T5Config), (UMT5EncoderModel, UMT5Config)]
)
def test_t5_tokens_are_those_of_transformers_and_zero_after_the_caption(
    tmp_path, network, settings
):
    t5_text(network, settings).save_pretrained(tmp_path)
    write_t5_tokenizer(tmp_path)
    encoder = TextEncoder.from_folder(tmp_path, max_length=9)
    ids, mask = tokenized(tmp_path, "a red kite", 9)
    assert int(mask.sum()) == 4
    expected = t5_text(network, settings)(ids, attention_mask=mask).last_hidden_state[0]
    encoded = encoder.encode("a red kite")
    assert encoded.num_tokens == 4
    assert torch.equal(encoded.tokens[:4], expected[:4])
    assert encoded.tokens.shape == (9, 32)
    assert not encoded.tokens[4:].any()
    # What is not looked at cannot matter: the caption alone has the same tokens.
    alone = t5_text(network, settings)(ids[:, :4]).last_hidden_state[0]
    torch.testing.assert_close(encoded.tokens[:4], alone, rtol=0, atol=1e-5)


def test_what_does_not_fit_is_counted(root):
    encoder = TextEncoder.from_folder(root)
    fits, cut = encoder.encode("red kite"), encoder.encode(LONG)
    assert (fits.num_tokens, fits.num_dropped) == (4, 0)
    assert (cut.num_tokens, cut.num_dropped) == (12, 42 - 12)
    exactly = encoder.encode("red " * 10)
    assert (exactly.num_tokens, exactly.num_dropped) == (12, 0)
    short = TextEncoder.from_folder(root, max_length=4)
    assert short.encode("red kite").num_dropped == 0
    assert short.encode("red red kite").num_dropped == 1
    assert short.encode("").tokens.shape == (4, 32)


def test_a_missing_caption_is_the_empty_one(root):
    encoder = TextEncoder.from_folder(root)
    missing, empty = encoder.encode(None), encoder.encode("")
    assert torch.equal(missing.tokens, empty.tokens)
    assert (missing.num_tokens, missing.num_dropped) == (2, 0)
    assert not torch.equal(empty.tokens, encoder.encode("red").tokens)


def test_captions_do_not_leave_traces(root):
    encoder = TextEncoder.from_folder(root)
    first, before = encoder.encode("red"), encoder.fingerprint()
    encoder.encode(LONG)
    assert torch.equal(encoder.encode("red").tokens, first.tokens)
    assert encoder.fingerprint() == before == TextEncoder.from_folder(root).fingerprint()


def test_text_fingerprint_names_weights_tokenizer_and_settings(root, tmp_path):
    encoders = [
        TextEncoder.from_folder(root),
        TextEncoder.from_folder(root, max_length=8),
        TextEncoder.from_folder(root, layer="penultimate"),
    ]
    for change in ("vocabulary", "weights"):
        folder = tmp_path / change
        shutil.copytree(root / "text_encoder", folder)
        write_clip_tokenizer(folder)
        assert TextEncoder.from_folder(folder).fingerprint() == encoders[0].fingerprint()
        if change == "vocabulary":
            words = json.loads((folder / "vocab.json").read_text())
            words["red</w>"], words["kite</w>"] = words["kite</w>"], words["red</w>"]
            (folder / "vocab.json").write_text(json.dumps(words))
        else:
            tensors = load_file(folder / "model.safetensors")
            tensors[max(tensors)].view(-1)[0] += 1e-3
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        encoders.append(TextEncoder.from_folder(folder))
    assert len({encoder.fingerprint() for encoder in encoders}) == 5


def test_a_tokenizer_saved_after_use_is_the_same(root, tmp_path):
    folder = Path(shutil.copytree(root / "t5", tmp_path / "t5"))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer("red", truncation=True, max_length=5, padding="max_length")
    tokenizer.save_pretrained(folder)
    assert json.loads((folder / "tokenizer.json").read_text())["truncation"]["max_length"] == 5
    used, fresh = (TextEncoder.from_folder(f, max_length=9) for f in (folder, root / "t5"))
    assert used.fingerprint() == fresh.fingerprint()
    assert torch.equal(used.encode("a red kite").tokens, fresh.encode("a red kite").tokens)
    assert used.encode("red " * 10).num_dropped == 2


def test_shards_are_read_and_must_lie_in_the_folder(root, tmp_path):
    folder = tmp_path / "sharded"
    t5_text().save_pretrained(folder, max_shard_size="8KB")
    write_t5_tokenizer(folder)
    index = folder / "model.safetensors.index.json"
    assert index.is_file()
    sharded = TextEncoder.from_folder(folder, max_length=9)
    whole = TextEncoder.from_folder(root / "t5", max_length=9)
    assert sharded.fingerprint() == whole.fingerprint()
    assert torch.equal(sharded.encode("red").tokens, whole.encode("red").tokens)
    values = json.loads(index.read_text())
    name = min(values["weight_map"])
    for bad in ("../t5/model.safetensors", "/etc/passwd", "model.bin", "gone.safetensors", 3):
        values["weight_map"][name] = bad
        index.write_text(json.dumps(values))
        with pytest.raises(DataError, match=r"index\.json names"):
            TextEncoder.from_folder(folder, max_length=9)


def test_folders_of_older_versions_are_read(root, tmp_path):
    # Before version 5 names had another prefix, and a table of positions was stored.
    for part, prefix, rows in (("image_encoder", "", 17), ("text_encoder", "text_model.", 12)):
        path = Path(shutil.copytree(root / part, tmp_path / part)) / "model.safetensors"
        tensors = {prefix + name: value for name, value in load_file(path).items()}
        table = prefix or "vision_model."
        tensors[f"{table}embeddings.position_ids"] = torch.arange(rows)[None]
        save_file(tensors, path)
    shutil.copytree(root / "tokenizer", tmp_path / "tokenizer")
    for encoder in (ImageEncoder, TextEncoder):
        old, new = (encoder.from_folder(folder).fingerprint() for folder in (tmp_path, root))
        assert old == new


def test_other_folders_are_refused(root, tmp_path):
    with pytest.raises(DataError, match="holds a 'CLIPTextModel'; this encoder reads CLIPVision"):
        ImageEncoder.from_folder(root / "text_encoder")
    with pytest.raises(DataError, match="holds a 'CLIPVisionModelWithProjection'"):
        TextEncoder.from_folder(root / "image_encoder")
    with pytest.raises(DataError, match=r"neither config.json nor image_encoder/config.json"):
        ImageEncoder.from_folder(tmp_path)
    with pytest.raises(DataError, match="cannot read a tokenizer in"):
        TextEncoder.from_folder(root / "text_encoder")
    folder = Path(shutil.copytree(root / "image_encoder", tmp_path / "pickled"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pickled weights only \(pytorch_model.bin\)"):
        ImageEncoder.from_folder(folder)
    tensors.pop("visual_projection.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"'missing': .*visual_projection\.weight"):
        ImageEncoder.from_folder(folder)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokens": "patches"}, "tokens must be one of pooled, hidden, got 'patches'"),
        ({"layer": "first"}, "layer must be one of last, penultimate, got 'first'"),
        ({"layer": "penultimate"}, "layer is for tokens 'hidden'"),
        ({"dtype": "float16"}, "dtype must be one of"),
        ({"device": "teapot"}, "cannot use the device"),
    ],
)
def test_wrong_image_options_are_refused(root, given, message):
    with pytest.raises(ConfigError, match=message):
        ImageEncoder.from_folder(root, **given)


def test_wrong_text_options_are_refused(root):
    with pytest.raises(ConfigError, match=r"max_length must be from 2 to 12 .* got 13"):
        TextEncoder.from_folder(root, max_length=13)
    with pytest.raises(ConfigError, match=r"max_length must be 2 or more .* got None"):
        TextEncoder.from_folder(root / "t5")
    with pytest.raises(ConfigError, match="layer must be 'last' for T5EncoderModel"):
        TextEncoder.from_folder(root / "t5", max_length=9, layer="penultimate")


def test_wrong_frames_are_refused(root):
    with pytest.raises(DataError, match=r"uint8, got torch\.float"):
        ImageEncoder.from_folder(root).encode(np.zeros((64, 64, 3), np.float32))


def test_an_encoder_without_a_projection_has_no_pooled_token(toy_wan):
    with pytest.raises(DataError, match=r"CLIPVisionModel.* projects no pooled token; use tokens"):
        ImageEncoder.from_folder(toy_wan)
    hidden = ImageEncoder.from_folder(toy_wan, tokens="hidden", layer="penultimate", crop="clip")
    assert hidden.encode(torch.zeros(40, 50, 3, dtype=torch.uint8)).shape == (5, 16)
