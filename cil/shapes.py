"""Tensor shapes: the letters, and the one check that reports a mismatch.

B batch, F frames, C channels, H height, W width (of the latents unless said otherwise), L tokens,
D width of a token. Video tensors are (B, F, C, H, W), frames before channels.
"""

import torch
from torch import Tensor

from cil.errors import DataError

__all__ = ["append_dims", "broadcast", "check_finite", "check_shape"]


def append_dims(values: Tensor, ndim: int) -> Tensor:
    """Append dimensions of size one until ``values`` has ``ndim``: (B,) meets (B, F, C, H, W).

    Args:
        values: any shape with at most ``ndim`` dimensions.
        ndim: number of dimensions wanted.

    Returns:
        A view of ``values`` with ``ndim`` dimensions.

    Raises:
        DataError: ``values`` has more than ``ndim`` dimensions.
    """
    missing = ndim - values.ndim
    if missing < 0:
        raise DataError(f"expected at most {ndim} dimensions, got shape {tuple(values.shape)}")
    return values.reshape(*values.shape, *([1] * missing))


def broadcast(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Expand two tensors to their common shape."""
    expanded: tuple[Tensor, Tensor] = torch.broadcast_tensors(first, second)  # type: ignore[no-untyped-call]
    return expanded


def check_shape(name: str, tensor: Tensor, letters: str, **sizes: int) -> None:
    """Check that a tensor has one dimension for each letter, and the sizes that are known.

    Args:
        name: what the tensor is called where the user gave it.
        tensor: the tensor to check.
        letters: expected dimensions separated by spaces, for example ``"B F C H W"``.
        **sizes: known sizes by letter.

    Raises:
        DataError: the number of dimensions or a known size differs.
    """
    names = letters.split()
    if tensor.ndim != len(names):
        raise DataError(
            f"{name} must have the shape ({letters}), got {tuple(tensor.shape)}; "
            "reshape it, see cil.shapes for the letters"
        )
    for letter, got in zip(names, tensor.shape, strict=True):
        want = sizes.get(letter, got)
        if got != want:
            raise DataError(
                f"{name} must have {letter} = {want} in ({letters}), got {tuple(tensor.shape)}; "
                "make the sizes agree"
            )


def check_finite(name: str, tensor: Tensor) -> None:
    """Check that a tensor holds no NaN and no infinity, where that costs no device a wait.

    Args:
        name: what the tensor is called where the user gave it.
        tensor: the tensor; one on a GPU is left unchecked, since looking would stall it.

    Raises:
        DataError: some values are not finite.
    """
    if tensor.device.type != "cpu" or bool(torch.isfinite(tensor).all()):
        return
    bad = int((~torch.isfinite(tensor)).sum())
    raise DataError(
        f"{name} must be finite, got {bad} of {tensor.numel()} values NaN or infinite; look at the "
        "data or the encoder they come from"
    )
