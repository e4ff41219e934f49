"""Sample i is the same to the bit alone, in any batch, order and shard, and under torch.compile.

The model is a mixture with the exact score, computed row by row, so that only the sampler could
make a difference.
"""

from __future__ import annotations

import pytest
import torch

import ardiff
import ardiff_kernels
from ardiff.data.mixture import GaussianMixture
from ardiff.loop.run import run
from ardiff.noise import initial_state, make_key, make_stream
from ardiff.solvers import SOLVERS
from ardiff_kernels import testing

BATCH, D, STEPS, SEED = 64, 3, 8, 20
MIXTURE = GaussianMixture(
    torch.tensor([[-1.0, 0.2, 0.5], [1.0, 0.7, -0.3], [0.1, -1.0, 0.0]]),
    torch.tensor([[0.04, 0.09, 0.02], [0.03, 0.02, 0.02], [0.05, 0.05, 0.3]]),
    torch.tensor([0.3, 0.5, 0.2]),
)
PATH, PREDICTION = "vp-cosine", "v_prediction"
MODEL = MIXTURE.model(PATH, PREDICTION, row_by_row=True)
VARIANTS = [(name, {}) for name in SOLVERS] + [
    (name, {"warm_start": "gaussian-factor"}) for name in SOLVERS if name.startswith("rtk")
]
CASES = pytest.mark.parametrize(
    ("solver", "options"), VARIANTS, ids=[n + "-factor" * len(o) for n, o in VARIANTS]
)


def draw(solver, options, ids, seed=SEED):
    return ardiff.sample(
        MODEL, (len(ids), D), PATH, PREDICTION, solver, STEPS, seed=seed, sample_ids=ids, **options
    )


@CASES
def test_batch_order_and_shard(solver, options):
    whole = draw(solver, options, range(BATCH))
    for i in (0, 1, 17, 63):
        assert torch.equal(draw(solver, options, [i])[0], whole[i])
    backward = draw(solver, options, range(BATCH - 1, -1, -1))
    assert torch.equal(backward.flip(0), whole)
    shards = [draw(solver, options, range(0, 23)), draw(solver, options, range(23, BATCH))]
    assert torch.equal(torch.cat(shards), whole)


@pytest.mark.parametrize("backend", testing.usable_backends("mala_accept"))
@pytest.mark.parametrize("solver", ["rtk-mala-projected", "rtk-hmc"])
def test_batch_order_and_shard_on_each_backend(solver, backend):
    """Accept decisions included. The Triton interpreter is slow: fewer samples and steps there."""
    batch, steps = (3, 8) if backend == "triton" else (13, 25)
    generator = torch.Generator().manual_seed(1)
    wide = GaussianMixture(0.5 * torch.randn(3, 19, generator=generator), torch.full((3, 19), 0.1))
    model = wide.model(PATH, PREDICTION, row_by_row=True)

    def draw(ids):
        x, stats = ardiff.sample(
            model, (len(ids), 19), PATH, PREDICTION, solver, steps, sample_ids=ids,
            return_stats=True, seed=0,
        )  # fmt: skip
        return x, stats

    with ardiff_kernels.backend(backend):
        whole, stats = draw(range(batch))
        backward, reverse = draw(range(batch - 1, -1, -1))
        shards = torch.cat([draw([0])[0], draw(range(1, batch))[0]])
    assert torch.equal(backward.flip(0), whole) and torch.equal(shards, whole)
    if stats.acceptance is not None:
        assert torch.equal(reverse.acceptance, stats.acceptance)
        assert torch.equal(reverse.log_alpha_histogram, stats.log_alpha_histogram)


def test_negative_control():
    """Other ids, seeds or neighbours' places do change a sample."""
    whole = draw("rtk-uld", {}, range(4))
    assert not torch.equal(draw("rtk-uld", {}, range(1, 5)), whole)
    assert not torch.equal(draw("rtk-uld", {}, range(4), seed=SEED + 1), whole)
    assert len({tuple(row.tolist()) for row in whole}) == 4


@pytest.mark.parametrize("d", [1, 2, 5, 16, 33, 130])
def test_noise_of_a_sample_in_any_batch(d):
    """The stochastic part alone, over odd widths: a model of constant output."""

    def model(x, level, condition):
        return torch.full_like(x, 0.25)

    for solver in ("ddpm", "rtk-uld"):
        arguments = ("ou", "sample", solver, 8)
        whole = ardiff.sample(model, (9, d), *arguments, seed=0)
        for i in (0, 4, 8):
            alone = ardiff.sample(model, (1, d), *arguments, sample_ids=[i], seed=0)
            assert torch.equal(alone[0], whole[i])
        wide = ardiff.sample(model, (300, d), *arguments, seed=0)
        assert torch.equal(wide[:9], whole)


def prepared(solver, options, batch=16):
    table = ardiff.solver(solver, path=PATH, prediction=PREDICTION, steps=STEPS, **options)
    key, stream = make_key(SEED, "cpu"), make_stream(None, batch, 0, "cpu")
    return table, initial_state(table, key, stream, D), key, stream


@torch.library.custom_op("ardiff_tests::mixture", mutates_args=())
def mixture_op(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    return MODEL(x, level)


@mixture_op.register_fake
def _(x, level):
    return torch.empty_like(x)


COMPILED = [
    ("rtk-uld", {}),
    ("dpmpp-2m-sde", {}),
    ("rtk-ula", {"warm_start": "gaussian-factor"}),
    ("rtk-harmonic", {}),
    ("rtk-mala-projected", {"dim": D}),
    ("rtk-hmc", {"inner": 1, "accept": "simpson", "leapfrog": 1}),
]


@pytest.mark.parametrize(("solver", "options"), COMPILED, ids=[n for n, _ in COMPILED])
def test_compiled_loop_with_the_model_outside_the_graph(solver, options):
    table, x, key, stream = prepared(solver, options)
    eager = run(table, MODEL, x, key=key, stream=stream)

    def loop(x, key, stream):
        return run(table, lambda x, level, _: mixture_op(x, level), x, key=key, stream=stream)

    torch._dynamo.reset()
    compiled = torch.compile(loop, fullgraph=True)
    assert torch.equal(compiled(x, key, stream), eager)
    other = key + 1
    again = compiled(x, other, stream)
    assert torch.equal(again, run(table, MODEL, x, key=other, stream=stream))
    assert not torch.equal(again, eager)


def test_compiled_loop_with_graph_breaks_at_the_model():
    table, x, key, stream = prepared("rtk-uld", {}, batch=4)
    outside = torch.compiler.disable(MODEL)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: run(table, outside, x, key=key, stream=stream))
    assert torch.equal(compiled(x), run(table, MODEL, x, key=key, stream=stream))


def test_compiled_loop_with_the_model_inside_the_graph():
    """fullgraph, from an offset view of a wider buffer."""
    table, x, key, stream = prepared("rtk-uld", {})
    weight = torch.tensor([[0.5, 0.1, 0.0], [-0.2, 0.4, 0.1], [0.0, 0.3, -0.6]])

    def model(x, level, condition):
        return torch.addmm(condition, x, weight)

    wide = torch.full((len(x), D + 5), torch.nan)
    wide[:, 2 : 2 + D] = x
    view, condition = wide[:, 2 : 2 + D], torch.linspace(-1, 1, D)
    options = {"key": key, "stream": stream, "condition": condition}
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: run(table, model, x, **options), fullgraph=True)
    eager = run(table, model, x, **options)
    torch.testing.assert_close(compiled(view), eager, rtol=1e-5, atol=1e-5)
    assert torch.equal(view, x)
