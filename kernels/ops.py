"""The operators ``torch.ops.cil_kernels.*``: torch on a CPU, Triton on a GPU.

| operator | gives |
|---|---|
| ``training_input`` | network input, target, sigma_cond, keep; gradient for both latents |
| ``corrupt`` | a noised tensor; gradient for the values |
| ``square_error`` | weighted mean square error of each clip; gradient for the prediction |
| ``square_error_and_grad`` | the same with its gradient, in one pass over memory |
| ``update_moments`` | count, mean and m2 with more clips |

The results of the last two, and of ``square_error_grad``, have no gradient, on any device: a loss
of ``square_error_and_grad`` cannot be differentiated. Nor do ``scales``, levels and weights get
one.
Each has a fake implementation, so that torch.compile traces through it without a break. Call them
through `kernels.fused`, which checks its arguments. Importing this module does not import Triton:
the first call on a GPU does. `Library` registers them rather than ``custom_op``, whose call costs
three times as much on the host.
"""
# mypy: allow-untyped-decorators, allow-untyped-calls
# ruff: noqa: PLR0917

from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from kernels import input_torch, loss_torch, moments_torch

__all__ = ["NAMESPACE"]

NAMESPACE = "cil_kernels"

_LIBRARY = Library(NAMESPACE, "DEF")  # must live as long as the process
_TAGS = (torch.Tag.pt2_compliant_tag,)
_LIBRARY.define(
    "training_input(Tensor clean, Tensor cond, Tensor scales, Tensor level, Tensor key, "
    "Tensor sample_ids, str noise, float? beta_m, float logit_scale, float dropout, "
    "ScalarType dtype, ScalarType? target_dtype, bool channels_first) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
_LIBRARY.define(
    "corrupt(Tensor values, Tensor sigma_cond, Tensor keep, Tensor key, Tensor sample_ids, "
    "int stream) -> Tensor",
    tags=_TAGS,
)
_LIBRARY.define(
    "square_error(Tensor prediction, Tensor target, Tensor weight) -> Tensor", tags=_TAGS
)
_LIBRARY.define(
    "square_error_and_grad(Tensor prediction, Tensor target, Tensor weight) -> (Tensor, Tensor)",
    tags=_TAGS,
)
_LIBRARY.define(
    "square_error_grad(Tensor prediction, Tensor target, Tensor weight, Tensor upstream) -> Tensor",
    tags=_TAGS,
)
_LIBRARY.define(
    "update_moments(Tensor count, Tensor mean, Tensor m2, Tensor latents, Tensor? std) "
    "-> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)


def _logit(beta_m: float | None, logit_scale: float) -> tuple[float, float] | None:
    return None if beta_m is None else (beta_m, logit_scale)


def _training_input(implementation: Any) -> Any:
    def run(
        clean: Tensor,
        cond: Tensor,
        scales: Tensor,
        level: Tensor,
        key: Tensor,
        sample_ids: Tensor,
        noise: str,
        beta_m: float | None,
        logit_scale: float,
        dropout: float,
        dtype: torch.dtype,
        target_dtype: torch.dtype | None,
        channels_first: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor, Tensor] = implementation().training_input(
            clean,
            cond,
            scales,
            level,
            key,
            sample_ids,
            noise=noise,
            logit=_logit(beta_m, logit_scale),
            dropout=dropout,
            dtype=dtype,
            target_dtype=target_dtype,
            channels_first=channels_first,
        )
        return result

    return run


def _corrupt(implementation: Any) -> Any:
    def run(
        values: Tensor,
        sigma_cond: Tensor,
        keep: Tensor,
        key: Tensor,
        sample_ids: Tensor,
        stream: int,
    ) -> Tensor:
        result: Tensor = implementation().corrupt(values, sigma_cond, keep, key, sample_ids, stream)
        return result

    return run


def _square_error(implementation: Any) -> Any:
    def run(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        losses: Tensor = implementation().square_error(
            prediction, target, weight, loss=True, grad=False
        )[0]
        return losses

    return run


def _square_error_and_grad(implementation: Any) -> Any:
    def run(prediction: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        both: tuple[Tensor, Tensor] = implementation().square_error(
            prediction, target, weight, loss=True, grad=True
        )
        return both

    return run


def _square_error_grad(implementation: Any) -> Any:
    def run(prediction: Tensor, target: Tensor, weight: Tensor, upstream: Tensor) -> Tensor:
        slope: Tensor = implementation().square_error(
            prediction, target, weight, upstream, loss=False, grad=True
        )[1]
        return slope

    return run


def _update_moments(implementation: Any) -> Any:
    def run(
        count: Tensor, mean: Tensor, m2: Tensor, latents: Tensor, std: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        new: tuple[Tensor, Tensor, Tensor] = implementation().update_moments(
            count, mean, m2, latents, std
        )
        return new

    return run


def _input_triton() -> Any:
    from kernels import input_triton

    return input_triton


def _loss_triton() -> Any:
    from kernels import loss_triton

    return loss_triton


def _moments_triton() -> Any:
    from kernels import moments_triton

    return moments_triton


def _register(name: str, adapter: Any, on_cpu: Any, on_gpu: Any) -> None:
    _LIBRARY.impl(name, adapter(lambda: on_cpu), "CPU")
    _LIBRARY.impl(name, adapter(on_gpu), "CUDA")


_register("training_input", _training_input, input_torch, _input_triton)
_register("corrupt", _corrupt, input_torch, _input_triton)
_register("square_error", _square_error, loss_torch, _loss_triton)
_register("square_error_and_grad", _square_error_and_grad, loss_torch, _loss_triton)
_register("square_error_grad", _square_error_grad, loss_torch, _loss_triton)
_register("update_moments", _update_moments, moments_torch, _moments_triton)


@torch.library.register_fake(f"{NAMESPACE}::training_input", lib=_LIBRARY)
def _fake_training_input(
    clean: Tensor,
    cond: Tensor,
    scales: Tensor,
    level: Tensor,
    key: Tensor,
    sample_ids: Tensor,
    noise: str,
    beta_m: float | None,
    logit_scale: float,
    dropout: float,
    dtype: torch.dtype,
    target_dtype: torch.dtype | None,
    channels_first: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, frames, channels, height, width = clean.shape
    doubled = (batch, frames, 2 * channels, height, width)
    network_input = input_torch.empty_video(clean, doubled, dtype, channels_first)
    target = clean.new_empty(0)
    if target_dtype is not None:
        target = input_torch.empty_video(clean, tuple(clean.shape), target_dtype, channels_first)
    return network_input, target, torch.empty_like(level), torch.empty_like(level)


@torch.library.register_fake(f"{NAMESPACE}::corrupt", lib=_LIBRARY)
def _fake_corrupt(
    values: Tensor, sigma_cond: Tensor, keep: Tensor, key: Tensor, sample_ids: Tensor, stream: int
) -> Tensor:
    return values.new_empty(values.shape)


@torch.library.register_fake(f"{NAMESPACE}::square_error", lib=_LIBRARY)
def _fake_square_error(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(weight)


@torch.library.register_fake(f"{NAMESPACE}::square_error_and_grad", lib=_LIBRARY)
def _fake_square_error_and_grad(
    prediction: Tensor, target: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weight), prediction.new_empty(prediction.shape)


@torch.library.register_fake(f"{NAMESPACE}::square_error_grad", lib=_LIBRARY)
def _fake_square_error_grad(
    prediction: Tensor, target: Tensor, weight: Tensor, upstream: Tensor
) -> Tensor:
    return prediction.new_empty(prediction.shape)


@torch.library.register_fake(f"{NAMESPACE}::update_moments", lib=_LIBRARY)
def _fake_update_moments(
    count: Tensor, mean: Tensor, m2: Tensor, latents: Tensor, std: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(count), torch.empty_like(mean), torch.empty_like(m2)


def _per_clip(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1, 1)


def _save_training_input(ctx: Any, inputs: Any, output: Any) -> None:
    clean, cond, scales = inputs[:3]
    ctx.save_for_backward(scales, output[3])
    ctx.clean, ctx.cond = (clean.dtype, clean.shape[2]), (cond.dtype, cond.shape[1])
    ctx.mark_non_differentiable(output[2], output[3])


def _training_input_backward(
    ctx: Any, grad_input: Tensor, grad_target: Tensor, *_: Tensor
) -> tuple[Any, ...]:
    """Return the gradients of the two linear maps; plain torch, since training needs neither."""
    scales, keep = ctx.saved_tensors
    (clean_dtype, channels), (cond_dtype, cond_frames) = ctx.clean, ctx.cond
    grad_clean = grad_cond = None
    if ctx.needs_input_grad[0]:
        grad_clean = grad_input[:, :, :channels].to(torch.float32) * _per_clip(scales[:, 0])
        if grad_target.numel():
            grad_clean = grad_clean + grad_target.to(torch.float32) * _per_clip(scales[:, 2])
        grad_clean = grad_clean.to(clean_dtype)
    if ctx.needs_input_grad[1]:
        grad_cond = grad_input[:, :, channels:].to(torch.float32) * _per_clip(keep * scales[:, 4])
        if cond_frames == 1:
            grad_cond = grad_cond.sum(dim=1, keepdim=True)
        grad_cond = grad_cond.to(cond_dtype)
    return grad_clean, grad_cond, *([None] * 11)


def _save_corrupt(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(inputs[2])


def _corrupt_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (keep,) = ctx.saved_tensors
    kept = keep.reshape(-1, *([1] * (grad.ndim - 1))).to(grad.dtype)
    return grad * kept, *([None] * 5)


def _save_square_error(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _square_error_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    prediction, target, weight = ctx.saved_tensors
    slope = torch.ops.cil_kernels.square_error_grad(
        prediction, target, weight, upstream.contiguous()
    )
    return slope, None, None


def _save_nothing(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))
    ctx.set_materialize_grads(False)


def _no_backward(name: str, inputs: int) -> Any:
    """Return a backward pass without gradients, which autograd never reaches."""

    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        return (None,) * inputs

    backward.__name__ = f"_{name}_backward"
    return backward


for _name, _backward, _save in (
    ("training_input", _training_input_backward, _save_training_input),
    ("corrupt", _corrupt_backward, _save_corrupt),
    ("square_error", _square_error_backward, _save_square_error),
    ("square_error_and_grad", _no_backward("square_error_and_grad", 3), _save_nothing),
    ("square_error_grad", _no_backward("square_error_grad", 4), _save_nothing),
    ("update_moments", _no_backward("update_moments", 5), _save_nothing),
):
    torch.library.register_autograd(
        f"{NAMESPACE}::{_name}", _backward, setup_context=_save, lib=_LIBRARY
    )
