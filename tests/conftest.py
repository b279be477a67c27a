"""Fixtures of all tests: an S3 server on this machine."""

import contextlib
import io
import logging
import uuid
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class S3:
    """A fresh bucket on a server that speaks S3 over HTTP, and boto's own client to look at it."""

    client: object
    bucket: str

    def url(self, key=""):
        """URL of a key in the bucket."""
        return f"s3://{self.bucket}/{key}" if key else f"s3://{self.bucket}"

    def put(self, key, content=b""):
        """Write an object that may also be read without credentials."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=content, ACL="public-read")

    def get(self, key):
        """Read an object."""
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def keys(self):
        """Keys of all objects, sorted."""
        found = self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return sorted(item["Key"] for item in found)


@pytest.fixture(scope="session")
def s3_endpoint():
    """Address of an S3 server that lives as long as the tests."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    with contextlib.redirect_stdout(io.StringIO()):
        server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def s3_client(s3_endpoint):
    """Look at the server by boto's own client."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=s3_endpoint,
        aws_access_key_id="testing",
        aws_secret_access_key="not-a-secret",
        region_name="us-east-1",
    )


@pytest.fixture
def s3(s3_endpoint, s3_client, monkeypatch):
    """A fresh bucket, and an environment in which s3:// leads to it."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE", "FSSPEC_S3_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    s3_client.create_bucket(Bucket=bucket)
    return S3(s3_client, bucket)


@pytest.fixture
def own_s3fs(s3, monkeypatch):
    """The class of s3fs, to be changed by a test; no other test uses what it makes of it."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield s3fs.S3FileSystem
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def no_s3(own_s3fs, monkeypatch):
    """An environment in which s3:// leads to a port where nothing listens."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(own_s3fs, "retries", 1)  # its pauses are not what is tested


@pytest.fixture(scope="session")
def toy_svd(tmp_path_factory):
    """Folder of a Stable Video Diffusion pipeline at toy size, written by diffusers itself."""
    import torch
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        StableVideoDiffusionPipeline,
        UNetSpatioTemporalConditionModel,
    )
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = tmp_path_factory.mktemp("svd") / "toy-svd"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        unet = UNetSpatioTemporalConditionModel(
            sample_size=8,
            in_channels=8,
            out_channels=4,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            block_out_channels=(32, 64),
            num_attention_heads=(2, 4),
            layers_per_block=1,
            cross_attention_dim=32,
            addition_time_embed_dim=32,
            projection_class_embeddings_input_dim=96,
            num_frames=4,
        )
        vae = AutoencoderKLTemporalDecoder(
            down_block_types=("DownEncoderBlock2D",) * 2,
            block_out_channels=(32, 32),
            layers_per_block=1,
            latent_channels=4,
            sample_size=32,
        )
        encoder = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=224,  # diffusers' pipeline makes no other
                patch_size=56,
                projection_dim=32,
            )
        )
    StableVideoDiffusionPipeline(
        vae=vae,
        image_encoder=encoder,
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            timestep_type="continuous",
            timestep_spacing="leading",
            steps_offset=1,
            use_karras_sigmas=True,
            sigma_min=0.002,
            sigma_max=700.0,
        ),
        feature_extractor=CLIPImageProcessor(),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_tokenizer():
    """Writer of a byte-pair vocabulary of all bytes and the words red and kite."""
    import json

    from tokenizers import pre_tokenizers

    def write(folder):
        folder.mkdir(parents=True, exist_ok=True)
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        merges = [("r", "e"), ("re", "d</w>"), ("k", "i"), ("t", "e</w>"), ("ki", "te</w>")]
        words = [*letters, *(a + "</w>" for a in letters), *(a + b for a, b in merges)]
        vocab = {w: i for i, w in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
        (folder / "vocab.json").write_text(json.dumps(vocab))
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        (folder / "merges.txt").write_text("\n".join(lines))
        marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
        settings = {"tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>", **marks}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return len(vocab)

    return write


TOY_LVDM = {
    "num_frames": 4,
    "height": 32,
    "width": 32,
    "downsampling": 4,
    "model_channels": 32,
    "attention_resolutions": [2, 1],
    "num_res_blocks": 1,
    "channel_mult": [1, 1],
    "num_head_channels": 16,
    "context_dim": 32,
    "projector": {"depth": 1, "dim_head": 8, "heads": 2, "embedding_dim": 32},
}


@pytest.fixture(scope="session")
def toy_lvdm(tmp_path_factory, clip_tokenizer):
    """Model folders of dynamicrafter and videocrafter1 at toy size, by family."""
    import torch
    from diffusers import AutoencoderKL
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    import cil.models
    from cil.models.autoencoder_kl import AutoencoderKLFirstStage
    from cil.models.condition_encoders import ImageEncoder, TextEncoder
    from cil.models.null_condition import NullCondition

    root = tmp_path_factory.mktemp("lvdm")
    small = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 24,
    }
    num_words = clip_tokenizer(root / "parts" / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        vae = AutoencoderKL(
            block_out_channels=(32, 32, 32),
            layers_per_block=1,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
        )
        vision = CLIPVisionModelWithProjection(
            CLIPVisionConfig(**small, image_size=32, patch_size=16)
        )
        marks = {"bos_token_id": num_words - 2, "eos_token_id": num_words - 1}
        text = CLIPTextModel(
            CLIPTextConfig(**small, **marks, vocab_size=num_words, max_position_embeddings=77)
        )
        vision.save_pretrained(root / "parts" / "image_encoder")
        text.save_pretrained(root / "parts" / "text_encoder")
        image_encoder = ImageEncoder.from_folder(root / "parts", tokens="hidden")
        text_encoder = TextEncoder.from_folder(root / "parts", layer="penultimate")
        null = NullCondition(
            text_embeds=text_encoder.encode("").tokens, image_embeds=image_encoder.encode_grey()
        )
        folders = {}
        for family in ("dynamicrafter", "videocrafter1"):
            model = cil.models.build(
                family,
                first_stage=AutoencoderKLFirstStage(vae.eval().requires_grad_(False)),
                encoders=root / "parts",
                text_encoder=root / "parts",
                null_condition=null,
                dropout=0.1,
                **TOY_LVDM,
            )
            for parameter in model.network.parameters():  # no branch is silent
                parameter.data += 0.05 * torch.randn(parameter.shape)
            folders[family] = root / family
            model.save(folders[family])
    return folders


@pytest.fixture(scope="session")
def toy_i2vgenxl(tmp_path_factory, clip_tokenizer):
    """Folder of an I2VGen-XL pipeline at toy size; its autoencoder has no noise to speak of."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, I2VGenXLPipeline, I2VGenXLUNet
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessor,
        CLIPTextConfig,
        CLIPTextModel,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    folder = tmp_path_factory.mktemp("i2vgenxl") / "toy-i2vgenxl"
    words = clip_tokenizer(folder / "tokenizer")
    small = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "projection_dim": 16,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        unet = I2VGenXLUNet(
            sample_size=8,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=16,
            attention_head_dim=4,
        )
        for name, value in unet.named_parameters():  # no layer that starts at zero stays silent
            value.data += 0.05 * torch.randn(value.shape) * ("norm" not in name)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
            sample_size=32,
        )
        vae.quant_conv.weight.data[4:] = 0.0  # diffusers' pipeline draws the image's latents
        vae.quant_conv.bias.data[4:] = -30.0
        vision = CLIPVisionModelWithProjection(
            CLIPVisionConfig(**small, image_size=32, patch_size=16)
        )
        text = CLIPTextModel(
            CLIPTextConfig(
                **small,
                vocab_size=words,
                max_position_embeddings=12,
                bos_token_id=words - 2,
                eos_token_id=words - 1,
                pad_token_id=words - 1,
            )
        )
    I2VGenXLPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer", model_max_length=12),
        image_encoder=vision,
        feature_extractor=CLIPImageProcessor(crop_size=32, size=32),
        unet=unet,
        scheduler=DDIMScheduler(
            beta_schedule="squaredcos_cap_v2",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            clip_sample=False,
            steps_offset=1,
        ),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def toy_wan(tmp_path_factory):
    """Folder of a Wan image-to-video pipeline at toy size, written by diffusers itself."""
    import torch
    from diffusers import (
        AutoencoderKLWan,
        UniPCMultistepScheduler,
        WanImageToVideoPipeline,
        WanTransformer3DModel,
    )
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        PreTrainedTokenizerFast,
        UMT5Config,
        UMT5EncoderModel,
    )

    folder = tmp_path_factory.mktemp("wan") / "toy-wan"
    words = ["<pad>", "</s>", "<unk>", "red", "kite", "a"]
    rules = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    rules.pre_tokenizer = pre_tokenizers.Whitespace()
    rules.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        transformer = WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=12,
            out_channels=4,
            text_dim=16,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
            image_dim=16,
            added_kv_proj_dim=24,
            rope_max_seq_len=32,
        )
        for name, value in transformer.named_parameters():
            value.data += 0.2 * torch.randn(value.shape) * ("norm" not in name)
        vae = AutoencoderKLWan(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[True, True],
            latents_mean=[0.2, -0.3, 0.1, 0.0],
            latents_std=[0.5, 1.5, 0.8, 1.2],
            scale_factor_spatial=4,
        )
        vision = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=3,
                num_attention_heads=2,
                image_size=32,
                patch_size=16,
            )
        )
        text = UMT5EncoderModel(
            UMT5Config(vocab_size=6, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
        )
    WanImageToVideoPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=rules, **marks),
        image_encoder=vision,
        image_processor=CLIPImageProcessor(crop_size=32, size={"shortest_edge": 32}),
        transformer=transformer,
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    ).save_pretrained(folder)
    return folder
