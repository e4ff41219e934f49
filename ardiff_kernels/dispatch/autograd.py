"""Gradients of the ops, registered at the dispatcher's Autograd key.

`torch.library.register_autograd` takes no op with keyword-only tensors, which these have; this is
the same mechanism for them. Inference mode excludes the Autograd key: there nothing of it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import backends, library
from .flat import flat


@dataclass(frozen=True)
class Formula:
    """What the op `<op>_backward` takes and gives; it computes the gradients of a functional op.

    Its first arguments are the gradients of the op's results (None where one was not used). Its
    tensor arguments of the names of the op's are what is kept from the op's call. `wanted` has bit
    i set where the gradient of `inputs[i]` is asked for.

    Attributes:
        inputs: arguments that have a gradient, in the order of the backward op's results.
        constants: from the op's arguments, whatever else the backward op takes.
    """

    inputs: tuple[str, ...]
    constants: Callable[[Mapping[str, Any]], dict[str, Any]]


FORMULAS: dict[str, Formula] = {}


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, step, step_backward, again, formula, saved, names, *values):
        arguments = dict(zip(names, values, strict=True))
        ctx.step_backward, ctx.again, ctx.saved = step_backward, again, saved
        ctx.backend = backends.forced_backend()
        ctx.places = [6 + names.index(name) for name in formula.inputs]
        ctx.constants = formula.constants(arguments)
        ctx.shapes = [getattr(arguments[name], "shape", None) for name in formula.inputs]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*(arguments[name] for name in saved))
        return step(arguments)

    @staticmethod
    def backward(ctx, *grads):
        results: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        if all(g is None for g in grads):
            return tuple(results)
        given = [None if g is None else flat(g.contiguous()) for g in grads]
        saved = dict(zip(ctx.saved, map(flat, ctx.saved_tensors), strict=True))
        needed = [ctx.needs_input_grad[place] for place in ctx.places]
        wanted = sum(1 << i for i, need in enumerate(needed) if need)
        # Where the gradients are to be differentiated again, the definition in PyTorch makes them.
        function = ctx.again if torch.is_grad_enabled() else ctx.step_backward
        with backends.force(ctx.backend) if ctx.backend else nullcontext():
            found = function(*given, **saved, **ctx.constants, wanted=wanted)
        for place, need, gradient, shape in zip(ctx.places, needed, found, ctx.shapes, strict=True):
            results[place] = gradient.view(shape) if need else None
        return tuple(results)


def _overload(op: str) -> Any:
    return getattr(getattr(torch.ops, library.NAMESPACE), op).default


def _below(overload: Any, keyset: Any, args: tuple, options: dict) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return overload.redispatch(keyset & torch._C._after_autograd_keyset, *args, **options)


class _Signature:
    """Names and defaults of an op's arguments, which the dispatcher splits and shortens."""

    def __init__(self, overload: Any) -> None:
        arguments = overload._schema.arguments
        self.names = tuple(a.name for a in arguments)
        self.positional = tuple(a.name for a in arguments if not a.kwarg_only)
        self.keyword = tuple(a.name for a in arguments if a.kwarg_only)
        self.defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}

    def named(self, args: tuple, options: Mapping[str, Any]) -> dict[str, Any]:
        """Every argument by its name."""
        return {**self.defaults, **dict(zip(self.names, args, strict=False)), **options}


def saved_names(op: str) -> tuple[str, ...]:
    """Tensor arguments of `op` that `<op>_backward` reads."""
    names = _Signature(_overload(op)).names
    arguments = _overload(f"{op}_backward")._schema.arguments
    tensors = [a.name for a in arguments if "Tensor" in str(a.type)]
    return tuple(name for name in tensors if name in names)


def _requiring_grad(arguments: Mapping[str, Any]) -> list[str]:
    return [name for name, t in _tensors(arguments) if t.requires_grad]


def _tensors(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor with its argument's name, those of tensor lists too."""
    for name, value in arguments.items():
        for t in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(t, Tensor):
                yield name, t


def _refuse_tangents(op: str, signature: _Signature, args: tuple, options: dict) -> None:
    if forward_ad._current_level < 0:
        return
    for name, t in _tensors(signature.named(args, options)):
        if forward_ad.unpack_dual(t).tangent is not None:
            raise RuntimeError(f"{op}: {name} has a tangent, but there is no forward-mode gradient")


def differentiable(op: str, formula: Formula) -> None:
    """Give a functional op its gradients, computed by the op `<op>_backward`."""
    FORMULAS[op] = formula
    overload, backward = _overload(op), _overload(f"{op}_backward")
    signature, saved = _Signature(overload), saved_names(op)

    def kernel(keyset, *args, **options):
        _refuse_tangents(op, signature, args, options)
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*args, **options)):
            return _below(overload, keyset, args, options)
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                f"{op}: no gradient inside the transforms of torch.func; call torch.autograd.grad, "
                "or hvp, hessian and the others of torch.autograd.functional"
            )
        arguments = signature.named(args, options)
        for name in _requiring_grad(arguments):
            if name not in formula.inputs:
                raise RuntimeError(
                    f"{op}: {name} requires grad but has no gradient here; pass {name}.detach()"
                )

        def step(arguments: Mapping[str, Any]) -> tuple[Tensor, ...]:
            positional = tuple(arguments[name] for name in signature.positional)
            keyword = {name: arguments[name] for name in signature.keyword}
            return _below(overload, keyset, positional, keyword)

        again = backends.reference_function(f"{op}_backward")
        values = (arguments[name] for name in signature.names)
        return _Step.apply(step, backward, again, formula, saved, signature.names, *values)

    library.implement_autograd(op, kernel)


def without_gradient(op: str, instead: str) -> None:
    """Let an op refuse tensors that require grad (the message ends in `instead`, what to do), and
    tell autograd what it writes in place."""
    overload = _overload(op)
    signature = _Signature(overload)
    changed = {a.name for a in overload._schema.arguments if a.alias_info is not None}

    def kernel(keyset, *args, **options):
        _refuse_tangents(op, signature, args, options)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args, **options):
            name = _requiring_grad(signature.named(args, options))[0]
            raise RuntimeError(
                f"{op}: {name} requires grad but this op has no gradient; {instead}, or enter "
                "torch.inference_mode()"
            )
        results = _below(overload, keyset, args, options)
        if changed:
            given = signature.named(args, options)
            written = [given[name] for name in changed if given[name] is not None]
            torch.autograd.graph.increment_version(written)
        return results

    library.implement_autograd(op, kernel)


def differentiable_reference(op: str) -> Callable[..., tuple[Tensor, ...]]:
    """The reference of `op` with the gradients of the reference of `<op>_backward`.

    Takes the op's arguments without checking them; float64 state and model outputs too, so that
    `torch.autograd.gradcheck` can judge the formulas.
    """
    forward = backends.reference_function(op)
    backward = backends.reference_function(f"{op}_backward")
    signature, saved = _Signature(_overload(op)), saved_names(op)

    def run(*args, **options):
        arguments = signature.named(args, options)
        values = (arguments[name] for name in signature.names)
        step = lambda named: forward(**named)  # noqa: E731
        return _Step.apply(step, backward, backward, FORMULAS[op], saved, signature.names, *values)

    return run
