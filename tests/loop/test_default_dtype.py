"""`torch.set_default_dtype` changes no sample: every tensor is made with its dtype."""

from __future__ import annotations

import pytest
import torch

import ardiff
from ardiff.solvers import SOLVERS
from tests._support.small_models import small_model

OPTIONS = {
    "plain": {},
    "temperature": {"temperature": 0.5},
    "guidance": {"condition": 1.0, "guidance": 2.0, "uncond": 0.5},
}
DTYPES = [torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(params=DTYPES, ids=[str(dtype)[6:] for dtype in DTYPES])
def under(request):
    """Calls a function with another default dtype."""

    def call(function):
        torch.set_default_dtype(request.param)
        try:
            return function()
        finally:
            torch.set_default_dtype(torch.float32)

    return call


def score(x, level, condition):
    return -x if condition is None else -condition * x


@pytest.mark.parametrize("solver", [name for name in SOLVERS if not name.startswith("flow")])
def test_samples(under, solver):
    def draw():
        return [
            ardiff.sample(
                score, (4, 8), path="ou", prediction="score", solver=solver, steps=16, seed=1,
                **options,
            )
            for options in OPTIONS.values()
        ]  # fmt: skip

    assert all(map(torch.equal, under(draw), draw()))


def test_adapting_samples(under):
    def draw():
        x, stats = ardiff.sample(
            score, (4, 8), path="ou", prediction="score", solver="rtk-mala", steps=33, seed=1,
            adapt="sample", return_stats=True,
        )  # fmt: skip
        table = ardiff.adapted_solver(
            "rtk-mala", score, 8, path="ou", prediction="score", steps=16, passes=2
        )
        return x, stats.step_scale, torch.from_numpy(table.coefficients)

    assert all(map(torch.equal, under(draw), draw()))


def test_images_and_requests(under):
    model = small_model()

    def draw():
        sampler = ardiff.ARSampler(model, "rtk-mala", steps=8, temperature=0.9)
        engine = ardiff.AREngine(model, rows=4, capacity=32, steps=4, solver="ddpm")
        engine.submit(
            None, patches=3, seed=1, temperature=0.5, guidance=2.0,
            uncond=torch.ones(1, model.config.context_width, dtype=torch.float32),
        )  # fmt: skip
        engine.submit(None, patches=2, seed=2)
        while engine.step():
            pass
        return [sampler.sample(2, seed=3).images, *(done.patches for done in engine.collect())]

    found, expected = under(draw), draw()
    assert len(expected) == 3 and all(map(torch.equal, found, expected))


def test_a_shipped_model_is_float32(under):
    model = under(lambda: ardiff.load("sun-shadow"))
    plain = ardiff.load("sun-shadow").state_dict()
    for name, value in model.state_dict().items():
        assert value.dtype == plain[name].dtype and torch.equal(value, plain[name])
