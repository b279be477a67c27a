"""timenoise.json: mu(t) and sigma_cond of the released code, in float64 to 1e-12."""

import json
import math

import pytest
import torch

from cil import TimeNoise


@pytest.fixture(scope="module")
def tables(golden):
    return json.loads((golden / "timenoise.json").read_text())


@pytest.mark.parametrize("backbone", ["dynamicrafter", "videocrafter", "svd"])
def test_tables(tables, backbone):
    table = tables[backbone]
    t = torch.tensor(table["t"], dtype=torch.float64)
    z = torch.tensor(table["z"], dtype=torch.float64)
    finite_cells = 0
    for row in table["float64"]:
        law = TimeNoise(row["beta_m"], a=row["a"], mu_max=row["mu_max"])
        torch.testing.assert_close(
            law.mu(t), torch.tensor(row["mu"], dtype=torch.float64), rtol=1e-12, atol=1e-12
        )
        got = law.sigma_cond(t, z[:, None])
        assert got.shape == (len(z), len(t))
        for i, cells in enumerate(row["beta_s"]):
            for j, cell in enumerate(cells):
                value = float("nan") if cell is None else float(cell)
                if math.isfinite(value):
                    finite_cells += 1
                    assert float(got[i, j]) == pytest.approx(value, rel=1e-12), (row, i, j)
                else:
                    assert float(got[i, j]) == row["beta_m"], (row, i, j)
    assert finite_cells > 1000


def test_cells_where_the_release_is_not_finite_give_beta_m(tables):
    cells = tables["svd"]["nonfinite"]
    assert cells
    for cell in cells:
        law = TimeNoise(float(cell["beta_m"]), a=cell["a"], mu_max=cell["mu_max"])
        for dtype in (torch.float32, torch.float64):
            t = torch.tensor([cell["raw"] / 700.0], dtype=dtype)
            got = law.sigma_cond(t, torch.tensor([cell["z"]], dtype=dtype))
            assert float(got) == cell["beta_m"], cell


@pytest.mark.parametrize(("p_mean", "p_std"), [(-1.2, 1.2), (0.7, 1.6)])
def test_sigma_over_700_is_hardly_ever_reached(tables, p_mean, p_std):
    """The released SVD schedule is constant in time: its t never leaves 0."""
    from cil import EDMSchedule

    schedule = EDMSchedule(p_mean=p_mean, p_std=p_std)
    expected = tables["svd_training_time_distribution"][f"P_mean={p_mean},P_std={p_std}"]
    for name, probability in expected.items():
        t = float(name.removeprefix("P(t>").removesuffix(")"))
        rank = schedule.rank(torch.tensor([700.0 * t], dtype=torch.float64))
        # 1 - rank loses digits where rank is near 1
        assert 1.0 - float(rank) == pytest.approx(probability, rel=1e-6, abs=1e-15)
