"""The launching code up to the launch: Triton specialises and compiles for the arguments it gets.

A GPU is pretended; the compiled kernel is thrown away instead of started.
"""

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

from kernels import input_triton, launch, loss_triton, moments_triton


class PretendedGpu:
    """What Triton asks of a driver before it launches."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """The kernels that were compiled instead of launched: name and metadata."""
    found = []
    run = jit.JITFunction.run

    def only_compile(self, *arguments, grid, warmup, **options):
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        found.append((self.__name__, kernel.metadata))
        assert all(isinstance(size, int) and size > 0 for size in grid)
        assert all(size < 65536 for size in grid[1:])
        return kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(jit.JITFunction, "run", only_compile)
    monkeypatch.setattr(input_triton, "is_nvidia", lambda tensor: True)
    monkeypatch.setattr(driver, "_active", PretendedGpu())
    return found


SETTINGS = {
    "noise": "shared",
    "logit": None,
    "dropout": 0.0,
    "dtype": torch.bfloat16,
    "target_dtype": torch.bfloat16,
    "channels_first": False,
}


@pytest.mark.parametrize(
    ("shape", "cond_frames", "settings"),
    [
        ((2, 16, 4, 40, 64), 1, {}),
        ((1, 25, 4, 72, 128), 1, {"noise": "per_frame", "logit": (5.0, 1.0)}),
        ((2, 1, 1, 1, 1), 1, {"logit": (5.0, 1.0)}),
        (
            (1, 2, 3, 5, 7),
            2,
            {"noise": "scalar", "target_dtype": torch.float32, "channels_first": True},
        ),
        ((1, 2, 3, 5, 7), 1, {"noise": "none", "dtype": torch.float32, "target_dtype": None}),
    ],
)
def test_the_training_input_compiles_as_it_is_launched(shape, cond_frames, settings, compiled):
    """Sizes of 1 become constants of the kernel, odd ones lose their alignment."""
    chosen = {**SETTINGS, **settings}
    batch, _, *rest = shape
    clean = torch.zeros(shape, dtype=chosen["dtype"])
    cond = torch.zeros(batch, cond_frames, *rest, dtype=chosen["dtype"])
    numbers = (torch.ones(batch, 5), torch.ones(batch), torch.tensor([1, 2]), torch.arange(batch))
    input_triton.training_input(clean, cond, *numbers, **chosen)
    ((name, metadata),) = compiled
    assert name == "training_input_kernel"
    assert metadata.enable_fp_fusion is False  # else a bit could depend on the block
    assert metadata.shared == 0


@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 8), (1, 1, 1, 1, 1)])
def test_the_others_compile_as_they_are_launched(shape, compiled):
    batch = shape[0]
    one = torch.ones(batch)
    tokens = torch.zeros(batch, 3, 7, dtype=torch.bfloat16)
    input_triton.corrupt(tokens, one, one, torch.tensor([1, 2]), torch.arange(batch), 7)
    video = torch.zeros(shape)
    loss_triton.square_error(video, video, one, loss=True, grad=True)
    loss_triton.square_error(video, video, one, one, loss=False, grad=True)
    state = torch.zeros(shape[1:], dtype=torch.float64)
    moments_triton.update_moments(torch.tensor(0), state, state, video, video)
    assert [name for name, _ in compiled] == [
        "corrupt_kernel",
        "square_error_kernel",
        "finish_kernel",
        "square_error_kernel",
        "moments_kernel",
    ]


def test_launch_parameters_fit_the_papers_shapes():
    """Whole programs, 128 bits per thread, and enough programs for 132 processors."""
    for spatial, frames in ((40 * 64, 16), (72 * 128, 25)):
        for half in (True, False):
            for batch in (1, 4, 16, 64):
                tuning = launch.tune(
                    spatial=spatial, rows=4 * batch, frames=frames, half=half, nvidia=True
                )
                assert tuning.lanes == (8 if half else 4)
                assert tuning.block == 32 * tuning.num_warps * tuning.lanes
                assert spatial % tuning.block == 0
                programs = spatial // tuning.block * 4 * batch * -(-frames // tuning.frames)
                assert programs >= 132
                assert tuning.approx == half
    many = launch.tune(spatial=9216, rows=256, frames=25, half=True, nvidia=True)
    assert many.frames > 1
