"""What a forward and backward pass keeps in memory, measured without computing anything.

The network is built and called on tensors that have a shape and no values (torch's FakeTensorMode),
so a large one costs seconds and no memory, also where there is no GPU. Counted is every storage
that lives at the same time: also what gradient checkpointing computes again, and what operators
make in passing, which hooks on saved tensors do not see. Parameters and gradients are not counted.
Attention is that of a CPU, which like a GPU's flash kernel keeps no matrix of all pairs.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from cil.losses import NetworkInputs
from cil.models import ClipConditions, ImageToVideoModel
from pipelines.settings import TrainConfig
from pipelines.train_memory import NetworkSize

__all__ = ["DTYPES", "MeasuredNetwork", "measure_network"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""By ``train.precision``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredNetwork:
    """The numbers of a network and what a pass through it needs."""

    size: NetworkSize
    """Numbers of its parameters."""
    precision: str
    """Arithmetic of the pass, as ``train.precision``."""
    micro_batch_size: int
    """Clips of the pass."""
    plain: int
    """Peak of activations in bytes without gradient checkpointing."""
    checkpointed: int
    """The same with it."""

    def activations(self, clips: int, *, checkpointing: bool) -> int:
        """Return the activations of another number of clips, which they are proportional to."""
        measured = self.checkpointed if checkpointing else self.plain
        return measured * clips // self.micro_batch_size


def measure_network(
    config: TrainConfig,
    build: Callable[[], ImageToVideoModel],
    *,
    micro_batch_size: int,
    choose: Callable[[TrainConfig, ImageToVideoModel], Any],
) -> MeasuredNetwork:
    """Count parameters and activations.

    Args:
        config: training settings, for precision and what is trained.
        build: makes the model, fresh each time.
        micro_batch_size: clips of the pass.
        choose: marks what is trained, as `engine.choose_trainable` does.

    Returns:
        Counted numbers and bytes.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        peaks = []
        for checkpointing in (False, True):
            model = build()
            choose(config, model)
            size = _size(config, model.network)
            _cast(model.network, DTYPES[config.precision])
            if checkpointing:
                model.network.enable_gradient_checkpointing()  # type: ignore[operator]
            peaks.append(_peak(model, micro_batch_size))
    return MeasuredNetwork(
        size=size,
        precision=config.precision,
        micro_batch_size=micro_batch_size,
        plain=peaks[0],
        checkpointed=peaks[1],
    )


def _size(config: TrainConfig, network: nn.Module) -> NetworkSize:
    parameters = list(network.parameters())
    return NetworkSize(
        total=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        small=sum(p.numel() for p in parameters if p.numel() < config.persistent_elements),
    )


def _cast(network: nn.Module, dtype: torch.dtype) -> None:
    """Convert the parameters, and give those without weights a place as if on the CPU.

    ``network.to`` cannot exchange fake ones.
    """
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            empty = torch.empty_like(parameter, dtype=dtype, device="cpu")
            setattr(module, name, nn.Parameter(empty, parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.device.type == "meta":
                setattr(module, name, torch.empty_like(buffer, device="cpu"))


def _peak(model: ImageToVideoModel, clips: int) -> int:
    network = model.network.train()
    frames, channels, rows, columns = model.latents_shape
    latents = torch.zeros(clips, frames, channels, rows, columns)
    ones = torch.ones(clips)
    text = None if model.text_shape is None else torch.zeros(clips, *model.text_shape)
    told = ClipConditions(fps=ones, motion_bucket_id=ones, frame_stride=ones, text_embeds=text)
    call = model.network_call(told)
    for parameter in network.parameters():
        if parameter.requires_grad:  # gradients are counted elsewhere: let each go at once
            parameter.register_post_accumulate_grad_hook(_drop_gradient)  # type: ignore[no-untyped-call]
    known = [*network.parameters(), *network.buffers()]
    with _LiveBytes(known) as live:
        prediction = call(
            NetworkInputs(
                noisy=latents,
                time=ones,
                conditioning_latents=latents.clone(),
                tokens=torch.zeros(clips, *model.token_shape),
                sigma_cond=ones,
                keep=ones,
            )
        )
        prediction.square().mean().backward()  # type: ignore[no-untyped-call]
    return live.peak


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the bytes of all storages that operators make while it is entered."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._now = self.peak = 0

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in self._alive:
            return

        def gone(_: Any) -> None:
            self._alive.pop(key, None)
            self._now -= size

        self._alive[key] = weakref.ref(storage, gone)
        self._now += size
        self.peak = max(self.peak, self._now)
