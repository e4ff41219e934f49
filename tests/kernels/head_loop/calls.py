"""Random calls of `head_loop`, their float64 oracle, and the ops that they consist of."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from ardiff_kernels.ops.diffusion_step import COLUMNS as DIFFUSION
from ardiff_kernels.ops.uld_step import COLUMNS as ULD
from ardiff_kernels.testing import Call
from tests.kernels.head_step.calls import F32, HeadCall, head_call

STEPS = 5


class LoopCall(Call):
    """A call of `head_loop`; `head` is that of `head_step` which it begins with."""

    @property
    def head(self) -> HeadCall:
        names = ("x", "modulation", "weights", "scales")
        x, modulation, weights, scales = (self.args[name] for name in names)
        args = {"x": x, "modulation": modulation, "set": 1, "weights": weights, "scales": scales}
        options = {name: self.options[name] for name in ("norm", "mlp", "depth", "eps")}
        options["ways"] = 1 + ("guidance" in self.options) + ("guidance2" in self.options)
        return HeadCall("head_step", args, options)

    def in_place(self, namespace: Any = torch.ops.ardiff) -> tuple[Tensor, ...]:
        state = super().in_place(namespace)
        return state if "v" in self.options else (*state, state[0].new_empty(0))

    def rows(self, index: Tensor | list[int]) -> LoopCall:
        """The call of some of the patches."""
        options = {
            name: t[index] if isinstance(t, Tensor) and name != "op" and len(t) > 1 else t
            for name, t in self.options.items()
        }
        draw = self.args["draw"] if len(self.args["draw"]) == 1 else self.args["draw"][index]
        head = self.head.rows(index)
        return self.changed(
            x=head.args["x"],
            modulation=head.args["modulation"],
            memory=self.args["memory"][index],
            draw=draw,
            stream=self.args["stream"][index],
            **options,
        )


def loop_call(N: int, ways: int = 1, kinetic: bool = False, d: int = 6, **options: Any) -> LoopCall:
    """Five steps: sets 0, 2, 1 and 1, and one that there is not; one row without noise, one that
    keeps the memory, with `kinetic` one that begins a stage and one of `diffusion_step`."""
    options = {"outer": F32, "width": 40, "depth": 2} | options
    head = head_call(N, ways=ways, d=d, out=d, **options)
    generator = torch.Generator("cpu").manual_seed(N + 100)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cpu").to(head.args["x"].device)

    coef = 0.4 * normal(STEPS, 20).abs()
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
    args = {
        "x": head.args["x"],
        "memory": normal(N, d),
        "modulation": head.args["modulation"],
        "set": torch.tensor([0, 2, 9, 1, 1], dtype=torch.int32),
        "weights": head.args["weights"],
        "scales": head.args["scales"],
        "coef": coef,
        "draw": draw.to(torch.int32),
        "key": torch.tensor([-5]),
        "stream": torch.arange(N) << 20,
    }
    return LoopCall("head_loop", args, given)


def errors(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> list[float]:
    """Relative RMS errors of the states that there are."""
    pairs = [(a, b) for a, b in zip(found, exact, strict=True) if b.numel()]
    return [((a.double() - b).norm() / b.norm()).item() for a, b in pairs]


# x [4, 6], five steps, two ways, a velocity.
INVALID = {
    "second way alone": (
        lambda call: call.changed(guidance=None, guidance2=torch.ones(1)),
        "guidance2 goes only beside guidance",
    ),
    "x": (
        lambda call: call.changed(x=call.args["x"].double()),
        "x must be float32, got float64",
    ),
    "ways of the modulation": (
        lambda call: call.changed(guidance=None),
        "modulation must be a contiguous float32 or bfloat16 [S, 1 or 4, 320] with S >= 1, got "
        "float32 [3, 8, 320]",
    ),
    "outputs": (
        lambda call: call.changed(
            weights=head_call(4, ways=2, d=6, out=12, width=40).args["weights"]
        ),
        "the final layer must have an output for each of the 6 elements of a row of x, got 12",
    ),
    "memory": (
        lambda call: call.changed(memory=torch.zeros(4, 12)),
        "memory must be float32 [4, 6], got float32 [4, 12]",
    ),
    "op alone": (lambda call: call.changed(v=None), "v and op go together: pass both or neither"),
    "v": (
        lambda call: call.changed(v=torch.zeros(3, 6)),
        "v must be float32 [4, 6], got float32 [3, 6]",
    ),
    "coef": (
        lambda call: call.changed(coef=torch.zeros(5, 15)),
        "coef must be a contiguous float32 [T, 20] table with T >= 1, got float32 [5, 15]",
    ),
    "set": (
        lambda call: call.changed(set=torch.zeros(5)),
        "set must be a contiguous int32 [5], got float32 [5]",
    ),
    "op": (
        lambda call: call.changed(op=torch.zeros(4, dtype=torch.int32)),
        "op must be a contiguous int32 [5], got int32 [4]",
    ),
    "draw": (
        lambda call: call.changed(draw=torch.zeros(3, dtype=torch.int32)),
        "draw must be a contiguous int32 [4] or [1], got int32 [3]",
    ),
    "stream": (
        lambda call: call.changed(stream=torch.zeros(1, dtype=torch.int64)),
        "stream must be a contiguous int64 [4], got int64 [1]",
    ),
    "guidance": (
        lambda call: call.changed(guidance=torch.zeros(2)),
        "guidance must be a contiguous float32 [4] or [1], got float32 [2]",
    ),
    "noise_scale": (
        lambda call: call.changed(noise_scale=torch.zeros(4).double()),
        "noise_scale must be a contiguous float32 [4] or [1], got float64 [4]",
    ),
    "strides": (
        lambda call: call.changed(memory=torch.zeros(6, 4).T),
        "memory must have unit stride in its last dimension, got strides [1, 4]; call "
        ".contiguous() first",
    ),
}


def assert_refused(namespace: Any, form: str, name: str) -> None:
    """An invalid call of `head_loop` or `head_loop_` gives its message."""
    change, message = INVALID[name]
    call = change(loop_call(4, ways=2, kinetic=True))
    with pytest.raises(RuntimeError, match="^" + re.escape(f"{form}: {message}")):
        getattr(namespace, form)(*call.args.values(), **call.options)
