"""Step calls with gradients: the exact ones are those that autograd finds through the float64
reference of the step, which knows nothing of the backward ops."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ardiff_kernels import testing
from ardiff_kernels.dispatch import autograd as _autograd
from ardiff_kernels.dispatch import backends
from ardiff_kernels.testing import Call

# Relative to the larger of 1 and the gradient; the learned range's holds a normal.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def uld(shape: tuple[int, int], dtype=torch.float32, guidance=0, noise=False) -> Call:
    call = testing.uld_call(*shape, dtype)
    if guidance:
        call.options |= testing.guidance_options(call, guidance == 2)
    if noise:
        call.options |= {"noise": testing.random_rows(60, *shape)}
        call.options["noise2"] = testing.random_rows(61, *shape)
        call.options["noise_scale"] = torch.linspace(0, 2, shape[0])
    return finish_first(call)


def diffusion(
    shape: tuple[int, int], dtype=torch.float32, guidance=0, noise=False, clamp=None, **kind
) -> Call:
    call = testing.diffusion_call(*shape, dtype, **kind)
    if guidance:
        call.options |= testing.guidance_options(call, guidance == 2)
    if noise:
        call.options["noise"] = testing.random_rows(60, *shape)
    else:
        call.options["noise_scale"] = torch.linspace(0, 2, shape[0])
    if clamp:
        call.options["x0_clamp"] = clamp
    return finish_first(call)


def finish_first(call: Call) -> Call:
    """The samples walk through the rows; the first of many is finished."""
    rows = len(call.args["row"])
    call.args["row"] = torch.arange(rows, dtype=torch.int32) % 3
    if rows > 3:
        call.args["row"][0] = -1
    return call


ALL_TERMS = dict(memories=3, unconditional=True)
SMALL = {
    "uld": lambda: uld((5, 3)),
    "uld-guided": lambda: uld((5, 3), guidance=1),
    "uld-three-way-given-noise": lambda: uld((5, 3), guidance=2, noise=True),
    "diffusion": lambda: diffusion((5, 3)),
    "diffusion-guided-clamped": lambda: diffusion((5, 3), guidance=1, clamp=0.7123),
    "diffusion-given-noise": lambda: diffusion((5, 3), guidance=2, noise=True),
    "diffusion-learned-range": lambda: diffusion((5, 3), guidance=2, learned_range=True),
    "diffusion-second-memory": lambda: diffusion((5, 3), memories=2),
    "diffusion-third-memory": lambda: diffusion((5, 3), memories=3),
    "diffusion-unconditional": lambda: diffusion((5, 3), unconditional=True, clamp=0.7123),
    "diffusion-unconditional-guided": lambda: diffusion(
        (5, 3), guidance=1, unconditional=True, clamp=0.7123
    ),
    "diffusion-everything": lambda: diffusion(
        (5, 3), guidance=2, noise=True, clamp=0.7123, learned_range=True, **ALL_TERMS
    ),
}
LARGER: dict[str, Callable[[], Call]] = {
    "uld-17": lambda: uld((7, 17), torch.bfloat16, guidance=2, noise=True),
    "uld-large": lambda: uld((2, 1027), torch.float16, guidance=1),
    "uld-many": lambda: uld((70, 8), torch.bfloat16),
    "diffusion-17": lambda: diffusion((7, 17), torch.float16, guidance=1, clamp=0.7123),
    "diffusion-bf16": lambda: diffusion(
        (6, 20), torch.bfloat16, clamp=0.7123, state_dtype=torch.bfloat16, memories=2
    ),
    "diffusion-bf16-all-terms": lambda: diffusion(
        (6, 20), torch.bfloat16, guidance=2, clamp=0.7123, state_dtype=torch.bfloat16, **ALL_TERMS
    ),
    "diffusion-large": lambda: diffusion((2, 1027), torch.float16, learned_range=True),
    "diffusion-many": lambda: diffusion((70, 8), torch.bfloat16, guidance=2, noise=True),
}


def inputs(call: Call) -> list[str]:
    """The differentiable arguments that a call has."""
    known = _autograd.FORMULAS[call.op].inputs
    return [name for name in known if name in call.args or name in call.options]


def apply(function: Callable, call: Call, values: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """`function` on a call's arguments with some of them replaced."""
    args = [values.get(name, t) for name, t in call.args.items()]
    return function(*args, **{name: values.get(name, t) for name, t in call.options.items()})


def widened(call: Call, name: str) -> Tensor:
    return {**call.args, **call.options}[name].detach().double().requires_grad_()


def upstream(call: Call) -> list[Tensor]:
    """Random gradients of the results, in their dtypes."""
    results = call.functional()
    return [testing.random_rows(70 + i, *t.shape, t.dtype) for i, t in enumerate(results)]


def exact(call: Call, grads: list[Tensor | None]) -> dict[str, Tensor]:
    """Gradients of a call's inputs by autograd of its float64 reference."""
    leaves = {name: widened(call, name) for name in inputs(call)}
    results = apply(backends.reference_function(call.op), call, leaves)
    used = [(t, g.double()) for t, g in zip(results, grads, strict=True) if g is not None]
    outputs, weights = zip(*used, strict=True)
    found = torch.autograd.grad(outputs, list(leaves.values()), weights, allow_unused=True)
    zeros = (torch.zeros_like(t) for t in leaves.values())
    return {n: z if g is None else g for n, g, z in zip(leaves, found, zeros, strict=True)}


def found(call: Call, grads: list[Tensor | None]) -> dict[str, Tensor]:
    """The same through the op, by whatever backend serves it."""
    given = {**call.args, **call.options}
    leaves = {name: given[name].detach().clone().requires_grad_() for name in inputs(call)}
    results = apply(getattr(torch.ops.ardiff, call.op).default, call, leaves)
    used = [(t, g) for t, g in zip(results, grads, strict=True) if g is not None]
    outputs, weights = zip(*used, strict=True)
    gradients = torch.autograd.grad(outputs, list(leaves.values()), weights)
    return dict(zip(leaves, gradients, strict=True))


def assert_alike(call: Call, got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, want in expected.items():
        given = {**call.args, **call.options}[name]
        assert got[name].dtype == given.dtype and got[name].shape == given.shape
        bound = TOLERANCE[given.dtype] * want.abs().clamp(min=1)
        wide = given.shape[1] > call.args[call.state[0]].shape[1]
        testing.assert_within(got[name].cpu(), want.cpu(), bound + 1e-5 * wide)
