"""The configuration tree: one YAML file in, validated, overridden from the command line, saved.

In: a YAML file (`load_config`) and dotted overrides (`--train.num-steps 50`, parsed by tyro).
Out: a frozen `RunConfig`, its YAML text with secrets removed, and content hashes of its parts.
Only this module reads the environment. A default is written here once and nowhere else.
"""

import dataclasses
import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from cil.errors import ConfigError
from cil.models.tiny_config import TinyConfig
from cil.time_noise import TimeNoiseConfig
from pipelines.decode.config import DecodeConfig
from pipelines.selection.bucket import Bucket
from pipelines.selection.config import SelectionConfig, contradictions

__all__ = [
    "ClusterConfig",
    "ConditionConfig",
    "DataConfig",
    "EncodeConfig",
    "FirstStageConfig",
    "ModelConfig",
    "OutputConfig",
    "RunConfig",
    "SampleConfig",
    "TrackingConfig",
    "TrainConfig",
    "child_environment",
    "clip_buckets",
    "config_to_yaml",
    "content_hash",
    "dataset_of",
    "environment",
    "load_config",
    "redact_uri",
    "validate_config",
]

_STRICT: dict[str, Any] = {"extra": "forbid", "allow_inf_nan": False}

_TINY = TinyConfig()

Fraction = Annotated[float, Ge(0), Le(1)]
Decay = Annotated[float, Ge(0), Lt(1)]
Count = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which videos, and how clips are cut from them."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
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

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
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

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
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

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    image_encoder: str | None = None
    """Folder of a CLIP vision model as transformers writes it (also a pipeline folder with an
    `image_encoder`); None stores zero tokens."""
    image_tokens: Literal["pooled", "hidden"] = "pooled"
    """One projected token, as SVD takes it, or all tokens of the encoder."""
    image_layer: Literal["last", "penultimate"] = "last"
    """Layer that all tokens are taken from."""
    text_encoder: str | None = None
    """Folder of a CLIP or T5 text encoder with its tokenizer; None stores no text."""
    text_layer: Literal["last", "penultimate"] = "last"
    """Layer that the text's tokens are taken from."""
    text_length: Annotated[int, Ge(2)] | None = None
    """Tokens that a caption is padded or cut to; None takes the encoder's own length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The network that is trained, and its noise schedule."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    family: Literal["tiny"] = "tiny"
    """Model family, a name in the registry of `cil.models`."""
    block_out_channels: Annotated[tuple[Count, ...], MinLen(2)] = _TINY.block_out_channels
    """Channels per level; one level must have at least 64, or the network cannot see sigma."""
    layers_per_block: Count = _TINY.layers_per_block
    """Residual blocks per level."""
    num_attention_heads: Annotated[tuple[Count, ...], MinLen(2)] = _TINY.num_attention_heads
    """Attention heads per level."""
    cross_attention_dim: Count = _TINY.cross_attention_dim
    """Width of an image token."""
    addition_time_embed_dim: Count = _TINY.addition_time_embed_dim
    """Width of the embedding of fps, motion bucket and sigma_cond."""
    p_mean: float = _TINY.p_mean
    """Mean of ln(sigma) in training."""
    p_std: Positive = _TINY.p_std
    """Standard deviation of ln(sigma) in training."""
    sigma_min: Positive = _TINY.sigma_min
    """Smallest sigma of sampling."""
    sigma_max: Positive = _TINY.sigma_max
    """Largest sigma of sampling."""
    motion_bucket_id: Annotated[float, Ge(0), Le(255)] = _TINY.motion_bucket_id
    """Motion bucket given to the network for every clip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Fine-tuning with Ray Train and DeepSpeed ZeRO."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
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
    """Bucket of the data set that is trained on, as HEIGHTxWIDTHxFRAMES; None takes the only
    one."""
    trainable: Literal["all", "temporal"] = "all"
    """What is trained: the whole network, or only its layers that mix frames. What is not keeps its
    weights, and needs no memory for gradients and optimiser."""
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
    """Probability, per clip, of training without the conditioning image."""
    log_every: Count = 10
    """Steps between reports to the driver; every step's loss is in a report."""
    checkpoint_every: Count = 100
    """Steps between checkpoints; the last step always writes one."""
    num_checkpoints_kept: Count = 2
    """Checkpoints kept on disk."""
    max_failures: Annotated[int, Ge(0)] = 3
    """Lost workers the run recovers from before it gives up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """Sampling videos, in the run's last stage and as the default of the registered model."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
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

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    uri: str = ""
    """MLflow tracking URI; empty takes MLFLOW_TRACKING_URI, else sqlite in the output folder."""
    experiment: str = "conditional-image-leakage"
    """MLflow experiment."""
    model_name: str = "tiny-i2v"
    """Name of the registered model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """The Ray cluster."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    address: str | None = None
    """Ray address; None takes RAY_ADDRESS, else starts a local cluster for this command."""
    num_cpus: Count | None = None
    """CPUs of a local cluster; None takes all cores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputConfig:
    """Where results go."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    dir: str = "build/run"
    """Folder of the run: data set, checkpoints, statistics, model, samples and reports."""
    dataset: str | None = None
    """Where the data set goes: a folder or a URL such as s3://bucket/clips; None takes a folder in
    output.dir. What is read from a URL is kept in a cache in output.dir."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything that decides a run."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    """Seed of the data order, the network's initial weights and all noise."""
    data: DataConfig = field(default_factory=DataConfig)
    """Videos and clips."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """Decoding videos."""
    select: SelectionConfig = field(default_factory=SelectionConfig)
    """Choosing clips."""
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    """Encoding conditions."""
    first_stage: FirstStageConfig = field(default_factory=FirstStageConfig)
    """Codec between pixels and latents."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    """Writing latent shards."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Network and noise schedule."""
    time_noise: TimeNoiseConfig = field(default_factory=TimeNoiseConfig)
    """Corruption of the conditioning latents in training; unset fields are the preset's."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Fine-tuning."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """Sampling."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Ray."""
    output: OutputConfig = field(default_factory=OutputConfig)
    """Output folder."""


def _cross_checks(config: RunConfig) -> Iterator[str]:
    """Check what no single field can know.

    Not in ``__post_init__``: parsing the command line would stop there, before the ranges of all
    other settings are looked at.
    """
    data, stage, model = config.data, config.first_stage, config.model
    try:
        buckets = clip_buckets(data)
    except ConfigError as error:
        yield f"data.buckets: {error}"
        buckets = ()
    for bucket in buckets if stage.path is None else ():
        for name, size in (("height", bucket.height), ("width", bucket.width)):
            if size % stage.patch_size:
                where = (
                    f"data.{name}" if not data.buckets else f"data.buckets: {name} of {bucket.name}"
                )
                yield (
                    f"{where} must be a multiple of first_stage.patch_size = {stage.patch_size}, "
                    f"got {size}"
                )
    for mistake in contradictions(config.select):
        yield f"select.{mistake}"
    if len(set(buckets)) < len(buckets):
        yield f"data.buckets must differ from each other, got {', '.join(data.buckets)}"
    if stage.latent_channels >= 3 * stage.patch_size**2:
        yield (
            f"first_stage.latent_channels must be < 3 * patch_size^2 = {3 * stage.patch_size**2}, "
            f"got {stage.latent_channels}"
        )
    if len(model.num_attention_heads) != len(model.block_out_channels):
        yield (
            "model.num_attention_heads must have one number per level of model.block_out_channels, "
            f"got {len(model.num_attention_heads)} and {len(model.block_out_channels)}"
        )
    if model.sigma_max <= model.sigma_min:
        yield f"model.sigma_max must be > sigma_min = {model.sigma_min}, got {model.sigma_max}"
    yield from _train_checks(config.train)


def _train_checks(train: TrainConfig) -> Iterator[str]:
    if train.global_batch_size % (train.num_workers * (train.micro_batch_size or 1)):
        micro = f" * micro_batch_size = {train.micro_batch_size}" if train.micro_batch_size else ""
        yield (
            "train.global_batch_size must be a multiple of train.num_workers = "
            f"{train.num_workers}{micro}, got {train.global_batch_size}"
        )
    if train.precision == "fp16" and not train.use_gpu:
        yield "train.precision fp16 needs train.use_gpu; on CPUs use bf16 or fp32"
    if train.precision == "fp16" and train.zero_stage == 0:
        yield (
            "train.precision fp16 needs train.zero_stage >= 1, got 0: without ZeRO, DeepSpeed does "
            "not scale the loss"
        )
    if train.offload_optimizer and not train.use_gpu:
        yield (
            "train.offload_optimizer needs train.use_gpu: without a GPU the optimiser is on the "
            "CPU already; leave it out"
        )
    if train.offload_optimizer and train.zero_stage == 0:
        yield "train.offload_optimizer needs train.zero_stage >= 1, got 0"


def clip_buckets(data: DataConfig) -> tuple[Bucket, ...]:
    """Return the sizes of the clips, largest first as they were given.

    Raises:
        ConfigError: a bucket is not written as HEIGHTxWIDTHxFRAMES.
    """
    if data.buckets:
        return tuple(Bucket.parse(text) for text in data.buckets)
    return (Bucket(height=data.height, width=data.width, num_frames=data.num_frames),)


def dataset_of(config: RunConfig) -> str:
    """Return the folder or URL of the run's data set."""
    return config.output.dataset or str((Path(config.output.dir) / "dataset").resolve())


def environment(name: str) -> str | None:
    """Read an environment variable; empty counts as unset."""
    return os.environ.get(name) or None


def child_environment(**changes: str) -> dict[str, str]:
    """Return this process's environment with some variables set, for a process that it starts."""
    return {**os.environ, **changes}


def load_config(path: str | Path | None) -> RunConfig:
    """Read and validate a YAML file.

    Args:
        path: YAML file with some of the fields of `RunConfig`; None gives the defaults.

    Returns:
        The validated configuration.

    Raises:
        ConfigError: the file cannot be read, or holds mistakes; all of them are in the message.
    """
    if path is None:
        return RunConfig()
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config file {path}: {error}") from error
    try:
        raw = _load_yaml(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, got {type(raw).__name__}")
    return validate_config(raw, source=str(path))


def _load_yaml(text: str) -> Any:
    """Parse YAML; a key that stands twice is an error, not the last one's victory."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            scalars = (key for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            for key in scalars:
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands twice", key.start_mark
                    )
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    loader = Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def validate_config(raw: Mapping[str, Any], *, source: str) -> RunConfig:
    """Validate a mapping against `RunConfig`, reporting every mistake at once.

    Args:
        raw: nested mapping of fields.
        source: where it came from, for the message.

    Raises:
        ConfigError: one line per mistake: dotted path, what is wrong, what was given.
    """
    import pydantic

    booleans = dict(_booleans_for_numbers(raw, RunConfig))
    mistakes = [f"{path}: must not be true or false, got {it}" for path, it in booleans.items()]
    try:
        config = pydantic.TypeAdapter(RunConfig).validate_python(dict(raw))
    except pydantic.ValidationError as error:
        found = [dict(item) for item in error.errors(include_url=False)]
        mistakes += [_describe(item) for item in found if _path(item) not in booleans]
    else:
        mistakes += _cross_checks(config)
    if mistakes:
        noun = "mistake" if len(mistakes) == 1 else "mistakes"
        text = "\n".join(f"  {line}" for line in mistakes)
        raise ConfigError(redact_uri(f"{source} has {len(mistakes)} {noun}:\n{text}"))
    return config


def _booleans_for_numbers(raw: Any, owner: Any, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Find yes, on and true where a number belongs; pydantic would take them for 1."""
    if not isinstance(raw, Mapping):
        return
    for item in dataclasses.fields(owner):
        value = raw.get(item.name)
        if dataclasses.is_dataclass(item.type):
            yield from _booleans_for_numbers(value, item.type, f"{prefix}{item.name}.")
        elif isinstance(value, bool) and item.type is not bool:
            yield f"{prefix}{item.name}", value


def _path(item: dict[str, Any]) -> str:
    return ".".join(str(part) for part in item["loc"])


def _describe(item: dict[str, Any]) -> str:
    path, parts = _path(item), [str(part) for part in item["loc"]]
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _field_names(parts[:-1])
        close = difflib.get_close_matches(parts[-1], known, n=1, cutoff=0.5)
        elsewhere = [p for p in _paths(RunConfig) if p.split(".")[-1] == parts[-1]]
        section, _, name = path.partition(".")
        hint = (
            f"write {section}: {{{name}: ...}}"
            if len(parts) == 1 and path in _paths(RunConfig)
            else f"did you mean {'.'.join([*parts[:-1], close[0]])}?"
            if close
            else f"did you mean {elsewhere[0]}?"
            if elsewhere
            else f"known here: {', '.join(known)}"
        )
        return f"{path}: unknown key; {hint}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":  # our own message, which says what was given
        return f"{path}: {message}"
    message = re.sub(r"^Input should", "must", message).replace("a valid integer", "an integer")
    return f"{path}: {message}, got {item['input']!r}"


def _field_names(parts: list[str]) -> list[str]:
    owner: Any = RunConfig
    for part in parts:
        types = {f.name: f.type for f in dataclasses.fields(owner)}
        owner = types.get(part)
        if not dataclasses.is_dataclass(owner):
            return []
    return [f.name for f in dataclasses.fields(owner)]


def _paths(owner: Any, prefix: str = "") -> Iterator[str]:
    for item in dataclasses.fields(owner):
        if dataclasses.is_dataclass(item.type):
            yield from _paths(item.type, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}"


def redact_uri(uri: str) -> str:
    """Replace passwords and tokens in the URIs of a text, so that it can be shown.

    A password may hold any sign, also / and @: all before the last @ of a URI is hidden, unless it
    names no host, as sqlite:///me@home.db.
    """
    uri = re.sub(r"(?<=://)(?!/)([^\s'\"]*)@", _redact_userinfo, uri)
    return re.sub(r"(?i)([?&;][\w-]*(?:password|passwd|token|secret)=)[^&;#\s'\"]*", r"\1***", uri)


def _redact_userinfo(match: re.Match[str]) -> str:
    user, colon, _ = match.group(1).partition(":")
    return f"{user}:***@" if colon else "***@"


def config_to_yaml(config: RunConfig) -> str:
    """Render the resolved configuration as YAML, with secrets in URIs replaced."""
    import yaml

    raw = _plain(asdict(config))
    from pipelines.remote import shown_url

    raw["tracking"]["uri"] = redact_uri(config.tracking.uri)
    for section, name in (("data", "videos"), ("data", "video_root"), ("output", "dataset")):
        if raw[section][name] is not None:
            raw[section][name] = shown_url(raw[section][name])
    return str(yaml.safe_dump(raw, sort_keys=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def content_hash(value: Any) -> str:
    """Hash plain data (dicts, lists, numbers, strings) by its canonical JSON, as sha256 in hex."""
    text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
