"""The probe section of golden/metrics."""

import json

import numpy as np
import pytest
import torch

from cil.metrics import condition_dominance, frame_difference_ratio, motion_transfer_ratio


def test_probe(golden):
    arrays = np.load(golden / "metrics" / "arrays.npz")
    expected = json.loads((golden / "metrics" / "expected.json").read_text())["probe"]
    x0, y, p, ps, py, px = (
        torch.from_numpy(arrays[f"probe_{name}"]) for name in ("x0", "y", "p", "ps", "py", "px")
    )
    got = {
        "mtr": motion_transfer_ratio(p, ps, x0, y),
        "cond_dominance": condition_dominance(p, py, px),
        "frame_diff_ratio": frame_difference_ratio(p, x0),
    }
    assert got.keys() == expected.keys()
    for name, value in got.items():
        assert float(value) == pytest.approx(expected[name], rel=1e-6), name
