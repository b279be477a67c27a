"""The configuration tree: one YAML file in, validated, overridden from the command line, saved.

In: a YAML file (`load_config`) and dotted overrides (`--train.num-steps 50`, parsed by tyro).
Out: a frozen `RunConfig`, its YAML text with secrets removed, and content hashes of its parts.
Only this module reads the environment. The sections and their defaults are in `settings.py`, and
beside what they configure.
"""

import dataclasses
import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args

from annotated_types import Ge, Lt

from cil.errors import ConfigError
from cil.time_noise import TimeNoiseConfig
from pipelines.decode.config import DecodeConfig
from pipelines.evaluate.config import EvaluateConfig
from pipelines.gate.config import GateConfig
from pipelines.leak.config import LeakConfig, leak_mistakes
from pipelines.model_settings import (
    ModelConfig,
    model_mistakes,
    noise_mistakes,
    told_mistakes,
)
from pipelines.read_config import ReadConfig
from pipelines.retrain.config import RetrainConfig
from pipelines.selection.bucket import Bucket
from pipelines.selection.config import SelectionConfig, contradictions
from pipelines.settings import (
    STRICT,
    CardConfig,
    ClusterConfig,
    ConditionConfig,
    DataConfig,
    EncodeConfig,
    FirstStageConfig,
    OutputConfig,
    SampleConfig,
    TrackingConfig,
    TrainConfig,
    ValidateConfig,
    tracking_mistakes,
)
from pipelines.shown_text import redact_uri, shortened
from pipelines.yaml_file import read_mapping

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = [
    "RunConfig",
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

_MOST_MISTAKES = 50
"""Mistakes that a message describes; it counts all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything that decides a run."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
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
    read: ReadConfig = field(default_factory=ReadConfig)
    """Reading the data set."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Fine-tuning."""
    validate: ValidateConfig = field(default_factory=ValidateConfig)
    """Validation during training."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Evaluation of finished models."""
    leak: LeakConfig = field(default_factory=LeakConfig)
    """The leak report."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """Sampling."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""
    gate: GateConfig = field(default_factory=GateConfig)
    """Judging a new model."""
    retrain: RetrainConfig = field(default_factory=RetrainConfig)
    """Scheduled retraining."""
    card: CardConfig = field(default_factory=CardConfig)
    """Model card."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Ray."""
    output: OutputConfig = field(default_factory=OutputConfig)
    """Output folder."""


def _cross_checks(config: RunConfig) -> Iterator[str]:
    """Check what no single field can know.

    Not in ``__post_init__``: parsing the command line would stop there, before the ranges of all
    other settings are looked at.
    """
    data, stage = config.data, config.first_stage
    try:
        buckets = clip_buckets(data)
    except ConfigError as error:
        yield f"data.buckets: {error}"
        buckets = ()
    own_codec = stage.path is None and config.model.pretrained is None
    for bucket in buckets if own_codec else ():
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
    for mistake in leak_mistakes(config.leak):
        yield f"leak.{mistake}"
    for mistake in tracking_mistakes(config.tracking):
        yield f"tracking.{mistake}"
    yield from model_mistakes(config.model)
    yield from noise_mistakes(config.model, config.time_noise, config.train.condition_dropout)
    yield from told_mistakes(
        config.model,
        text_length=config.condition.text_length,
        conditioning_frame=config.train.conditioning_frame,
    )
    yield from _train_checks(config.train)
    yield from _validate_checks(config)


def _validate_checks(config: RunConfig) -> Iterator[str]:
    best, validate = config.train.best_metric, config.validate
    if best == "val_motion_error" and not validate.num_videos:
        yield "train.best_metric val_motion_error needs validate.num_videos >= 1, got 0"
    if best == "val_motion_transfer" and validate.num_clips < 2:
        yield "train.best_metric val_motion_transfer needs validate.num_clips >= 2, got 1"


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
    for name in ("lora_alpha", "lora_targets"):
        if getattr(train, name) is not None and train.trainable != "lora":
            yield f"train.{name} needs train.trainable lora, got {train.trainable}"


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
    return RunConfig() if path is None else validate_config(read_mapping(path), source=str(path))


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
    num_more = 0
    try:
        config = _adapter().validate_python(dict(raw))
    except pydantic.ValidationError as error:
        found = [dict(item) for item in error.errors(include_url=False)]
        found = [item for item in found if _path(item) not in booleans]
        mistakes += [_describe(item) for item in found[:_MOST_MISTAKES]]
        num_more = max(len(found) - _MOST_MISTAKES, 0)
    else:
        mistakes += _cross_checks(config)
    if mistakes:
        number = len(mistakes) + num_more
        lines = [*mistakes, *([f"and {num_more} more"] if num_more else [])]
        text = "\n".join(f"  {line}" for line in lines)
        noun = "mistake" if number == 1 else "mistakes"
        raise ConfigError(redact_uri(f"{source} has {number} {noun}:\n{text}"))
    return config


@lru_cache
def _adapter() -> "TypeAdapter[RunConfig]":
    import pydantic

    return pydantic.TypeAdapter(RunConfig)


def _booleans_for_numbers(raw: Any, owner: Any, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Find yes, on and true where a number belongs; pydantic would take them for 1."""
    if not isinstance(raw, Mapping):
        return
    for item in dataclasses.fields(owner):
        value, path = raw.get(item.name), f"{prefix}{item.name}"
        if dataclasses.is_dataclass(item.type):
            yield from _booleans_for_numbers(value, item.type, f"{path}.")
        elif not _takes_booleans(item.type):
            if isinstance(value, bool):
                yield path, value
            for index, part in enumerate(value if isinstance(value, list | tuple) else ()):
                if isinstance(part, bool):
                    yield f"{path}.{index}", part


def _takes_booleans(annotation: Any) -> bool:
    return annotation is bool or any(_takes_booleans(part) for part in get_args(annotation))


def _path(item: dict[str, Any]) -> str:
    return shortened(".".join(str(part) for part in item["loc"])).replace("\n", "\\n")


def _describe(item: dict[str, Any]) -> str:
    path, parts = _path(item), [shortened(str(part)) for part in item["loc"]]
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
    return f"{path}: {message}, got {shortened(repr(item['input']))}"


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


def config_to_yaml(config: RunConfig) -> str:
    """Render the resolved configuration as YAML, with secrets in URIs replaced."""
    import yaml

    raw = _redacted(_plain(asdict(config)))
    from pipelines.remote import shown_url

    for section, name in (("data", "videos"), ("data", "video_root"), ("output", "dataset")):
        if raw[section][name] is not None:
            raw[section][name] = shown_url(raw[section][name])
    return str(yaml.safe_dump(raw, sort_keys=False))


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _redacted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    return redact_uri(value) if isinstance(value, str) else value


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
