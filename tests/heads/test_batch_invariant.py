"""batch_invariant: a row of a network is, to the bit, what it is alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ardiff import batch_invariant as module
from ardiff.batch_invariant import batch_invariant, is_batch_invariant
from ardiff.heads.edm import EDMHead
from ardiff.heads.mar import DiffusionHead
from tests._support.small_models import randomise

SIZES = [(33, 57), (64, 96), (768, 256), (20, 16)]


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def alone(function, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([function(x[i : i + 1]) for i in range(len(x))])


@pytest.mark.parametrize(("inner", "outer"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_linear(inner, outer, dtype):
    weight, bias, x = rows(outer, inner).to(dtype), rows(outer).to(dtype), rows(41, inner).to(dtype)
    with batch_invariant():
        whole = F.linear(x, weight, bias)
        assert torch.equal(alone(lambda t: F.linear(t, weight, bias), x), whole)
        assert torch.equal(F.linear(x.flip(0), weight, bias).flip(0), whole)
        assert torch.equal(
            F.linear(x[:40].view(5, 8, inner), weight, bias).flatten(0, 1), whole[:40]
        )
        assert torch.equal(x @ weight.t(), F.linear(x, weight))
        assert torch.equal(torch.matmul(x, weight.t()), x.mm(weight.t()))
    expected = F.linear(x.double(), weight.double(), bias.double())
    terms = F.linear(x.double().abs(), weight.double().abs(), bias.double().abs())
    assert ((whole - expected).abs() <= (inner + 1) * torch.finfo(dtype).eps * terms).all()


def test_without_it_rows_differ():
    """The control: plain products and SiLU round by the batch, or this module had no purpose."""
    weight, x = rows(256, 768), rows(41, 768)
    linear = torch.equal(alone(lambda t: F.linear(t, weight), x), F.linear(x, weight))
    odd = rows(41, 33)
    silu = torch.equal(alone(F.silu, odd), F.silu(odd))
    assert not (linear and silu)


FUNCTIONS = [
    F.silu, F.gelu, lambda t: F.gelu(t, approximate="tanh"), torch.sigmoid, torch.tanh, torch.exp,
    torch.sin, torch.Tensor.cos, lambda t: t.exp(), F.softplus,
    lambda t: torch.addcmul(t, t[:1], t + 1), lambda t: F.layer_norm(t, t.shape[-1:]),
    lambda t: F.rms_norm(t, t.shape[-1:], eps=1e-6), lambda t: t.softmax(-1),
]  # fmt: skip


@pytest.mark.parametrize("width", [1, 33, 1000])
@pytest.mark.parametrize("number", range(len(FUNCTIONS)))
def test_functions_of_elements_and_rows(number, width):
    function, x = FUNCTIONS[number], rows(41, width)
    x[:, 0] = 1.0  # addcmul reads the first row
    x[0] = 0.5
    with batch_invariant():
        whole = function(x)
        parts = [function(torch.cat([x[:1], x[i : i + 1]]))[1:] for i in range(len(x))]
        assert torch.equal(torch.cat(parts), whole)
    assert (whole - function(x.double())).abs().max() < 1e-5


@pytest.mark.parametrize("edm", [False, True])
def test_a_head_hoisted_or_not_in_any_batch_and_table(edm):
    """Levels for all samples, or for each: the same bits where they are the same levels."""
    head = randomise(DiffusionHead(6, 24, 20, 2))
    head = EDMHead(head) if edm else head
    x, c, levels = rows(21, 6), rows(21, 24), torch.tensor([3.0, 0.5, 0.01])
    with batch_invariant():
        whole = head.hoist(levels, c)
        ragged = head.hoist(levels[:, None].repeat(1, 21), c)
        for k in range(3):
            out = whole(k, x)
            assert torch.equal(ragged(k, x), out)
            each = [head.hoist(levels, c[i : i + 1])(k, x[i : i + 1]) for i in range(21)]
            assert torch.equal(torch.cat(each), out)
            assert (out - head(x, levels[k].expand(21), c)).abs().max() < 1e-4


def test_a_machine_that_rounds_by_place_computes_row_by_row(monkeypatch):
    """Where equal rows of one product differ, each row gets a product of its own."""
    plain, shapes = F.linear, []

    def uneven(x, weight, bias=None):
        shapes.append(len(x))
        return plain(x, weight, bias) + torch.arange(len(x))[:, None] * 1e-3

    module._tile.cache_clear()
    monkeypatch.setattr(module.F, "linear", uneven)
    x, weight = rows(5, 12), rows(7, 12)
    found = module.linear(x, weight)
    module._tile.cache_clear()
    assert shapes == [module.TILE, 1, 1, 1, 1, 1]
    assert torch.allclose(found, plain(x, weight), atol=1e-5)


def test_inside_and_outside():
    assert not is_batch_invariant()
    with batch_invariant():
        assert is_batch_invariant()
        with pytest.raises(NotImplementedError) as error:
            rows(2, 3, 4) @ rows(2, 4, 5)
        assert str(error.value) == (
            "batch_invariant: expected a product [..., n] @ [n, m], got [2, 3, 4] @ [2, 4, 5]"
        )
        for write in (lambda t: F.silu(t, inplace=True), lambda t: torch.exp(t, out=t)):
            with pytest.raises(NotImplementedError, match="expected no out= and no inplace=True"):
                write(rows(3))
        assert F.linear(rows(0, 4), rows(3, 4)).shape == (0, 3)
        assert F.silu(rows(0, 4)).shape == (0, 4)
    assert not is_batch_invariant()
