"""The sections of the configuration that no other module owns; `pipelines.config` composes them.

A default is written here once and nowhere else; the docstring under a field is its help.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from pipelines.shown_text import shortened

__all__ = [
    "STRICT",
    "CardConfig",
    "ClusterConfig",
    "ConditionConfig",
    "DataConfig",
    "EncodeConfig",
    "FirstStageConfig",
    "OutputConfig",
    "SampleConfig",
    "TrackingConfig",
    "TrainConfig",
    "ValidateConfig",
    "tracking_mistakes",
]

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_LONGEST_EXPERIMENT = 250

STRICT: dict[str, Any] = {"extra": "forbid", "allow_inf_nan": False}

Fraction = Annotated[float, Ge(0), Le(1)]
Decay = Annotated[float, Ge(0), Lt(1)]
Count = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which videos, and how clips are cut from them."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    videos: str = ""
    """Where the videos are: a folder (with its sub-folders), a glob, one video, a table (.csv,
    .jsonl or .parquet) that lists them, WebDataset tars, or a URL of any of these. Required."""
    video_root: str | None = None
    """Where the relative paths of a table start; None takes the table's folder."""
    path_column: str | None = None
    """Column of a table that names the video; None looks for a usual name."""
    caption_column: str | None = None
    """Column of a table that describes the video; None looks for a usual name."""
    num_frames: Count = 8
    """Frames per clip."""
    fps: Positive = 8.0
    """Frames per second of a clip, in Hz. Videos are resampled to it by presentation time."""
    height: Count = 32
    """Height of a clip in pixels. Frames are resized to cover it, then cropped in the centre."""
    width: Count = 32
    """Width of a clip in pixels."""
    buckets: tuple[str, ...] = ()
    """Several sizes of clips, as HEIGHTxWIDTHxFRAMES; a video goes to the nearest aspect ratio and
    the largest size that does not enlarge it, a shot to the longest clip that it holds. Empty
    takes height, width and num_frames."""
    clip_stride: Count | None = None
    """Frames from the start of a clip to the start of the next; None cuts clips side by side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstStageConfig:
    """The codec between pixels and latents."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    path: str | None = None
    """Folder of a first stage: one fitted here, or a VAE as diffusers writes it (also a pipeline
    folder with a `vae`). None fits a patch codec to the videos of this run."""
    patch_size: Count = 4
    """Side of the square patch that becomes one latent position, in pixels."""
    latent_channels: Count = 4
    """Latent channels per position; below 3 * patch_size^2."""
    fit_videos: Count = 256
    """Fit on at most this many videos, the first ones in the order of their content hashes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeConfig:
    """How the latent shards are written."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    videos_per_shard: Count = 16
    """Videos whose clips share a shard, which is the unit of work and of restart."""
    posterior: Literal["mean_std", "mean", "sample"] = "mean_std"
    """What is stored of the first stage's Gaussian: mean and std, so that training draws a fresh
    sample each time; the mean alone (std 0); or one sample, drawn from the run's seed (std 0)."""
    latents_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the stored posterior mean and std."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of a VAE and of the encoders of conditions."""
    frames_per_chunk: Count = 8
    """Frames that a VAE encodes at once; part of what decides the bytes."""
    tile_size: Count | None = None
    """Side in pixels of the tiles in which a VAE encodes large frames; None encodes them whole."""
    num_workers: Count = 2
    """Shards that are encoded at the same time, each by one worker."""
    use_gpu: bool = False
    """One GPU per worker; its decoders run on the CPUs of the same node."""
    decoders_per_worker: Count = 1
    """Videos that are decoded ahead at the same time for one worker, each on one CPU."""
    max_retries: Annotated[int, Ge(0)] = 2
    """How often a shard is tried again when its worker process dies."""
    max_bad_fraction: Fraction = 0.5
    """The run ends with exit code 1 if a larger share of the videos is broken."""
    source_changes: Literal["keep", "refuse"] = "keep"
    """When videos of the data set were removed from the source or changed there: keep their clips
    and warn, or refuse to go on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionConfig:
    """Conditions that are encoded with the clips; each is optional, as the model family needs."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    image_encoder: str | None = None
    """Folder of a CLIP vision model as transformers writes it (also a pipeline folder with an
    `image_encoder`); None stores zero tokens."""
    image_tokens: Literal["pooled", "hidden"] | None = None
    """One projected token, as SVD takes it, or all tokens of the encoder; None takes what the model
    family needs (pooled unless it is dynamicrafter, videocrafter1 or wan)."""
    image_layer: Literal["last", "penultimate"] | None = None
    """Layer that all tokens are taken from; None takes the family's (last; penultimate for wan)."""
    image_crop: Literal["none", "square", "clip"] | None = None
    """What of the image the encoder sees: all of it, squeezed to a square, or its centre square, as
    I2VGen-XL cuts it or as CLIP does; None takes the family's (all of it; square for i2vgenxl, clip
    for wan)."""
    text_encoder: str | None = None
    """Folder of a CLIP or T5 text encoder with its tokenizer; None stores no text."""
    text_layer: Literal["last", "penultimate"] | None = None
    """Layer that the text's tokens are taken from; None takes the family's (last; penultimate for
    dynamicrafter, videocrafter1 and i2vgenxl)."""
    text_length: Annotated[int, Ge(2)] | None = None
    """Tokens that a caption is padded or cut to; None takes the encoder's own length (512 for wan).
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Fine-tuning with Ray Train and DeepSpeed ZeRO."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    num_steps: Count = 400
    """Optimiser steps."""
    global_batch_size: Count = 8
    """Clips per optimiser step over all workers; it does not depend on the number of workers."""
    micro_batch_size: Count | None = None
    """Clips per worker and forward pass; None takes the whole share of the worker at once."""
    num_workers: Count = 2
    """Training processes, one per GPU or per CPU core."""
    use_gpu: bool = False
    """One GPU per worker, with NCCL; without it CPU workers talk over gloo."""
    cpus_per_worker: Count = 1
    """CPU cores (and torch threads) per worker."""
    bucket: str | None = None
    """Bucket of the data set that is trained on, as HEIGHTxWIDTHxFRAMES; None takes all, each
    batch from one of them, as often as they have clips. Estimation and registration need one."""
    trainable: Literal["all", "temporal", "lora"] = "all"
    """What is trained: the whole network, only its layers that mix frames, or LoRA adapters of its
    linear layers. What is not keeps its weights, and needs no memory for gradients and
    optimiser."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What DeepSpeed ZeRO divides over the workers: nothing (0), the optimiser's state (1), also
    gradients (2), also weights (3)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward and backward pass; master weights are fp32. fp16 has a loss scale
    that adapts, and needs use_gpu and zero_stage >= 1."""
    gradient_checkpointing: bool = False
    """Keep the activations of blocks only and compute the others again: less memory, more time."""
    offload_optimizer: bool = False
    """Keep the optimiser's state and its update on the CPU; needs use_gpu and zero_stage >= 1. The
    first use compiles DeepSpeed's Adam, which needs a C++ compiler and ninja."""
    communication_elements: Count = 200_000_000
    """Numbers that ZeRO reduces or gathers at once; fewer need less memory."""
    persistent_elements: Annotated[int, Ge(0)] = 100_000
    """Parameters with fewer numbers stay whole on every worker with zero_stage 3."""
    learning_rate: Positive = 2e-3
    """Peak learning rate of AdamW."""
    adam_beta1: Decay = 0.9
    """First moment decay of AdamW."""
    adam_beta2: Decay = 0.99
    """Second moment decay of AdamW."""
    weight_decay: Annotated[float, Ge(0)] = 0.01
    """Decoupled weight decay of AdamW."""
    warmup_steps: Annotated[int, Ge(0)] = 50
    """Steps of linear warm-up; lr_schedule follows."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls from its peak to its final fraction, or that it stays."""
    final_learning_rate_fraction: Fraction = 0.1
    """Learning rate of the last step as a fraction of the peak; constant has none."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this global norm."""
    ema_decay: Decay = 0.99
    """Decay per step of the weight average that is exported."""
    condition_dropout: Fraction = 0.0
    """Probability, per clip, of training without the conditioning image. dynamicrafter and
    videocrafter1 drop the caption, image tokens, or both, each with this probability."""
    conditioning_frame: Literal["first", "random"] = "first"
    """Frame of a clip that the network is conditioned on in training: the first, or one drawn anew
    for each clip and step. Data sets hold image tokens of the first frame only, so random needs a
    model that sees none: no condition.image_encoder, or model.image_token_replacement 1."""
    log_every: Count = 10
    """Steps between reports to the driver; every step's loss is in a report."""
    checkpoint_every: Count = 100
    """Steps between checkpoints; the last step always writes one."""
    num_checkpoints_kept: Count = 2
    """Checkpoints kept on disk."""
    max_failures: Annotated[int, Ge(0)] = 3
    """Lost workers the run recovers from before it gives up."""
    lora_rank: Count = 16
    """Rank of the matrices of an adapter; trainable lora alone has them."""
    lora_alpha: Positive | None = None
    """What an adapter adds is scaled by lora_alpha / lora_rank; None takes the rank, so 1."""
    lora_targets: Annotated[tuple[str, ...], MinLen(1)] | None = None
    """Names of the linear layers that get an adapter, or ends of names, as `to_q`; None takes the
    attention layers of the model family."""
    best_metric: Literal[
        "val_loss", "val_loss_clean", "val_motion_error", "val_motion_transfer"
    ] = "val_loss"
    """What decides which validated checkpoint is kept in train/best; val_motion_transfer is better
    when it is larger, the others when they are smaller."""
    spike_window: Annotated[int, Ge(3)] = 100
    """Steps before a step that its loss is compared with."""
    spike_deviation: Positive = 20.0
    """Warn of a loss above the median of these steps by this many median absolute deviations."""
    spike_pause_steps: Count = 50
    """At most one such warning in so many steps."""
    stall_warning_s: Positive = 300.0
    """Warn, and name the worker, when no worker has gone on for so many seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidateConfig:
    """Held-out clips, and what is measured on them while training goes on."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    held_out_fraction: Annotated[float, Ge(0), Lt(1)] = 0.05
    """Share of the videos that are never trained on, chosen by the hash of their content, whatever
    else is in the data set. 0 trains on all and turns validation off."""
    every_steps: Count | None = None
    """Steps from one validated checkpoint to the next; None validates each checkpoint. The last one
    is always validated."""
    num_clips: Count = 16
    """Held-out clips that the loss and the leak are measured on, at most."""
    num_bins: Count = 5
    """Equally likely bins of the noise levels of training; each clip has one level in each."""
    batch_size: Count = 8
    """Clips per forward pass; it does not change the results."""
    num_videos: Annotated[int, Ge(0)] = 4
    """Held-out clips whose first frame a video is sampled from."""
    num_steps: Count = 20
    """Sampler steps; start time and Analytic-Init are those of the section sample."""
    fps: Positive | None = None
    """Frames per second of the written videos, in Hz; None takes that of the clips."""
    num_cpus: Annotated[float, Ge(0)] = 0.0
    """CPU cores that a validation waits for. 0 waits for none: it runs at low priority beside the
    training workers."""
    num_gpus: Annotated[float, Ge(0)] = 0.0
    """GPUs of a validation, beside those of the training workers; 0 validates on the CPU."""
    timeout_s: Positive = 3600.0
    """Seconds after which a validation is given up with a warning."""
    collapse_validations: Count = 2
    """Validations in a row that must have lost motion before a collapse is announced."""
    collapse_drop: Annotated[float, Gt(0), Lt(1)] = 0.25
    """Share of the best value before them that motion and motion transfer must have lost."""
    collapse_z: Annotated[float, Ge(0)] = 2.0
    """Standard errors of the differences between clips by which the loss must be beyond noise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """Sampling videos, in the run's last stage and as the default of the registered model."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    start_time: Annotated[float, Gt(0), Le(1)] = 0.94
    """Start time M in (0, 1]; 1 starts at sigma_max, smaller starts from a less noisy video."""
    analytic_init: bool = True
    """Start from the Analytic-Init Gaussian instead of N(0, sigma_M^2 I)."""
    num_steps: Count = 20
    """Sampler steps."""
    num_videos: Count = 4
    """Videos per conditioning image in the run's last stage, each from its own seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """Where runs, metrics and models are recorded."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    uri: str = ""
    """MLflow tracking URI; empty takes MLFLOW_TRACKING_URI, else sqlite in the output folder."""
    experiment: str = "conditional-image-leakage"
    """MLflow experiment."""
    model_name: str = "tiny-i2v"
    """Name of the registered model: letters of ASCII, digits, dots, dashes and underscores, at most
    200, and first a letter or digit."""
    system_metrics_s: Annotated[float, Ge(0)] = 5.0
    """Seconds between records of the driver machine's load, memory, disk, network and GPUs during
    training; 0 records none."""


def tracking_mistakes(own: TrackingConfig) -> Iterator[str]:
    """Say what is wrong with the names, one line each, without the section's name.

    A model's name becomes part of models:/NAME@ALIAS, of filters and of URLs.
    """
    if not _MODEL_NAME.fullmatch(own.model_name):
        yield (
            "model_name must be letters (a-z, A-Z), digits, dots, dashes and underscores, at most "
            f"200, and begin with a letter or digit, got {shortened(repr(own.model_name))}"
        )
    if not own.experiment.strip() or len(own.experiment) > _LONGEST_EXPERIMENT:
        yield (
            f"experiment must have 1 to {_LONGEST_EXPERIMENT} signs, got "
            f"{shortened(repr(own.experiment))}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CardConfig:
    """What the card of a registered model says that nothing here can measure."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    description: str | None = None
    """One or two sentences for people."""
    intended_use: str | None = None
    """What the model is for."""
    out_of_scope: str | None = None
    """What it must not be used for."""
    weights_license: str | None = None
    """Licence of the weights, as an SPDX identifier or a name."""
    data_license: str | None = None
    """Licence of the videos."""
    contact: str | None = None
    """Whom to ask."""
    limitations: str | None = None
    """Known limits; null writes the usual ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """The Ray cluster."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    address: str | None = None
    """Ray address; None takes RAY_ADDRESS, else starts a local cluster for this command."""
    num_cpus: Count | None = None
    """CPUs of a local cluster; None takes all cores."""
    scale_up_s: Annotated[float, Ge(0)] = 0.0
    """Seconds that training waits for an autoscaling cluster to bring up nodes for its workers; 0
    refuses a cluster that does not have them yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputConfig:
    """Where results go."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    dir: str = "build/run"
    """Folder of the run: data set, checkpoints, statistics, model, samples and reports."""
    dataset: str | None = None
    """Where the data set goes: a folder or a URL such as s3://bucket/clips; None takes a folder in
    output.dir."""
