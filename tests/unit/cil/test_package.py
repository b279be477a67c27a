import subprocess
import sys

import cil

BLOCKED = ("numpy", "scipy", "jaxtyping", "safetensors", "diffusers", "ray", "mlflow", "triton")


def test_importing_cil_needs_torch_only():
    """torch itself may import numpy or triton: what counts is that cil works without them."""
    block = f"import sys; sys.modules.update(dict.fromkeys({BLOCKED!r}))"
    code = f"{block}; import cil; cil.TimeNoise(5.0)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_public_names_exist_and_are_sorted():
    assert [name for name in cil.__all__ if not hasattr(cil, name)] == []
    assert len(set(cil.__all__)) == len(cil.__all__)


def test_help_reads_like_documentation():
    text = cil.TimeNoise.__doc__ or ""
    for words in ("Args:", "Raises:", "Source:", "arXiv 2406.15735", "> 0", "(B, F, C, H, W)"):
        assert words in text, words
