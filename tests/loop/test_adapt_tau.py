"""Adapted step sizes, and the telemetry of accept rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import ardiff
from ardiff.data.mixture import GaussianMixture
from ardiff.loop.adapt_tau import RUNGS
from ardiff.loop.ladder import Ladder, acceptance_probability, splice
from ardiff.loop.run import run
from ardiff.loop.stats import LOG_ALPHA_EDGES
from ardiff.noise import initial_state, make_key, make_stream
from ardiff.solvers._rtk import adjusted as metropolis
from ardiff.solvers._rtk.adjusted import ACCEPTS
from ardiff.tables.paths import get_path
from ardiff_kernels import ops

D = 12
MIXTURE = GaussianMixture(
    torch.eye(D)[:3] * 1.2, torch.linspace(0.02, 0.1, D), torch.tensor([0.3, 0.5, 0.2])
)
MODEL = MIXTURE.model("ou", "sample", row_by_row=True)
FAST = MIXTURE.model("ou", "sample")
OPTIONS = {"path": "ou", "prediction": "sample"}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def adapted(ids, solver="rtk-mala", steps=28, **options):
    return ardiff.sample(
        MODEL, (len(ids), D), "ou", "sample", solver, steps, seed=9, sample_ids=ids, adapt="sample",
        return_stats=True, **options,
    )  # fmt: skip


@pytest.mark.parametrize("solver", ["rtk-mala", "rtk-mala-projected", "rtk-hmc"])
def test_a_sample_adapts_by_itself_alone(solver):
    """Samples and rungs are the same to the bit alone, in any order and shard."""
    whole, stats = adapted(range(12), solver)
    assert len(set(stats.step_scale.tolist())) > 1
    for i in (0, 5, 11):
        alone, one = adapted([i], solver)
        assert torch.equal(alone[0], whole[i]) and one.step_scale[0] == stats.step_scale[i]
    backward, reverse = adapted(range(11, -1, -1), solver)
    assert torch.equal(backward.flip(0), whole)
    assert torch.equal(reverse.step_scale.flip(0), stats.step_scale)


def test_rungs_freeze_before_the_draws_that_count():
    """Only the first half of the accept rows moves a sample."""
    tables = [ardiff.solver("rtk-mala", steps=28, tau=0.4 * s, **OPTIONS) for s in RUNGS]
    rows, seen = len(tables[0].accept_rows), []

    class Watched(Ladder):
        def observe(self, log_alpha):
            super().observe(log_alpha)
            seen.append(self.index.clone())

    ladder = Watched(tables, 16, adapting=rows // 2)
    key, stream = make_key(9, "cpu"), make_stream(None, 16, 0, "cpu")
    run(ladder, FAST, initial_state(ladder, key, stream, D), key=key, stream=stream)
    moved = [not torch.equal(a, b) for a, b in zip(seen[:-1], seen[1:], strict=True)]
    half = rows // 2
    assert len(seen) == rows and any(moved[: half - 1]) and not any(moved[half - 1 :])


def test_a_ladder_starts_afresh():
    """A second run with one ladder is the first again."""
    tables = [ardiff.solver("rtk-mala", steps=28, tau=0.4 * s, **OPTIONS) for s in RUNGS]
    ladder = Ladder(tables, 8, adapting=9)
    key, stream = make_key(9, "cpu"), make_stream(None, 8, 0, "cpu")
    x = initial_state(ladder, key, stream, D)
    first = run(ladder, FAST, x, key=key, stream=stream)
    assert torch.equal(run(ladder, FAST, x, key=key, stream=stream), first)


@pytest.mark.parametrize("target", [0.57, 0.8])
def test_the_target_is_approached(target):
    """The second half accepts at the target to .1; tau = .05 and 5 do not."""

    def rate(**options):
        _, stats = ardiff.sample(
            FAST, (400, D), "ou", "sample", "rtk-mala", 40, ratio_min=0.5, seed=2,
            return_stats=True, **options,
        )  # fmt: skip
        return float(stats.acceptance[7:].mean())

    assert abs(rate(adapt="sample", target_acceptance=target) - target) < 0.1
    assert abs(rate(tau=0.05) - target) > 0.1 and abs(rate(tau=5.0) - target) > 0.1


def test_a_pilot_gives_a_fixed_table():
    """Acceptance of every stage within .15 of the target, on ids that the pilot did not have."""
    pilot = {"dim": D, "steps": 16, "ratio_min": 0.05, **OPTIONS}
    table = ardiff.adapted_solver("rtk-mala", FAST, **pilot)
    again = ardiff.adapted_solver("rtk-mala", FAST, **pilot)
    np.testing.assert_array_equal(table.coefficients, again.coefficients)
    _, stats = ardiff.sample(FAST, (400, D), table=table, seed=3, return_stats=True)
    assert float((stats.acceptance - 0.57).abs().max()) < 0.15
    plain = ardiff.solver("rtk-mala", steps=16, ratio_min=0.05, **OPTIONS)
    _, stats = ardiff.sample(FAST, (400, D), table=plain, seed=3, return_stats=True)
    assert float((stats.acceptance - 0.57).abs().max()) > 0.15


def acceptance(table, d, rows=256):
    """Of each stage, on the exact score of N(0, 1/4)."""
    _, stats = ardiff.sample(quarter_score, (rows, d), table=table, seed=3, return_stats=True)
    return stats.acceptance


def quarter_score(x, level, condition):
    alpha2 = torch.exp(-2 * level)[:, None]
    return -x / (1 - 0.75 * alpha2)


@pytest.mark.parametrize("seed", [0, 200])
def test_no_stage_is_left_where_nothing_is_accepted(seed):
    """HMC's acceptance falls from .96 to 0 in one rung, where the leapfrog becomes unstable: a rung
    that no pass has tried may accept nothing."""
    pilot = {"path": "ou", "prediction": "score", "steps": 60, "seed": seed}
    table = ardiff.adapted_solver("rtk-hmc", quarter_score, 8, **pilot)
    assert float((acceptance(table, 8) - 0.57).abs().max()) < 0.3


def test_the_ladder_reaches_a_thirtieth_of_tau():
    """tau = 1.6 accepts nothing at d = 2,000, where .06 is right; a sample alone finds it too."""
    d, options = 2000, {"path": "ou", "prediction": "score", "steps": 37, "tau": 1.6}
    table = ardiff.adapted_solver("rtk-mala", quarter_score, d, pilot_ids=range(8), **options)
    assert float((acceptance(table, d, 64) - 0.57).abs().max()) < 0.3
    options |= {"solver": "rtk-mala", "adapt": "sample", "return_stats": True}
    _, stats = ardiff.sample(quarter_score, (64, d), seed=3, **options)
    assert float(stats.step_scale.max()) < 0.2 and float(stats.acceptance[-4:].mean()) > 0.3


def test_splice_takes_the_rows_of_each_stage():
    tables = [ardiff.solver("rtk-mala", steps=13, tau=tau, **OPTIONS) for tau in (0.1, 0.2)]
    mixed = splice(tables, [0, 1, 0, 1])
    per_stage = 5  # start, and twice proposal and accept
    for row in range(len(mixed)):
        expected = tables[min(row // per_stage, 3) % 2].coefficients[row]
        np.testing.assert_array_equal(mixed.coefficients[row], expected)


def test_acceptance_probability_is_counted_in_sixteenths():
    a = torch.tensor([-math.inf, -20.0, math.log(0.5), -1e-3, 0.0, 5.0, math.nan])
    found = acceptance_probability(a)
    exact = torch.tensor([0, 0, 0.5, 1, 1, 1])
    torch.testing.assert_close(found[:-1], exact, rtol=0, atol=1 / 32)
    assert found[-1].isnan()


@pytest.mark.parametrize("solver", ["rtk-mala", "rtk-hmc", "rtk-harmonic-mala"])
def test_nonfinite_proposals_are_rejected_and_counted(solver):
    """NaN from the model at one sample's proposals: the others do not notice."""
    table = ardiff.solver(solver, steps=25, **OPTIONS)
    first = table.accept_rows[0]
    bad_call = int(table.calls_model[: first + 1].sum())  # the call at the first proposal
    calls = []

    def broken(x, level, condition):
        calls.append(1)
        out = FAST(x, level)
        if len(calls) == bad_call:
            out[3] = torch.nan
        return out

    x, stats = ardiff.sample(broken, (6, D), table=table, return_stats=True, seed=0)
    good, plain = ardiff.sample(FAST, (6, D), table=table, return_stats=True, seed=0)
    assert stats.rejected_nonfinite == 1 and plain.rejected_nonfinite == 0
    keep = torch.arange(6) != 3
    assert torch.equal(x[keep], good[keep]) and bool(x.isfinite().all())
    assert int(stats.log_alpha_histogram.sum()) + 1 == int(plain.log_alpha_histogram.sum())


def test_statistics_are_those_of_the_decisions():
    table = ardiff.solver("rtk-mala", steps=25, tau=1.0, **OPTIONS)
    key, stream, decisions = make_key(1, "cpu"), make_stream(None, 200, 0, "cpu"), []
    x = initial_state(table, key, stream, D)
    run(table, FAST, x, key=key, stream=stream, decisions=decisions)
    _, stats = ardiff.sample(FAST, (200, D), table=table, seed=1, return_stats=True)
    assert [d.iteration for d in decisions] == table.accept_rows.tolist()
    rates = torch.stack([d.accepted.double().mean() for d in decisions])
    torch.testing.assert_close(stats.acceptance, rates.reshape(-1, 2).mean(1))
    assert stats.calls == table.calls and 0.05 < float(stats.acceptance.mean()) < 0.95
    log_alpha = torch.cat([d.log_alpha for d in decisions]).numpy()
    edges = [-np.inf, *LOG_ALPHA_EDGES, np.inf]
    expected, _ = np.histogram(log_alpha, edges)
    assert stats.log_alpha_histogram.tolist() == expected.tolist()


def energy(x, level, condition):
    path, level = get_path("ou"), level[:1].double().numpy()
    alpha, sigma = (torch.from_numpy(f(level)) for f in (path.alpha, path.sigma))
    return -MIXTURE.log_density(x, alpha, sigma)


GRID = get_path("ou").level(np.array([2.0, 0.7, 0.3]))


@pytest.mark.parametrize("solver", ["rtk-mala", "rtk-hmc", "rtk-harmonic-mala"])
def test_energies_simpson_and_trapezoid(solver):
    """Log acceptance ratios of the first proposals by three rules: Simpson errs far less.

    The stage from ratio 2 to .7 has modes to choose from, so that the trapezoid errs.
    """

    def first(accept):
        table = ardiff.solver(
            solver, steps=40, stages=2, inner=1, accept=accept, grid=GRID, **OPTIONS
        )
        key, stream, decisions = make_key(1, "cpu"), make_stream(None, 300, 0, "cpu"), []
        x = initial_state(table, key, stream, D)
        options = {"energy_fn": energy} if accept == "energy" else {}
        run(table, FAST, x, key=key, stream=stream, decisions=decisions, **options)
        return decisions[0].log_alpha

    exact = first("energy")
    trapezoid, simpson = ((first(rule) - exact).square().mean() for rule in ACCEPTS[:2])
    assert float(trapezoid) > 1e-4 and float(simpson) < 0.2 * float(trapezoid)


def test_energy_sampling_counts_its_model_calls():
    x, stats = ardiff.sample(
        FAST, (64, D), "ou", "sample", "rtk-mala", 25, accept="energy", energy_fn=energy,
        return_stats=True, seed=0,
    )  # fmt: skip
    assert stats.calls == 25 and bool(x.isfinite().all())


BAD = {
    "adapt": (dict(adapt="batch"), "unknown adapt 'batch'; known: sample"),
    "no accept": (dict(adapt="sample", solver="rtk-uld"), "rtk-uld has no accept step"),
    "no tau": (dict(adapt="sample", solver="ddpm"), "ddpm has no tau to adapt"),
    "target": (dict(adapt="sample", target_acceptance=1.0), r"must be in \(0, 1\), got 1.0"),
    "ragged": (dict(adapt="sample", steps=[25, 30]), "one number of steps for all samples"),
    "energy": (dict(accept="energy"), 'accept="energy" and energy_fn go together'),
    "energy_fn": (dict(energy_fn=energy), 'accept="energy" and energy_fn go together'),
    "energy shape": (
        dict(accept="energy", energy_fn=lambda x, *_: x),
        r"energy_fn must return shape \[2\], one per sample, got \[2, 12\]",
    ),
    "rule": (dict(accept="exact"), "unknown accept 'exact'; known: trapezoid, simpson, energy"),
    "refresh": (dict(solver="rtk-hmc", refresh="half"), "unknown refresh 'half'; known: full"),
    "persistent": (
        dict(solver="rtk-hmc", refresh="persistent", inner=1), "needs inner=2 or more",
    ),
    "gamma": (dict(solver="rtk-hmc", gamma=2.0), 'uses gamma with refresh="persistent" alone'),
    "angle": (dict(solver="rtk-harmonic-mala", tau=3.2), "tau is an angle below pi, got 3.2"),
    "window": (dict(solver="rtk-harmonic", window_low=1.0), "expected 0 <= window_low"),
    "stages": (dict(stages=20), "makes 61 model calls, more than steps=25"),
    "few steps": (dict(steps=6), "needs two stages or more: with inner=2 proposals of 1 calls"),
    "leapfrog": (dict(solver="rtk-hmc", leapfrog=0), "leapfrog must be an integer of 1 or more"),
    "dim": (dict(solver="rtk-mala-projected", dim=7), "dim is 7, but the samples have 12 elements"),
    "radius": (dict(solver="rtk-mala-projected", ball_radius=-1.0), "ball_radius must be positive"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_invalid_calls(case):
    changes, message = BAD[case]
    options = {"solver": "rtk-mala", "steps": 25, **OPTIONS, **changes}
    with pytest.raises(ValueError, match=message):
        ardiff.sample(FAST, (2, D), **options, seed=0)


def test_a_pilot_needs_samples_and_passes():
    options = {"dim": D, "steps": 16, **OPTIONS}
    for bad, message in (
        ({"pilot_ids": []}, "one sample or more"),
        ({"passes": 0}, "must be 1 or"),
    ):
        with pytest.raises(ValueError, match=message):
            ardiff.adapted_solver("rtk-mala", FAST, **options, **bad)
    with pytest.raises(ValueError, match="target_acceptance must be in"):
        ardiff.adapted_solver("rtk-mala", FAST, **options, target_acceptance=None)


def test_a_pilot_runs_as_the_samples_will():
    """Guided, the score is steeper: the pilot takes smaller steps."""
    pilot = {"dim": D, "steps": 16, "ratio_min": 0.05, **OPTIONS}

    def shifted(x, level, condition):
        return FAST(x, level) + (0.0 if condition is None else condition)

    plain = ardiff.adapted_solver("rtk-mala", shifted, **pilot)
    guided = ardiff.adapted_solver(
        "rtk-mala",
        shifted,
        **pilot,
        condition=torch.zeros(()),
        uncond=torch.zeros(()),
        guidance=3.0,
    )
    np.testing.assert_array_equal(plain.coefficients, guided.coefficients)
    far = ardiff.adapted_solver(
        "rtk-mala", shifted, **pilot, condition=None, uncond=torch.full((), 0.5), guidance=3.0
    )
    assert not np.array_equal(plain.coefficients, far.coefficients)


@pytest.mark.parametrize("inner", [1, 3])
@pytest.mark.parametrize("solver", ["rtk-mala", "rtk-hmc"])
def test_energies_of_every_stage(solver, inner):
    """On a Gaussian the trapezoid is exact: all decisions of all stages are those by energies."""
    gaussian = GaussianMixture(torch.full((1, D), 0.3), torch.linspace(0.2, 1.5, D)[None])
    model = gaussian.model("ou", "sample", row_by_row=True)

    def energies(x, level, condition):
        path, level = get_path("ou"), level[:1].double().numpy()
        alpha, sigma = (torch.from_numpy(f(level)) for f in (path.alpha, path.sigma))
        return -gaussian.log_density(x, alpha, sigma)

    found = []
    for accept in ("trapezoid", "energy"):
        table = ardiff.solver(
            solver, stages=2, inner=inner, steps=60, accept=accept, grid=GRID, **OPTIONS
        )  # fmt: skip
        key, stream, decisions = make_key(1, "cpu"), make_stream(None, 64, 0, "cpu"), []
        x = initial_state(table, key, stream, D)
        options = {"energy_fn": energies} if accept == "energy" else {}
        run(table, model, x, key=key, stream=stream, decisions=decisions, **options)
        found.append(torch.stack([d.log_alpha for d in decisions]))
    assert found[0].shape == (2 * inner, 64)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=2e-4)


def test_the_default_ball_rejects():
    """A margin that proposals often exceed: those outside |m| + margin stay where they were."""
    path, margin = get_path("ou"), 1.5
    plan = metropolis.plan("rtk-mala", 10, 2, 2, 1, "ancestral", True)

    def rejections(margin):
        table = metropolis.langevin_table(
            "rtk-mala", path, "sample", lambda n: GRID[:n], plan, 0.4, "trapezoid",
            lambda t: metropolis.Ball(0.0, 0.0, margin),
        )  # fmt: skip
        key, stream, decisions = make_key(1, "cpu"), make_stream(None, 500, 0, "cpu"), []
        x = initial_state(table, key, stream, D)
        run(table, FAST, x, key=key, stream=stream, decisions=decisions)
        return table, x, key, stream, decisions

    table, x, key, stream, decisions = rejections(margin)
    coef, first = table.coef(), torch.zeros(1, dtype=torch.int32)
    level = torch.full((500,), float(table.level[0]))
    still = torch.zeros_like(x)
    place = (coef, first, first, key, stream)
    mean = ops.diffusion_step(x, FAST(x, level), still, *place, noise=still)[0]
    start, anchor, _ = ops.diffusion_step(x, FAST(x, level), still, *place)
    level = torch.full((500,), float(table.level[1]))
    place = (coef, first + 1, first + 1, key, stream)
    proposal = ops.diffusion_step(start, FAST(start, level), anchor, *place)[0]
    outside = proposal.norm(dim=1) > mean.norm(dim=1) + margin
    free = rejections(1e6)[4][0]
    assert 50 < int(outside.sum()) < 450
    assert torch.equal(decisions[0].accepted, free.accepted & ~outside)
    assert int(free.accepted[outside].sum()) > 20


def test_projection_needs_the_dimension():
    with pytest.raises(ValueError, match="without ball_radius needs dim"):
        ardiff.solver("rtk-mala-projected", steps=25, step_radius=1.0, **OPTIONS)
    table = ardiff.solver("rtk-mala-projected", steps=25, dim=D, **OPTIONS)
    x = ardiff.sample(FAST, (4, D), table=table, seed=0)
    assert torch.equal(
        x, ardiff.sample(FAST, (4, D), "ou", "sample", "rtk-mala-projected", 25, seed=0)
    )
