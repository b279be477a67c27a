"""A whole checkpoint of DynamiCrafter or VideoCrafter1, in its parts and put together again.

    parts = split_lvdm(read_checkpoint("model.ckpt"), source="model.ckpt")
    network = load_strict(network, parts.unet, source="model.ckpt")
    write_checkpoint("out.ckpt", join_lvdm(parts.replace(unet=network.state_dict())))

Nothing is copied: parts hold the tensors that were given. Every name belongs to a part or is
refused, and ``join_lvdm`` gives the names of the file back, in its order.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cil.errors import DataError
from cil.models.strict_loading import looks_like

__all__ = ["LVDMParts", "averaged_unet", "join_lvdm", "prefixed", "split_lvdm"]

_PREFIXES = {
    "unet": "model.diffusion_model.",
    "averages": "model_ema.",
    "first_stage": "first_stage_model.",
    "text": "cond_stage_model.",
    "vision": "embedder.",
    "projector": "image_proj_model.",
}
_SCHEDULE = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "lvlb_weights",
    "logvar",
    "scale_factor",
    "scale_arr",
)
_REQUIRED = ("unet", "first_stage", "projector")
_RENAMED = ("framestride_embed.", "fps_embedding.")  # the 256 x 256 model has the former
_SHOWN = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class LVDMParts:
    """The parts of a checkpoint; names within a part have no prefix.

    Attributes:
        unet: of ``LVDMUNet``.
        projector: of ``Resampler``.
        first_stage: the autoencoder in the format of LDM, see ``cil.models.lvdm.vae``.
        text: OpenCLIP's text half, see ``cil.models.lvdm.open_clip``; names begin ``model.``.
        vision: OpenCLIP's vision half and what the release left beside it, as ``text``.
        schedule: ``betas`` and the tables made from them; ``scale_arr``, ``scale_factor``.
        averages: averages of the UNet's weights under the names of LitEma, see ``averaged_unet``.
        order: the names of the file in its order; empty where the parts come from no file.
    """

    unet: Mapping[str, Tensor]
    projector: Mapping[str, Tensor]
    first_stage: Mapping[str, Tensor]
    text: Mapping[str, Tensor] = field(default_factory=dict)
    vision: Mapping[str, Tensor] = field(default_factory=dict)
    schedule: Mapping[str, Tensor] = field(default_factory=dict)
    averages: Mapping[str, Tensor] = field(default_factory=dict)
    order: tuple[str, ...] = ()

    def replace(self, **parts: Any) -> "LVDMParts":
        """Return the parts with some of them exchanged."""
        return dataclasses.replace(self, **parts)


def split_lvdm(state: Mapping[str, Tensor], *, source: str | Path) -> LVDMParts:
    """Sort the tensors of a whole checkpoint into its parts.

    Args:
        state: of ``read_checkpoint``.
        source: the file, for messages.

    Returns:
        The parts; their tensors are those of ``state``.

    Raises:
        DataError: names of no part, or a checkpoint without UNet, first stage or projector.
    """
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in (*_PREFIXES, "schedule")}
    unknown = []
    for name, tensor in state.items():
        part, own = _place(name)
        if part is None:
            unknown.append(name)
        else:
            parts[part][own] = tensor
    absent = [_PREFIXES[part] for part in _REQUIRED if not parts[part]]
    if not parts["unet"] and parts["averages"] and not unknown:
        raise DataError(
            f"{source} holds averages of the network's weights only ({_PREFIXES['averages']}*, no "
            f"{_PREFIXES['unet']}*): they leave out what was not trained and cannot be used alone. "
            "Give the whole checkpoint they belong to"
        )
    if absent or unknown:
        kind = looks_like(list(state))
        said = [f"no tensor begins with {', '.join(absent)}"] if absent else []
        if unknown:
            more = ", ..." if len(unknown) > _SHOWN else ""
            named = ", ".join(unknown[:_SHOWN]) + more
            said.append(f"{len(unknown)} names belong to no part of it ({named})")
        raise DataError(
            f"{source} is not a whole checkpoint of DynamiCrafter or VideoCrafter1: "
            f"{'; '.join(said)}; its names are those of: {kind or 'no known kind'}. Give the file "
            "that was published, or that cil export --layout original wrote"
        )
    return LVDMParts(**parts, order=tuple(state))


def join_lvdm(parts: LVDMParts) -> dict[str, Tensor]:
    """Put the parts together under the names of the published file.

    Args:
        parts: of ``split_lvdm``, or made anew.

    Returns:
        Name to tensor in ``parts.order``; without one, in the order of the released code.

    Raises:
        DataError: ``parts.order`` and the names in the parts are not the same.
    """
    found = dict(parts.schedule)
    for part in _PREFIXES:
        found.update(prefixed(part, getattr(parts, part)))
    if not parts.order:
        rest = [name for name in found if name not in _SCHEDULE]
        return {name: found[name] for name in (*(n for n in _SCHEDULE if n in found), *rest)}
    named = {name: name.replace(*_RENAMED) for name in parts.order}
    missing = [name for name, own in named.items() if own not in found]
    added = sorted(set(found) - set(named.values()))
    if missing or added:
        raise DataError(
            f"the parts are not those of the file they came from: {len(missing)} missing "
            f"({', '.join(missing[:_SHOWN])}), {len(added)} added ({', '.join(added[:_SHOWN])}); "
            "replace parts as a whole, or clear order to write another set of names"
        )
    return {name: found[own] for name, own in named.items()}


def averaged_unet(parts: LVDMParts) -> dict[str, Tensor]:
    """Return the averages of the UNet's weights under the UNet's own names.

    The released code stores them with the dots left out, and only what was trained.

    Raises:
        DataError: there are none, or two names differ in dots alone.
    """
    if not parts.averages:
        raise DataError("this checkpoint holds no averages (model_ema.); use its unet")
    shadows = {f"diffusion_model.{name}".replace(".", ""): name for name in parts.unet}
    if len(shadows) != len(parts.unet):
        raise DataError("names of the UNet differ in dots alone; its averages cannot be told apart")
    return {
        **parts.unet,
        **{shadows[k]: value for k, value in parts.averages.items() if k in shadows},
    }


def prefixed(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a part, a field of `LVDMParts`, under the names of the whole file."""
    return {_PREFIXES[part] + own: value for own, value in tensors.items()}


def _place(name: str) -> tuple[str | None, str]:
    """Return the part that a name belongs to, and its name there."""
    if name in _SCHEDULE:
        return "schedule", name
    for part, prefix in _PREFIXES.items():
        if name.startswith(prefix):
            return part, name.removeprefix(prefix).replace(*_RENAMED)
    return None, name
