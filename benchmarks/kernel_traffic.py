"""How many bytes building the training input moves, counted operator by operator; no GPU needed.

python -m benchmarks.kernel_traffic          prints the table of docs/kernels.md

Every operator that is no view reads its inputs and writes its outputs once, as far as they are
stored: an expanded tensor counts as what it expands. Caches are not modelled.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.fused_kernels import LATENTS, eager_input


class Traffic(TorchDispatchMode):
    """Counts the bytes and the operators that touch memory."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0
        self.num_operators = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        views = any(given.alias_info is not None for given in func._schema.returns)
        if not views and "empty" not in str(func):
            self.num_operators += 1
            tensors = [
                x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)
            ]
            self.num_bytes += sum(stored_bytes(tensor) for tensor in tensors)
        return result


def stored_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes that a tensor has in memory: dimensions of stride 0 are stored once."""
    number = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        number *= size if stride else 1
    return number


def count(run: Callable[[], Any]) -> tuple[int, int]:
    """Return the bytes and the operators of one call."""
    with Traffic() as traffic:
        run()
    return traffic.num_bytes, traffic.num_operators


def table() -> str:
    """Return the Markdown table; the unit is the size of the clean latents."""
    lines = [
        "| latents, bf16 | noise | torch, operators | torch, traffic | fused, traffic | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for name, clip in LATENTS.items():
        for noise in ("shared", "per_frame"):
            clean = torch.zeros(2, *clip, dtype=torch.bfloat16)
            numbers = (clean[:, :1].clone(), torch.ones(2, 5), torch.ones(2))
            options = {"per_frame": noise == "per_frame", "dropout": 0.1}
            num_bytes, operators = count(lambda: eager_input(clean, *numbers, **options))  # noqa: B023
            torchs = num_bytes / stored_bytes(clean)
            fused = 4 + 1 / clip[0]
            lines.append(
                f"| {name} | {noise} | {operators} | {torchs:.2f} | {fused:.2f} | "
                f"{torchs / fused:.1f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
