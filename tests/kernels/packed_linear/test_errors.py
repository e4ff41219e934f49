"""Every invalid call of `packed_linear` gives its own message, the same on every backend."""

from __future__ import annotations

import re

import pytest
import torch

from ardiff_kernels import ops, pack_linear
from ardiff_kernels.dispatch import backends
from tests.kernels.packed_linear.invalid import CODES, INVALID, call, weight, zeros


@pytest.fixture
def serving(implementation):
    name, _, variant = implementation.partition("-")
    device = "cuda" if variant == "gpu" else "cpu"
    if reason := backends.unusable("packed_linear", name, device):
        pytest.skip(f"{name}: {reason}")
    return implementation


@pytest.mark.parametrize("name", INVALID)
def test_message(serving, name):
    invalid, message = INVALID[name]
    with pytest.raises(RuntimeError, match="^" + re.escape(f"packed_linear: {message}")):
        invalid()


def test_the_call_that_is_replaced_in_part_is_valid(serving):
    assert call()().shape == (3, 6)
    assert call(**CODES)().shape == (3, 6)
    assert call(activation="swiglu", gate=zeros(1, 3), residual=zeros(3, 3))().shape == (3, 3)


def test_mixed_devices():
    with pytest.raises(RuntimeError, match="must be on one device, but x is on cpu and bias on"):
        call(bias=lambda: zeros(6).to("meta"))()


def test_weights_that_require_grad_are_refused(serving):
    x = zeros(3, 5).to(torch.get_default_device()).requires_grad_()
    matrix = weight().to(torch.get_default_device())
    with pytest.raises(RuntimeError, match="^packed_linear: x requires grad but this op has no gr"):
        ops.packed_linear(x, matrix, 6)
    with torch.no_grad():
        ops.packed_linear(x, matrix, 6)


@pytest.mark.parametrize(
    ("matrices", "dtype", "message"),
    [
        (zeros(5), None, "weight must be a matrix [O, K], or matrices of equal K"),
        ([], None, "each with at least 1 element, got none"),
        ([zeros(2, 5), zeros(2, 6)], None, "each with at least 1 element, got (2, 5), (2, 6)"),
        (zeros(0, 5), None, "each with at least 1 element, got (0, 5)"),
        (zeros(2, 5), torch.float16, "expected weights of a floating-point dtype and"),
        (zeros(2, 5, dtype=torch.int8), None, "got torch.int8 and torch.int8"),
    ],
)  # fmt: skip
def test_what_cannot_be_packed(matrices, dtype, message):
    with pytest.raises(ValueError, match="^pack_linear: .*" + re.escape(message)):
        pack_linear(matrices, dtype)
