"""`head_loop` on every implementation: the float64 reference, and the ops that it consists of, to
the bit where it has no kernel of its own."""

from __future__ import annotations

import pytest
import torch

from ardiff_kernels import ops
from ardiff_kernels.dispatch import backends
from ardiff_kernels.testing import same_bits
from tests.kernels.head_loop.calls import INVALID, assert_refused, errors, loop_call
from tests.kernels.head_step.calls import BF16, F32, FORMS, I8
from tests.kernels.kv_attention.calls import INTERPRETED

SMALL = {
    "diffusion": dict(N=3, ways=2, depth=1),
    "kinetic": dict(N=2, kinetic=True, depth=1),  # few programs, for the interpreter
}
CASES = {
    "empty": dict(N=0, kinetic=True),
    "three ways": dict(N=5, ways=3, kinetic=True, d=5),
    "shared": dict(N=4, ways=2, shared=True),
    **{
        f"{norm} {mlp} {str(dtype)[6:]}": dict(
            N=N, norm=norm, mlp=mlp, dtype=dtype, ways=2, kinetic=True
        )
        for N, (norm, mlp) in zip((1, 8, 20, 3), FORMS, strict=True)
        for dtype in (F32, BF16, I8)
    },
    **SMALL,
}


@pytest.fixture
def serving(implementation):
    name, _, variant = implementation.partition("-")
    if reason := backends.unusable("head_loop", name, "cuda" if variant == "gpu" else "cpu"):
        pytest.skip(f"{name}: {reason}")
    return implementation


def by_op(head):
    """The outputs of `head_step`."""
    return torch.ops.ardiff.head_step.default(*head.args.values(), **head.options)


def steps(call, evaluate=by_op):
    """The same by `head_step` and the step ops in place, as a sampler runs them."""
    x, memory, modulation, sets, *_, coef, draw, key, stream = call.args.values()
    x, memory = x.clone(), memory.clone()
    given = dict(call.options)
    for name in ("norm", "mlp", "depth", "eps"):
        del given[name]
    v, kinds = given.pop("v", None), given.pop("op", [0] * len(sets))
    v = v if v is None else v.clone()
    for k, index in enumerate(sets.tolist()):
        if index >= len(modulation):
            continue
        out, *uncond = evaluate(call.head.changed(x=x, set=index))
        options = given | dict(zip(("uncond_out", "uncond_out2"), uncond, strict=False))
        place = (coef, torch.tensor([k], dtype=torch.int32), draw + k, key, stream)
        if kinds[k]:
            ops.uld_step_(x, v, out, memory, *place, **options)
        else:
            ops.diffusion_step_(x, out, memory, *place, **options)
    return x, memory, x.new_empty(0) if v is None else v


@pytest.mark.parametrize("name", CASES)
def test_it_is_its_steps(serving, name):
    """To the bit where it is made of them; on CUDA within rounding.

    Against float64, Triton on a GPU rounds the activations to bfloat16 for bfloat16 weights: the
    bound is twice the error of PyTorch's modules in bfloat16 within the same loop, as of
    `head_step`. All else has float32 activations.
    """
    if serving in INTERPRETED and name != "kinetic":
        pytest.skip("too many programs for the interpreter")
    call = loop_call(**CASES[name])
    found, expected = call.functional(), steps(call)
    assert [t.shape for t in found] == [t.shape for t in expected]
    if serving == "cuda-gpu":
        assert max(errors(found, expected), default=0.0) <= 1e-5
    else:
        assert all(map(same_bits, found, expected))
    assert all(map(same_bits, call.in_place(), found))
    if len(call.args["x"]):
        exact, limit = call.oracle(), 1e-5
        if serving == "triton-gpu" and call.args["weights"][2].dtype == BF16:
            theirs = steps(call, lambda head: head.eager().float())
            limit += 2 * max(errors(theirs, exact))
        assert max(errors(found, exact)) <= limit


@pytest.mark.parametrize("change", ["set", "draw", "op", "guidance"])
def test_a_wrong_call_would_be_noticed(change):
    """Negative control."""
    call, wrong = loop_call(4, ways=2, kinetic=True), loop_call(4, ways=2, kinetic=True)
    if change == "set":
        wrong.args["set"][1] = 1
    elif change == "draw":
        wrong.args["draw"] += 1
    elif change == "op":
        wrong.options["op"][1] = 0
    else:
        wrong.options["guidance"] *= 1.01
    assert min(errors(wrong.functional(), call.oracle())[:1]) > 1e-3


def test_a_skipped_step_leaves_everything_as_it_is(serving):
    if serving in INTERPRETED:
        pytest.skip("too many programs for the interpreter")
    call = loop_call(4, kinetic=True)
    call.args["set"].fill_(-1)
    before = (call.args["x"], call.args["memory"], call.options["v"])
    assert all(map(same_bits, call.functional(), before))


@pytest.mark.parametrize("name", SMALL)
def test_opcheck(name):
    call = loop_call(**SMALL[name])
    call.args["x"] = call.args["x"].contiguous()
    for form in ("head_loop", "head_loop_"):
        op = getattr(torch.ops.ardiff, form).default
        torch.library.opcheck(op, tuple(call.args.values()), call.options)


def test_compile_fullgraph():
    call = loop_call(3, ways=2)
    x, memory, *rest = call.args.values()

    def token(x, memory):
        return torch.ops.ardiff.head_loop(x * 2, memory, *rest, **call.options)[0] + 1

    torch.compiler.reset()
    compiled = torch.compile(token, fullgraph=True, backend="aot_eager")
    assert same_bits(compiled(x, memory), token(x, memory))


@pytest.mark.parametrize("name", INVALID)
@pytest.mark.parametrize("form", ["head_loop", "head_loop_"])
def test_message(form, name):
    assert_refused(torch.ops.ardiff, form, name)


def test_states_that_share_memory_are_refused():
    call = loop_call(4)
    call.args["memory"] = call.args["x"]
    with pytest.raises(RuntimeError, match="x and memory are written in place but share"):
        torch.ops.ardiff.head_loop_(*call.args.values(), **call.options)
    call.functional()


def test_weights_that_require_grad_are_refused():
    call = loop_call(2)
    call.args["weights"][2].requires_grad_()
    with pytest.raises(RuntimeError, match="^head_loop: weights requires grad but this op has no"):
        call.functional()
