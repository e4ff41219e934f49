"""Gradients of the steps on every backend: the backward ops, and their use by autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import forward_ad

from ardiff_kernels import ops, testing
from ardiff_kernels.dispatch import autograd as _autograd
from ardiff_kernels.dispatch import backends
from ardiff_kernels.ops.diffusion_step import COLUMNS as DIFFUSION_COLUMNS
from ardiff_kernels.ops.uld_step import COLUMNS as ULD_COLUMNS
from tests._support.gradient_calls import (
    LARGER,
    SMALL,
    apply,
    assert_alike,
    exact,
    found,
    inputs,
    upstream,
    widened,
)
from tests.kernels.mala_accept.calls import accept_call

STEPS = pytest.mark.parametrize("make", [testing.uld_call, testing.diffusion_call])


@pytest.mark.parametrize("name", SMALL)
def test_formulas_against_finite_differences(name):
    """gradcheck of the reference's formulas in float64."""
    call = SMALL[name]()
    function = _autograd.differentiable_reference(call.op)
    leaves = {name: widened(call, name) for name in inputs(call)}

    def step(*values):
        return apply(function, call, dict(zip(leaves, values, strict=True)))

    assert torch.autograd.gradcheck(step, tuple(leaves.values()))


@pytest.mark.parametrize("name", [*SMALL, *LARGER])
def test_against_float64_autograd(implementation, name):
    call = {**SMALL, **LARGER}[name]()
    grads = upstream(call)
    assert_alike(call, found(call, grads), exact(call, grads))


@STEPS
def test_a_wrong_coefficient_shows(make):
    """Negative control: one column of the table off by a hundredth."""
    call, other = make(4, 9), make(4, 9)
    grads = upstream(call)
    other.args["coef"][:, 4] += 0.01
    with pytest.raises(AssertionError, match="times the bound"):
        assert_alike(call, found(other, grads), exact(call, grads))


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 1)], ids=str)
@STEPS
def test_results_that_are_not_used(implementation, make, used):
    call = make(4, 9)
    grads = [g if i in used else None for i, g in enumerate(upstream(call))]
    assert_alike(call, found(call, grads), exact(call, grads))


@STEPS
def test_gradients_that_are_not_wanted(implementation, make):
    """Each input alone gets the gradient that it gets among all."""
    call = make(5, 21)
    call.options |= testing.guidance_options(call, three_way=True)
    grads = upstream(call)
    together = found(call, grads)
    for name in inputs(call):
        given = {**call.args, **call.options}
        leaf = given[name].clone().requires_grad_()
        results = apply(getattr(ops, call.op), call, {name: leaf})
        (alone,) = torch.autograd.grad(results, [leaf], grads)
        assert torch.equal(alone, together[name])


@pytest.mark.parametrize("memories", [1, 2, 3])
def test_finished_rows_pass_gradients_through(implementation, memories):
    call = testing.diffusion_call(4, 9, learned_range=True, memories=memories)
    call.args["row"] = torch.tensor([-1, 3, 0, 2**31 - 1], dtype=torch.int32)
    g_x, g_memory, g_x0 = grads = upstream(call)
    got, done = found(call, grads), [0, 1, 3]
    assert torch.equal(got["x"][done], (g_x + g_x0)[done])
    assert torch.equal(got["memory"][done], g_memory[done])
    assert not got["model_out"][done].any() and got["model_out"][2].any()

    call = testing.uld_call(4, 9)
    call.args["row"] = torch.tensor([-1, 3, 0, 2**31 - 1], dtype=torch.int32)
    grads = upstream(call)
    got = found(call, grads)
    for name, grad in zip(call.state, grads, strict=True):
        assert torch.equal(got[name][done], grad[done])
    assert not got["model_out"][done].any() and got["model_out"][2].any()


def test_zero_coefficients_drop_nan_gradients(implementation):
    nan, one = torch.full((2, 5), math.nan), torch.ones(2, 5)
    row = torch.zeros(2, dtype=torch.int32)
    coef = testing.table(ULD_COLUMNS, [dict(z_z=0.5, v_v=2.0)])
    z, v, out, *_ = ops.uld_step_backward(one, nan, None, coef, row)
    assert torch.equal(z, 0.5 * one) and v.isnan().all() and not out.any()
    coef = testing.table(DIFFUSION_COLUMNS, [dict(x_x=0.5, m_0=1.0)])
    address = (row, row, torch.tensor([1]), torch.arange(2))
    x, out, memory, *_ = ops.diffusion_step_backward(one, nan, None, one, one, coef, *address)
    assert torch.equal(x, 0.5 * one) and not out.any() and not memory.any()


def test_the_clamp_stops_gradients(implementation):
    call = testing.diffusion_call(1, 6)
    call.args["model_out"] = torch.tensor([[0.4, 0.6, -0.6, math.inf, math.nan, -0.4]])
    call.args["row"].zero_()
    call.args["coef"] = testing.table(DIFFUSION_COLUMNS, [dict(p_o=1.0, x_0=2.0)])
    call.options["x0_clamp"] = 0.5
    got = found(call, [torch.ones(1, 6), None, None])["model_out"]
    assert torch.equal(got, torch.tensor([[2.0, 0, 0, 0, 0, 2.0]]))


@pytest.mark.parametrize("name", ["uld-three-way-given-noise", "diffusion-everything"])
def test_opcheck(implementation, name):
    call = SMALL[name]()
    grads = upstream(call)
    given = {k: v.contiguous() for k, v in {**call.args, **call.options}.items() if k != "x0_clamp"}
    given |= {k: given[k].requires_grad_() for k in inputs(call)}
    args, options = list(call.args), [k for k in call.options if k != "x0_clamp"]
    extra = {"x0_clamp": 0.7123} if "x0_clamp" in call.options else {}
    step = getattr(torch.ops.ardiff, call.op).default
    passed = {name: given[name] for name in options} | extra
    torch.library.opcheck(step, tuple(given[name] for name in args), passed)

    backward = getattr(torch.ops.ardiff, f"{call.op}_backward").default
    formula = _autograd.FORMULAS[call.op]
    saved = {k: given[k].detach() for k in _autograd.saved_names(call.op) if k in given}
    constants = formula.constants({"x0_clamp": None, **given})
    positional = [
        a.name for a in backward._schema.arguments if a.name in saved and not a.kwarg_only
    ]
    tensors = [saved.pop(name) for name in positional]
    grads = [g.contiguous() for g in grads]
    torch.library.opcheck(backward, (*grads, *tensors), {**saved, **constants, "wanted": 5})


def descend(call: testing.Call, leaves: dict[str, torch.Tensor]) -> torch.Tensor:
    """A scalar after three steps."""
    values = dict(leaves)
    for _ in range(3):
        results = apply(getattr(ops, call.op), call, values)
        values.update(zip(call.state, results, strict=False))
    return sum((values[name] ** 2).sum() for name in call.state)


@STEPS
def test_compile_fullgraph(make, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    torch.compiler.reset()
    call = make(5, 33)
    gradients = []
    for function in (descend, torch.compile(descend, fullgraph=True)):
        leaves = {name: call.args[name].clone().requires_grad_() for name in inputs(call)}
        gradients.append(torch.autograd.grad(function(call, leaves), list(leaves.values())))
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-6)


@STEPS
def test_inference_mode_enters_nothing_of_autograd(make, monkeypatch):
    def fail(*args):
        raise AssertionError("entered")

    monkeypatch.setattr(_autograd, "_below", fail)
    with torch.inference_mode():
        make(2, 5).functional()
        make(2, 5).in_place()
    with pytest.raises(AssertionError, match="entered"):
        make(2, 5).functional()


@STEPS
def test_refusals(implementation, make):
    for name in ("coef", "guidance", "guidance2", "noise_scale"):
        call = make(3, 4)
        call.options |= testing.guidance_options(call, three_way=True)
        call.options["noise_scale"] = torch.ones(1)
        given = call.args if name in call.args else call.options
        given[name].requires_grad_()
        message = f"^{call.op}: {name} requires grad but has no gradient here; pass {name}.detach"
        with pytest.raises(RuntimeError, match=message):
            call.functional()
        with torch.no_grad():
            call.functional()
    call = make(3, 4)
    call.args["model_out"].requires_grad_()
    message = rf"^{call.op}_: model_out requires grad but this op has no gradient; call"
    with pytest.raises(RuntimeError, match=message):
        call.in_place()
    with torch.no_grad():
        call.in_place()


def test_accepting_has_no_gradient(implementation):
    for in_place in (False, True):
        call = accept_call(4, 8)
        call.args["y"].requires_grad_()
        function = call.in_place if in_place else call.functional
        message = f"^mala_accept{'_' * in_place}: y requires grad but this op has no gradient; deta"
        with pytest.raises(RuntimeError, match=message):
            function()
        with torch.no_grad():
            function()
    out = torch.zeros(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="^philox_normal_: out requires grad but this op has no"):
        ops.philox_normal_(out, torch.tensor([1]), 0, torch.arange(2))


@STEPS
def test_forward_mode_is_refused(make):
    call = make(2, 3)
    with forward_ad.dual_level():
        out = call.args["model_out"]
        call.args["model_out"] = forward_ad.make_dual(out, torch.ones_like(out))
        for function in (call.functional, call.in_place):
            with pytest.raises(RuntimeError, match=": model_out has a tangent, but there is no fo"):
                function()
        call.args["model_out"] = out
        call.functional()


@pytest.mark.parametrize("name", ["uld-three-way-given-noise", "diffusion-everything"])
def test_second_derivatives(implementation, name):
    """Hessian times vector of a curved function of the results, against float64 autograd."""
    call = SMALL[name]()
    known = inputs(call)
    given = {**call.args, **call.options}
    directions = tuple(
        testing.random_rows(80 + i, *given[n].shape).to(given[n]) for i, n in enumerate(known)
    )

    def product(function, kind):
        def curved(*values):
            results = apply(function, call, dict(zip(known, values, strict=True)))
            return sum((t.sin() * (i + 1)).sum() for i, t in enumerate(results))

        values = tuple(given[n].detach().to(kind) for n in known)
        vectors = tuple(t.to(kind) for t in directions)
        return torch.autograd.functional.hvp(curved, values, vectors)[1]

    reference = backends.reference_function(call.op)
    expected = product(reference, torch.float64)
    assert any(t.any() for t in expected)
    for got, want in zip(product(getattr(ops, call.op), torch.float32), expected, strict=True):
        testing.assert_within(got, want, 3e-5 * want.abs().max().clamp(min=1))


@STEPS
def test_jvp_and_hessian_of_torch(make):
    """The double-backward trick of `torch.autograd.functional` gives what a plain affine map has:
    the columns of its Jacobian, from differences, which are exact up to rounding."""
    call = make(3, 4)
    x = call.args[call.state[0]].contiguous()
    tangent = testing.random_rows(90, 3, 4).contiguous()

    def step(value):
        return apply(getattr(ops, call.op), call, {call.state[0]: value})[0]

    _, got = torch.autograd.functional.jvp(step, (x,), (tangent,))
    torch.testing.assert_close(got, step(x + tangent) - step(x), rtol=1e-5, atol=1e-5)
    assert got.abs().sum() > 0.1

    slope = torch.autograd.functional.jvp(step, (x,), (torch.ones_like(x),))[1]
    hessian = torch.autograd.functional.hessian(lambda v: (step(v) ** 2).sum() / 2, x)
    expected = torch.diag(slope.flatten() ** 2).view(3, 4, 3, 4)
    torch.testing.assert_close(hessian, expected, rtol=1e-5, atol=1e-5)


@STEPS
def test_the_transforms_of_torch_func_are_refused(make):
    call = make(2, 3)

    def loss(out):
        return apply(getattr(ops, call.op), call, {"model_out": out})[0].sum()

    out = call.args["model_out"].contiguous()
    for transform in (torch.func.grad, torch.func.hessian, torch.func.jacrev):
        with pytest.raises(RuntimeError, match=f"^{call.op}: no gradient inside the transforms"):
            transform(loss)(out)


def test_autograd_sees_in_place_steps():
    """A tensor kept for a gradient and then overwritten by an in-place step is an error."""
    call = testing.diffusion_call(2, 3)
    out = call.args["model_out"].clone().requires_grad_()
    results = apply(ops.diffusion_step, call, {"model_out": out})
    ops.diffusion_step_(*call.args.values())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        results[0].sum().backward()


def test_autograd_sees_in_place_accepts_and_normals():
    call = accept_call(4, 8)
    saved = call.args["y"]
    factor = torch.ones(4, 8, requires_grad=True)
    product = (factor * saved).sum()
    marks = {"accepted": torch.zeros(4, dtype=torch.bool), "log_alpha": torch.zeros(4)}
    ops.mala_accept_(*call.args.values(), **call.options, **marks)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    product = (factor * saved).sum()
    ops.philox_normal_(saved, torch.tensor([1]), 0, torch.arange(4))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
