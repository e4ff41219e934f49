"""Models that change or keep what they are given, answer in one buffer, or use autograd inside."""

from __future__ import annotations

import pytest
import torch

import ardiff
from ardiff.loop.run import run
from ardiff.noise import initial_state, make_key, make_stream
from ardiff.solvers import SOLVERS

GUIDED = {
    "none": {},
    "two": {"condition": 1.0, "uncond": 0.7, "guidance": 2.0},
    "three": {
        "condition": 1.0, "uncond": 0.7, "guidance": 2.0, "uncond2": 0.4, "guidance2": 1.5,
    },
}  # fmt: skip


def score(x, level, condition):
    """Of N(0, 1/4), times the condition."""
    a = torch.exp(-level)[:, None]
    return -x / (1 - 0.75 * a**2) * (1.0 if condition is None else condition)


def changes_x(x, level, condition):
    out = score(x, level, condition)
    x.mul_(0.5)
    return out


def changes_level(x, level, condition):
    out = score(x, level, condition)
    level.mul_(1000.0)
    return out


def answers_in_x(x, level, condition):
    return x.copy_(score(x, level, condition))


class OneBuffer:
    """As a CUDA graph, TensorRT or an ONNX binding answers."""

    def __init__(self):
        self.buffer = None

    def __call__(self, x, level, condition):
        if self.buffer is None:
            self.buffer = torch.empty_like(x)
        return self.buffer.copy_(score(x, level, condition))


def by_autograd(x, level, condition):
    """The score as the gradient of a log-density, with a weight that takes gradients."""
    with torch.enable_grad():
        x.requires_grad_()
        log_density = (-0.5 * x**2 / (1 - 0.75 * torch.exp(-2 * level)[:, None])).sum()
        gradient = torch.autograd.grad(log_density, x)[0]
        return gradient * WEIGHT * (1.0 if condition is None else condition)


WEIGHT = torch.ones((), requires_grad=True)
MODELS = {
    "changes x": lambda: changes_x, "changes level": lambda: changes_level,
    "answers in x": lambda: answers_in_x, "one buffer": OneBuffer, "autograd": lambda: by_autograd,
}  # fmt: skip


def draw(model, solver, **options):
    return ardiff.sample(
        model, (6, 5), path="ou", prediction="score", solver=solver, steps=24, seed=5, **options
    )


@pytest.mark.parametrize("guidance", GUIDED.values(), ids=GUIDED)
@pytest.mark.parametrize("solver", [name for name in SOLVERS if not name.startswith("flow")])
def test_every_kind_of_model_gives_the_samples_of_a_plain_one(solver, guidance):
    expected = draw(score, solver, **guidance)
    for name, make in MODELS.items():
        found = draw(make(), solver, **guidance)
        assert torch.allclose(found, expected, rtol=0, atol=2e-6 if name == "autograd" else 0), name
        assert not found.requires_grad


def test_samples_with_tables_of_their_own():
    options = {"path": "ou", "prediction": "score", "solver": "rtk-mala", "seed": 5}
    steps = [20, 33, 26]
    for guidance in GUIDED.values():
        expected = ardiff.sample(score, (3, 4), steps=steps, **guidance, **options)
        for make in list(MODELS.values())[:4]:
            found = ardiff.sample(make(), (3, 4), steps=steps, **guidance, **options)
            assert torch.equal(found, expected)


def test_what_a_model_keeps_stays_as_it_was():
    table = ardiff.solver("ddpm", path="ou", prediction="score", steps=8)
    kept, then = [], []

    def keeper(x, level, condition):
        kept.append((x, level))
        then.append((x.clone(), level.clone()))
        return score(x, level, condition)

    key, stream = make_key(0, "cpu"), make_stream(None, 3, 0, "cpu")
    run(table, keeper, initial_state(table, key, stream, 2), key=key, stream=stream)
    assert len(kept) == 8
    for now, before in zip(kept, then, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(now, before, strict=True))
    assert not torch.equal(kept[0][0], kept[1][0])


def test_a_level_that_a_model_changes_does_not_reach_the_table():
    table = ardiff.solver("ddpm", path="ou", prediction="score", steps=8)
    for batch in (1, 3):  # the levels of one sample could be a view of the table's
        plain = ardiff.sample(score, (batch, 2), table=table, seed=1)
        ardiff.sample(changes_level, (batch, 2), table=table, seed=1)
        assert torch.equal(ardiff.sample(score, (batch, 2), table=table, seed=1), plain)


def test_an_energy_may_be_made_by_autograd_and_change_its_x():
    def energy(x, level, condition):
        with torch.enable_grad():
            x.requires_grad_()
            found = 0.5 * (x**2).sum(1) / (1 - 0.75 * torch.exp(-2 * level))
        with torch.no_grad():
            x.zero_()
        return found

    def plain(x, level, condition):
        return 0.5 * (x**2).sum(1) / (1 - 0.75 * torch.exp(-2 * level))

    options = {"accept": "energy"}
    found = draw(by_autograd, "rtk-mala", energy_fn=energy, **options)
    assert torch.allclose(found, draw(score, "rtk-mala", energy_fn=plain, **options), atol=1e-5)


def test_a_buffer_made_in_the_callers_inference_mode_may_be_written_there():
    with torch.inference_mode():
        buffer = torch.empty(6, 5)
        for guidance in GUIDED.values():
            found = draw(lambda *given: buffer.copy_(score(*given)), "rtk-mala", **guidance)
            assert torch.equal(found, draw(score, "rtk-mala", **guidance))


@pytest.mark.parametrize("guidance", GUIDED.values(), ids=GUIDED)
def test_an_output_may_have_any_strides(guidance):
    def transposed(x, level, condition):
        return score(x, level, condition).t().contiguous().t()

    for solver in ("ddpm", "heun", "rtk-uld", "rtk-hmc"):
        found = draw(transposed, solver, **guidance)
        assert torch.equal(found, draw(score, solver, **guidance))
