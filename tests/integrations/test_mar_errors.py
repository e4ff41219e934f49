"""Models and arguments that MAR's accelerator refuses, each with what was expected."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ardiff.integrations import mar
from tests._support.head_cases import rows
from tests.integrations._support.mar_model import CONTEXT, DIM, DiffLoss, loss_of


class Renamed(DiffLoss):
    def sample(self, context, scale=1.0):
        return context


class Other(nn.Module):
    """MAR's names, another formula."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        for name, child in net.named_children():
            setattr(self, name, child)
        self.inner = [net]

    def forward(self, x, t, c):
        return self.inner[0](x, 1000 * t, c)


def hooked() -> DiffLoss:
    own = loss_of()
    own.net.input_proj.register_forward_hook(lambda *_: None)
    return own


def with_net(net) -> DiffLoss:
    own = loss_of()
    own.net = net
    return own


def replaced() -> DiffLoss:
    own = loss_of()
    own.sample = print
    return own


def used(*args, **options):
    return lambda: mar.accelerate(loss_of(20)).sample(*args, **options)


def wide(out: int) -> nn.Module:
    net = loss_of().net
    net.final_layer.linear = nn.Linear(48, out)
    return net


Z = rows(4, CONTEXT)
BAD = {
    "model": (lambda: mar.accelerate(nn.Linear(2, 2)), TypeError, "diffloss.net .* got Linear"),
    "restore": (lambda: mar.restore(nn.Linear(2, 2)), TypeError, "diffloss.net .* got Linear"),
    "signature": (
        lambda: mar.accelerate(Renamed(DIM, CONTEXT, 1, 8, 5)), RuntimeError,
        r"Renamed.sample takes \(context, scale\), expected \(z, temperature, cfg, ...\)",
    ),
    "names": (
        lambda: mar.accelerate(with_net(nn.Linear(3, 3))), ValueError,
        "the head Linear is not the known one, .* no diffusion head",
    ),
    "formula": (
        lambda: mar.accelerate(with_net(Other(loss_of().net))), ValueError,
        "the head Other computes something else than MAR's",
    ),
    "hooks": (lambda: mar.accelerate(hooked()), ValueError, "HeadNet cannot be .* forward hooks"),
    "meta": (lambda: mar.accelerate(loss_of().to("meta")), ValueError, "has no weights here"),
    "dtype": (lambda: mar.accelerate(loss_of().double()), ValueError, "are float64"),
    "replaced": (lambda: mar.accelerate(replaced()), RuntimeError, "replaced by something else"),
    "variance": (
        lambda: mar.accelerate(with_net(wide(DIM))), ValueError,
        "expected a head with 12 outputs, a mean and a variance for each of 6 inputs, got 6",
    ),
    "weights": (lambda: mar.accelerate(loss_of(), weights="int4"), ValueError, "got 'int4'"),
    "solver": (lambda: mar.accelerate(loss_of(), solver="moon"), ValueError, "unknown solver"),
    "option": (lambda: mar.accelerate(loss_of(), tau=1.0), ValueError, "ddpm takes no option 'tau"),
    "steps": (
        lambda: mar.accelerate(loss_of(), solver="dpmpp-2m", steps="ddim50"), ValueError,
        "steps must be an integer",
    ),
    "energy": (
        lambda: mar.accelerate(loss_of(), solver="rtk-mala", accept="energy"), ValueError,
        'accept="energy" needs a density',
    ),
    "z": (used(rows(4, 5)), ValueError, r"z must be \[N, 24\], got \[4, 5\]"),
    "odd": (used(rows(3, CONTEXT), cfg=2.0), ValueError, "two halves, .* got 3 rows; pass cfg=1"),
    "cfg": (used(Z, cfg=torch.ones(3)), ValueError, r"cfg must be a number or have shape \[2\]"),
    "nan": (used(Z, cfg=math.nan), ValueError, "cfg must be finite"),
    "temperature": (used(Z, -1.0), ValueError, "temperature must be finite and at least 0"),
    "noise": (used(Z, noise=rows(20, 4, DIM)), ValueError, r"noise must have shape \[21, 4, 6\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(case):
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        call()
