"""Every invalid call of `mala_accept` gives its own message, the same on every backend."""

from __future__ import annotations

import re

import pytest
import torch

from ardiff_kernels import ops
from tests.kernels.mala_accept.calls import accept_call

F16, F64, I64 = torch.float16, torch.float64, torch.int64
M, V = torch.zeros(4, 8), torch.zeros(4)
TABLE = "coef must be a contiguous float32 [T, 20] table with T >= 1, got "


def call(**new):
    """`mala_accept`, or its twin where accepted is among the arguments that are replaced; on the
    default device of the call. An argument that a copy would change is a function."""

    def invalid():
        device = torch.get_default_device()
        made = {k: v() if callable(v) else v.to(device) for k, v in new.items()}
        valid = accept_call(4, 8)
        given = {**valid.args, **valid.options, **made}
        args = [given.pop(name) for name in valid.args]
        if "accepted" in given:
            ops.mala_accept_(*args, **{"log_alpha": torch.zeros(4), **given})
        else:
            ops.mala_accept(*args, **given)

    return invalid


DONE, SAME = torch.zeros(4, dtype=torch.bool), torch.zeros(4, 8)
INVALID = {
    "dimensions": (
        call(x=torch.zeros(8)),
        "mala_accept: x must be [B, d] or [B, ...], got 1 dimensions",
    ),
    "shape": (
        call(x=torch.zeros(4, 2, 4)),
        "mala_accept: y must be float32 [4, 2, 4], got float32 [4, 8]",
    ),
    "state dtype": (call(x=M.half()), "mala_accept: x must be float32, got float16"),
    "no elements": (
        call(x=torch.zeros(4, 0)),
        "mala_accept: x must have at least 1 element per row, got 0",
    ),
    "proposal shape": (
        call(y=torch.zeros(4, 7)),
        "mala_accept: y must be float32 [4, 8], got float32 [4, 7]",
    ),
    "output dtype": (
        call(out_x=M.double()),
        "mala_accept: out_x must be float32, float16 or bfloat16, got float64",
    ),
    "output shape": (
        call(out_x=torch.zeros(4, 16)),
        "mala_accept: out_x must have the shape of x [4, 8], got [4, 16]",
    ),
    "outputs differ": (
        call(out_y=M.half()),
        "mala_accept: out_y must be float32 [4, 8], got float16 [4, 8]",
    ),
    "anchor": (call(anchor=V), "mala_accept: anchor must be float32 [4, 8], got float32 [4]"),
    "table": (call(coef=torch.zeros(2, 10)), f"mala_accept: {TABLE}float32 [2, 10]"),
    "row": (
        call(row=torch.zeros(4, dtype=I64)),
        "mala_accept: row must be a contiguous int32 [4] or [1], got int64 [4]",
    ),
    "draw": (
        call(draw=torch.zeros(3, dtype=torch.int32)),
        "mala_accept: draw must be a contiguous int32 [4] or [1], got int32 [3]",
    ),
    "key": (call(key=V), "mala_accept: key must be a contiguous int64 [1], got float32 [4]"),
    "stream": (
        call(stream=torch.zeros(1, dtype=I64)),
        "mala_accept: stream must be a contiguous int64 [4], got int64 [1]",
    ),
    "one velocity": (
        call(v_x=M),
        "mala_accept: v_x and v_y go together: pass both or neither",
    ),
    "one energy": (
        call(energy_y=V),
        "mala_accept: energy_x and energy_y go together: pass both or neither",
    ),
    "midpoint and energies": (
        call(out_mid=M, energy_x=V, energy_y=V),
        "mala_accept: out_mid and energies exclude each other: pass one or neither",
    ),
    "velocity dtype": (
        call(v_x=M, v_y=M.half()),
        "mala_accept: v_y must be float32 [4, 8], got float16 [4, 8]",
    ),
    "midpoint dtype": (
        call(out_mid=M.bfloat16()),
        "mala_accept: out_mid must be float32 [4, 8], got bfloat16 [4, 8]",
    ),
    "energy length": (
        call(energy_x=V[:1], energy_y=V),
        "mala_accept: energy_x must be a contiguous float32 [4], got float32 [1]",
    ),
    "radius": (
        call(ball_radius=V[:3]),
        "mala_accept: ball_radius must be a contiguous float32 [4] or [1], got float32 [3]",
    ),
    "stride": (
        call(anchor=lambda: torch.zeros(8, 4).t()),
        "mala_accept: anchor must have unit stride in its last dimension, got strides [1, 4]; "
        "call .contiguous() first",
    ),
    "overlap": (
        call(accepted=DONE, y=lambda: torch.zeros(1, 8).expand(4, 8)),
        "mala_accept_: y is written in place but its rows overlap (row stride 0, 8 elements per "
        "row); clone it first",
    ),
    "same memory": (
        call(accepted=DONE, y=lambda: SAME, v_x=M, v_y=lambda: SAME),
        "mala_accept_: y and v_y are written in place but share their memory; clone one",
    ),
    "accepted dtype": (
        call(accepted=V),
        "mala_accept_: accepted must be a contiguous bool [4], got float32 [4]",
    ),
    "log_alpha length": (
        call(accepted=DONE, log_alpha=V[:2]),
        "mala_accept_: log_alpha must be a contiguous float32 [4], got float32 [2]",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_message(implementation, name):
    invalid, message = INVALID[name]
    with pytest.raises(RuntimeError, match="^" + re.escape(message)):
        invalid()


def test_mixed_devices():
    with pytest.raises(RuntimeError, match="must be on one device, but x is on cpu and out_y on"):
        call(out_y=lambda: torch.zeros(4, 8, device="meta"))()
