"""The average of the weights over the steps (EMA), which is what training exports.

Each rank averages the fp32 master weights that it holds: all trained weights without ZeRO, its
shard of them with ZeRO. A checkpoint gathers them into one file of names and whole tensors, from
which any number of workers takes its shards again.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ShardedEma"]


class ShardedEma:
    """Average of the trained fp32 master weights, each rank its own part."""

    def __init__(self, engine: Any, decay: float) -> None:
        self._engine, self._decay = engine, decay
        self.shards = [master.detach().clone() for master in self._masters()]

    @property
    def replicated(self) -> bool:
        """Whether every rank holds the same whole average (ZeRO stage 0)."""
        return bool(self._engine.zero_optimization_stage() == 0)

    def _masters(self) -> list[Tensor]:
        # DeepSpeed has no public name for the flat fp32 shards; averaging them costs 60 times less
        # per step than gathering every parameter.
        stage, optimizer = self._engine.zero_optimization_stage(), self._engine.optimizer
        if stage == 3:
            return list(optimizer.fp32_partitioned_groups_flat)
        if stage > 0:
            return list(optimizer.single_partition_of_fp32_groups)
        # the parameters in fp32, else copies of them in fp32
        return [master for group in optimizer.param_groups for master in group["params"]]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the current weights."""
        torch._foreach_lerp_(self.shards, self._masters(), 1 - self._decay)

    @torch.no_grad()
    def gather(self, network: nn.Module, *, keep: bool = True) -> dict[str, Tensor]:
        """Assemble the whole average; a collective call.

        Args:
            network: the module inside the engine.
            keep: False on the ranks that do not need the result.

        Returns:
            The trained parameters of ``network`` by name, in float32 on the CPU; empty unless kept.
        """
        trained = _trained(network)
        if self.replicated:
            pairs = zip(trained, self.shards, strict=True)
            return {name: shard.cpu().clone() for (name, _), shard in pairs if keep}
        from deepspeed.utils import safe_get_full_fp32_param

        masters = self._masters()
        live = [master.detach().clone() for master in masters]
        state = {}
        try:
            for master, shard in zip(masters, self.shards, strict=True):
                master.copy_(shard)
            for name, parameter in trained:
                full = safe_get_full_fp32_param(parameter)
                assert full is not None, name
                if keep:
                    whole = full.detach().to("cpu", torch.float32).reshape(_shape(parameter))
                    state[name] = whole.clone().contiguous()
        finally:
            for master, value in zip(masters, live, strict=True):
                master.copy_(value)
        return state

    @torch.no_grad()
    def scatter(self, network: nn.Module, read: Callable[[str], Tensor]) -> None:
        """Take this rank's part of a whole average, as `gather` returns it.

        Args:
            network: the module inside the engine.
            read: gives the whole average of a trained parameter by its name.

        Raises:
            ValueError: the average of a parameter has another shape than the parameter.
        """
        trained = _trained(network)
        if self.replicated:
            for (name, parameter), shard in zip(trained, self.shards, strict=True):
                shard.copy_(_checked(name, parameter, read(name)))
            return
        masters = self._masters()
        live = [master.detach().clone() for master in masters]
        try:
            for name, parameter in trained:
                _set_master(parameter, _checked(name, parameter, read(name)))
            for master, shard in zip(masters, self.shards, strict=True):
                shard.copy_(master)
        finally:
            for master, value in zip(masters, live, strict=True):
                master.copy_(value)


def _trained(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in network.named_parameters() if p.requires_grad]


def _shape(parameter: nn.Parameter) -> torch.Size:
    # ZeRO 3 leaves the parameter itself empty
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _checked(name: str, parameter: nn.Parameter, whole: Tensor) -> Tensor:
    if whole.shape != _shape(parameter):
        raise ValueError(
            f"{name} has the shape {tuple(whole.shape)} there and {tuple(_shape(parameter))} here"
        )
    return whole


def _set_master(parameter: nn.Parameter, whole: Tensor) -> None:
    """Write this rank's part of a whole tensor into its fp32 master."""
    if not hasattr(parameter, "ds_id"):
        from deepspeed.utils import safe_set_full_fp32_param

        safe_set_full_fp32_param(parameter, whole)
        return
    from deepspeed.utils import safe_set_local_fp32_param

    # The call for a whole tensor fails where the last rank's part is padded.
    divided: Any = parameter
    size = divided.ds_tensor.numel()
    group = divided.ds_process_group
    first = torch.distributed.get_rank(group) * size
    flat = whole.flatten()[first : first + size]
    part = torch.zeros(size, dtype=torch.float32)
    part[: flat.numel()] = flat
    safe_set_local_fp32_param(parameter, part)
