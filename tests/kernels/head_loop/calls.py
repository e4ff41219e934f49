"""Random calls of `head_loop`, their float64 oracle, and the ops that they consist of."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ardiff_kernels.dispatch import backends
from ardiff_kernels.ops.diffusion_step import COLUMNS as DIFFUSION
from ardiff_kernels.ops.uld_step import COLUMNS as ULD
from tests.kernels.head_step.calls import F32, Call, head_call

STEPS = 5


@dataclass
class Loop:
    """Arguments of `head_loop`; `head` are those that it shares with `head_step`."""

    head: Call
    memory: Tensor
    set: Tensor
    coef: Tensor
    draw: Tensor
    key: Tensor
    stream: Tensor
    options: dict[str, Any]

    def args(self, double: bool = False) -> tuple:
        x, memory = self.head.x, self.memory
        state = (x.double(), memory.double()) if double else (x, memory)
        lists = (self.head.weights, self.head.scales)
        rest = (self.coef, self.draw, self.key, self.stream)
        return *state, self.head.modulation, self.set, *lists, *rest

    def run(self, namespace=None, **more: Any) -> tuple[Tensor, ...]:
        op = (namespace or torch.ops.ardiff).head_loop
        return op(*self.args(), **self.options, **more)

    def in_place(self, namespace=None) -> tuple[Tensor, ...]:
        op = (namespace or torch.ops.ardiff).head_loop_
        x, memory, *rest = self.args()
        state = [x.clone(), memory.clone()]
        options = dict(self.options)
        if "v" in options:
            options["v"] = options["v"].clone()
        op(*state, *rest, **options)
        return *state, options.get("v", state[0].new_empty(0))

    def oracle(self) -> tuple[Tensor, ...]:
        """The float64 reference on the identical inputs."""
        options = dict(self.options)
        if "v" in options:
            options["v"] = options["v"].double()
        return backends.reference_function("head_loop")(*self.args(double=True), **options)

    def rows(self, index: Tensor | list[int]) -> Loop:
        """The call of some of the patches."""
        options = {
            name: t[index] if isinstance(t, Tensor) and name != "op" and len(t) > 1 else t
            for name, t in self.options.items()
        }
        draw = self.draw if len(self.draw) == 1 else self.draw[index]
        return replace(
            self, head=self.head.rows(index), memory=self.memory[index], draw=draw,
            stream=self.stream[index], options=options,
        )  # fmt: skip


def loop_call(N: int, ways: int = 1, kinetic: bool = False, d: int = 6, **options: Any) -> Loop:
    """Five steps: sets 0, 2, 1 and 1, and one that there is not; one row without noise, one that
    keeps the memory, with `kinetic` one that begins a stage and one of `diffusion_step`."""
    options = {"outer": F32, "width": 40, "depth": 2} | options
    head = head_call(N, ways=ways, d=d, out=d, **options)
    generator = torch.Generator("cpu").manual_seed(N + 100)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cpu").to(head.x.device)

    coef = 0.4 * normal(STEPS, 16).abs()
    coef[3, DIFFUSION.index("x_n")] = 0.0
    if kinetic:
        coef[:, ULD.index("a_z") :] = 0.0
        coef[0, ULD.index("a_z")] = 1.0
    coef[:, DIFFUSION.index("s_x") :] = 0.0
    for column in ("m_x", "m_x_lo", "m_0"):
        coef[1, DIFFUSION.index(column)] = 0.0
    given = {name: head.options[name] for name in ("norm", "mlp", "depth", "eps")}
    if ways > 1:
        given["guidance"] = 2 * normal(N)
    if ways > 2:
        given["guidance2"] = torch.tensor([1.5])
    if N % 2:
        given["noise_scale"] = torch.tensor([0.7])
    if kinetic:
        given["v"] = normal(N, d)
        given["op"] = torch.tensor([1, 1, 1, 0, 1], dtype=torch.int32)
    draw = torch.arange(N) + 3 if N % 3 == 0 else torch.tensor([3])
    return Loop(
        head, normal(N, d), torch.tensor([0, 2, 9, 1, 1], dtype=torch.int32), coef,
        draw.to(torch.int32), torch.tensor([-5]), torch.arange(N) << 20, given,
    )  # fmt: skip


def errors(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> list[float]:
    """Relative RMS errors of the states that there are."""
    pairs = [(a, b) for a, b in zip(found, exact, strict=True) if b.numel()]
    return [((a.double() - b).norm() / b.norm()).item() for a, b in pairs]


def _changed(call: Loop, **new: Any) -> Loop:
    """`call` with fields or options replaced."""
    fields = {name: t for name, t in new.items() if name in Loop.__dataclass_fields__}
    options = call.options | {name: t for name, t in new.items() if name not in fields}
    return replace(call, options=options, **fields)


# x [4, 6], five steps, two ways, a velocity.
INVALID = {
    "second way alone": (
        lambda call: _changed(call, guidance=None, guidance2=torch.ones(1)),
        "guidance2 goes only beside guidance",
    ),
    "x": (
        lambda call: replace(call, head=replace(call.head, x=call.head.x.double())),
        "x must be float32, got float64",
    ),
    "ways of the modulation": (
        lambda call: _changed(call, guidance=None),
        "modulation must be a contiguous float32 or bfloat16 [S, 1 or 4, 320] with S >= 1, got "
        "float32 [3, 8, 320]",
    ),
    "outputs": (
        lambda call: replace(call, head=head_call(4, ways=2, d=6, out=12, width=40)),
        "the final layer must have an output for each of the 6 elements of a row of x, got 12",
    ),
    "memory": (
        lambda call: _changed(call, memory=torch.zeros(4, 12)),
        "memory must be float32 [4, 6], got float32 [4, 12]",
    ),
    "op alone": (lambda call: _changed(call, v=None), "v and op go together: pass both or neither"),
    "v": (
        lambda call: _changed(call, v=torch.zeros(3, 6)),
        "v must be float32 [4, 6], got float32 [3, 6]",
    ),
    "coef": (
        lambda call: _changed(call, coef=torch.zeros(5, 15)),
        "coef must be a contiguous float32 [T, 16] table with T >= 1, got float32 [5, 15]",
    ),
    "set": (
        lambda call: _changed(call, set=torch.zeros(5)),
        "set must be a contiguous int32 [5], got float32 [5]",
    ),
    "op": (
        lambda call: _changed(call, op=torch.zeros(4, dtype=torch.int32)),
        "op must be a contiguous int32 [5], got int32 [4]",
    ),
    "draw": (
        lambda call: _changed(call, draw=torch.zeros(3, dtype=torch.int32)),
        "draw must be a contiguous int32 [4] or [1], got int32 [3]",
    ),
    "stream": (
        lambda call: _changed(call, stream=torch.zeros(1, dtype=torch.int64)),
        "stream must be a contiguous int64 [4], got int64 [1]",
    ),
    "guidance": (
        lambda call: _changed(call, guidance=torch.zeros(2)),
        "guidance must be a contiguous float32 [4] or [1], got float32 [2]",
    ),
    "noise_scale": (
        lambda call: _changed(call, noise_scale=torch.zeros(4).double()),
        "noise_scale must be a contiguous float32 [4] or [1], got float64 [4]",
    ),
    "strides": (
        lambda call: _changed(call, memory=torch.zeros(6, 4).T),
        "memory must have unit stride in its last dimension, got strides [1, 4]; call "
        ".contiguous() first",
    ),
}


def assert_refused(namespace: Any, form: str, name: str) -> None:
    """An invalid call of `head_loop` or `head_loop_` gives its message."""
    change, message = INVALID[name]
    call = change(loop_call(4, ways=2, kinetic=True))
    with pytest.raises(RuntimeError, match="^" + re.escape(f"{form}: {message}")):
        getattr(namespace, form)(*call.args(), **call.options)
