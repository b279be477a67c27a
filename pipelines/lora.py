"""LoRA: small trained matrices beside linear layers that stay as they are.

A layer's output ``W x`` becomes ``W x + alpha / rank * B A x``: A (rank, in) begins random, B
(out, rank) begins at zero, so training begins at the network as it was. peft makes the layers; the
network's own parameter ``NAME.weight`` is then ``NAME.base_layer.weight``, and the adapter's are
``NAME.lora_A.default.weight`` and ``NAME.lora_B.default.weight``.

In: a network. Out: the same network with adapters, or with adapters merged into its weights.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cil.errors import ConfigError

__all__ = ["add_lora", "lora_parameters", "merge_lora", "save_adapter"]

_ADAPTER = "default"
# peft's PeftModel wraps the network in itself, then in its tuner; adapters are saved with its names
_PEFT_PREFIX = "base_model.model"
# where diffusers looks for what peft has in adapter_config.json
_DIFFUSERS_METADATA = "lora_adapter_metadata"


def add_lora(
    network: nn.Module, *, targets: Sequence[str], rank: int, alpha: float, seed: int
) -> None:
    """Put an adapter beside each linear layer that is named, in place.

    Args:
        network: outputs stay the same until its adapters are trained.
        targets: names of linear layers, or ends of names at a dot.
        rank: of the matrices, >= 1.
        alpha: ``alpha / rank`` scales what an adapter adds.
        seed: with a layer's name it decides the layer's A; the global generator is left as it was.

    Raises:
        ConfigError: a target names no layer, or one that is not linear.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    _check_targets(network, targets)
    settings = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=0.0, bias="none"
    )
    # without weights: peft would move them to each layer, which the fake tensors of a plan cannot
    with unset_fake_temporarily():
        inject_adapter_in_model(settings, network, adapter_name=_ADAPTER, low_cpu_mem_usage=True)
    for name, layer in _adapted(network):
        like = layer.get_base_layer().weight
        first = torch.empty(rank, like.shape[1], dtype=torch.float32, device=like.device)
        bound = 1 / math.sqrt(first.shape[1])  # the law that peft draws from
        first.uniform_(-bound, bound, generator=_generator(seed, name))
        second = torch.zeros(like.shape[0], rank, dtype=torch.float32, device=like.device)
        layer.lora_A[_ADAPTER].weight = nn.Parameter(first)
        layer.lora_B[_ADAPTER].weight = nn.Parameter(second)


def lora_parameters(network: nn.Module) -> frozenset[str]:
    """Return the names of all parameters of adapters, as in the network's state dict."""
    parts = {"lora_A", "lora_B"}
    names = (name for name, _ in network.named_parameters())
    return frozenset(name for name in names if parts & set(name.split(".")))


def merge_lora(network: nn.Module) -> None:
    """Add all adapters to the weights of their layers and remove them, in place.

    Args:
        network: has its weights in float32; afterwards its parameters have their own names again.
    """
    for name, layer in _adapted(network):
        layer.merge()
        network.set_submodule(name, layer.get_base_layer())
    if hasattr(network, "peft_config"):
        del network.peft_config


def save_adapter(network: nn.Module, folder: Path) -> None:
    """Write the adapters alone, as peft does: adapter_config.json and adapter_model.safetensors.

    ``peft.PeftModel.from_pretrained`` reads the folder, and with ``prefix="base_model.model"`` so
    does ``load_lora_adapter`` of those diffusers networks that have it.

    Args:
        network: has adapters that are not merged.
        folder: is made.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    tuned: Any = network
    settings = tuned.peft_config[_ADAPTER]
    settings.inference_mode = True
    settings.target_modules = sorted(settings.target_modules)  # a set has another order each time
    folder.mkdir(parents=True)
    settings.save_pretrained(folder)
    found = get_peft_model_state_dict(network, adapter_name=_ADAPTER)
    tensors = {f"{_PEFT_PREFIX}.{name}": found[name].contiguous() for name in sorted(found)}
    known = {
        "r": settings.r,
        "lora_alpha": settings.lora_alpha,
        "target_modules": settings.target_modules,
    }
    said = json.dumps({f"{_PEFT_PREFIX}.{name}": value for name, value in known.items()})
    # one entry: safetensors writes several in a random order
    metadata = {_DIFFUSERS_METADATA: said}
    save_file(tensors, folder / "adapter_model.safetensors", metadata=metadata)


def _adapted(network: nn.Module) -> list[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    modules = network.named_modules()
    return [(name, layer) for name, layer in modules if isinstance(layer, LoraLayer)]


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _check_targets(network: nn.Module, targets: Sequence[str]) -> None:
    modules = dict(network.named_modules())
    linear = {name for name, module in modules.items() if type(module) is nn.Linear}
    for target in targets:
        found = {name for name in modules if name == target or name.endswith(f".{target}")}
        if not found:
            ends = sorted({name.rpartition(".")[2] for name in linear} - {"0", "1", "2"})
            raise ConfigError(
                f"train.lora_targets: {target!r} is no layer of the network; its linear layers end "
                f"in {', '.join(ends)}"
            )
        others = sorted(found - linear)
        if others:
            raise ConfigError(
                f"train.lora_targets: {target!r} must name linear layers only, {others[0]} is a "
                f"{type(modules[others[0]]).__name__}"
            )
