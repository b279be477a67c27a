"""Published checkpoints of DynamiCrafter and VideoCrafter1 to model folders, and back to one file.

    import_lvdm("dynamicrafter", "model.ckpt", folder, tokenizer=words)
    model = cil.models.load("dynamicrafter", folder)
    write_checkpoint("out.safetensors", original_lvdm(folder))

Names and order of the file are kept beside the parts, so that the way back gives the same names
and, for what was not trained, the same weights. Averages in a checkpoint are not kept.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cil.errors import ConfigError, DataError
from cil.models.checkpoint_damage import check_finite, check_sums_inside
from cil.models.checkpoint_files import read_checkpoint
from cil.models.lvdm import LVDMUNet, Resampler
from cil.models.lvdm.checkpoint import (
    LVDMParts,
    averaged_unet,
    join_lvdm,
    prefixed,
    split_lvdm,
)
from cil.models.lvdm.config import IMAGE_TOKENS_PER_FRAME
from cil.models.lvdm.open_clip import HEADS
from cil.models.lvdm.schedule_buffers import schedule_buffers
from cil.models.lvdm_config import DynamiCrafterConfig, LVDMSettings, VideoCrafter1Config
from cil.models.lvdm_folder import LVDM_WEIGHTS, ORIGINAL_FOLDER, LVDMFolders, save_lvdm
from cil.models.null_condition import NullCondition
from cil.models.storage import read_json, read_tensors, write_json, write_tensors
from cil.models.strict_loading import load_strict

__all__ = [
    "LVDM_SETTINGS",
    "check_schedule",
    "import_lvdm",
    "original_lvdm",
    "refuse_other_family",
    "with_rescale",
]

LVDM_SETTINGS: Mapping[str, type[LVDMSettings]] = {
    "dynamicrafter": DynamiCrafterConfig,
    "videocrafter1": VideoCrafter1Config,
}
"""Settings of the families that are imported, by name."""

_NAMES, _SCHEDULE = "names.json", "schedule.safetensors"
_COMPARED = ("betas", "scale_arr")


def import_lvdm(
    family: str,
    checkpoint: str | Path,
    folder: Path,
    *,
    tokenizer: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    averages: bool = False,
    heads: int = HEADS,
) -> None:
    """Write a model folder from a whole checkpoint.

    Args:
        family: ``dynamicrafter`` or ``videocrafter1``.
        checkpoint: the file; only tensors are read from it.
        folder: made if missing.
        tokenizer: folder of CLIP's tokenizer, needed where the checkpoint has a text encoder.
        settings: of the model, and flat of its network; by default those of the published model,
            and the dynamic rescale of the file.
        averages: take the averages of the network's weights.
        heads: of the attentions in both encoders; the weights do not show it.

    Raises:
        ConfigError: another family, no tokenizer, or settings that do not fit.
        DataError: the file is damaged, refused, or not of this family.
    """
    if family not in LVDM_SETTINGS:
        known = ", ".join(sorted(LVDM_SETTINGS))
        raise ConfigError(f"checkpoints of {family!r} are not imported; known: {known}")
    _refuse_model_folder(Path(checkpoint))
    parts = split_lvdm(read_checkpoint(checkpoint), source=checkpoint)
    refuse_other_family(family, parts, checkpoint)
    if parts.text and tokenizer is None:
        raise ConfigError(
            f"{checkpoint} holds a text encoder but no tokenizer; give --tokenizer, a folder with "
            "CLIP's, such as tokenizer/ of a published Stable Diffusion"
        )
    config = LVDM_SETTINGS[family].of(with_rescale(parts, settings or {}, checkpoint))
    check_schedule(parts, config, checkpoint)
    unet = averaged_unet(parts) if averages else parts.unet
    with torch.device("meta"):
        modules = {"unet": LVDMUNet(config.unet), "projector": Resampler(**config.projector)}
    load_strict(modules["unet"], unet, source=checkpoint)
    load_strict(modules["projector"], parts.projector, source=checkpoint)
    check_sums_inside(checkpoint)
    _check_weights(parts.replace(unet=unet), checkpoint)
    _write_encoders(parts, folder, tokenizer=tokenizer, source=checkpoint, heads=heads)
    save_lvdm(
        folder,
        config=config,
        network=unet,
        projector=parts.projector,
        null_condition=_null_condition(parts, folder),
        folders=LVDMFolders(),
    )
    (folder / ORIGINAL_FOLDER).mkdir(exist_ok=True)
    kept = [name for name in parts.order if not name.startswith("model_ema.")]
    write_json(folder / ORIGINAL_FOLDER / _NAMES, {"names": kept})
    write_tensors(folder / ORIGINAL_FOLDER / _SCHEDULE, parts.schedule)


def original_lvdm(folder: Path) -> dict[str, Tensor]:
    """Join a model folder under the names of the published file.

    Args:
        folder: of a model of either family; what ``original/`` says decides names and order.

    Returns:
        Name to tensor, in the order of the file that was imported, or of the released code.

    Raises:
        DataError: a part is missing or is not what the published format has a place for.
    """
    from cil.models.lvdm.open_clip_folders import read_text_folder, read_vision_folder
    from cil.models.lvdm.vae import read_vae_folder

    described = read_json(folder / "model.json")
    family = str(described.get("family"))
    if family not in LVDM_SETTINGS:
        raise DataError(
            f"{folder} holds a model of the family {family!r}, for which there is no original "
            f"layout; there is one for {', '.join(sorted(LVDM_SETTINGS))}"
        )
    own = {n: v for n, v in described.items() if n not in ("format_version", "family")}
    network = read_json(folder / "unet" / "config.json")
    projector = read_json(folder / "image_projector" / "config.json")
    config = LVDM_SETTINGS[family].of(own, network=network, projector=projector)
    text, vision = folder / "text_encoder", folder / "image_encoder"
    order: tuple[str, ...] = ()
    if (folder / ORIGINAL_FOLDER / _NAMES).is_file():
        order = tuple(read_json(folder / ORIGINAL_FOLDER / _NAMES)["names"])
    parts = LVDMParts(
        unet=read_tensors(folder / "unet" / LVDM_WEIGHTS),
        projector=read_tensors(folder / "image_projector" / LVDM_WEIGHTS),
        first_stage=read_vae_folder(folder),
        text=read_text_folder(text) if text.is_dir() else {},
        vision=read_vision_folder(vision) if vision.is_dir() else {},
        schedule=_tables(folder, config),
        order=order,
    )
    if not order:
        parts = replace(parts, unet=_ordered(parts.unet, LVDMUNet, config.unet))
    return join_lvdm(parts)


def with_rescale(
    parts: LVDMParts, settings: Mapping[str, Any], source: str | Path
) -> dict[str, Any]:
    """Take the dynamic rescale of the file, unless another one was asked for.

    Raises:
        DataError: the file's table of it is empty.
    """
    table = parts.schedule.get("scale_arr")
    if table is None:
        return dict(settings)
    if table.ndim != 1 or not table.numel():
        raise DataError(
            f"scale_arr in {source} must be a table of one number for each timestep, got the shape "
            f"{tuple(table.shape)}; the file is damaged, download it again"
        )
    return {"base_scale": round(float(table[-1]), 6), **settings}


def refuse_other_family(family: str, parts: LVDMParts, source: str | Path) -> None:
    """Refuse a checkpoint of the other family, which has the same names.

    Raises:
        DataError: names the family, and the tensors that tell it.
    """
    first, last = parts.unet.get("input_blocks.0.0.weight"), parts.unet.get("out.2.weight")
    if first is None or last is None or first.ndim != 4 or not last.ndim:
        return  # not complete, which loading reports
    latents, taken = last.shape[0], first.shape[1]
    channels = {name: latents * (1 + it.concatenates) for name, it in LVDM_SETTINGS.items()}
    seen = [name for name, count in channels.items() if count == taken and name != family]
    if not seen or taken == channels[family]:
        return
    told = [
        f"model.diffusion_model.input_blocks.0.0.weight takes {taken} channels, a {family} network "
        f"{channels[family]}"
    ]
    queries = parts.projector.get("latents")
    if queries is not None and queries.ndim == 3:
        whose = "each frame" if LVDM_SETTINGS[family].tokens_per_frame else "all frames alike"
        told.append(
            f"image_proj_model.latents makes {queries.shape[1]} tokens, where {family} has "
            f"{IMAGE_TOKENS_PER_FRAME} for {whose}"
        )
    raise DataError(
        f"{source} is a checkpoint of {seen[0]}, not of {family}: {'; '.join(told)}. Name the "
        f"family {seen[0]}"
    )


def check_schedule(parts: LVDMParts, config: LVDMSettings, source: str | Path) -> None:
    """Refuse a checkpoint that was trained with another noise schedule.

    Raises:
        DataError: a table in the file is not that of the settings.
    """
    made = _made(config)
    for name in _COMPARED:
        given = parts.schedule.get(name)
        if given is None or name not in made:
            continue
        if given.shape != made[name].shape or not _close(given, made[name]):
            raise DataError(
                f"{name} in {source} is not that of the settings (zero_terminal_snr "
                f"{config.zero_terminal_snr}, base_scale {config.base_scale}); choose the family "
                "of this checkpoint. DynamiCrafter of 256 pixels is not supported"
            )


def _refuse_model_folder(path: Path) -> None:
    for name in ("model.json", "model_index.json"):
        if (path / name).is_file():
            raise ConfigError(
                f"{path} is a model folder already, not a published checkpoint; give it as "
                f"model.pretrained as it is"
            )


def _check_weights(parts: LVDMParts, source: str | Path) -> None:
    """Refuse weights that are no numbers; averages that are not taken, and tables, do not count."""
    for part in ("unet", "projector", "first_stage", "text", "vision"):
        check_finite(prefixed(part, getattr(parts, part)), source=source)


def _made(config: LVDMSettings) -> dict[str, Tensor]:
    return schedule_buffers(config.schedule, v_prediction=config.family == "dynamicrafter")


def _close(given: Tensor, made: Tensor) -> bool:
    return torch.allclose(given.float(), made, rtol=1e-3, atol=1e-6)


def _tables(folder: Path, config: LVDMSettings) -> dict[str, Tensor]:
    """Return the tables of the file, or those of the settings where they have changed since."""
    path, made = folder / ORIGINAL_FOLDER / _SCHEDULE, _made(config)
    if not path.is_file():
        return made
    given = read_tensors(path)
    same = {n: n in given and _close(given[n], made[n]) for n in _COMPARED if n in made}
    if all(same.values()):
        return given
    return {name: made.get(name, table) for name, table in given.items()}


def _ordered(tensors: Mapping[str, Tensor], kind: Any, config: Any) -> dict[str, Tensor]:
    """Return tensors in the order of their network; files have them sorted."""
    with torch.device("meta"):
        names = list(kind(config).state_dict())
    return {name: tensors[name] for name in names}


def _write_encoders(
    parts: LVDMParts,
    folder: Path,
    *,
    tokenizer: str | Path | None,
    source: str | Path,
    heads: int,
) -> None:
    from cil.models.lvdm.open_clip_folders import write_text_folder, write_vision_folder
    from cil.models.lvdm.vae import write_vae_folder

    folder.mkdir(parents=True, exist_ok=True)
    write_vae_folder(parts.first_stage, folder, source=source)
    if parts.vision:
        write_vision_folder(parts.vision, folder / "image_encoder", source=source, heads=heads)
    if parts.text and tokenizer is not None:
        text = folder / "text_encoder"
        write_text_folder(parts.text, text, tokenizer=tokenizer, source=source, heads=heads)


def _null_condition(parts: LVDMParts, folder: Path) -> NullCondition | None:
    """Encode what is told without caption and image; None without either encoder."""
    from cil.models.condition_encoders import ImageEncoder, TextEncoder

    if not parts.vision or not parts.text:
        return None
    text = TextEncoder.from_folder(folder / "text_encoder", layer="penultimate")
    image = ImageEncoder.from_folder(folder / "image_encoder", tokens="hidden")
    return NullCondition(text_embeds=text.encode("").tokens, image_embeds=image.encode_grey())
