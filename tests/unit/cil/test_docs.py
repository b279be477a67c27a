"""The example of docs/method.md runs as it stands."""

from pathlib import Path

import torch

from cil import AnalyticInit

METHOD = Path(__file__).parents[3] / "docs" / "method.md"


def test_the_example_runs(tmp_path, monkeypatch):
    text = METHOD.read_text()
    lines = text[text.index("## 8. Use") :].splitlines()
    code = "\n".join(line[4:] for line in lines if line.startswith("    "))
    monkeypatch.chdir(tmp_path)
    AnalyticInit(torch.zeros(3, 2, 4, 4), 1.0).save("analytic_init.safetensors")
    clean, weight = torch.randn(4, 3, 2, 4, 4), torch.ones((), requires_grad=True)
    names = {
        "clean": clean,
        "conditioning_latents": clean[:, :1],
        "clip_ids": range(4),
        "step": 0,
        "network": lambda inputs: weight * inputs.noisy,
        "noise": torch.randn(2, 3, 2, 4, 4),
        "denoiser": lambda noisy, sigma: noisy * 0,
    }
    exec(code, names)
    assert weight.grad is not None
    assert torch.isfinite(names["latents"]).all()
