"""Packed weights are those that the head has now, however they were written, and die with it."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from ardiff.heads.fused import FusedHead, fused
from ardiff.heads.packing import bit_sums, pack
from ardiff.heads.token import denoise_token
from ardiff.loop.run import run
from tests._support.head_cases import (
    CONTEXT,
    KEY,
    LEVELLED,
    Plain,
    head_of,
    relative_rms,
    rows,
    streams,
    table_of,
)


def token(head, kind="mar", weights="float32"):
    table = table_of(kind, "ddpm", 3)
    return denoise_token(head, rows(2, CONTEXT), table, KEY, 0, streams(2), weights=weights)


def parameters_of(head):
    return list(getattr(head, "head", head).parameters())


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", LEVELLED)
def test_writes_through_data_are_followed(kind, weights):
    """All weights, as `EMAModel.copy_to` writes them: the token is that of a head which was made
    with the new ones, to the bit."""
    head = head_of(kind)
    old = token(head, kind, weights)
    for parameter in parameters_of(head):
        parameter.data.copy_(1.3 * parameter.data)
    found = token(head, kind, weights)
    assert torch.equal(found, token(copy.deepcopy(head), kind, weights))
    assert relative_rms(found, old) > 1e-3


def test_each_parameter_is_followed_through_data():
    head = head_of("mar")
    token(head)
    for name, parameter in head.named_parameters():
        parameter.data.view(-1)[-1] += 0.5
        assert torch.equal(token(head), token(copy.deepcopy(head))), name


def test_writes_to_inference_tensors_are_followed():
    """These have no version counter at all."""
    head = head_of("mar")
    with torch.inference_mode():
        for module in head.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = parameter.clone()
        old = token(head)
        for parameter in head.parameters():
            parameter.mul_(1.3)
        found = token(head)
        assert torch.equal(found, token(copy.deepcopy(head))) and relative_rms(found, old) > 1e-3


def test_a_bit_of_one_element_changes_the_sums_of_its_row():
    """Whatever the dtype and the shape, for the lowest bit of any element."""
    for shape in ((3, 8), (2, 5), (7,), (), (2, 3, 5)):
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int8):
            t = torch.arange(1, 1 + torch.Size(shape).numel()).reshape(shape).to(dtype)
            before, count = bit_sums([t]), len(t) if t.dim() > 1 else 1
            assert before.dtype == torch.int64 and len(before) == count
            step = t.numel() // count
            bits = t.view({4: torch.int32, 2: torch.int16, 1: torch.int8}[dtype.itemsize])
            for i in range(t.numel()):
                bits.view(-1)[i] ^= 1
                assert (bit_sums([t]) != before).nonzero().flatten().tolist() == [i // step]
                bits.view(-1)[i] ^= 1
    t = rows(6, 16)
    for other in (t.flip(0), t.flip(1), t.roll(2, 1), t[:, [2, 3, 0, 1, *range(4, 16)]]):
        assert (bit_sums([t]) != bit_sums([other])).sum() >= 6  # places count
    assert torch.equal(bit_sums([t]), bit_sums([t.t().contiguous().t()]))


def replaced(head):
    head.res_blocks[0].mlp[0] = Doubled(head.res_blocks[0].mlp[0])


def other_forward(head):
    layer = head.res_blocks[0].mlp[0]
    layer.forward = lambda x: 2 * nn.Linear.forward(layer, x)


def hook(head):
    head.res_blocks[0].mlp[0].register_forward_hook(lambda module, inputs, out: 2 * out)


def pre_hook(head):
    head.res_blocks[0].mlp[2].register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))


def weight_norm(head):
    layer = nn.utils.parametrizations.weight_norm(head.res_blocks[0].mlp[0])
    layer.parametrizations.weight.original0.data.mul_(2)


class Doubled(nn.Module):
    """Has the attributes of a linear layer, as LoRA layers do, and computes something else."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    weight = property(lambda self: self.inner.weight)
    bias = property(lambda self: self.inner.bias)

    def forward(self, x):
        return 2 * self.inner(x)


CHANGES = {
    hook: "forward hooks",
    pre_hook: "forward hooks",
    replaced: "res_blocks.0.mlp.0 of a DiffusionHead was replaced by Doubled",
    other_forward: "res_blocks.0.mlp.0 of a DiffusionHead was replaced by another forward",
    weight_norm: "res_blocks.0.mlp.0 of a DiffusionHead was replaced by ParametrizedLinear",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_a_fused_head_would_not_call_is_called_or_refused(change):
    """A head changed after its first run: its own modules run from then on; a `FusedHead` made
    before refuses."""
    head = head_of("mar")
    made, table, c, start = (
        FusedHead(head),
        table_of("mar", "ddpm", 3),
        rows(2, CONTEXT),
        rows(2, 6),
    )
    old = denoise_token(head, c, table, KEY, 0, streams(2), start=start)
    change(head)
    assert fused(head) is head
    found = denoise_token(head, c, table, KEY, 0, streams(2), start=start)
    expected = run(table, Plain(head), start, key=KEY, stream=streams(2), condition=c)
    assert relative_rms(found, expected) < 1e-5 and relative_rms(found, old) > 1e-3
    with pytest.raises(TypeError, match=CHANGES[change]):
        denoise_token(made, c, table, KEY, 0, streams(2), start=start)


def test_a_hook_of_all_modules_is_called():
    head = head_of("mar")
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert fused(head) is head
    finally:
        handle.remove()
    assert isinstance(fused(head), FusedHead)


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_a_head_that_has_sampled_is_freed(weights):
    """Without waiting for the collector of cycles."""
    gc.disable()
    try:
        head = head_of("mar")
        token(head, weights=weights)
        made = pack(head, weights).modulation.weight
        gone, packed = weakref.ref(head), weakref.ref(made)
        del head, made
        assert gone() is None and packed() is None
    finally:
        gc.enable()
