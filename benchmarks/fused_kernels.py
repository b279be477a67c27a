"""The fused kernels against plain torch and torch.compile on the paper's shapes; needs a GPU.

python -m benchmarks.fused_kernels [--quick] [--dtypes bf16 fp16 fp32]      or: make bench-gpu

For each shape: time, bytes per second, share of the copy bandwidth that this device reaches, ratio
to eager torch and to torch.compile, number of launches, peak memory. All rows are printed, also
those that are lost. Two times are taken of each: ``graph``, replays of a captured CUDA graph, which
is what the device needs; and ``call``, calls from Python one after the other, which is what a
training loop without a graph pays when it waits for the device anyway. Both go in turn over copies
of all tensors that hold at least four times the L2 cache, so that no input is still in it.

This file is not called kernels.py: run as a script, that name would hide the package.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from benchmarks.measure import RESULTS, hardware
from kernels import fused

LATENTS = {"320x512x16": (16, 4, 40, 64), "576x1024x25": (25, 4, 72, 128)}
BATCHES = (1, 2, 4, 8, 16, 32, 64)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
Step = Callable[[], Any]


def copy_bandwidth(device: torch.device, gib: float = 2.0) -> float:
    """Return the bytes read and written per second by a copy on the device."""
    source = torch.empty(int(gib * 2**30), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / time_calls(lambda: target.copy_(source), runs=20)


def time_calls(step: Step, runs: int) -> float:
    """Return the seconds of one call among many, waiting once at the end; median of five."""
    for _ in range(3):
        step()
    times = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(runs):
            step()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000 / runs)
    return statistics.median(times)


def copies_beyond_cache(num_bytes: int) -> int:
    """Return how many copies of a case hold four times the L2 cache of this device."""
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return max(1, math.ceil(4 * cache / num_bytes))


def in_turn(steps: list[Step]) -> Step:
    """Return a step that does all and holds their results, which so have places of their own."""
    return lambda: [step() for step in steps]


def captured(step: Step) -> Step:
    """Capture a step in a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = step()
    del kept  # the graph keeps the places
    return graph.replay


def launches(step: Step) -> int:
    """Count the kernels that one call starts."""
    step()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def peak_memory(step: Step) -> int:
    """Return the bytes that one call holds at most, its results included."""
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = step()
    torch.cuda.synchronize()
    del kept
    return torch.cuda.max_memory_allocated() - before


def eager_input(
    clean: Tensor, cond: Tensor, scales: Tensor, level: Tensor, *, per_frame: bool, dropout: float
) -> tuple[Tensor, ...]:
    """Build the same tensors as people write it, in the dtype of the latents, torch's own noise."""
    s = [column.to(clean.dtype).reshape(-1, 1, 1, 1, 1) for column in scales.unbind(1)]
    eps = torch.randn_like(clean)
    noisy = s[0] * clean + s[1] * eps
    target = s[2] * clean + s[3] * eps
    normal = torch.randn_like(level)
    sigma_cond = 5.0 * torch.sigmoid(level + normal)
    keep = (torch.rand_like(level) >= dropout).to(clean.dtype)
    wide = sigma_cond.to(clean.dtype).reshape(-1, 1, 1, 1, 1)
    if per_frame:
        repeated = cond.expand_as(clean)
        shown = repeated + wide * torch.randn_like(clean)
    else:
        shown = (cond + wide * torch.randn_like(cond)).expand_as(clean)
    shown = shown * keep.reshape(-1, 1, 1, 1, 1)
    return torch.cat([noisy, shown], dim=2), target, sigma_cond, keep


def input_steps(
    shape: tuple[int, ...], dtype: torch.dtype, noise: fused.Noise, device: torch.device
) -> tuple[dict[str, Step], int]:
    """Return the three ways to build the input, and the bytes that must move at least."""
    batch, _, *rest = shape
    clean = torch.randn(shape, device=device, dtype=dtype)
    cond = torch.randn(batch, 1, *rest, device=device, dtype=dtype)
    scales, level = torch.randn(batch, 5, device=device), torch.randn(batch, device=device)
    key, ids = fused.make_key(1, 2, device), torch.arange(batch, device=device)
    law = fused.LogitNormal(beta_m=5.0)
    compiled = torch.compile(eager_input, fullgraph=True)
    tensors = (clean, cond, scales, level)
    options = {"per_frame": noise == "per_frame", "dropout": 0.1}
    steps: dict[str, Step] = {
        "fused": lambda: fused.training_input(
            clean,
            cond,
            key=key,
            sample_ids=ids,
            scales=scales,
            level=level,
            law=law,
            noise=noise,
            dropout=0.1,
        ),
        "eager": lambda: eager_input(*tensors, **options),
        "compile": lambda: compiled(*tensors, **options),
    }
    # read clean and cond; write noisy, shown and target
    return steps, (4 * clean.numel() + cond.numel()) * clean.element_size()


def loss_steps(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[dict[str, Step], int]:
    """Return the three ways to get the losses and their gradient, and the bytes."""
    prediction = torch.randn(shape, device=device, dtype=dtype)
    target = torch.randn(shape, device=device, dtype=dtype)
    weight = torch.rand(shape[0], device=device)

    def plain(prediction: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        error = prediction.float() - target.float()
        losses = error.square().flatten(1).mean(1) * weight
        factor = weight * (2.0 / math.prod(shape[1:]))
        return losses, (error * factor.reshape(-1, 1, 1, 1, 1)).to(prediction.dtype)

    compiled = torch.compile(plain, fullgraph=True)
    steps: dict[str, Step] = {
        "fused": lambda: fused.square_error_and_grad(prediction, target, weight),
        "eager": lambda: plain(prediction, target, weight),
        "compile": lambda: compiled(prediction, target, weight),
    }
    return steps, 3 * prediction.numel() * prediction.element_size()


def moments_steps(shape: tuple[int, ...], device: torch.device) -> tuple[dict[str, Step], int]:
    """Return the ways to add a batch of fp32 clips to float64 moments, and the bytes."""
    from kernels import moments_torch

    latents = torch.randn(shape, device=device)
    moments = fused.no_moments(shape[1:], device)
    state = (moments.count, moments.mean, moments.m2)
    compiled = torch.compile(moments_torch.update_moments, fullgraph=True)
    steps: dict[str, Step] = {
        "fused": lambda: fused.update_moments(moments, latents),
        "eager": lambda: moments_torch.update_moments(*state, latents, None),
        "compile": lambda: compiled(*state, latents, None),
    }
    return steps, latents.numel() * 4 + 4 * 8 * moments.mean.numel()


def row(name: str, make: Callable[[], tuple[dict[str, Step], int]], copy: float) -> dict[str, Any]:
    """Measure one shape; each call of ``make`` gives the ways on tensors of their own."""
    steps, num_bytes = make()
    copies = copies_beyond_cache(num_bytes)
    every = [steps, *(make()[0] for _ in range(copies - 1))]
    runs = max(3, min(200, int(2e9 / num_bytes)) // copies)
    found: dict[str, Any] = {"name": name, "bytes": num_bytes, "copies": copies}
    for way, step in steps.items():
        whole = in_turn([one[way] for one in every])
        found[way] = {
            "call_us": 1e6 * time_calls(whole, runs) / copies,
            "graph_us": 1e6 * time_calls(captured(whole), runs) / copies,
            "launches": launches(step),
            "peak_mib": peak_memory(step) / 2**20,
        }
    bandwidth = num_bytes / (found["fused"]["graph_us"] / 1e6)
    found["gb_per_s"] = bandwidth / 1e9
    found["share_of_copy"] = bandwidth / copy
    for kind in ("graph", "call"):
        for other in ("eager", "compile"):
            ratio = found[other][f"{kind}_us"] / found["fused"][f"{kind}_us"]
            found[f"{other}_over_fused_{kind}"] = ratio
    return found


HEAD = (
    "| case | us | GB/s | of copy | eager / fused (graph, call) | compile / fused (graph, call) | "
    "launches fused, eager, compile | peak MiB fused, eager, compile |\n" + 8 * "|---" + "|"
)


def line(found: dict[str, Any]) -> str:
    """Format one row for people."""
    ways = [found[way] for way in ("fused", "eager", "compile")]
    counts = ", ".join(str(way["launches"]) for way in ways)
    memory = ", ".join(f"{way['peak_mib']:.1f}" for way in ways)
    ratios = " | ".join(
        f"{found[f'{other}_over_fused_graph']:.2f}, {found[f'{other}_over_fused_call']:.2f}"
        for other in ("eager", "compile")
    )
    return (
        f"| {found['name']} | {found['fused']['graph_us']:.1f} | {found['gb_per_s']:.0f} | "
        f"{found['share_of_copy']:.2f} | {ratios} | {counts} | {memory} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="batches 1 and 64 only")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bf16", "fp32"])
    parser.add_argument("--out", type=Path, default=RESULTS / "fused_kernels.json")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: this benchmark needs a CUDA device")
    device = torch.device("cuda", torch.cuda.current_device())
    copy = copy_bandwidth(device)
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, ", end="")
    print(f"triton {triton.__version__}, copy {copy / 1e9:.0f} GB/s\n\n{HEAD}", flush=True)
    rows: list[dict[str, Any]] = []

    result = {
        "benchmark": "fused_kernels",
        "claim": "fused input: 0.75 of copy bandwidth and 4x eager from 10 M elements on",
        "cache": "cold: copies of all tensors in turn, at least 4 times the L2 cache",
        "hardware": {
            **hardware(),
            "gpu": torch.cuda.get_device_name(device),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
        },
        "copy_gb_per_s": copy / 1e9,
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)

    def measure(name: str, make: Callable[[], tuple[dict[str, Step], int]]) -> None:
        rows.append(row(name, make, copy))
        print(line(rows[-1]), flush=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")  # what is there, if it stops
        torch.cuda.empty_cache()

    noises: tuple[fused.Noise, ...] = ("shared", "per_frame")
    for video, clip in LATENTS.items():
        for batch in (1, 64) if options.quick else BATCHES:
            shape = (batch, *clip)
            torch._dynamo.reset()  # every shape gets the code that torch.compile makes for it
            for label in options.dtypes:
                dtype = DTYPES[label]
                for noise in noises:
                    name = f"input {video} B{batch} {label} {noise}"
                    measure(name, partial(input_steps, shape, dtype, noise, device))
                measure(f"loss {video} B{batch} {label}", partial(loss_steps, shape, dtype, device))
            measure(f"moments {video} N{batch}", partial(moments_steps, shape, device))
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
