"""Telemetry of accept rows: the warning of step sizes that are far off, infinite energies."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch

import ardiff
from ardiff.loop.stats import EnergyErrors, SampleStats, pool, warn_of_acceptance

PLACE = {"path": "ou", "prediction": "score", "seed": 1}


def score(x, level, condition):
    """Of N(0, 1/4)."""
    return -x / (1 - 0.75 * torch.exp(-2 * level)[:, None])


def said(*shape, solver="rtk-mala", model=score, steps=31, **options) -> list[str]:
    """The warnings of a run."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ardiff.NonfiniteWarning)
        ardiff.sample(model, shape, solver=solver, steps=steps, **PLACE, **options)
    assert all(issubclass(w.category, ardiff.AcceptanceWarning) for w in found)
    assert all(w.filename == __file__ for w in found)
    return [str(w.message) for w in found]


@pytest.mark.parametrize("rows", [1, 64])
def test_a_step_that_is_always_rejected(rows):
    (message,) = said(rows, 256, tau=5.0)
    assert "of its proposals in all stages: tau is too large" in message


def test_a_step_that_is_always_accepted():
    (message,) = said(64, 4, tau=1e-4)
    assert message.startswith("rtk-mala accepts 1 of its proposals in all stages: tau could be")


@pytest.mark.parametrize("solver", ["rtk-mala", "rtk-mala-projected", "rtk-hmc", "rtk-uld", "ddpm"])
@pytest.mark.parametrize("d", [2, 64, 1024])
def test_the_default_step_does_not_warn(solver, d):
    assert said(4, d, solver=solver) == []


def test_a_sample_that_adapts_is_judged_afterwards():
    assert said(16, 256, tau=0.4, adapt="sample") == []
    assert len(said(16, 256, tau=1e4, adapt="sample")) == 1


def test_outputs_that_are_nan_are_no_matter_of_tau():
    calls = []

    def broken(x, level, condition):
        calls.append(1)
        return score(x, level, condition) * (torch.nan if len(calls) > 1 else 1)

    (message,) = said(8, 64, model=broken)
    assert "most are NaN or inf" in message and "tau" not in message


def stats(acceptance, count):
    rates = torch.tensor(acceptance, dtype=torch.float64)
    count = torch.full((len(rates),), count)
    none = torch.zeros(12, dtype=torch.int64)
    errors = EnergyErrors(rates.float(), torch.arange(len(rates)), len(rates))
    return SampleStats(
        1, 0.0, rates, 0, none, count, expected_acceptance=rates, energy_errors=errors
    )


STAGES = {
    "stage 1 of 4: tau is too large": ([0.5, 0.01, 0.6, 0.7], 8),
    "0.01 of its proposals in stage 1 of 4 and in 1 more: tau": ([0.5, 0.01, 0.6, 0.0], 8),
    "0.005 of its proposals in all stages: tau is too large": ([0.005] * 4, 2),
    "0.995 of its proposals in all stages: tau could be larger": ([0.992, 0.998], 32),
    "": ([0.5, 0.03, 0.99, 1.0], 8),
    " ": ([0.0, 0.0, 0.9, 0.9], 2),  # too few decisions in each stage, and .45 in all
    "  ": ([0.0, 0.0], 3),  # too few in all
    "   ": ([1.0, 1.0], 8),  # too few to say that the step is too small
}


@pytest.mark.parametrize("message", STAGES)
def test_the_stage_is_named(message):
    expects = contextlib.nullcontext()
    if message.strip():
        expects = pytest.warns(ardiff.AcceptanceWarning, match=message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with expects:
            warn_of_acceptance(stats(*STAGES[message]), "rtk-mala")


def test_pooled_runs_keep_the_expected_acceptance():
    whole = pool(2, 0.0, [stats([0.2, 0.4], 10), stats([0.8], 30)])
    torch.testing.assert_close(
        whole.expected_acceptance, torch.tensor([0.65, 0.4], dtype=torch.float64)
    )
    assert whole.energy_errors.stages == 2
    torch.testing.assert_close(
        whole.energy_errors.mean(), torch.tensor([0.5, 0.4], dtype=torch.float64)
    )


def test_expected_acceptance_is_the_mean_of_alpha():
    """Within the chance of 1,000 decisions in each stage: 5.6 standard deviations, 1e-6 in 30."""
    _, found = ardiff.sample(
        score, (500, 16), solver="rtk-mala", steps=31, return_stats=True, **PLACE
    )
    off = (found.expected_acceptance - found.acceptance).abs()
    assert 0 < float(off.max()) < 5.6 * (0.25 / 1000) ** 0.5


def test_a_chain_leaves_an_energy_of_infinity():
    """The starts of all stages have no density, by their energy: first proposals are all taken."""
    asked = []

    def energy(x, level, condition):
        asked.append(level)
        begins = len(asked) == 1 or bool(level[0] != asked[-2][0])
        value = x.square().sum(1) / 2
        return torch.full_like(value, torch.inf) if begins else value

    _, found = ardiff.sample(
        lambda x, level, condition: -x, (64, 8), solver="rtk-mala", steps=21, inner=1,
        accept="energy", energy_fn=energy, return_stats=True, **PLACE,
    )  # fmt: skip
    assert found.acceptance.tolist() == [1.0] * len(found.acceptance)
    assert found.rejected_nonfinite == 0
    assert int(found.log_alpha_histogram[-1]) == int(found.decisions.sum())
