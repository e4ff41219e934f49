"""`unipc-2` gives the samples of diffusers' UniPCMultistepScheduler on the same sigmas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ardiff
from ardiff.data.mixture import GaussianMixture
from ardiff.loop.run import run
from ardiff.tables.paths import get_path

diffusers = pytest.importorskip("diffusers")

STEPS = 12
MIXTURE = GaussianMixture(
    torch.tensor([[-1.0, 0.2], [1.0, 0.7], [0.1, -1.0]]),
    torch.tensor([[0.04, 0.09], [0.03, 0.02], [0.05, 0.05]]),
    torch.tensor([0.3, 0.5, 0.2]),
)


def scheduler_of(flow: bool, to_data: bool, spacing: str):
    """Order 2 with bh2, but for a last step to the data, which is of order 1."""
    made = diffusers.UniPCMultistepScheduler(
        solver_order=2, solver_type="bh2", predict_x0=True, prediction_type="sample",
        timestep_spacing=spacing, use_flow_sigmas=flow, lower_order_final=to_data,
    )  # fmt: skip
    made.set_timesteps(STEPS)
    return made


def theirs(made, path, levels, model, x, steps):
    """Its loop in float64; off flow its state is x / sqrt(alpha^2 + sigma^2)."""
    norm = np.ones(STEPS + 1)
    if path.name != "flow":
        norm[:STEPS] = np.hypot(path.alpha(levels), path.sigma(levels))
    for i, t in enumerate(made.timesteps[:steps]):
        out = model(x.float(), torch.full((len(x),), float(levels[i])), None).double()
        x = made.step(out, t, x / norm[i]).prev_sample * norm[i + 1]
    return x


@pytest.mark.parametrize("to_data", [True, False], ids=["to-data", "to-a-level"])
@pytest.mark.parametrize(
    ("name", "spacing"),
    [
        ("edm", "linspace"),
        ("edm", "trailing"),
        ("vp-linear", "linspace"),
        ("vp-linear", "trailing"),
        ("flow", "linspace"),
    ],
)
def test_equals_diffusers(name, spacing, to_data):
    path, made = get_path(name), scheduler_of(name == "flow", to_data, spacing)
    levels = made.sigmas.double().numpy()[:STEPS]
    if name == "vp-linear":
        levels = path.level(levels.clip(path.ratio_min, path.ratio_max))
    model, steps = MIXTURE.model(name, "sample"), STEPS if to_data else STEPS - 1
    generator = torch.Generator().manual_seed(4)
    x = path.init_scale(levels[0]) * torch.randn(64, 2, generator=generator)

    def ours(solver):
        table = ardiff.solver(
            solver, path=name, prediction="sample", steps=steps, grid=levels, denoise_last=to_data
        )
        assert table.calls == steps
        key, stream = torch.zeros(1, dtype=torch.int64), torch.arange(len(x))
        return run(table, model, x, key=key, stream=stream).double()

    expected = theirs(made, path, levels, model, x.double(), steps)
    torch.testing.assert_close(ours("unipc-2"), expected, rtol=0, atol=1e-5)
    # the control: its predictor alone, without the corrector
    assert float((ours("dpmpp-2m") - expected).abs().max()) > 1e-3
