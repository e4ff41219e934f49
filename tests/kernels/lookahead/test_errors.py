"""Every invalid call of `lookahead_draft` and `lookahead_verify` gives its own message, the same on
every backend."""

from __future__ import annotations

import pytest
import torch

import ardiff_kernels
from ardiff_kernels import ops, testing
from tests.kernels.lookahead.calls import Case, LookaheadCall

BACKENDS = testing.usable_backends("lookahead_draft")
F64, I32, I64 = torch.float64, torch.int32, torch.int64
KNOWN = "known_x, known_0, gain, known_row, known_count go together: pass all or none"
DRAFT = {
    "x dimensions": (dict(x=torch.zeros(8)), "x must be [B, d], got 1 dimensions"),
    "x dtype": (
        dict(x=torch.zeros(4, 8, dtype=F64)),
        "x must be float32 [4, 8], got float64 [4, 8]",
    ),
    "rows": (dict(rows=0), "rows must be 1 or more, got 0"),
    "v shape": (
        dict(v=torch.zeros(4, 7), op=torch.zeros(8, dtype=I32)),
        "v must be float32 [4, 8], got float32 [4, 7]",
    ),
    "op without v": (
        dict(op=torch.zeros(8, dtype=I32)),
        "v and op go together: pass both or neither",
    ),
    "no elements": (
        dict(x=torch.zeros(4, 0)),
        "a sample must have 1 to 8589934592 elements, got 0",
    ),
}
BOTH = {
    "memory shape": (
        dict(memory=torch.zeros(4, 9)),
        "memory must be float32 [4, 8] or [4, 16], got float32 [4, 9]",
    ),
    "coef": (
        dict(coef=torch.zeros(8, 15)),
        "coef must be a contiguous float32 [T, 20] table with T >= 1, got float32 [8, 15]",
    ),
    "plan": (
        dict(plan=torch.zeros(7, 20)),
        "plan must be a contiguous float32 [8, 20], got float32 [7, 20]",
    ),
    "row": (
        dict(row=torch.zeros(4, dtype=I64)),
        "row must be a contiguous int32 [4], got int64 [4]",
    ),
    "count": (
        dict(count=torch.zeros(1, dtype=I32)),
        "count must be a contiguous int32 [4], got int32 [1]",
    ),
    "draw": (
        dict(draw=torch.zeros(3, dtype=I32)),
        "draw must be a contiguous int32 [4] or [1], got int32 [3]",
    ),
    "key": (
        dict(key=torch.zeros(2, dtype=I64)),
        "key must be a contiguous int64 [1], got int64 [2]",
    ),
    "stream": (
        dict(stream=torch.zeros(4, dtype=I32)),
        "stream must be a contiguous int64 [4], got int32 [4]",
    ),
    "some known": (dict(gain=torch.zeros(4, 3)), KNOWN),
    "gain": (
        dict(known=True, gain=torch.zeros(4)),
        "gain must be float32 [4, K], got float32 [4]",
    ),
    "gain shape": (
        dict(known=True, gain=torch.zeros(3, 5)),
        "gain must be a contiguous float32 [4, 5], got float32 [3, 5]",
    ),
    "known_0": (
        dict(known=True, known_0=torch.zeros(4, 4, 8)),
        "known_0 must be float32 [4, 5, 8], got float32 [4, 4, 8]",
    ),
    "known_row": (
        dict(known=True, known_row=torch.zeros(4)),
        "known_row must be a contiguous int32 [4], got float32 [4]",
    ),
    "noise": (
        dict(noise=torch.zeros(4, 6, 8)),
        "noise must be float32 [4, 5, 8], got float32 [4, 6, 8]",
    ),
    "noise beside op": (
        dict(velocity=True, noise=torch.zeros(4, 5, 8), x0_clamp=1.0),
        "noise is for tables of diffusion_step rows, without op",
    ),
    "clamp beside op": (
        dict(velocity=True, x0_clamp=1.0),
        "x0_clamp is for tables of diffusion_step rows, without op",
    ),
    "op": (
        dict(velocity=True, op=torch.zeros(7, dtype=I32)),
        "op must be a contiguous int32 [8], got int32 [7]",
    ),
    "noise_scale": (
        dict(noise_scale=torch.zeros(2)),
        "noise_scale must be a contiguous float32 [4] or [1], got float32 [2]",
    ),
    "clamp": (dict(x0_clamp=-1.0), "x0_clamp must be positive, got -1.0"),
    "known_x strides": (
        dict(known=True, known_x=torch.zeros(4, 5, 16)[..., ::2]),
        "known_x must be contiguous inside a row, got strides [80, 16, 2]; call .contiguous() "
        "first",
    ),
    "memory strides": (
        dict(memory=torch.zeros(4, 16)[:, ::2]),
        "memory must have unit stride in its last dimension, got strides [16, 2]; call "
        ".contiguous() first",
    ),
}
VERIFY = {
    "drafts dimensions": (
        dict(drafts=torch.zeros(4, 8)),
        "drafts must be [B, L, d] with L >= 1, got [4, 8]",
    ),
    "no rows": (
        dict(drafts=torch.zeros(4, 0, 8)),
        "drafts must be [B, L, d] with L >= 1, got [4, 0, 8]",
    ),
    "states": (
        dict(states=torch.zeros(4, 5, 8)),
        "states must be float32 [4, 6, 8], got float32 [4, 5, 8]",
    ),
    "velocities": (
        dict(velocity=True, velocities=torch.zeros(4, 5, 8)),
        "velocities must be float32 [4, 6, 8], got float32 [4, 5, 8]",
    ),
    "op without velocities": (
        dict(op=torch.zeros(8, dtype=I32)),
        "velocities and op go together: pass both or neither",
    ),
    "outs dtype": (
        dict(outs=torch.zeros(4, 5, 8, dtype=F64)),
        "outs must be float32, float16 or bfloat16, got float64",
    ),
    "outs shape": (
        dict(outs=torch.zeros(4, 5, 9)),
        "outs must be float32 [4, 5, 8], got float32 [4, 5, 9]",
    ),
    "tolerance": (dict(tolerance=-0.5), "tolerance must be 0 or more, got -0.5"),
    "tolerance nan": (dict(tolerance=float("nan")), "tolerance must be 0 or more, got nan"),
}


def arguments(op: str, /, known: bool = False, velocity: bool = False, **new) -> tuple[list, dict]:
    """Of a valid call but for `new`, positional ones apart."""
    call = LookaheadCall(Case(4, 8, known=known, velocity=velocity))
    place = dict(zip(("row", "count", "draw", "key", "stream"), call.address, strict=True))
    given = {"memory": call.memory, "coef": call.coef, "plan": call.plan, **place}
    states, velocities, drafts = call.draft()
    if op == "lookahead_draft":
        given = {"x": call.x, **given, "rows": 5}
        options = {"v": call.v, **call.options}
    else:
        given = {"states": states, "drafts": drafts, "outs": drafts, **given}
        options = {"velocities": velocities if velocity else None, **call.options}
    args = [new.pop(name, value) for name, value in given.items()]
    return args, {**options, **new}


CALLS = [
    (op, name, new, message)
    for op, table in (("draft", DRAFT | BOTH), ("verify", VERIFY | BOTH))
    for name, (new, message) in table.items()
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("op", "new", "message"),
    [(op, new, message) for op, _, new, message in CALLS],
    ids=[f"{op}-{name}" for op, name, *_ in CALLS],
)
def test_message(backend, op, new, message):
    name = f"lookahead_{op}"
    args, options = arguments(name, **new)
    with ardiff_kernels.backend(backend), pytest.raises(RuntimeError) as error:
        getattr(ops, name)(*args, **options)
    assert str(error.value).splitlines()[0] == f"{name}: {message}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", ["draft", "verify"])
def test_the_call_itself_is_valid(backend, op):
    for new in ({}, {"known": True}, {"velocity": True}):
        args, options = arguments(f"lookahead_{op}", **new)
        with ardiff_kernels.backend(backend):
            getattr(ops, f"lookahead_{op}")(*args, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient(backend):
    call = LookaheadCall(Case(4, 8))
    with ardiff_kernels.backend(backend):
        drafted = call.draft()
        call.memory.requires_grad_()
        calls = {
            "lookahead_draft": call.draft,
            "lookahead_verify": lambda: call.verify(drafted, drafted[2]),
        }
        for op, function in calls.items():
            with pytest.raises(RuntimeError, match=f"^{op}: memory requires grad but this op has"):
                function()
            with torch.no_grad():
                function()
