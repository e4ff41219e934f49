"""Runs with a lookahead: their law, their rounds, and what they do not depend on."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import ardiff
import ardiff_kernels
from ardiff.data.mixture import random_mixture
from ardiff.loop.lookahead import Lookahead, run_lookahead
from ardiff.loop.run import run
from ardiff.noise import initial_state, make_key, make_stream
from ardiff.tables.columns import DIFFUSION_COLUMNS
from ardiff.tables.lookahead import lookahead_table
from ardiff_kernels import ops
from ardiff_kernels.testing import usable_backends
from tests._support.couplings import ks_bound, ks_statistic, mutant, unit_mixture

SOLVERS = {
    "ddpm": ("ddpm", {}, 10),
    "ddim eta 0.5": ("ddim", {"eta": 0.5}, 10),
    "sde-dpmpp-2m": ("dpmpp-2m-sde", {}, 10),
    "rtk-uld": ("rtk-uld", {}, 16),
}
SIZES = {2: 20_000, 16: 6_000, 64: 2_500}
PROJECTIONS, TESTS = 16, len(SOLVERS) * len(SIZES)
FALSE_ALARM = 1e-6
# Interpreted, Triton takes minutes for these sizes; tests/kernels/lookahead holds it to the others.
BACKENDS = [name for name in usable_backends("lookahead_verify") if name != "triton"]


def _table(name: str, steps: int | None = None):
    solver, options, few = SOLVERS[name]
    return ardiff.solver(solver, path="edm", prediction="sample", steps=steps or few, **options)


def _start(table, n: int, d: int, seed: int = 0):
    address = {"key": make_key(seed, "cpu"), "stream": make_stream(None, n, 0, "cpu")}
    return initial_state(table, *address.values(), d), address


# The law of one row.


def _one_row(kinetic: bool, n: int = 200_000):
    """A coupled row from one state, drafted with another data prediction than the model's.

    Returns the arguments of `lookahead_verify`, the mean and covariance of the true row's state
    (with velocity) in two dimensions, and |delta|.
    """
    table = _table("rtk-uld" if kinetic else "ddpm")
    row = 2 if kinetic else 4
    found = lookahead_table(table)
    c = dict(zip(ops_columns(kinetic), table.coefficients[row], strict=False))
    x = torch.tensor([[0.3, -0.8]]).expand(n, 2).contiguous()
    guess, truth = torch.tensor([[0.9, -0.1]]), torch.tensor([[0.2, 0.3]])
    place = (
        found.coef, found.plan, torch.full((n,), row, dtype=torch.int32),
        torch.ones(n, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), make_key(3, "cpu"),
        make_stream(None, n, 0, "cpu"),
    )  # fmt: skip
    # A known row of gain 0 makes its data prediction the guess.
    known = {
        "known_x": x[:, None], "known_0": guess.expand(n, 2)[:, None].contiguous(),
        "gain": torch.zeros(n, 1), "known_row": place[2], "known_count": place[3],
    }  # fmt: skip
    motion, kind = {}, {}
    if kinetic:
        motion, kind = {"v": x.flip(1).contiguous()}, {"op": found.op}
    memory = x.clone()
    states, velocities, drafts = ops.lookahead_draft(
        x, memory, *place, 1, **motion, **kind, **known
    )
    outs = truth.expand(n, 1, 2).contiguous()
    arguments = (states, drafts, outs, memory, *place)
    options = kind | known | ({"velocities": velocities} if kinetic else {})
    apart = (guess - truth).double().numpy()[0]
    at = x[0].double().numpy()
    if not kinetic:
        mean = (c["x_x"] + c["x_x_lo"]) * at + c["x_0"] * truth[0].double().numpy()
        return (
            arguments,
            options,
            mean,
            c["x_n"] ** 2 * np.eye(2),
            abs(c["x_0"] / c["x_n"]) * _norm(apart),
        )
    out = truth[0].double().numpy()  # a sample prediction
    v = at[::-1]
    mean_z = (c["z_z"] + c["z_z_lo"]) * at + c["z_v"] * v + c["z_o"] * out
    mean_v = c["v_z"] * at + c["v_v"] * v + c["v_o"] * out
    factor = np.array([[c["z_1"], c["z_2"]], [c["v_1"], 0]])
    per_element = np.linalg.solve(factor, np.array([c["z_o"], c["v_o"]]))
    covariance = np.kron(factor @ factor.T, np.eye(2))
    return (
        arguments,
        options,
        np.concatenate([mean_z, mean_v]),
        covariance,
        _norm(per_element) * _norm(apart),
    )


def ops_columns(kinetic: bool):
    from ardiff.tables.table import COLUMNS

    return COLUMNS["uld" if kinetic else "diffusion"]


def _norm(values) -> float:
    return float(np.linalg.norm(values))


def _departure(verify, kinetic: bool) -> float:
    """The largest departure of a coupled row from its closed form, in standard errors: of the
    share that stays, 2 Phi(-|delta| / 2), and of means and covariances."""
    arguments, options, mean, covariance, length = _one_row(kinetic)
    found = verify(*arguments, **options)
    n = len(found.x)
    share = math.erfc(length / math.sqrt(8))
    stays = abs(float(found.accepted.double().mean()) - share) / math.sqrt(share * (1 - share) / n)
    state = found.x if not kinetic else torch.cat([found.x, found.v], 1)
    apart = state.double().numpy() - mean
    deviations = np.sqrt(np.diag(covariance))
    means = np.abs(apart.mean(0)) / (deviations / math.sqrt(n))
    products = apart.T @ apart / n
    spread = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2)
    covariances = np.abs(products - covariance) / (spread / math.sqrt(n))
    return max(stays, float(means.max()), float(covariances.max()))


BOUND = 5.8  # standard errors; 15 normal numbers at most exceed it with 1e-7


@pytest.mark.parametrize("kinetic", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_coupled_row_is_the_true_row(kinetic, backend):
    with ardiff_kernels.backend(backend):
        assert _departure(ops.lookahead_verify, kinetic) < BOUND


@pytest.mark.parametrize("kinetic", [False, True])
@pytest.mark.parametrize("name", ["no reflection", "accept always", "uniform of the step noise"])
def test_a_wrong_coupling_is_rejected(name, kinetic):
    assert _departure(mutant(name), kinetic) > BOUND


# The law of a run.


def _distance(name: str, d: int, rows: int = 6) -> float:
    """The largest KS statistic over fixed projections, against a run row by row of other noise."""
    table, n = _table(name), SIZES[d]
    model = unit_mixture(d).model("edm", "sample")
    x, address = _start(table, n, d)
    drawn, rounds = run_lookahead(table, model, x, Lookahead(rows), **address)
    assert rounds.rounds.max() < len(table)
    other, address = _start(table, n, d, seed=1)
    expected = run(table, model, other, **address)
    projections = np.random.default_rng(5).normal(size=(d, PROJECTIONS))
    pairs = zip((drawn.numpy() @ projections).T, (expected.numpy() @ projections).T, strict=True)
    return max(ks_statistic(a, b) for a, b in pairs)


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("name", SOLVERS)
def test_the_law_is_that_of_the_rows_one_after_another(name, d):
    """All 192 statistics together exceed the bound with a probability of 1e-6 at most."""
    assert _distance(name, d) < ks_bound(FALSE_ALARM / TESTS / PROJECTIONS)


@pytest.mark.parametrize(
    ("wrong", "name", "d"),
    [
        ("no reflection", "ddpm", 2), ("no reflection", "ddim eta 0.5", 2),
        ("accept always", "ddpm", 2), ("accept always", "sde-dpmpp-2m", 2),
        ("accept always", "rtk-uld", 16), ("drafted memory", "sde-dpmpp-2m", 2),
    ],
)  # fmt: skip
def test_a_wrong_law_is_rejected(wrong, name, d, monkeypatch):
    monkeypatch.setattr(ops, "lookahead_verify", mutant(wrong))
    assert _distance(name, d) > ks_bound(FALSE_ALARM / TESTS / PROJECTIONS)


# Rounds.


def _rounds(table, d: int, lookahead: Lookahead, n: int = 100) -> float:
    x, address = _start(table, n, d)
    model = unit_mixture(d).model("edm", "sample")
    return float(run_lookahead(table, model, x, lookahead, **address)[1].rounds.mean())


@pytest.mark.parametrize(("rows", "fewer"), [(8, 6.0), (16, 9.5)])
def test_rounds_of_a_mixture(rows, fewer):
    table = _table("ddpm", 100)
    assert table.calls / _rounds(table, 16, Lookahead(rows)) > fewer


@pytest.mark.parametrize(("steps", "rows", "fewer"), [(48, 8, 4.0), (100, 16, 6.5)])
def test_rounds_of_the_shipped_model(steps, rows, fewer):
    model = ardiff.load("sun-shadow")
    config = model.config
    images = ardiff.ARSampler(model, steps=16).sample(4, seed=3).images
    contexts = model.context.encode(model.to_patches(images))
    contexts = contexts[0] if isinstance(contexts, tuple) else contexts
    table = ardiff.solver(
        "ddpm", path=config.path, prediction=config.prediction, steps=steps, **config.grid_options()
    )
    found = []
    for patch in range(config.patches):
        _, stats = ardiff.sample(
            model.denoiser, (len(images), config.patch_dim), table=table, seed=0, patch=patch,
            condition=contexts[:, patch], lookahead=rows, return_stats=True,
        )  # fmt: skip
        found.append(stats.lookahead[0].rounds.mean())
    assert table.calls / np.mean(found) > fewer


# The same sample: Picard iteration.


@pytest.mark.parametrize("name", [*SOLVERS, "rtk-harmonic", "dpmpp-2m"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_without_tolerance_no_bit_differs(name, backend):
    if name in SOLVERS:
        table = _table(name, 20)
    else:
        table = ardiff.solver(name, path="edm", prediction="sample", steps=20)
    model = unit_mixture(16).model("edm", "sample", row_by_row=True)
    x, address = _start(table, 3, 16)
    with ardiff_kernels.backend(backend):
        expected = run(table, model, x, **address)
        found, rounds = run_lookahead(table, model, x, Lookahead(32, "picard", 0.0), **address)
    assert torch.equal(found, expected)
    assert rounds.rounds.max() < table.calls


@pytest.mark.parametrize(
    ("solver", "seed", "most"),
    [("ddpm", 12, 8), ("ddpm", 13, 8), ("ddpm", 14, 12)]
    + [("dpmpp-2m", 12, 6), ("dpmpp-2m", 13, 6), ("dpmpp-2m", 14, 8)],
)
def test_rounds_of_picard_iteration(solver, seed, most):
    """Mixtures in d = 2, 10 and 64, 128 rows, all of them looked ahead: rounds, of which the last
    one finds that nothing moves beyond the tolerance, and the distance from the rows one after
    another, relative to the data's scale."""
    mixture = random_mixture(seed)
    d = mixture.means.shape[1]
    table = ardiff.solver(solver, path="edm", prediction="sample", steps=128)
    x, address = _start(table, 16, d)
    model = mixture.model("edm", "sample")
    expected = run(table, model, x, **address)
    found, rounds = run_lookahead(table, model, x, Lookahead(128, "picard", 1e-4), **address)
    assert rounds.rounds.mean() <= most
    scale = float(mixture.variance().mean().sqrt())
    error = (found - expected).square().mean(1).sqrt() / scale
    assert float(error.mean()) < 0.01


# What a sample does not depend on.


@pytest.mark.parametrize("mode", ["speculative", "picard"])
@pytest.mark.parametrize("rows", [5, "auto"])
def test_a_sample_is_the_same_in_any_batch(mode, rows):
    model = unit_mixture(16).model("vp-cosine", "epsilon", row_by_row=True)
    options = {
        "path": "vp-cosine", "prediction": "epsilon", "solver": "ddpm", "steps": 20, "seed": 4,
        "lookahead": rows, "mode": mode,
    }  # fmt: skip
    whole = ardiff.sample(model, (6, 16), **options)
    backwards = ardiff.sample(model, (6, 16), sample_ids=range(5, -1, -1), **options)
    shards = [ardiff.sample(model, (3, 16), sample_ids=range(i, i + 3), **options) for i in (0, 3)]
    alone = [ardiff.sample(model, (1, 16), sample_ids=[i], **options) for i in range(6)]
    assert torch.equal(whole, backwards.flip(0))
    assert torch.equal(whole, torch.cat(shards))
    assert torch.equal(whole, torch.cat(alone))


def test_conditions_guidance_temperature_and_own_steps_follow_their_samples():
    """A model that needs its own sample's condition: each sample alone gives the same."""
    mixture = unit_mixture(4).model("vp-cosine", "epsilon", row_by_row=True)

    def model(x, level, condition):
        return mixture(x, level) + condition["shift"] * condition["factor"]

    shift = torch.linspace(-1, 1, 4)[:, None].expand(4, 4).contiguous()
    weight, temperature = torch.tensor([1.0, 2.0, 0.5, 3.0]), torch.tensor([1.0, 0.9, 0.0, 1.1])
    options = {
        "path": "vp-cosine", "prediction": "epsilon", "solver": "ddpm", "seed": 4, "lookahead": 6,
    }  # fmt: skip
    steps = torch.tensor([12, 20, 7, 20])

    def drawn(which: list[int]):
        return ardiff.sample(
            model, (len(which), 4), steps=steps[which], sample_ids=which,
            condition={"shift": shift[which], "factor": 0.1}, guidance=weight[which],
            uncond={"shift": -shift[which], "factor": 0.2}, temperature=temperature[which],
            **options,
        )  # fmt: skip

    whole = drawn([0, 1, 2, 3])
    for i in range(4):
        assert torch.equal(drawn([i])[0], whole[i])


def test_picard_is_the_same_with_guidance_clamp_and_temperature():
    mixture = unit_mixture(4).model("vp-cosine", "epsilon", row_by_row=True)
    options = {
        "path": "vp-cosine", "prediction": "epsilon", "solver": "ddpm", "steps": 20, "seed": 4,
        "guidance": 2.0, "condition": 0.1, "uncond": -0.1, "temperature": 0.8, "x0_clamp": 1.5,
    }  # fmt: skip

    def model(x, level, condition):
        return mixture(x, level) + condition

    expected = ardiff.sample(model, (3, 4), **options)
    found = ardiff.sample(model, (3, 4), lookahead=20, mode="picard", tolerance=1e-6, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps", [20, [20, 9, 14]])
def test_a_path_is_the_same_noise_for_rows_looked_ahead(steps):
    model = unit_mixture(4).model("vp-cosine", "epsilon", row_by_row=True)
    options = {
        "path": "vp-cosine", "prediction": "epsilon", "solver": "ddpm", "steps": steps, "seed": 4,
        "noise": "path",
    }  # fmt: skip
    with ardiff_kernels.backend("reference"):
        expected = ardiff.sample(model, (3, 4), **options)
        found = ardiff.sample(model, (3, 4), lookahead=20, mode="picard", tolerance=0.0, **options)
    assert torch.equal(found, expected)


# Accounting and refusals.


def test_stats_count_rounds_and_states():
    mixture, calls = unit_mixture(4).model("vp-cosine", "epsilon"), []

    def model(x, level, condition):
        calls.append(len(x))
        return mixture(x, level)

    options = {"path": "vp-cosine", "prediction": "epsilon", "solver": "ddpm", "steps": 20}
    _, stats = ardiff.sample(model, (3, 4), seed=0, lookahead=6, return_stats=True, **options)
    (rounds,) = stats.lookahead
    assert stats.rounds == len(calls) == rounds.rounds.max()
    assert stats.calls == sum(calls) / 3
    sample, first, drafted, kept = rounds.windows.T
    assert drafted.max() <= 6
    assert (kept <= drafted).all()
    passed = kept + (kept < drafted)
    assert np.bincount(sample, passed).tolist() == [20] * 3
    counts = rounds.histogram(rows=20)
    assert counts.shape == (20, 7)
    assert counts.sum() == len(rounds.windows)
    calls.clear()
    _, stats = ardiff.sample(model, (3, 4), seed=0, return_stats=True, **options)
    assert stats.rounds == stats.calls == len(calls) == 20


def test_no_samples():
    found, stats = ardiff.sample(
        lambda x, level, condition: x, (0, 3), path="vp-cosine", prediction="epsilon",
        solver="ddpm", steps=5, lookahead=4, return_stats=True,
    )  # fmt: skip
    assert found.shape == (0, 3)
    assert (stats.rounds, stats.calls) == (0, 0)


def test_a_diverging_sample_is_named_and_the_others_are_whole():
    mixture = unit_mixture(4).model("vp-cosine", "epsilon", row_by_row=True)

    def model(x, level, condition):
        return torch.where(condition > 0, mixture(x, level), torch.nan)

    options = {"path": "vp-cosine", "prediction": "epsilon", "solver": "ddpm", "steps": 12}
    good = torch.tensor([[1.0], [0.0], [1.0]])
    with pytest.warns(ardiff.NonfiniteWarning, match="1 of 3 samples"):
        found, stats = ardiff.sample(
            model, (3, 4), seed=0, lookahead=4, condition=good, return_stats=True, **options
        )
    assert stats.nonfinite.sample_ids.tolist() == [1]
    alone = ardiff.sample(
        model, (2, 4), seed=0, lookahead=4, condition=good[::2], sample_ids=[0, 2], **options
    )
    assert torch.equal(found[::2], alone)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"solver": "rtk-mala", "lookahead": 4}, ValueError, "accept or reject"),
        ({"solver": "ddim", "lookahead": 4}, ValueError, 'adds no noise.*mode="picard"'),
        ({"solver": "ddpm", "mode": "picard"}, ValueError, "go with lookahead"),
        ({"solver": "ddpm", "lookahead": 0}, ValueError, "1 or more rows, got 0"),
        ({"solver": "ddpm", "lookahead": 2.5}, TypeError, 'an integer or "auto"'),
        ({"solver": "ddpm", "lookahead": 4, "mode": "law"}, ValueError, "known: speculative, pic"),
        ({"solver": "ddpm", "lookahead": 4, "tolerance": 0.1}, ValueError, "goes with mode"),
        (
            {"solver": "ddpm", "lookahead": 4, "mode": "picard", "tolerance": -1.0},
            ValueError, "0 or more, got -1",
        ),
        ({"solver": "ddpm", "lookahead": 4, "cuda_graph": True}, ValueError, "exclude each other"),
        ({"solver": "ddpm", "lookahead": 4, "dtype": torch.bfloat16}, ValueError, "float32 state"),
        ({"solver": "rtk-mala", "lookahead": 4, "adapt": "sample"}, TypeError, "adapts"),
    ],
)  # fmt: skip
def test_what_is_refused_before_any_call(options, error, message):
    def model(x, level, condition):
        raise AssertionError("called")

    with pytest.raises(error, match=message):
        ardiff.sample(model, (2, 4), path="vp-cosine", prediction="epsilon", steps=8, **options)


@pytest.mark.parametrize(
    ("column", "message"),
    [("x_3", "third memory"), ("t_2", "third memory"), ("x_u", "unconditional"), ("m_u", "uncond")],
)
def test_tables_that_drafts_cannot_follow_are_refused(column, message):
    table = ardiff.solver("ddpm", path="vp-cosine", prediction="epsilon", steps=4)
    coefficients = table.coefficients.copy()
    coefficients[2, DIFFUSION_COLUMNS.index(column)] = 0.1
    with pytest.raises(ValueError, match=f"solver ddpm cannot be run with a lookahead.*{message}"):
        lookahead_table(replace(table, coefficients=coefficients))
    assert lookahead_table(replace(table)).couples
