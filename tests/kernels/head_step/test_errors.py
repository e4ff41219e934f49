"""Every invalid call of `head_step` gives its own message, the same on every backend."""

from __future__ import annotations

import re

import pytest
import torch

from ardiff_kernels import ops
from ardiff_kernels.dispatch import backends

F64, F16, BF16, I8 = torch.float64, torch.float16, torch.bfloat16, torch.int8
LAYERS = "a matrix and its bias for the input, twice per block, and for the final layer"
# x [3, 5], width 8, one block, 4 outputs, two ways.
SHAPES = [(8, 5), (8,), (8, 8), (8,), (8, 8), (8,), (4, 8), (4,)]


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(*shape, dtype=dtype)


def call(weight=None, scales=(), **new):
    """The op with some arguments replaced; `weight` maps indices of weights to tensors."""

    def invalid():
        device = torch.get_default_device()
        weights = [zeros(*shape) for shape in SHAPES]
        for i, t in (weight or {}).items():
            weights[i] = t() if callable(t) else t.to(device)
        given = {"x": zeros(3, 5), "modulation": zeros(2, 6, 40), "set": 1, "weights": weights}
        given |= {
            "scales": [t.to(device) for t in scales],
            "norm": "layer",
            "mlp": "plain",
            "depth": 1,
            "eps": 1e-6,
        }
        given |= {"ways": 2} | {k: v() if callable(v) else v for k, v in new.items()}
        made = {
            k: v.to(device) if torch.is_tensor(v) and not v.is_meta else v for k, v in given.items()
        }
        args = [made.pop(name) for name in ("x", "modulation", "set", "weights", "scales")]
        return torch.ops.ardiff.head_step.default(*args, **made)

    return invalid


CODES = {i: zeros(8, 8, dtype=I8) for i in (2, 4)}
SCALES = [zeros(0), zeros(8), zeros(8), zeros(0)]
PACKED = " or, on a CPU, its packed form"
INVALID = {
    "dimensions": (call(x=zeros(5)), "x must be [N, d], got 1 dimensions"),
    "dtype": (call(x=zeros(3, 5, dtype=F64)), "x must be float32, got float64"),
    "no element": (call(x=zeros(3, 0)), "x must have at least 1 element per row, got [3, 0]"),
    "norm": (call(norm="batch"), "norm must be layer or rms, got batch"),
    "mlp": (call(mlp="swiglu"), "mlp must be plain or gated, got swiglu"),
    "depth": (call(depth=0), "depth must be at least 1, got 0"),
    "depth beyond any": (call(depth=2**62), f"depth must be at most {2**24}, got {2**62}"),
    "ways": (call(ways=4), "ways must be 1, 2 or 3, got 4"),
    "eps": (call(eps=-1.0), "eps must be at least 0, got -1.0"),
    "number of weights": (
        call(depth=2),
        f"weights must hold 12 tensors at depth 2 ({LAYERS}), got 8",
    ),
    "weight dtype": (
        call({2: zeros(8, 8, dtype=F16)}),
        "weights[2] must be float32, bfloat16 or int8, got float16",
    ),
    "input columns": (
        call({0: zeros(8, 6)}),
        f"weights[0] must be a contiguous float32 [w, 5]{PACKED}, got float32 [8, 6]",
    ),
    "input dtype": (
        call({0: zeros(8, 5, dtype=I8), 2: zeros(8, 8, dtype=BF16)}),
        f"weights[0] must be a contiguous float32 or bfloat16 [w, 5]{PACKED}, got int8 [8, 5]",
    ),
    "input bias": (
        call({1: zeros(7)}),
        "weights[1] must be a contiguous float32 [8], or [0] for none, got float32 [7]",
    ),
    "inner columns": (
        call({2: zeros(8, 7)}),
        f"weights[2] must be a contiguous float32 [f, 8]{PACKED}, got float32 [8, 7]",
    ),
    "inner strides": (
        call({2: lambda: zeros(8, 16)[:, ::2]}),
        f"weights[2] must be a contiguous float32 [f, 8]{PACKED}, got float32 [8, 8]",
    ),
    "inner bias": (
        call({3: zeros(8, dtype=BF16)}),
        "weights[3] must be a contiguous float32 [8], or [0] for none, got bfloat16 [8]",
    ),
    "gate and up": (
        call({2: zeros(7, 8), 3: zeros(7)}, mlp="gated"),
        "weights[2] must hold gate and up, an even number of rows, got [7, 8]",
    ),
    "outer shape": (
        call(mlp="gated"),
        f"weights[4] must be a contiguous float32 [8, 4]{PACKED}, got float32 [8, 8]",
    ),
    "outer dtype": (
        call({4: zeros(8, 8, dtype=BF16)}),
        f"weights[4] must be a contiguous float32 [8, 8]{PACKED}, got bfloat16 [8, 8]",
    ),
    "outer bias": (
        call({5: zeros(1)}),
        "weights[5] must be a contiguous float32 [8], or [0] for none, got float32 [1]",
    ),
    "final columns": (
        call({6: zeros(4, 5)}),
        f"weights[6] must be a contiguous float32 [out, 8]{PACKED}, got float32 [4, 5]",
    ),
    "final bias": (
        call({7: zeros(5)}),
        "weights[7] must be a contiguous float32 [4], or [0] for none, got float32 [5]",
    ),
    "no scales": (
        call(CODES),
        "scales must hold 4 tensors (with int8 matrices one per matrix, else none), got 0",
    ),
    "needless scales": (
        call(scales=SCALES),
        "scales must hold 0 tensors (with int8 matrices one per matrix, else none), got 4",
    ),
    "scale shape": (
        call(CODES, [*SCALES[:2], zeros(7), SCALES[3]]),
        "scales[2] must be a contiguous float32 [8], got float32 [7]",
    ),
    "scale of a float32 matrix": (
        call(CODES, [zeros(8), *SCALES[1:]]),
        "scales[0] must be a contiguous float32 [0], got float32 [8]",
    ),
    "modulation dtype": (
        call(modulation=zeros(2, 6, 40, dtype=F16)),
        "modulation must be a contiguous float32 or bfloat16 [S, 2 or 6, 40] with S >= 1, got "
        "float16 [2, 6, 40]",
    ),
    "modulation rows": (
        call(modulation=zeros(2, 3, 40)),
        "modulation must be a contiguous float32 or bfloat16 [S, 2 or 6, 40] with S >= 1, got "
        "float32 [2, 3, 40]",
    ),
    "modulation of one patch": (
        call(x=zeros(1, 5), modulation=zeros(2, 3, 40)),
        "modulation must be a contiguous float32 or bfloat16 [S, 2, 40] with S >= 1, got "
        "float32 [2, 3, 40]",
    ),
    "modulation strides": (
        call(modulation=lambda: zeros(6, 2, 40).transpose(0, 1)),
        "modulation must be a contiguous float32 or bfloat16 [S, 2 or 6, 40] with S >= 1, got "
        "float32 [2, 6, 40]",
    ),
    "set": (call(set=2), "set must lie in [0, 2), got 2"),
    "negative set": (call(set=-1), "set must lie in [0, 2), got -1"),
    "strides": (
        call(x=lambda: zeros(5, 3).T),
        "x must have unit stride in its last dimension, got strides [1, 3]; call .contiguous() "
        "first",
    ),
}


@pytest.fixture
def serving(implementation):
    name, _, variant = implementation.partition("-")
    if reason := backends.unusable("head_step", name, "cuda" if variant == "gpu" else "cpu"):
        pytest.skip(f"{name}: {reason}")
    return implementation


@pytest.mark.parametrize("name", INVALID)
def test_message(serving, name):
    invalid, message = INVALID[name]
    with pytest.raises(RuntimeError, match="^" + re.escape(f"head_step: {message}")):
        invalid()


def test_the_call_that_is_replaced_in_part_is_valid(serving):
    assert call()().shape == (2, 3, 4)
    assert call(CODES, SCALES)().shape == (2, 3, 4)


def test_mixed_devices():
    message = r"must be on one device, but x is on cpu and weights\[3\] on"
    with pytest.raises(RuntimeError, match=message):
        call({3: lambda: zeros(8).to("meta")})()


def test_weights_that_require_grad_are_refused(serving):
    weights = [zeros(*shape) for shape in SHAPES]
    weights[2].requires_grad_()
    args = (zeros(3, 5), zeros(1, 1, 40), 0, weights)
    options = {"depth": 1, "eps": 0.0}
    with pytest.raises(
        RuntimeError, match="^head_step: weights requires grad but this op has no gr"
    ):
        ops.head_step(*args, **options)
    with torch.no_grad():
        ops.head_step(*args, **options)
