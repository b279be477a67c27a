"""`cil` and `kernels` are usable where torch is the only thing installed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKED = (
    "ray",
    "deepspeed",
    "peft",
    "mlflow",
    "diffusers",
    "transformers",
    "safetensors",
    "triton",
    "pydantic",
    "tyro",
    "yaml",
    "cv2",
    "av",
    "decord",
    "webdataset",
)
BLOCK = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run_blocked(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BLOCK + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "code",
    [
        "import cil; cil.TimeNoise.preset('mild')",
        "import cil.models; assert 'tiny' in cil.models.families()",
        "import cil.models.autoencoder_kl, cil.models.condition_encoders",
        "import cil.models.checkpoint_files, cil.models.strict_loading",
        "import cil.metrics; cil.metrics.frechet_distance; cil.metrics.motion_flags",
        "import cil.metrics.embeddings, cil.metrics.extractors, cil.metrics.raft",
        "from cil.models.lvdm import checkpoint, open_clip_folders, schedule_buffers, vae",
        "import kernels; assert 'torch' not in sys.modules",
    ],
)
def test_imports_with_everything_heavy_blocked(code):
    done = run_blocked(code)
    assert done.returncode == 0, done.stderr


def test_the_blocker_blocks():
    done = run_blocked("def f():\n    import ray.data\nf()")
    assert "ModuleNotFoundError: blocked: ray" in done.stderr


def test_every_public_measure_is_found():
    code = (
        "import cil.metrics as m; assert all(hasattr(m, name) for name in m.__all__)\n"
        "assert sorted(m.__all__) == m.__all__ == sorted(set(m.__all__))\n"
        "assert sorted(' '.join(m._HOMES.values()).split()) == m.__all__\n"
        "try: m.nothing\nexcept AttributeError: pass\nelse: raise SystemExit('found')"
    )
    done = run_blocked(code)
    assert done.returncode == 0, done.stderr


def test_errors_need_no_torch_and_every_public_name_is_found():
    code = (
        "import sys, cil, cil.errors; assert 'torch' not in sys.modules\n"
        "assert all(hasattr(cil, name) for name in cil.__all__)\n"
        "try: cil.nothing\nexcept AttributeError: pass\nelse: raise SystemExit('found')"
    )
    done = run_blocked(code)
    assert done.returncode == 0, done.stderr
