"""`head_lookahead` made of its parts: the executor's bits, the rows one after another, messages."""

from __future__ import annotations

import re

import pytest
import torch

import ardiff
import ardiff_kernels
from ardiff.loop import lookahead
from ardiff_kernels import ops
from ardiff_kernels.testing import same_bits
from tests.kernels.head_lookahead.calls import INVALID, TABLES, look_call, row_by_row
from tests.kernels.head_step.calls import BF16, I8

CASES = {
    **{name: dict(N=3, table=name, ways=2) for name in ("ddpm", "multistep sde", "kinetic")},
    "picard": dict(N=4, table="ddim", tolerance=1e-2, rows=6),
    "multistep": dict(N=3, table="multistep", tolerance=1e-1),
    "two memories": dict(N=3, table="two memories", tolerance=0.0, ways=2),
    "longer than the table": dict(N=2, rows=20, ways=3),
    "shared": dict(N=4, ways=2, shared=True),
    "bfloat16": dict(N=2, dtype=BF16, norm="rms", mlp="gated", ways=2),
    "int8": dict(N=2, dtype=I8, table="kinetic"),
}


class Head:
    """The head of a call, row by row of the table in any order, for the executor."""

    def __init__(self, call):
        self.call = call

    def hoist_rows(self, levels, conditions):
        a, o, ways = self.call.args, self.call.options, len(conditions)
        batch = len(a["x"])
        modulation = a["modulation"].view(3, ways, a["modulation"].shape[1] // ways, -1)

        def outputs(rows, samples, x):
            own = samples if modulation.shape[2] == batch else 0 * samples
            chosen = modulation[a["set"][rows].long(), :, own].transpose(0, 1).flatten(0, 1)
            head = {name: o[name] for name in ("norm", "mlp", "depth", "eps")}
            x = x.contiguous()
            args = (x, chosen[None], 0, a["weights"], a["scales"])
            return ops.head_step(*args, ways=ways, **head).unbind(0)

        return outputs


def by_executor(case, call, monkeypatch):
    """The run of the executor from the call's states."""
    a, o = call.args, call.options
    table = ardiff.solver(**TABLES[case.get("table", "ddpm")])
    mode = "picard" if "tolerance" in o else "speculative"
    setting = lookahead.Lookahead(a["rows"], mode, o.get("tolerance"))
    first = lookahead._Run.round

    def from_the_velocity(run):
        if not run._done and run._v is not None:
            run._v = o["v"].clone()
        first(run)

    monkeypatch.setattr(lookahead._Run, "round", from_the_velocity)
    draw = a["draw"] if len(a["draw"]) == 1 else a["draw"][:1]
    weights = {name: o[name] for name in ("guidance", "guidance2") if name in o}
    unconds = dict(zip(("uncond", "uncond2"), [torch.zeros(1)] * len(weights), strict=False))
    return lookahead.run_lookahead(
        table, Head(call), a["x"], setting, key=a["key"], stream=a["stream"], draw=int(draw),
        condition=torch.zeros(1), noise_scale=o.get("noise_scale"), **weights, **unconds,
    )  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_executor(name, monkeypatch):
    call = look_call(**CASES[name])
    call.args["draw"] = torch.tensor([3], dtype=torch.int32)
    found = ops.head_lookahead(*call.args.values(), **call.options)
    x, rounds = by_executor(CASES[name], call, monkeypatch)
    assert same_bits(found.x, x)
    assert found.rounds.tolist() == rounds.rounds.tolist()
    assert int(found.evaluated.sum()) == rounds.evaluated
    assert int(found.accepted.sum()) == int(rounds.windows[:, 3].sum())
    assert 0 < int(found.accepted.sum()) and int(found.rounds.max()) <= len(call.args["coef"])


@pytest.mark.parametrize("table", TABLES)
def test_with_no_tolerance_it_is_the_rows_one_after_another(table):
    """To the bit, where the head computes each row as if it were alone."""
    call = look_call(3, table=table, ways=2, tolerance=0.0)
    with ardiff_kernels.backend("reference"):
        found = ops.head_lookahead(*call.args.values(), **call.options, batch_invariant=True)
        expected = row_by_row(call)
    assert all(map(same_bits, found[:3], expected))


def test_a_row_without_its_noise_or_set_would_be_noticed():
    """Negative control."""
    call = look_call(3, tolerance=0.0)
    found = ops.head_lookahead(*call.args.values(), **call.options, batch_invariant=True)
    for change in ("draw", "set"):
        wrong = look_call(3, tolerance=0.0)
        wrong.args[change] = (wrong.args[change] + 1) % 3
        x, *_ = row_by_row(wrong)
        assert not torch.allclose(found.x, x, rtol=0, atol=1e-3)


def test_a_set_that_there_is_not_gives_0():
    call = look_call(2, tolerance=0.0)
    call.args["set"].fill_(7)
    found = ops.head_lookahead(*call.args.values(), **call.options)
    silent = look_call(2, tolerance=0.0)
    silent.args["weights"] = [torch.zeros_like(w) for w in silent.args["weights"]]
    want = ops.head_lookahead(*silent.args.values(), **silent.options)
    assert same_bits(found.x, want.x) and found.evaluated.tolist() == want.evaluated.tolist()


def test_no_patches():
    found = ops.head_lookahead(*(call := look_call(0)).args.values(), **call.options)
    assert found.x.shape == (0, 6) and found.rounds.shape == (0,) and found.v.shape == (0,)


@pytest.mark.parametrize("name", ["ddpm", "kinetic"])
def test_opcheck(name):
    call = look_call(**CASES[name])
    call.args["x"] = call.args["x"].contiguous()
    op = torch.ops.ardiff.head_lookahead.default
    torch.library.opcheck(op, tuple(call.args.values()), call.options)


@pytest.mark.parametrize("name", INVALID)
def test_message(name):
    change, message = INVALID[name]
    call = change(look_call(4, ways=2))
    with pytest.raises(RuntimeError, match="^" + re.escape(f"head_lookahead: {message}")):
        ops.head_lookahead(*call.args.values(), **call.options)


def test_weights_that_require_grad_are_refused():
    call = look_call(2)
    call.args["weights"][2].requires_grad_()
    with pytest.raises(RuntimeError, match="^head_lookahead: weights requires grad but this op"):
        call.functional()
