"""What decides the bytes of a data set besides the videos; two sets of settings never mix."""

import json
from dataclasses import asdict
from typing import Any

from cil.errors import ConfigError, DataError
from cil.models import load_first_stage
from pipelines.config import RunConfig, clip_buckets, content_hash
from pipelines.encoders import condition_identity
from pipelines.store import Store, read_json

__all__ = ["PLAN_NAME", "clip_hash", "refuse_other_identity", "settings_identity"]

PLAN_NAME = "plan.json"


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
            "compute_dtype": encode.compute_dtype,
            "frames_per_chunk": encode.frames_per_chunk,
            "tile_size": encode.tile_size,
        },
        "condition": condition_identity(config),
    }
    return dict(json.loads(json.dumps(settings)))


def refuse_other_identity(store: Store, asked: dict[str, Any]) -> None:
    """Refuse to mix with a data set that was made with other settings."""
    if not store.exists(PLAN_NAME):
        return
    try:
        there = read_json(store, PLAN_NAME)["identity"]["settings"]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{store.url(PLAN_NAME)} was written by another version; choose another place for the "
            "data set, or delete this one"
        ) from error
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
    """Hash what decides the bytes of a clip: not how clips are chosen or put into shards."""
    settings = identity["settings"]
    names = ("clips", "posterior", "seed", "latents_dtype", "condition")
    about = {name: settings[name] for name in names}
    about["clips"] = {"fps": settings["clips"]["fps"]}
    return content_hash({**about, "first_stage": identity["first_stage"]})
