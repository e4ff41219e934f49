"""Random calls of `head_lookahead` on tables of solvers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import ardiff
from ardiff.tables.lookahead import lookahead_table
from ardiff_kernels import ops
from ardiff_kernels.testing import Call
from tests.kernels.head_step.calls import F32, head_call

TABLES = {
    "ddpm": dict(name="ddpm", path="vp-cosine", prediction="epsilon", steps=9),
    "ddim": dict(name="ddim", path="vp-cosine", prediction="epsilon", steps=9),
    "multistep": dict(name="dpmpp-2m", path="vp-cosine", prediction="epsilon", steps=9),
    "multistep sde": dict(name="dpmpp-2m-sde", path="vp-cosine", prediction="epsilon", steps=9),
    "two memories": dict(name="unipc", path="vp-cosine", prediction="epsilon", steps=9),
    "kinetic": dict(name="rtk-uld", path="vp-cosine", prediction="epsilon", steps=12),
}


def look_call(
    N: int,
    table: str = "ddpm",
    rows: int = 4,
    ways: int = 1,
    d: int = 6,
    tolerance: float | None = None,
    **options: Any,
) -> Call:
    """Rows of a table whose sets are 0, 1, 2, 0, ...; the second memory begins as zeros."""
    options = {"outer": F32, "width": 40, "depth": 1} | options
    head = head_call(N, ways=ways, d=d, out=d, **options)
    head.args["modulation"][:, :, -2 * options["width"] :] *= 0.2  # a smooth model's output
    found = ardiff.solver(**TABLES[table])
    plan = lookahead_table(found)
    generator = torch.Generator("cpu").manual_seed(N + 100)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cpu").to(head.args["x"].device)

    given = {name: head.options[name] for name in ("norm", "mlp", "depth", "eps")}
    if plan.op is not None:
        given |= {"v": normal(N, d), "op": plan.op}
    if ways > 1:
        given["guidance"] = 1 + normal(N).abs()
    if ways > 2:
        given["guidance2"] = torch.tensor([1.5])
    if N % 2:
        given["noise_scale"] = torch.tensor([0.7])
    if tolerance is not None:
        given["tolerance"] = tolerance
    args = {
        "x": head.args["x"],
        "memory": torch.zeros(N, d * found.memories),
        "modulation": head.args["modulation"],
        "set": (torch.arange(len(plan.coef)) % 3).int(),
        "weights": head.args["weights"],
        "scales": head.args["scales"],
        "coef": plan.coef,
        "plan": plan.plan,
        "draw": (torch.arange(N) + 3 if N % 3 == 0 else torch.tensor([3])).int(),
        "key": torch.tensor([-5]),
        "stream": torch.arange(N) << 20,
        "rows": rows,
    }
    return Call("head_lookahead", args, given)


def row_by_row(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """The same table by `head_step` and the step ops, each patch's head as if it were alone."""
    a, o = call.args, dict(call.options)
    head = {name: o.pop(name) for name in ("norm", "mlp", "depth", "eps")}
    v, kinds = o.pop("v", None), o.pop("op", torch.zeros(len(a["coef"])))
    o.pop("tolerance", None)
    ways = 1 + ("guidance" in o) + ("guidance2" in o)
    x, memory = a["x"], a["memory"]
    for k, index in enumerate(a["set"].tolist()):
        outs = ops.head_step(
            x, a["modulation"], index, a["weights"], a["scales"], ways=ways, batch_invariant=True,
            **head,
        )  # fmt: skip
        out, *uncond = outs.unbind(0)
        options = o | dict(zip(("uncond_out", "uncond_out2"), uncond, strict=False))
        place = (a["coef"], torch.tensor([k], dtype=torch.int32), a["draw"] + k)
        if kinds[k]:
            x, v, memory = ops.uld_step(
                x, v, out, memory, *place, a["key"], a["stream"], **options
            )  # fmt: skip
        else:
            x, memory, _ = ops.diffusion_step(
                x, out, memory, *place, a["key"], a["stream"], **options
            )  # fmt: skip
    return x, memory, x.new_empty(0) if v is None else v


# x [4, 6] on a table of 9 rows, two ways.
INVALID = {
    "rows": (lambda call: call.changed(rows=0), "rows must be 1 or more, got 0"),
    "tolerance": (
        lambda call: call.changed(tolerance=-1.0),
        "tolerance must be 0 or more, got -1.0",
    ),
    "memory": (
        lambda call: call.changed(memory=torch.zeros(4, 7)),
        "memory must be float32 [4, 6] or [4, 12], got float32 [4, 7]",
    ),
    "plan": (
        lambda call: call.changed(plan=torch.zeros(9, 15)),
        "plan must be a contiguous float32 [9, 20], got float32 [9, 15]",
    ),
    "set": (
        lambda call: call.changed(set=torch.zeros(9)),
        "set must be a contiguous int32 [9], got float32 [9]",
    ),
    "second way alone": (
        lambda call: call.changed(guidance=None, guidance2=torch.ones(1)),
        "guidance2 goes only beside guidance",
    ),
    "x": (lambda call: call.changed(x=call.args["x"].double()), "x must be float32, got float64"),
    "outputs": (
        lambda call: call.changed(
            weights=head_call(4, ways=2, d=6, out=12, width=40, depth=1).args["weights"]
        ),
        "the final layer must have an output for each of the 6 elements of a row of x, got 12",
    ),
    "op alone": (
        lambda call: call.changed(op=torch.zeros(9, dtype=torch.int32)),
        "v and op go together: pass both or neither",
    ),
}
