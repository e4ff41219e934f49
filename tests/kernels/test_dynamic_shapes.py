"""Ops whose batch is dynamic in `torch.compile` and `torch.export`: one graph for every size, with
the values of eager calls."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import ardiff
from ardiff.loop.run import run
from ardiff_kernels import ops, testing
from tests.kernels.head_loop.calls import loop_call
from tests.kernels.head_step.calls import head_call
from tests.kernels.kv_append.calls import append_call
from tests.kernels.kv_attention.calls import attention_call
from tests.kernels.lookahead.calls import Case, LookaheadCall
from tests.kernels.mala_accept.calls import accept_call
from tests.kernels.packed_linear.calls import linear_call

SIZES = range(7, 19)  # the first is no other size of a call: equal ones are taken as one symbol


def step(make: Callable, **kind) -> Callable:
    def call(rows: int) -> testing.Call:
        found = make(rows, 8, **kind)
        found.options |= testing.guidance_options(found, three_way=True)
        found.options["noise_scale"] = torch.linspace(0, 2, rows)
        return found

    return call


def backward(make: Callable) -> Callable:
    def call(rows: int) -> testing.Call:
        given = {**make(rows, 8).args}
        grads = {f"grad_{n}": given[n] for n in make(rows, 8).state}
        if make is testing.uld_call:
            rest = {n: given[n] for n in ("coef", "row")}
            return testing.Call("uld_step_backward", {**grads, **rest})
        grads["grad_x0"] = given["x"]
        names = ("x", "model_out", "coef", "row", "draw", "key", "stream")
        return testing.Call("diffusion_step_backward", {**grads, **{n: given[n] for n in names}})

    return call


def append(rows: int) -> testing.Call:
    args, options = append_call(length=[40 + n % 3 for n in range(rows)], T=2)
    names = ("k", "v", "k_cache", "v_cache", "length")
    return testing.Call("kv_append", dict(zip(names, args, strict=True)), options)


def loop(rows: int) -> testing.Call:
    call = loop_call(rows, ways=2, kinetic=True)
    return call.changed(draw=torch.arange(rows).int(), noise_scale=torch.linspace(0, 2, rows))


def draft(rows: int) -> testing.Call:
    call = LookaheadCall(Case(rows, 8, second=True, scale=True))
    values = call.x, call.memory, call.coef, call.plan, *call.address, call.case.rows
    names = "x memory coef plan row count draw key stream rows".split()
    return testing.Call("lookahead_draft", dict(zip(names, values, strict=True)), call.options)


def verify(rows: int) -> testing.Call:
    call = LookaheadCall(Case(rows, 8, second=True, scale=True))
    states, _, drafts = call.draft()
    values = states, drafts, call.outs(states, drafts), call.memory, call.coef, call.plan
    names = "states drafts outs memory coef plan row count draw key stream".split()
    args = dict(zip(names, (*values, *call.address), strict=True))
    return testing.Call("lookahead_verify", args, call.options)


CALLS: dict[str, Callable[[int], testing.Call]] = {
    "diffusion_step": step(testing.diffusion_call, memories=3, unconditional=True),
    "uld_step": step(testing.uld_call),
    "diffusion_step_backward": backward(testing.diffusion_call),
    "uld_step_backward": backward(testing.uld_call),
    "mala_accept": lambda rows: accept_call(rows, 8, velocity=True, ball=True),
    "lookahead_draft": draft,
    "lookahead_verify": verify,
    "head_step": lambda rows: head_call(rows, ways=2),
    "head_loop": loop,
    "kv_append": append,
    "kv_attention": lambda rows: attention_call([40 + n % 3 for n in range(rows)], T=2),
    "packed_linear": lambda rows: linear_call(rows, norm=True, gate="own", residual=True),
}


def compiled(function: Callable, **options) -> tuple[Callable, CompileCounter]:
    torch.compiler.reset()
    counter = CompileCounter()
    return torch.compile(function, backend=counter, dynamic=True, **options), counter


def assert_equal(got, want) -> None:
    for a, b in zip(got, want, strict=True):
        assert testing.same_bits(a, b)


@pytest.mark.parametrize("op", CALLS)
def test_one_graph_for_twelve_batches(op):
    def whole(args, options):
        found = getattr(torch.ops.ardiff, op).default(*args, **options)
        return (found,) if isinstance(found, torch.Tensor) else tuple(found)

    function, counter = compiled(whole, fullgraph=True)
    for rows in SIZES:
        call = CALLS[op](rows)
        args = list(call.args.values())
        assert_equal(function(args, call.options), whole(args, call.options))
    assert counter.frame_count == 1


def test_one_graph_for_twelve_counters():
    key, stream = torch.tensor([3]), torch.arange(4)

    def normals(counter):
        out = torch.empty(4, 8)
        ops.philox_normal_(out, key, counter, stream)
        return ops.philox_normal(key, counter, stream, 8), out

    function, counter = compiled(normals, fullgraph=True)
    for draw in range(1, 13):
        assert_equal(function(4 * draw), normals(4 * draw))
    assert counter.frame_count == 1


def test_one_graph_for_twelve_batches_of_increments():
    def increments(stream, start, end):
        out = torch.empty(len(stream), 8)
        ops.brownian_increment_(out, torch.tensor([3]), stream, start, end)
        return ops.brownian_increment(torch.tensor([3]), stream, start, end, 8), out

    function, counter = compiled(increments, fullgraph=True)
    for rows in SIZES:
        args = torch.arange(rows), torch.linspace(0, 2, rows), torch.tensor([3.0])
        assert_equal(function(*args), increments(*args))
    assert counter.frame_count == 1


@pytest.mark.parametrize("solver", ["ddpm", "rtk-mala"])
def test_a_solver_with_one_set_of_graphs(solver):
    """Steps, and steps that are accepted or rejected, through the loop over rows."""
    table = ardiff.solver(solver, path="ou", prediction="score", steps=8).to("cpu")
    key = torch.tensor([7])

    def sample(x):
        stream = torch.arange(x.shape[0]) << 20
        return run(table, lambda x, level, condition: -x, x, key=key, stream=stream)

    function, counter = compiled(sample)
    counts = set()
    for rows in SIZES:
        x = torch.randn(rows, 8, generator=torch.Generator().manual_seed(rows))
        assert testing.same_bits(function(x), sample(x))
        counts.add(counter.frame_count)
    assert len(counts) == 1


def test_export_with_a_dynamic_batch():
    args = list(testing.diffusion_call(6, 8).args.values())

    class Step(torch.nn.Module):
        def forward(self, x):
            row = torch.zeros(1, dtype=torch.int32)
            stream = torch.arange(x.shape[0])
            return ops.diffusion_step(x, x, x, args[3], row, row, args[6], stream)[0]

    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Step(), (torch.randn(6, 8),), dynamic_shapes={"x": {0: batch}})
    for rows in (2, 9, 64):
        x = torch.randn(rows, 8)
        assert torch.equal(program.module()(x), Step()(x))
