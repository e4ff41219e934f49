"""Every invalid call of the backward ops gives its own message, the same on every backend."""

from __future__ import annotations

import re

import pytest
import torch

from ardiff_kernels.ops import diffusion_step_backward, uld_step_backward


def invalid_calls() -> dict[str, tuple]:
    """Calls and their messages; tensors on the default device."""
    some, one = torch.zeros(4, 8), torch.ones(1)
    coef, row = torch.zeros(3, 20), torch.zeros(4, dtype=torch.int32)
    address = (coef, row, row, torch.tensor([1]), torch.arange(4))
    return {
        "uld none": (
            lambda: uld_step_backward(None, None, None, coef, row),
            "uld_step_backward: pass at least one of grad_z, grad_v and grad_anchor",
        ),
        "uld dimensions": (
            lambda: uld_step_backward(some[0], None, None, coef, row),
            "uld_step_backward: grad_z must be [B, d], got 1 dimensions",
        ),
        "uld empty rows": (
            lambda: uld_step_backward(None, some[:, :0], None, coef, row),
            "uld_step_backward: grad_v must have between 1 and 8589934592 elements per row, got 0",
        ),
        "uld shape": (
            lambda: uld_step_backward(some, None, some[:, :7], coef, row),
            "uld_step_backward: grad_anchor must be float32 [4, 8], got float32 [4, 7]",
        ),
        "uld dtype": (
            lambda: uld_step_backward(None, some.half(), None, coef, row),
            "uld_step_backward: grad_v must be float32 [4, 8], got float16 [4, 8]",
        ),
        "uld stride": (
            lambda: uld_step_backward(torch.zeros(8, 4).t(), None, None, coef, row),
            "uld_step_backward: grad_z must have unit stride in its last dimension, got strides "
            "[1, 4]; call .contiguous() first",
        ),
        "uld table": (
            lambda: uld_step_backward(some, None, None, coef[:, :14], row),
            "uld_step_backward: coef must be a contiguous float32 [T, 20] table with T >= 1, got "
            "float32 [3, 14]",
        ),
        "uld row": (
            lambda: uld_step_backward(some, None, None, coef, row[:3]),
            "uld_step_backward: row must be a contiguous int32 [4] or [1], got int32 [3]",
        ),
        "uld guidance": (
            lambda: uld_step_backward(some, None, None, coef, row, guidance2=one),
            "uld_step_backward: guidance2 goes only beside guidance",
        ),
        "uld noise scale": (
            lambda: uld_step_backward(some, None, None, coef, row, noise_scale=one.double()),
            "uld_step_backward: noise_scale must be a contiguous float32 [4] or [1], got float64 "
            "[1]",
        ),
        "uld model dtype": (
            lambda: uld_step_backward(some, None, None, coef, row, dtype=torch.float64),
            "uld_step_backward: dtype must be float32, float16 or bfloat16, got float64",
        ),
        "uld wanted": (
            lambda: uld_step_backward(some, None, None, coef, row, wanted=256),
            "uld_step_backward: wanted must lie in [0, 255], got 256",
        ),
        "diffusion none": (
            lambda: diffusion_step_backward(None, None, None, some, some, *address),
            "diffusion_step_backward: pass at least one of grad_x, grad_memory and grad_x0",
        ),
        "diffusion dtype": (
            lambda: diffusion_step_backward(some.bfloat16(), None, None, some, some, *address),
            "diffusion_step_backward: grad_x must be float32 [4, 8], got bfloat16 [4, 8]",
        ),
        "diffusion memory": (
            lambda: diffusion_step_backward(None, some, None, some, some, *address, memories=2),
            "diffusion_step_backward: grad_memory must be float32 [4, 16], got float32 [4, 8]",
        ),
        "diffusion third memory": (
            lambda: diffusion_step_backward(None, some, None, some, some, *address, memories=3),
            "diffusion_step_backward: grad_memory must be float32 [4, 24], got float32 [4, 8]",
        ),
        "diffusion memories": (
            lambda: diffusion_step_backward(some, None, None, some, some, *address, memories=4),
            "diffusion_step_backward: memories must be 1, 2 or 3, got 4",
        ),
        "diffusion output": (
            lambda: diffusion_step_backward(some, None, None, some, some[:, :7], *address),
            "diffusion_step_backward: model_out must have the shape of x [4, 8] (or [4, 16] with "
            "learned-range variance), got [4, 7]",
        ),
        "diffusion clamp": (
            lambda: diffusion_step_backward(some, None, None, some, some, *address, x0_clamp=0.0),
            "diffusion_step_backward: x0_clamp must be positive, got 0.0",
        ),
        "diffusion wanted": (
            lambda: diffusion_step_backward(some, None, None, some, some, *address, wanted=-1),
            "diffusion_step_backward: wanted must lie in [0, 63], got -1",
        ),
    }


@pytest.mark.parametrize("name", invalid_calls())
def test_message(implementation, name):
    invalid, message = invalid_calls()[name]
    with pytest.raises(RuntimeError, match="^" + re.escape(message)):
        invalid()
