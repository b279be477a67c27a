"""From a training checkpoint to whole tensors by name, on one process and without a cluster.

    averaged_weights    the average (EMA), a safetensors file in the checkpoint
    live_weights        the fp32 weights of the optimiser, which DeepSpeed keeps in pickles

A pickle can run code when it is read. What a file would call is looked up first, without reading
it: a file that names anything but tensors and a few classes of DeepSpeed is refused.
"""

import contextlib
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cil.errors import DataError
from pipelines.checkpoint import EMA_FILE
from pipelines.checkpoint_sums import check_sums
from pipelines.progress import stage_progress

__all__ = ["averaged_weights", "live_weights"]

_TAG = "state"
_WITHOUT_ZERO = "mp_rank_00_model_states.pt"
_DEEPSPEED_CLASSES = frozenset(
    {
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    }
)


def averaged_weights(checkpoint: Path) -> dict[str, Tensor]:
    """Read the average of the trained weights.

    Args:
        checkpoint: a committed checkpoint.

    Returns:
        The trained parameters by name, float32 on the CPU.

    Raises:
        DataError: the checkpoint holds no whole average, or a damaged one.
    """
    from safetensors import SafetensorError, safe_open

    path = checkpoint / EMA_FILE
    if not path.exists():
        raise DataError(
            f"{checkpoint} has no {EMA_FILE}: of the checkpoints of format version 1, only that of "
            "the last step has the whole average. Give another --checkpoint (--list says what each "
            "holds), or take --weights live"
        )
    check_sums(checkpoint, name=EMA_FILE)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = list(file.keys())
            weights = {}
            with stage_progress("export: reading weights", len(names)) as progress:
                for name in names:
                    weights[name] = file.get_tensor(name)
                    progress.advance()
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} is damaged: {error}; give another --checkpoint") from error
    return weights


def live_weights(checkpoint: Path, names: Collection[str], *, zero_stage: int) -> dict[str, Tensor]:
    """Consolidate the fp32 weights that DeepSpeed was training; reads its pickles.

    Args:
        checkpoint: a committed checkpoint of a run of one's own.
        names: the trained parameters, in the order of the network.
        zero_stage: stage that the run was trained with.

    Returns:
        The trained parameters by name, float32 on the CPU.

    Raises:
        DataError: a file is missing or damaged, or would call what DeepSpeed never writes.
    """
    folder = checkpoint / _TAG
    files = sorted(folder.glob("*.pt"))
    if not files:
        raise DataError(f"{checkpoint} has no state of DeepSpeed; give another --checkpoint")
    for file in files:
        _refuse_foreign_calls(file)
    check_sums(checkpoint)
    try:
        if zero_stage == 0:
            return _without_zero(folder / _WITHOUT_ZERO, names)
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        with contextlib.redirect_stdout(sys.stderr):  # stdout is kept for --json
            state = get_fp32_state_dict_from_zero_checkpoint(
                str(checkpoint), tag=_TAG, exclude_frozen_parameters=True
            )
        return {name: state[name].float().clone() for name in names}
    except (OSError, RuntimeError, ValueError, KeyError, AttributeError) as error:
        raise DataError(
            f"DeepSpeed's state in {checkpoint} is damaged or incomplete ({type(error).__name__}: "
            f"{error}); give another --checkpoint"
        ) from error


def _without_zero(path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Read what DeepSpeed writes without ZeRO: all weights, in bf16 also their fp32 copies."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    copies = (state["optimizer"] or {}).get("fp32_groups")
    if copies is None:
        return {name: state["module"][name].float().clone() for name in names}
    whole = [copy for group in copies for copy in group]
    return {name: copy.detach().clone() for name, copy in zip(names, whole, strict=True)}


def _refuse_foreign_calls(path: Path) -> None:
    from torch.serialization import get_unsafe_globals_in_checkpoint

    try:
        foreign = set(get_unsafe_globals_in_checkpoint(path)) - _DEEPSPEED_CLASSES
    except Exception as error:  # whatever a reader of pickles stumbles over
        raise DataError(
            f"{path} is no file of DeepSpeed ({type(error).__name__}: {error}); nothing of it was "
            "read"
        ) from error
    if foreign:
        raise DataError(
            f"{path} would call {', '.join(sorted(foreign))}, which DeepSpeed does not write; "
            "nothing of it was read. Do not use this checkpoint"
        )
