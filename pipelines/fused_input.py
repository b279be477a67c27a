"""The Triton kernels in the place of torch: `cil.network_input.build_input` and ``square_error``.

`choose_impl` turns ``time_noise.impl`` into torch or triton, on the driver, before anything starts.
The kernels draw the noise themselves, from the same counters, so both give the same numbers up to
rounding. Tensors on a CPU get the kernels' twin in torch.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

from cil.conditioning import drop
from cil.errors import ConfigError, DataError
from cil.network_input import BuiltInput, InputRequest
from cil.parameterization import target_scales

__all__ = ["build_input", "choose_impl", "square_error"]


def choose_impl(impl: str, *, use_gpu: bool) -> str:
    """Return what adds the noise in training.

    Args:
        impl: ``auto``, ``torch`` or ``triton``.
        use_gpu: the workers have a GPU.

    Returns:
        ``torch`` or ``triton``; ``auto`` is ``triton`` where there is a GPU and Triton.

    Raises:
        ConfigError: ``triton`` without a GPU, or without Triton.
    """
    installed = find_spec("triton") is not None
    if impl == "triton" and not use_gpu:
        raise ConfigError(
            "time_noise.impl 'triton' needs a GPU, got train.use_gpu = False; "
            "use 'torch' or 'auto', or train with train.use_gpu"
        )
    if impl == "triton" and not installed:
        raise ConfigError(
            "time_noise.impl 'triton' needs Triton, which is not installed; "
            "pip install 'conditional-image-leakage[kernels]', or use 'torch'"
        )
    if impl == "auto":
        return "triton" if use_gpu and installed else "torch"
    return impl


def build_input(request: InputRequest) -> BuiltInput:
    """Build the network's input and the target in one pass; see `cil.network_input.build_input`.

    Tokens that are made from the conditioning latents see zeros where the condition is dropped.

    Raises:
        DataError: the draws do not say from which counter the noise comes.
    """
    from kernels import fused

    counter = request.draws.counter
    if counter is None:
        raise DataError(
            "the fused input draws its own noise and needs draws.counter; use draw_training "
            "without dropout_per_batch"
        )
    clean, corruption, keep = request.clean, request.corruption, request.keep
    key = fused.make_key(counter.seed, counter.step, clean.device)
    ids = counter.sample_ids.to(clean.device)
    a, b = target_scales(request.parameterization, request.alpha, request.sigma, request.sigma_data)
    # What a law does to latents is linear; one number per clip and part shows its two factors
    one = torch.ones_like(request.sigma_cond).reshape(-1, 1, 1, 1, 1)
    signal = corruption.corrupt(one, request.sigma_cond, one * 0).flatten()
    level = corruption.corrupt(one * 0, request.sigma_cond, one).flatten()
    scales = torch.stack(
        [
            request.c_in * request.alpha * request.clean_scale,
            request.c_in * request.sigma,
            a * request.clean_scale,
            b,
            signal,
        ],
        dim=1,
    ).float()
    sigma_cond = request.sigma_cond.float()
    made = fused.training_input(
        clean,
        request.conditioning_latents,
        key=key,
        sample_ids=ids,
        scales=scales,
        level=level.float(),
        noise="none" if corruption.target in ("tokens", "pixels") else corruption.noise,
        dropout=request.dropout,
        target_dtype=torch.float32,
    )
    noisy, shown = made.network_input.chunk(2, dim=2)
    tokens = request.tokens
    if callable(tokens):
        tokens = drop(tokens(shown), keep)
    elif tokens is not None and corruption.target in ("tokens", "both"):
        level = sigma_cond if request.sigma_tokens is None else request.sigma_tokens.float()
        tokens = fused.corrupt(tokens, key=key, sample_ids=ids, sigma_cond=level, keep=keep.float())
    elif tokens is not None:
        tokens = drop(tokens, keep)
    return BuiltInput(
        noisy=noisy,
        target=made.target,
        conditioning_latents=shown,
        tokens=tokens,
        stacked=made.network_input,
    )


def square_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean square of prediction - target for each clip; see `cil.losses`."""
    from kernels import fused

    return fused.square_error(prediction, target)
