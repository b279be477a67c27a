"""The average of the weights over the steps (EMA), which is what training exports.

Each rank averages the fp32 master weights that it holds: all trained weights without ZeRO, its
shard of them with ZeRO. They are gathered once, at the end.
"""

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
        for shard, master in zip(self.shards, self._masters(), strict=True):
            shard.lerp_(master.detach(), 1 - self._decay)

    @torch.no_grad()
    def gather(self, network: nn.Module, *, keep: bool = True) -> dict[str, Tensor]:
        """Assemble the whole average; a collective call.

        Args:
            network: the module inside the engine.
            keep: False on the ranks that do not need the result.

        Returns:
            The trained parameters of ``network`` by name, in float32 on the CPU; empty unless kept.
        """
        trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
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
                    # ZeRO 3 leaves the parameter itself empty
                    shape = getattr(parameter, "ds_shape", parameter.shape)
                    whole = full.detach().to("cpu", torch.float32).reshape(shape)
                    state[name] = whole.clone().contiguous()
        finally:
            for master, value in zip(masters, live, strict=True):
                master.copy_(value)
        return state
