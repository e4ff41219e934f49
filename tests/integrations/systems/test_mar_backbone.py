"""MAR's transformers and loop: the contexts of the model's own, of no more than the next set."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import ardiff
from ardiff.integrations.systems.mar import swap as mar_backbone
from ardiff.integrations.systems.mar.sets import drawn_order, steps_of
from ardiff.integrations.systems.mar.swap import swap_backbone
from ardiff.integrations.systems.swaps import Choices
from benchmarks import systems_mar
from benchmarks.reference_mar_model import SIZES
from tests._support.head_cases import relative_rms

BOTH = frozenset({"linears", "attention"})
SETS = 5


@pytest.fixture(scope="module")
def made():
    return systems_mar.build("tiny", "float32", 0)


def seen_contexts(model, monkeypatch, samples: int, cfg: float, label: int | None, sets: int):
    """What the head is asked for in a run, and the run's latents."""
    given, seen = systems_mar.noise("tiny", 1, samples), []
    sample = model.diffloss.sample

    def look(z, temperature, weight, noise):
        seen.append((z.clone(), temperature, float(weight)))
        return sample(z, temperature, weight, noise=noise)

    with monkeypatch.context() as patch:
        patch.setattr(model.diffloss, "sample", look)
        latents = systems_mar.draw(model, given, sets, cfg, label)
    return seen, latents


@pytest.mark.parametrize("cfg", [1.0, 2.9])
@pytest.mark.parametrize("label", [None, 7])
@pytest.mark.parametrize(
    "parts", [{"linears"}, {"attention"}, BOTH], ids=lambda p: "+".join(sorted(p))
)
def test_the_head_is_asked_for_the_same(made, parts, cfg, label, monkeypatch):
    model = copy.deepcopy(made)
    stock, expected = seen_contexts(model, monkeypatch, 2, cfg, label, SETS)
    swaps = swap_backbone(model, Choices(frozenset(parts)))
    replaced = {swap.part for swap in swaps if swap.after}
    assert replaced == set(parts) - ({"linears"} if not _products_differ() else set())
    ours, found = seen_contexts(model, monkeypatch, 2, cfg, label, SETS)
    assert len(ours) == len(stock) == SETS
    for (right, heat, weight), (z, own_heat, own_weight) in zip(stock, ours, strict=True):
        assert z.shape == right.shape and relative_rms(z, right) < 2e-5
        assert heat == own_heat and weight == pytest.approx(own_weight, rel=1e-6)
    assert found.shape == expected.shape == (2, 6, 4, 4) and found.dtype == torch.float32
    assert relative_rms(found, expected) < 1e-4
    other = seen_contexts(model, monkeypatch, 2, cfg, 3, SETS)[1]
    assert relative_rms(other, expected) > 1e-2


def _products_differ() -> bool:
    return mar_backbone._product(torch.zeros(1), Choices())[0] != ""


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_narrower_products(made, weights, monkeypatch):
    model = copy.deepcopy(made)
    stock, _ = seen_contexts(model, monkeypatch, 1, 2.9, 7, SETS)
    swap, _ = swap_backbone(model, Choices(BOTH, weights))
    ours, _ = seen_contexts(model, monkeypatch, 1, 2.9, 7, SETS)
    assert weights in swap.after
    own = sum(p.numel() for b in _blocks(model) for n, p in b.named_parameters() if "norm" not in n)
    size = {"bfloat16": 2, "int8": 1}[weights]
    assert 0.9 * size * own < swap.memory_bytes < 1.2 * size * own
    errors = [relative_rms(z[0], right[0]) for z, right in zip(ours, stock, strict=True)]
    assert 1e-4 < errors[0] < 0.02, errors


def test_the_model_in_bfloat16(made, monkeypatch):
    """Its contexts are as near to those in float32 as the model's own."""
    plain, model = copy.deepcopy(made).bfloat16().float(), copy.deepcopy(made).bfloat16()
    exact = seen_contexts(plain, monkeypatch, 2, 2.9, 7, 1)[0][0][0]
    stock = seen_contexts(model, monkeypatch, 2, 2.9, 7, 1)[0][0][0]
    swap_backbone(model, Choices(BOTH))
    ours = seen_contexts(model, monkeypatch, 2, 2.9, 7, 1)[0][0][0]
    assert ours.dtype == stock.dtype == torch.bfloat16
    assert relative_rms(ours, exact) < 1.2 * relative_rms(stock, exact) < 0.02


def test_under_autocast(made, monkeypatch):
    """As MAR's own evaluation runs it: contexts as near to those in float32 as the model's own."""
    model = copy.deepcopy(made)
    exact = seen_contexts(model, monkeypatch, 2, 2.9, 7, 1)[0][0][0]
    with torch.autocast("cpu", torch.bfloat16):
        stock = seen_contexts(model, monkeypatch, 2, 2.9, 7, 1)[0][0][0]
    *_, loop = swap_backbone(model, Choices(BOTH))
    with torch.autocast("cpu", torch.bfloat16):
        ours = seen_contexts(model, monkeypatch, 2, 2.9, 7, 1)[0][0][0]
    assert loop.after and ours.dtype == stock.dtype == torch.float32
    assert 1e-4 < relative_rms(ours, exact) < 1.2 * relative_rms(stock, exact)


def test_the_whole_model(made, monkeypatch):
    """Head, products and loop by `ardiff.accelerate`; `restore` gives the model its own bits."""
    model = copy.deepcopy(made)
    given = systems_mar.noise("tiny", 1, 2)
    expected = systems_mar.draw(model, given, SETS)
    before = [dict(vars(module)) for module in model.modules()]
    report = ardiff.accelerate(model)
    assert {"head", "attention"} <= set(report.replaced) and report.system == "MAR"
    found = systems_mar.draw(model, given, SETS)
    assert relative_rms(found, expected) < 1e-3 and not torch.equal(found, expected)
    ardiff.restore(model)
    assert [dict(vars(module)) for module in model.modules()] == before
    assert torch.equal(systems_mar.draw(model, given, SETS), expected)


def test_the_last_block_gives_the_asked_places_alone(made):
    model, shapes = copy.deepcopy(made), []
    model.decoder_norm.register_forward_hook(lambda _, args, out: shapes.append(tuple(out.shape)))
    given = systems_mar.noise("tiny", 1, 2)
    systems_mar.draw(model, given, SETS)
    rows = 6 + 16
    assert shapes == [(4, rows, 64)] * SETS
    shapes.clear()
    swap_backbone(model, Choices(BOTH))
    shapes.clear()  # of the probe
    systems_mar.draw(model, given, SETS)
    assert [shape[1] for shape in shapes] == [1, 3, 3, 5, 4]


def _blocks(model) -> list[nn.Module]:
    return [*model.encoder_blocks, *model.decoder_blocks]


@pytest.mark.parametrize("weights", [None, "bfloat16"])
@pytest.mark.parametrize("way", ["data", "replaced", "layer"])
def test_weights_that_change_are_followed(made, weights, way, monkeypatch):
    """Written through ``.data``, replaced, or in another layer: as if swapped after the change."""

    def change(model) -> None:
        for block in (model.encoder_blocks[1], model.decoder_blocks[-1]):
            layer = block.mlp.fc1
            if way == "data":
                layer.weight.data.mul_(1.5)
            elif way == "replaced":
                layer.weight = nn.Parameter(layer.weight * 1.5, requires_grad=False)
            else:
                block.mlp.fc1 = copy.deepcopy(layer)
                block.mlp.fc1.weight.mul_(1.5)

    late, early = copy.deepcopy(made), copy.deepcopy(made)
    swap_backbone(early, Choices(BOTH, weights))
    before = seen_contexts(early, monkeypatch, 1, 1.0, 7, 2)[0]
    change(early)
    change(late)
    swap_backbone(late, Choices(BOTH, weights))
    pairs = [seen_contexts(model, monkeypatch, 1, 1.0, 7, 2)[0] for model in (early, late)]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(*pairs, strict=True))
    assert relative_rms(pairs[0][0][0], before[0][0]) > 1e-3


def test_a_layer_that_takes_another_kind_is_heard(made, monkeypatch):
    """LoRA after the swap: the block's own forward runs."""

    class Louder(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = copy.deepcopy(made)
    swap_backbone(model, Choices(BOTH))
    for block in (model.encoder_blocks[0], model.decoder_blocks[-1]):
        own = block.mlp.fc2
        block.mlp.fc2 = Louder(*reversed(own.weight.shape))
        block.mlp.fc2.load_state_dict(own.state_dict())
    ours = seen_contexts(model, monkeypatch, 1, 2.9, 7, 2)[0]
    plain = copy.deepcopy(made)
    for name in ("encoder_blocks", "decoder_blocks"):
        at = 0 if name == "encoder_blocks" else -1
        getattr(plain, name)[at].mlp.fc2.weight.mul_(2)
        getattr(plain, name)[at].mlp.fc2.bias.mul_(2)
    stock = seen_contexts(plain, monkeypatch, 1, 2.9, 7, 2)[0]
    assert all(relative_rms(a[0], b[0]) < 2e-5 for a, b in zip(ours, stock, strict=True))


def test_gradients_and_autocast_take_the_blocks_own_forward(made):
    model = copy.deepcopy(made)
    x = torch.randn(2, 5, 64)
    expected = model.decoder_blocks[-1](x.requires_grad_()).sum()
    (right,) = torch.autograd.grad(expected, x)
    swap_backbone(model, Choices(BOTH))
    last = model.decoder_blocks[-1]
    (found,) = torch.autograd.grad(last(x).sum(), x)
    assert torch.equal(found, right)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        own = type(last).forward(last, x)
        assert torch.equal(last(x), own) and torch.equal(last(x, slice(1, 3)), own[:, 1:3])


def test_training_mode_runs_the_models_own_loop(made):
    model = copy.deepcopy(made)
    given = systems_mar.noise("tiny", 1, 1)
    expected = systems_mar.draw(model, given, 2)
    swap_backbone(model, Choices(frozenset({"attention"})))
    assert not torch.equal(systems_mar.draw(model, given, 2), expected)
    model.training = True
    for block in _blocks(model):
        block.training = True
    assert torch.equal(systems_mar.draw(model, given, 2), expected)


def test_more_sets_than_places(made, monkeypatch):
    """Those without places ask for nothing, as in the model's own loop."""
    model = copy.deepcopy(made)
    _, expected = seen_contexts(model, monkeypatch, 1, 1.0, 7, 19)
    swap_backbone(model, Choices(BOTH))
    passes = []
    model.decoder_norm.register_forward_hook(lambda *_: passes.append(1))
    ours, found = seen_contexts(model, monkeypatch, 1, 1.0, 7, 19)
    assert [len(z) for z, _, _ in ours].count(0) == 3 and len(passes) == 16
    assert relative_rms(found, expected) < 1e-4


def test_sets_are_those_of_the_orders():
    orders = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(0))] * 2)
    orders[1] = orders[1].flip(0)
    steps = steps_of(16, SETS, 2.9, "linear")
    places = drawn_order(orders, steps)
    assert [(s.unknown, s.later) for s in steps] == [(16, 15), (15, 12), (12, 9), (9, 4), (4, 0)]
    for step in steps:
        rows = slice(step.later, step.unknown)
        assert torch.equal(places[:, rows], orders[:, rows].sort(1).values)
    assert [s.weight for s in steps[:2]] == [1 + 1.9 / 16, 1 + 1.9 * 4 / 16]
    assert {s.weight for s in steps_of(16, SETS, 2.9, "constant")} == {2.9}


def test_arguments_are_refused_before_any_work(made):
    model = copy.deepcopy(made)
    swap_backbone(model, Choices(BOTH))
    with pytest.raises(NotImplementedError, match="must be linear or constant, got 'cosine'"):
        model.sample_tokens(1, 4, 2.9, "cosine")
    with pytest.raises(ValueError, match=r"labels must have shape \[2\].* got \[3\]"):
        model.sample_tokens(2, 4, 2.9, labels=torch.arange(3))


def hooked(model) -> None:
    model.decoder_blocks[-1].mlp.fc1.register_forward_hook(lambda *_: None)


def other_kind(model) -> None:
    model.decoder_blocks[-1].attn.proj = nn.Sequential(model.decoder_blocks[-1].attn.proj)


def tanh_gelu(model) -> None:
    model.decoder_blocks[-1].mlp.act = nn.GELU("tanh")


def scaled(model) -> None:
    class Scaled(type(model.decoder_blocks[-1])):
        def forward(self, x):
            return 1.01 * super().forward(x)

    model.decoder_blocks[-1].__class__ = Scaled


def unknown(model) -> None:
    model.decoder_blocks[-1].ls1 = nn.Softmax(-1)


def compiled(model) -> None:
    model.decoder_blocks[-1].compile()


def halves(model) -> None:
    model.decoder_blocks.half()


REASONS = {
    hooked: "has hooks or a replaced forward",
    other_kind: "expected a Linear as attn.proj, got nothing",
    tanh_gelu: "not timm's Block with an exact GELU",
    scaled: "computes something else than timm's",
    unknown: "has ls1, a Softmax, which is not known",
    compiled: "is compiled",
    halves: "weights are float16, expected float32 or bfloat16",
}


@pytest.mark.parametrize("change", REASONS, ids=lambda f: f.__name__)
def test_blocks_that_are_left(made, change):
    model = copy.deepcopy(made)
    change(model)
    before = [dict(vars(module)) for module in model.modules()]
    swaps = swap_backbone(model, Choices(BOTH))
    assert [swap.part for swap in swaps] == ["linears", "attention"]
    for swap in swaps:
        assert not swap.after and REASONS[change] in swap.reason, swap.reason
    assert [dict(vars(module)) for module in model.modules()] == before


def other_decoder(model) -> None:
    own = type(model)

    class Other(own):
        def forward_mae_decoder(self, x, mask):
            return 1.1 * super().forward_mae_decoder(x, mask)

    model.__class__ = Other


def other_arguments(model) -> None:
    class Other(type(model)):
        def sample_tokens(self, bsz, cfg=1.0):
            return bsz

    model.__class__ = Other


def replaced(model) -> None:
    model.sample_tokens = model.sample_tokens


def training(model) -> None:
    model.train()


LOOPS = {
    other_decoder: "compute something else than MAR's",
    other_arguments: "sample_tokens takes (bsz, cfg), expected (bsz, num_iter",
    replaced: "sample_tokens was replaced by something else",
    training: "call eval() first",
}


@pytest.mark.parametrize("change", LOOPS, ids=lambda f: f.__name__)
def test_loops_that_are_left(made, change):
    model = copy.deepcopy(made)
    change(model)
    before = [dict(vars(module)) for module in model.modules()]
    (swap,) = swap_backbone(model, Choices(frozenset({"attention"})))
    assert not swap.after and LOOPS[change] in swap.reason, swap.reason
    assert [dict(vars(module)) for module in model.modules()] == before


def test_products_that_are_not_faster_are_left(made, monkeypatch):
    def reason(model, **options) -> str:
        (swap,) = swap_backbone(copy.deepcopy(model), Choices(frozenset({"linears"}), **options))
        return swap.reason

    half = copy.deepcopy(made).bfloat16()
    assert "no more exact" in reason(half, weights="float32")
    monkeypatch.setattr(mar_backbone, "_cpu_model", lambda: "Intel(R) Xeon(R)")
    assert "as fast as packed_linear at 128 rows" in reason(made)
    monkeypatch.setattr(mar_backbone, "way", lambda: "avx2")
    assert "not with avx2" in reason(half)
    monkeypatch.setattr(mar_backbone.backends, "unusable", lambda *_: "it was not built")
    assert "it was not built" in reason(made, batch_invariant=True)


def test_other_models_have_no_part():
    assert swap_backbone(nn.Linear(2, 2), Choices()) == []


def test_the_reference_has_the_published_names(made):
    names = set(made.state_dict())
    blocks = {
        f"{side}_blocks.{i}.{layer}.{kind}"
        for side in ("encoder", "decoder") for i in range(3)
        for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    }  # fmt: skip
    layers = ("z_proj", "z_proj_ln", "encoder_norm", "decoder_embed", "decoder_norm")
    single = {"class_emb.weight", "fake_latent", "mask_token"} | {
        f"{name}_pos_embed_learned" for name in ("encoder", "decoder", "diffusion")
    }
    both = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    rest = {name for name in names if not name.startswith("diffloss.net.")}
    assert rest == blocks | single | both
    assert SIZES["mar-b"].width == 768 and made.encoder_pos_embed_learned.shape == (1, 22, 64)
