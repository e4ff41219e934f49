"""``noise="path"``: one Brownian path for all steps of a seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import ardiff
from ardiff.heads.mar import DiffusionHead
from ardiff.heads.token import denoise_token
from ardiff.loop import cuda_graphs
from ardiff.loop.path_noise import path_noise
from ardiff.loop.run import run
from ardiff.noise import initial_state, make_key, make_stream
from ardiff.solvers import SOLVERS, solver_options
from tests._support import graph_on_cpu

SDE = (
    "ddpm", "ddpm-ei", "dpmpp-2m-sde", "er-sde", "euler-ancestral", "flow-sde", "seeds-2",
    "seeds-3",
)  # fmt: skip
MULTISTEP = ("dpmpp-3m-sde", "sa")  # whose own error at the fewest steps hides that of the noise
SHAPE = (5, 3)


def denoiser(x: Tensor, level: Tensor, condition: Tensor | None) -> Tensor:
    """Of path edm: no Gaussian's, without a choice between modes."""
    total = 1 + level[:, None] ** 2
    shift = 0.0 if condition is None else condition
    return x / total + torch.tanh(x / total.sqrt() + shift) * level[:, None] / total


def draw(steps, solver="ddpm", shape=SHAPE, noise="path", **options) -> Tensor:
    choices = {"path": "edm", "prediction": "sample", "seed": 3, **options}
    return ardiff.sample(denoiser, shape, solver=solver, steps=steps, noise=noise, **choices)


def test_exact_steps_end_at_one_state_whatever_their_number():
    """With a constant data prediction DDPM is exact: the state before the last call does not depend
    on the steps. With step noise it does."""

    def last(steps: int, noise: str) -> Tensor:
        seen = []

        def model(x: Tensor, level: Tensor, condition: None) -> Tensor:
            seen.append(x)
            return torch.full_like(x, 0.5)

        ardiff.sample(
            model, SHAPE, "edm", "sample", "ddpm", steps, seed=3, noise=noise, nonfinite="ignore"
        )
        return seen[-1]

    scale = last(2, "path").std()
    for steps in (3, 10, 100):
        assert (last(steps, "path") - last(2, "path")).abs().max() < 1e-4 * scale
    assert (last(10, "step") - last(2, "step")).abs().max() > 0.5 * scale


@pytest.mark.parametrize("solver", SDE)
def test_samples_of_one_seed_converge(solver):
    """Strong convergence: the distance to 256 steps of the same path falls for four times the
    steps. With step noise it does not."""

    def errors(noise: str) -> list[float]:
        exact = draw(256, solver, (64, 8), noise)
        return [float((draw(n, solver, (64, 8), noise) - exact).norm()) for n in (8, 32)]

    coarse, fine = errors("path")
    assert coarse > 2 * fine
    coarse, fine = errors("step")
    assert coarse < 1.3 * fine


@pytest.mark.parametrize("solver", SDE + MULTISTEP)
def test_a_sample_depends_on_its_id_alone(solver):
    """Not on the batch, the order or the shard; and the noise of a table is that of the seed."""
    together = draw(9, solver, temperature=0.9)
    parts = [draw(9, solver, (2, 3), sample_ids=ids, temperature=0.9) for ids in ([4, 1], [3, 0])]
    assert torch.equal(torch.cat(parts), together[[4, 1, 3, 0]])
    assert not torch.equal(draw(9, solver, temperature=0.9, patch=1), together)
    assert not torch.equal(draw(9, solver, temperature=0.9, seed=4), together)


def test_ddim_with_all_its_noise_is_ddpm():
    assert (draw(6, "ddim", eta=1.0) - draw(6)).abs().max() < 1e-5


def test_a_compiled_loop_and_a_narrow_state():
    table = ardiff.solver("ddpm", path="edm", prediction="sample", steps=5)
    stream, noise = make_stream(None, 4, 0, "cpu"), path_noise(table, "cpu")
    x = initial_state(table, make_key(3, "cpu"), stream, 3)

    def loop(x: Tensor, key: Tensor) -> Tensor:
        return run(table.to("cpu"), denoiser, x, key=key, stream=stream, noise=noise)

    whole = torch.compile(loop, backend="aot_eager", fullgraph=True)
    assert torch.equal(whole(x, make_key(3, "cpu")), loop(x, make_key(3, "cpu")))
    narrow = draw(5, dtype=torch.bfloat16)
    assert narrow.dtype == torch.bfloat16 and (narrow - draw(5)).abs().max() < 0.1


def test_temperature_scales_and_guidance_goes_with_it():
    cold = draw(8, temperature=0.0)
    assert torch.equal(cold, draw(8, temperature=0.0, noise="step"))
    condition = torch.linspace(-1, 1, 5)[:, None]
    guided = draw(8, condition=condition, uncond=torch.zeros(5, 1), guidance=1.0)
    assert (guided - draw(8, condition=condition)).abs().max() < 1e-5
    options = {"condition": condition, "uncond": torch.zeros(5, 1), "guidance": 2.0}
    assert not torch.equal(draw(8, **options), guided)


def test_each_sample_with_its_own_steps():
    steps = [4, 9, 4, 16, 9]
    together = draw(steps)
    for i, n in enumerate(steps):
        assert torch.equal(draw(n, shape=(1, 3), sample_ids=[i]), together[i : i + 1])


def test_samples_with_their_own_keys():
    table = ardiff.solver("ddpm", path="edm", prediction="sample", steps=6)
    ragged = ardiff.RaggedTable(
        [table, ardiff.solver("ddpm", path="edm", prediction="sample", steps=9)], [0, 1, 0, 1, 1]
    )
    keys = [make_key(seed, "cpu") for seed in (3, 8)]
    stream = make_stream(None, 5, 0, "cpu")
    spans = [(slice(0, 2), keys[0]), (slice(2, 5), keys[1])]
    for one in (table, ragged):
        x = initial_state(one, spans, stream, 3)
        found = run(one, denoiser, x, key=spans, stream=stream, noise=path_noise(one, "cpu"))
        for i in range(5):
            steps = len(table if one is table else ragged.tables[ragged.index[i]])
            alone = draw(steps, shape=(1, 3), sample_ids=[i], seed=3 if i < 2 else 8)
            assert torch.equal(found[i : i + 1], alone)


def test_a_replayed_graph_is_the_loop(monkeypatch):
    made = []

    def record(function):
        made.append(function)
        return graph_on_cpu.record(function)

    monkeypatch.setattr(cuda_graphs, "record", record)
    monkeypatch.setattr("ardiff.sampling.check_graph", lambda *_: None)
    cuda_graphs.clear_graphs()
    for seed, steps in ((1, 6), (2, 6), (2, [3, 4, 5, 6, 7]), (5, [3, 4, 5, 6, 7])):
        assert torch.equal(draw(steps, seed=seed, cuda_graph=True), draw(steps, seed=seed))
    assert len(made) == 2
    cuda_graphs.clear_graphs()


def test_a_token_of_a_head_is_that_of_sample():
    torch.manual_seed(0)
    head = DiffusionHead(dim=4, context=16, width=32, depth=2).eval()
    table = ardiff.solver("ddpm", path="vp-cosine", prediction="epsilon", steps=6)
    key, stream = make_key(3, "cpu"), make_stream(None, 3, 7, "cpu")
    context = torch.randn(3, 16)
    found = denoise_token(head, context, table, key, 0, stream, noise="path")
    x = initial_state(table, key, stream, 4)
    given = torch.stack(
        [
            torch.zeros(3, 4) if normal is None else normal
            for k in range(len(table))
            for normal in [path_noise(table, "cpu").normals(k, key, stream, 4)]
        ]
    )
    assert torch.equal(
        found, denoise_token(head, context, table, key, 0, stream, noise=given, start=x)
    )
    assert not torch.equal(found, denoise_token(head, context, table, key, 0, stream))
    with pytest.raises(ValueError, match='noise="path" knows no draw, got draw=8'):
        denoise_token(head, context, table, key, 8, stream, noise="path")
    with pytest.raises(ValueError, match="needs a StepTable or a RaggedTable, got a DeviceTable"):
        denoise_token(head, context, table.to("cpu"), key, 0, stream, noise="path")


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_runs_or_says_why_not(solver):
    """Solvers without noise run as they do; none begins before it is refused."""
    calls = []

    def model(x: Tensor, level: Tensor, condition: None) -> Tensor:
        calls.append(level)
        return denoiser(x, level, condition)

    def sample(noise: str) -> Tensor:
        return ardiff.sample(
            model, SHAPE, "edm", "sample", solver, 12, seed=1, noise=noise, nonfinite="ignore"
        )

    dim = {"dim": 3} if "dim" in solver_options(solver) else {}
    table = ardiff.solver(solver, path="edm", prediction="sample", steps=12, **dim)
    # tcd forgets the state: no path leads it
    if solver in (*SDE, *MULTISTEP, "tcd") or not table.draws:
        assert torch.equal(sample("path"), sample("step")) == (not table.draws)
        return
    with pytest.raises(ValueError, match=f'noise="path".*{solver}'):
        sample("path")
    assert not calls


def test_tables_without_intervals_are_refused():
    choices = {"path": "edm", "prediction": "sample", "steps": 6}
    with pytest.raises(ValueError, match="unknown noise 'tree'; known: step, path"):
        draw(4, noise="tree")
    whole = ardiff.solver("ddpm", **choices)
    rows = {name: getattr(whole, name) for name in ("coefficients", "calls_model", "op")}
    rows |= {"init_scale": 1.0, "path": "edm", "prediction": "sample", "solver": "own"}
    level, sigma, alpha = whole.level, whole.sigma.copy(), whole.alpha
    for message, options in {
        "needs levels that a Path knows": {},
        "row 2 of own adds noise without moving to another level": {
            "sigma": sigma[[0, 1, 2, 2, 4, 5]]
        },
        "row 4 of own ends at a signal-to-noise ratio": {"sigma": np.append(sigma[:5], 1e-6)},
    }.items():
        given = {"alpha": alpha, **options} if options else {}
        table = ardiff.StepTable(level=level, **rows, **given)
        with pytest.raises(ValueError, match=message):
            path_noise(table, "cpu")
    last = {name: rows[name][:5] for name in ("coefficients", "calls_model", "op")}
    table = ardiff.StepTable(level=level[:5], **{**rows, **last}, alpha=alpha[:5], sigma=sigma[:5])
    with pytest.raises(ValueError, match="the last row of own adds noise, but the level"):
        path_noise(table, "cpu")
    with pytest.raises(ValueError, match="the path's noise is of 5 rows, the table has 6"):
        x = torch.zeros(2, 3)
        key, stream = make_key(0, "cpu"), make_stream(None, 2, 0, "cpu")
        noise = path_noise(ardiff.solver("ddpm", **{**choices, "steps": 5}), "cpu")
        run(whole, denoiser, x, key=key, stream=stream, noise=noise)
