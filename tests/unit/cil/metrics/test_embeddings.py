"""Tiny random CLIP and DINO folders, as transformers writes them."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from cil.errors import DataError
from cil.metrics.alignment import image_alignment
from cil.metrics.embeddings import ImageNetwork, find_image_network

VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}


def network(kind):
    torch.manual_seed(0)
    if kind == "clip_vision":
        config = transformers.CLIPVisionConfig(**VISION, projection_dim=12)
        return transformers.CLIPVisionModelWithProjection(config)
    if kind == "clip":
        text = {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 50,
        }
        config = transformers.CLIPConfig(
            vision_config={**VISION, "projection_dim": 12}, text_config=text, projection_dim=12
        )
        return transformers.CLIPModel(config)
    if kind.startswith("dino_v1"):
        config = transformers.ViTConfig(**VISION)
        return transformers.ViTModel(config, add_pooling_layer=kind.endswith("pooler"))
    if kind == "dino_v2":
        config = {name: value for name, value in VISION.items() if name != "intermediate_size"}
        return transformers.Dinov2Model(transformers.Dinov2Config(**config))
    return transformers.ViTForImageClassification(transformers.ViTConfig(**VISION))


@pytest.fixture
def folder(tmp_path):
    def write(kind):
        made = network(kind).eval()
        made.save_pretrained(tmp_path / kind)
        return tmp_path / kind, made

    return write


def frames(count=3, height=28, width=28):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def by_transformers(made, shown, colours):
    mean, std = (np.array(c) for c in colours)
    pixels = torch.from_numpy(((shown / 255 - mean) / std).transpose(0, 3, 1, 2)).float()
    with torch.no_grad():
        if isinstance(made, transformers.CLIPModel):
            vision = made.vision_model(pixel_values=pixels).pooler_output
            return made.visual_projection(vision).numpy()
        out = made(pixel_values=pixels)
    return (out.image_embeds if "image_embeds" in out else out.last_hidden_state[:, 0]).numpy()


CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("kind", "width", "colours"),
    [
        ("clip_vision", 12, CLIP),
        ("clip", 12, CLIP),
        ("dino_v1", 16, IMAGENET),
        ("dino_v1_pooler", 16, IMAGENET),
        ("dino_v2", 16, IMAGENET),
    ],
)
def test_embeddings_are_those_of_transformers(folder, kind, width, colours):
    path, made = folder(kind)
    encoder = ImageNetwork.from_folder(path)
    shown = frames(20)
    found = encoder.embed(shown)
    assert found.shape == (20, width)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_transformers(made, shown, colours), rtol=1e-3, atol=1e-5)
    assert encoder.kind == kind.partition("_")[0]
    assert len(encoder.sha256) == 64
    assert encoder.preprocessing.startswith(f"{encoder.kind}: short side 28")


def test_the_centre_of_a_wide_picture_counts(folder):
    encoder = ImageNetwork.from_folder(folder("dino_v2")[0])
    wide = frames(1, 28, 60)
    inner = wide.copy()
    inner[:, :, :16] = inner[:, :, 44:] = 0
    np.testing.assert_array_equal(encoder.embed(wide), encoder.embed(inner))
    inner[:, :, 16] ^= 255
    assert np.abs(encoder.embed(wide) - encoder.embed(inner)).max() > 1e-4


def test_large_pictures_are_shrunk_as_by_pillow(folder):
    path, made = folder("clip_vision")
    noisy = frames(2, 224, 224)
    small = [Image.fromarray(p).resize((28, 28), Image.Resampling.BICUBIC) for p in noisy]
    truth = by_transformers(made, np.stack(small), CLIP)
    found = ImageNetwork.from_folder(path).embed(noisy)
    np.testing.assert_allclose(found, truth, rtol=0.05, atol=0.02 * np.abs(truth).max())


def test_the_hash_names_the_weights(folder):
    path, made = folder("dino_v2")
    first = ImageNetwork.from_folder(path).sha256
    assert ImageNetwork.from_folder(path).sha256 == first
    with torch.no_grad():
        made.layernorm.bias[0] += 1
    made.save_pretrained(path)
    assert ImageNetwork.from_folder(path).sha256 != first


def test_an_image_aligns_with_itself(folder):
    encoder = ImageNetwork.from_folder(folder("clip_vision")[0])
    image = frames(1)
    still = encoder.embed(np.repeat(image, 4, axis=0))[None]
    assert image_alignment(still, encoder.embed(image)) == pytest.approx([1.0], abs=1e-6)


def test_another_network_is_refused(folder, tmp_path):
    with pytest.raises(DataError, match="holds a 'ViTForImageClassification'"):
        ImageNetwork.from_folder(folder("classifier")[0])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="neither config"):
        ImageNetwork.from_folder(empty)
    path, _ = folder("dino_v1")
    (path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(DataError, match="cannot load"):
        ImageNetwork.from_folder(path)


def test_weights_that_give_nan_are_refused(folder):
    path, made = folder("dino_v2")
    with torch.no_grad():
        made.layernorm.bias[0] = float("nan")
    made.save_pretrained(path)
    with pytest.raises(DataError, match="NaN or Inf"):
        ImageNetwork.from_folder(path)


def test_a_missing_folder_is_a_reason(tmp_path, folder):
    assert find_image_network(None) == "no CLIP or DINO folder was given"
    assert "does not exist" in find_image_network(tmp_path / "gone", what="CLIP folder")
    assert find_image_network(folder("dino_v2")[0]).kind == "dino"


@pytest.mark.parametrize("shown", [frames().astype(np.float32), frames()[0]])
def test_what_are_no_frames_is_refused(folder, shown):
    with pytest.raises(DataError, match="frames must"):
        ImageNetwork.from_folder(folder("dino_v2")[0]).embed(shown)
