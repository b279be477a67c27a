"""What decides the bytes of a data set besides the videos; two sets of settings never mix."""

import json
from dataclasses import asdict
from typing import Any

from cil.errors import ConfigError, DataError
from cil.models import load_first_stage
from pipelines.config import RunConfig, clip_buckets, content_hash
from pipelines.encoders import condition_identity
from pipelines.store import Store, read_json, write_json

__all__ = [
    "PLAN_NAME",
    "clip_hash",
    "read_plan",
    "refuse_other_identity",
    "settings_identity",
    "write_plan",
]

PLAN_NAME = "plan.json"
_ARITHMETIC = ("compute_dtype", "frames_per_chunk", "tile_size")
"""How a VAE computes; its fingerprint does not know."""


def settings_identity(config: RunConfig) -> dict[str, Any]:
    """Everything in the configuration that decides the bytes of a shard, as plain JSON."""
    fit = asdict(config.first_stage)
    encode = config.encode
    path = config.first_stage.path
    settings = {
        "clips": {
            "fps": config.data.fps,
            "buckets": [bucket.name for bucket in clip_buckets(config.data)],
            "stride": config.data.clip_stride,
        },
        "select": asdict(config.select),
        "posterior": encode.posterior,
        "seed": config.seed if encode.posterior == "sample" else None,
        "latents_dtype": encode.latents_dtype,
        "videos_per_shard": encode.videos_per_shard,
        "first_stage": {key: value for key, value in fit.items() if key != "path"}
        if path is None
        else {
            "fingerprint": load_first_stage(path).fingerprint(),
            **{name: getattr(encode, name) for name in _ARITHMETIC},
        },
        "condition": _condition(config),
    }
    return dict(json.loads(json.dumps(settings)))


def _condition(config: RunConfig) -> dict[str, Any]:
    identity = condition_identity(config)
    if config.condition.image_encoder is not None or config.condition.text_encoder is not None:
        identity["compute_dtype"] = config.encode.compute_dtype
    return identity


def write_plan(store: Store, identity: dict[str, Any], shards: list[dict[str, Any]]) -> None:
    """Write which clips go to which shard, and what else decides their bytes."""
    plan = {"identity": identity, "shards": shards}
    write_json(store, PLAN_NAME, {**plan, "fingerprint": content_hash(plan)})


def read_plan(store: Store) -> dict[str, Any]:
    """Return the plan of a data set: ``identity`` and ``shards``.

    Raises:
        DataError: it is missing, damaged, or of another version.
    """
    raw = read_json(store, PLAN_NAME)
    if not isinstance(raw, dict) or not isinstance(raw.get("identity"), dict):
        raise _other_version(store)
    fingerprint = raw.pop("fingerprint", None)  # older ones have none
    try:
        undamaged = fingerprint in (None, content_hash(raw)) and set(raw) == {"identity", "shards"}
    except ValueError:  # NaN, for which JSON has no word
        undamaged = False
    if not undamaged or not isinstance(raw["shards"], list):
        raise DataError(
            f"{store.url(PLAN_NAME)} is damaged, it is not what was written; delete the data set, "
            "or restore the file"
        )
    return raw


def _other_version(store: Store) -> DataError:
    return DataError(
        f"{store.url(PLAN_NAME)} was written by another version; choose another place for the "
        "data set, or delete this one"
    )


def refuse_other_identity(store: Store, asked: dict[str, Any]) -> None:
    """Refuse to mix with a data set that was made with other settings."""
    if not store.exists(PLAN_NAME):
        return
    there = read_plan(store)["identity"].get("settings")
    if not isinstance(there, dict):
        raise _other_version(store)
    if there == asked:
        return
    old, new = _flat(there), _flat(asked)
    names = sorted(key for key in old | new if old.get(key) != new.get(key))
    lines = [f"  {name}: {old.get(name)} there, {new.get(name)} asked" for name in names]
    raise ConfigError(
        f"{store.url()} was made with other settings:\n"
        + "\n".join(lines)
        + f"\n  fingerprints of the settings: {content_hash(there)[:16]} there, "
        f"{content_hash(asked)[:16]} asked"
        + "\nchoose another output.dir or output.dataset, or delete this data set"
    )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name nested settings by dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def clip_hash(identity: dict[str, Any]) -> str:
    """Hash what decides the bytes of a clip, whatever other clips are in the data set."""
    settings = identity["settings"]
    names = ("posterior", "seed", "latents_dtype", "condition")
    about = {name: settings[name] for name in names}
    about["clips"] = {"fps": settings["clips"]["fps"]}
    about["arithmetic"] = {name: settings["first_stage"].get(name) for name in _ARITHMETIC}
    return content_hash({**about, "first_stage": identity["first_stage"]})
