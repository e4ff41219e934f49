"""A table for each sample in the same launches: to the bit what each table gives alone."""
# ruff: noqa: E501  (a case a line)

from __future__ import annotations

import pytest
import torch

import ardiff
from ardiff.data.mixture import GaussianMixture
from ardiff.loop.run import run
from ardiff.noise import initial_state
from ardiff.solvers import SOLVERS, solver_options
from ardiff.tables.ragged import RaggedTable

D = 3
MIXTURE = GaussianMixture(
    torch.tensor([[-1.0, 0.2, 0.5], [1.0, 0.7, -0.3], [0.1, -1.0, 0.0]]),
    torch.tensor([[0.04, 0.09, 0.02], [0.03, 0.02, 0.02], [0.05, 0.05, 0.3]]),
)
STEPS = [13, 31, 20, 13, 11]
GUIDANCE = torch.tensor([1.0, 2.5, 0.5, 3.0, 1.5])
GUIDANCE2 = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.5])
TEMPERATURE = torch.tensor([1.0, 0.8, 0.0, 0.9, 1.1])
EXACT = MIXTURE.model("vp-cosine", "v_prediction", row_by_row=True)


def model(x, level, condition):
    """Row by row; the condition shifts the output."""
    return EXACT(x, level) + (0.0 if condition is None else condition)


def dim(solver) -> dict:
    return {"dim": D} if "dim" in solver_options(solver) else {}


def draw(steps, ids, solver, **options):
    batch = len(ids)
    return ardiff.sample(
        model, (batch, D), "vp-cosine", "v_prediction", solver, steps, seed=4, sample_ids=ids,
        **options,
    )  # fmt: skip


VARIANTS = [(name, {}) for name in SOLVERS]
VARIANTS += [
    (name, {"warm_start": "gaussian-factor"}) for name in ("rtk-uld", "rtk-ula", "rtk-mala")
]
VARIANTS += [(name, {"accept": "simpson"}) for name in ("rtk-mala", "rtk-hmc")]
VARIANTS += [("rtk-hmc", {"inner": 2, "refresh": "persistent"})]
VARIANTS += [("rtk-harmonic-mala", {"accept": "simpson", "steps": [25, 33, 47, 25, 30]})]


@pytest.mark.parametrize(("solver", "own"), VARIANTS, ids=lambda v: str(v))
def test_each_sample_is_as_alone(solver, own):
    options = {"uncond": 0.05, "condition": -0.05, **own}
    counts = options.pop("steps", STEPS)
    together = draw(counts, range(5), solver, guidance=GUIDANCE, temperature=TEMPERATURE, **options)
    for i, steps in enumerate(counts):
        alone = draw(
            steps, [i], solver, guidance=GUIDANCE[i].item(), temperature=TEMPERATURE[i].item(),
            **options,
        )  # fmt: skip
        assert torch.equal(alone[0], together[i]), i
    first = counts[0]
    one = draw(first, range(5), solver, guidance=GUIDANCE, temperature=TEMPERATURE, **options)
    same = [i for i in range(5) if counts[i] == first]
    assert torch.equal(one[same], together[same]) and not torch.equal(one[1], together[1])


@pytest.mark.parametrize(("solver", "own"), VARIANTS, ids=lambda v: str(v))
def test_samples_with_keys_of_their_own_are_as_alone(solver, own):
    """Neighbours that share a key, in one run of ragged tables: to the bit the run of each key."""
    options, stream = dict(own), torch.arange(5) * 2**20
    counts = options.pop("steps", STEPS)
    tables = [
        ardiff.solver(
            solver, path="vp-cosine", prediction="v_prediction", steps=n, **options, **dim(solver)
        )
        for n in counts
    ]
    spans = [
        (slice(0, 2), torch.tensor([3])),
        (slice(2, 3), torch.tensor([-7])),
        (slice(3, 5), torch.tensor([3])),
    ]

    def drawn(rows, key):
        table = RaggedTable([tables[i] for i in range(5)][rows], range(len(counts[rows])))
        x = initial_state(table, key, stream[rows], D)
        return run(
            table, model, x, key=key, stream=stream[rows], condition=-0.05, uncond=0.05,
            guidance=GUIDANCE[rows], noise_scale=TEMPERATURE[rows],
        )  # fmt: skip

    together = drawn(slice(None), spans)
    for rows, key in spans:
        assert torch.equal(drawn(rows, key), together[rows])
    # lcm ends at the centre of a mode of this model, whatever the noise
    if solver != "lcm":
        assert not torch.equal(drawn(slice(None), torch.tensor([3]))[2], together[2])


@pytest.mark.parametrize("solver", SOLVERS)
def test_three_way_guidance_of_each_sample(solver):
    options = {"condition": -0.05, "uncond": 0.05, "uncond2": 0.1}
    together = draw(STEPS, range(5), solver, guidance=GUIDANCE, guidance2=GUIDANCE2, **options)
    for i, steps in enumerate(STEPS):
        weights = {"guidance": GUIDANCE[i].item(), "guidance2": GUIDANCE2[i].item()}
        assert torch.equal(draw(steps, [i], solver, **weights, **options)[0], together[i])


@pytest.mark.parametrize("solver", SOLVERS)
def test_three_way_guidance_is_the_mix_of_three_calls(solver):
    """u2 + w2 (u - u2) + w (c - u)."""

    def mixed(x, level, condition):
        c, u, u2 = (model(x, level, shift) for shift in (0.2, -0.1, 0.3))
        return u2 + GUIDANCE2[:, None] * (u - u2) + GUIDANCE[:, None] * (c - u)

    arguments = ((5, D), "vp-cosine", "v_prediction", solver, 13)
    x, stats = ardiff.sample(
        model, *arguments, condition=0.2, uncond=-0.1, uncond2=0.3, guidance=GUIDANCE,
        guidance2=GUIDANCE2, return_stats=True, seed=0,
    )  # fmt: skip
    expected, plain = ardiff.sample(mixed, *arguments, return_stats=True, seed=0)
    torch.testing.assert_close(x, expected, rtol=1e-3, atol=1e-4)
    assert stats.calls == 3 * plain.calls


def test_the_model_sees_each_samples_own_level():
    seen = []

    def watching(x, level, condition):
        seen.append(level.clone())
        return torch.zeros_like(x)

    ardiff.sample(watching, (3, D), "ou", "sample", "ddpm", [2, 4, 3], seed=0)
    tables = [ardiff.solver("ddpm", path="ou", prediction="sample", steps=n) for n in (2, 4, 3)]
    for i, table in enumerate(tables):
        found = torch.stack(seen)[: len(table), i]
        assert torch.equal(found, torch.tensor(table.level, dtype=torch.float32))
    assert len(seen) == 4


def test_outputs_for_finished_samples_are_not_used():
    """NaN for a sample whose table has ended changes nothing."""
    calls = []

    def late_nan(x, level, condition):
        calls.append(1)
        out = EXACT(x, level)
        out[0] += torch.nan if len(calls) > 13 else 0.0
        return out

    arguments = ((2, D), "vp-cosine", "v_prediction", "rtk-uld", [13, 31])
    assert torch.equal(
        ardiff.sample(late_nan, *arguments, seed=0), ardiff.sample(EXACT, *arguments, seed=0)
    )


SMALL = {"ball_radius": 1.0, "step_radius": 0.3}
MIXES = {
    "ops": [("rtk-uld", 14, {}), ("rtk-mala", 20, {}), ("rtk-hmc", 17, {}), ("ddim", 6, {})],
    "rules": [
        ("rtk-mala", 25, {"accept": "simpson"}), ("rtk-hmc", 25, {}), ("rtk-mala", 22, {"inner": 1}),
        ("rtk-mala", 29, {"accept": "simpson", "inner": 3}),
    ],
    "balls": [
        ("rtk-mala-projected", 25, {"dim": D}), ("rtk-mala", 25, {}), ("rtk-hmc", 25, {}),
        ("rtk-mala-projected", 25, {"dim": D, **SMALL}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("index", [[3, 1, 0, 2, 1], [0, 3, 2, 1, 1]], ids=str)
@pytest.mark.parametrize("mix", MIXES)
def test_tables_of_different_solvers(mix, index):
    """Decisions too: another sample's midpoint or ball is not this one's."""
    options = {"path": "vp-cosine", "prediction": "v_prediction"}
    tables = [ardiff.solver(name, steps=n, **options, **own) for name, n, own in MIXES[mix]]
    ids = [5, 4, 3, 2, 1]
    ragged = RaggedTable(tables, index)
    together, found = ardiff.sample(
        EXACT, (5, D), table=ragged, sample_ids=ids, return_stats=True, seed=0
    )  # fmt: skip
    taken = 0.0
    for i, (which, name) in enumerate(zip(index, ids, strict=True)):
        alone, stats = ardiff.sample(
            EXACT, (1, D), table=tables[which], sample_ids=[name], return_stats=True, seed=0
        )
        assert torch.equal(alone[0], together[i])
        if stats.acceptance is not None:
            taken += float((stats.acceptance * stats.decisions).sum())
    assert taken == pytest.approx(float((found.acceptance * found.decisions).sum()))


def test_acceptance_is_of_each_samples_own_stages():
    x, stats = ardiff.sample(
        EXACT, (5, D), "vp-cosine", "v_prediction", "rtk-mala", STEPS, return_stats=True, seed=0
    )
    stages = [(n - 1) // 3 for n in STEPS]
    expected = [2 * sum(s > i for s in stages) for i in range(max(stages))]
    assert stats.decisions.tolist() == expected
    assert int(stats.log_alpha_histogram.sum()) == sum(expected)
    assert len(stats.acceptance) == 10 and bool((stats.acceptance <= 1).all())


def test_initial_states_differ_with_the_tables():
    """edm: each table starts at its own sigma."""
    tables = [
        ardiff.solver("ddim", path="edm", prediction="sample", steps=3, ratio_max=high)
        for high in (40.0, 10.0)
    ]
    starts = []

    def first(x, level, condition):
        starts.append(x.clone())
        return torch.zeros_like(x)

    ardiff.sample(first, (2, D), table=RaggedTable(tables, [0, 1]), sample_ids=[7, 7], seed=0)
    torch.testing.assert_close(starts[0][0], 4 * starts[0][1], rtol=1e-6, atol=0)


class HoistOnly:
    def hoist(self, levels, condition):
        return lambda row, x: x


TABLE = ardiff.solver("ddim", path="ou", prediction="sample", steps=3)
OTHER = ardiff.solver("ddim", path="edm", prediction="sample", steps=3)
BAD = {
    "length": (lambda: draw([4, 4], range(3), "ddpm"), ValueError, "steps must be an integer or 3 integers, one per sample, got shape"),
    "float": (lambda: draw([4.0, 4.0], range(2), "ddpm"), ValueError, "of float32"),
    "zero": (lambda: draw([4, 0], range(2), "ddpm"), ValueError, "steps must be an integer of 1 or more, got 0"),
    "no table": (lambda: RaggedTable([], []), ValueError, "needs one StepTable or more"),
    "paths": (lambda: RaggedTable([TABLE, OTHER], [0, 1]), ValueError, "must agree in path, got"),
    "index": (lambda: RaggedTable([TABLE], [0, 1]), ValueError, r"must be integers in \[0, 1\)"),
    "index type": (lambda: RaggedTable([TABLE], [0.0]), ValueError, r"must be integers in \[0, 1\)"),
    "batch": (lambda: ardiff.sample(EXACT, (3, D), table=RaggedTable([TABLE], [0]), seed=0), ValueError, "a table for each of 3 samples, got 1"),
    "hoist": (lambda: ardiff.sample(HoistOnly(), (2, D), "ou", "sample", "ddim", [2, 3], seed=0), TypeError, "HoistOnly has only hoist"),
    "guidance2": (lambda: draw(4, range(2), "ddpm", guidance2=1.0), ValueError, "guidance2 and uncond2 go together"),
    "guidance2 alone": (lambda: draw(4, range(2), "ddpm", guidance2=1.0, uncond2=0), ValueError, "only with guidance"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_invalid_calls(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


def test_solvers_know_their_options():
    """Every solver with a window or a dimension says so by its options."""
    assert "dim" in solver_options("rtk-mala-projected")
    assert "window_low" in solver_options("rtk-harmonic-mala")
