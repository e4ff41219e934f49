"""The transformers of MAR (Li et al. 2024): which products they take, and MAR's loop around them.

At 128 to 640 rows arithmetic bounds a block, and one way to compute its products is nearly as fast
as another, so that what is left to gain is work that no token needs: see `sets`. Measured for
the four layers of a block of MAR-B with its GELU at 128, 320 and 640 rows (AMD EPYC with AVX-512
BF16, time of one thread), how many times as fast as PyTorch's own:

- float32: packed_linear 1.01, .97, .96; oneDNN on the weights where they are 1.15, 1.09, 1.08;
- bfloat16: packed_linear 1.08, 1.06, 1.07; oneDNN 1.05, 1.05, 1.03;
- float32 with bfloat16 weights: 2.3, 2.1, 2.1; with int8 weights 2.3, 2.1, 2.1.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ardiff_kernels.collect_env import _cpu_model
from ardiff_kernels.dispatch import backends
from ardiff_kernels.ops.packed_linear.limits import pytorch_is_faster, way

from ....heads.packing import WEIGHTS
from ..swaps import Choices, Swap, left
from .blocks import BlockForward, forwards, reason_against
from .sets import Run, Step, TokenSets, drawn_order

_TAKES = {
    "sample_tokens": (
        "bsz", "num_iter", "cfg", "cfg_schedule", "labels", "temperature", "progress",
    ),
    "forward_mae_encoder": ("x", "mask", "class_embedding"),
    "forward_mae_decoder": ("x", "mask"),
    "sample_orders": ("bsz",),
}  # fmt: skip
_ROWS = 128  # MAR's fewest: two streams of 64 places of the buffer
# Largest difference of contexts, over their largest: the depth of the model in roundings.
_AGREE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


def mar_within(model: Any) -> nn.Module | None:
    """The module of a model that has MAR's encoder, decoder and loop; None where there is none."""
    if not isinstance(model, nn.Module):
        return None
    for module in model.modules():
        has = all(callable(getattr(module, name, None)) for name in _TAKES)
        if has and all(isinstance(b, nn.ModuleList) and len(b) for b in _stacks(module)):
            return module
    return None


def swap_backbone(model: nn.Module, choices: Choices) -> list[Swap]:
    """Replaces the products of MAR's blocks (`linears`) and its loop over sets (`attention`).

    Args:
        model: with MAR's names and methods, or that holds such a module.
        choices: `weights` other than the model's own round the matrices; `batch_invariant` takes
            `packed_linear`, whose rows do not depend on each other.

    Returns:
        A swap for each part asked for, replaced or left with the reason; none for other models.
    """
    mar = mar_within(model)
    if mar is None:
        return []
    swaps: list[Swap] = []
    made: list[BlockForward] = []
    try:
        if "linears" in choices.parts:
            swap, made = _swap_linears(mar, choices)
            swaps.append(swap)
        if "attention" in choices.parts:
            swaps.append(_swap_loop(mar, made))
    except BaseException:
        for swap in reversed(swaps):
            swap.restore()
        raise
    return swaps


def _stacks(mar: nn.Module) -> tuple[Any, Any]:
    return getattr(mar, "encoder_blocks", None), getattr(mar, "decoder_blocks", None)


def _product(weight: Tensor, choices: Choices) -> tuple[str, str]:
    """Of `blocks.PRODUCTS`, or none and the reason."""
    own = weight.dtype
    wanted = WEIGHTS[choices.weights] if choices.weights else own
    if not weight.is_cpu:
        return "", "PyTorch's products; others were not measured on a GPU"
    if wanted == torch.float32 and own != wanted:
        return "", f"float32 copies of weights in {str(own)[6:]} are no more exact, and slower"
    missing = backends.unusable("packed_linear", "cpu", "cpu")
    if wanted != own or choices.batch_invariant:
        return ("", f"packed_linear: {missing}") if missing else ("packed", "")
    if own == torch.bfloat16:
        if way() == "avx512_bf16" and not missing and not pytorch_is_faster(own, _ROWS):
            return "packed", ""
        return "", f"packed_linear was found faster with AVX-512 BF16 alone, not with {way()}"
    if "AMD" in _cpu_model() and _has_onednn():
        return "onednn", ""
    return "", "PyTorch's product (MKL) is as fast as packed_linear at 128 rows and more"


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _swap_linears(mar: nn.Module, choices: Choices) -> tuple[Swap, list[BlockForward]]:
    encoder, decoder = _stacks(mar)
    blocks = [*encoder, *decoder]
    before = f"{len(encoder)} + {len(decoder)} {type(blocks[0]).__name__}, 4 Linear each"
    reasons = (reason_against(block) for block in blocks)
    reason = next(filter(None, reasons), "")
    product, made = "", []
    if not reason:
        product, reason = _product(blocks[0].attn.qkv.weight, choices)
    if product:
        weights = choices.weights if product == "packed" else None
        made, reason = forwards(blocks, product, weights)
    if not made:
        return left("linears", before, reason, blocks), []
    after = {
        "packed": f"packed_linear, {choices.weights or str(blocks[0].attn.qkv.weight.dtype)[6:]} "
        "weights",
        "onednn": "oneDNN's product on the weights where they are, with GELU in it",
    }[product]
    swap = Swap("linears", before, after, modules=blocks)
    swap.memory_bytes = sum(forward.memory_bytes for forward in made)
    for forward in made:
        swap.set(forward.block, "forward", forward.forward)
    return swap, made


def _swap_loop(mar: nn.Module, made: list[BlockForward]) -> Swap:
    before = f"{type(mar).__name__}.sample_tokens, the decoder at all places"
    reason = _other_methods(mar)
    last = mar.decoder_blocks[-1]
    if not reason and mar.training:
        reason = "the model is in training mode; call eval() first"
    own = mar.sample_tokens
    if not reason and not made:
        made, reason = forwards([last], "plain")
    if reason:
        return left("attention", before, reason)
    swap = Swap("attention", before, "its last block at the places asked for, known parts once")
    swap.methods = [(mar, "sample_tokens")]
    if made[-1].product == "plain":
        swap.set(last, "forward", made[-1].forward)
    loop = TokenSets(mar, own, lambda: [forward.refresh() for forward in made])
    reason = _other_contexts(mar)
    if reason:
        swap.restore()
        return left("attention", before, reason)
    swap.set(mar, "sample_tokens", loop.sample_tokens)
    return swap


def _other_methods(mar: nn.Module) -> str:
    """Why the methods of the model are not those that are known; empty if they are."""
    for name, known in _TAKES.items():
        if name in vars(mar) and name != "sample_orders":  # which is called
            return f"{name} was replaced by something else"
        found = tuple(inspect.signature(getattr(mar, name)).parameters)
        if found != known and name not in vars(mar):
            return f"{name} takes ({', '.join(found)}), expected ({', '.join(known)})"
    return ""


@torch.no_grad()
def _other_contexts(mar: nn.Module) -> str:
    """Whether the model's encoder and decoder give other contexts than ours on a probe: the reason,
    empty if not."""
    generator = torch.Generator().manual_seed(0)
    length, device = mar.seq_len, mar.mask_token.device
    order = torch.randperm(length, generator=generator)[None].to(device)
    tokens = torch.randn(1, length, mar.token_embed_dim, generator=generator).to(device)
    steps = [Step(length, length // 2, 1.0), Step(length // 2, 0, 1.0)]
    places = drawn_order(order, steps)
    mask = torch.zeros(1, length, device=device).scatter(1, places[:, : steps[1].unknown], 1.0)
    with torch.autocast(device.type, enabled=False):
        read = tokens.to(mar.mask_token.dtype)
        z = mar.forward_mae_decoder(
            mar.forward_mae_encoder(read, mask, mar.fake_latent.detach()), mask
        )
        run = Run(mar, places, mar.fake_latent.detach())
        run.draw(tokens[0, places[0, steps[0].later :]], steps[0])
        found = run.contexts(*steps[1][:2])
    expected = z[0, places[0, : steps[1].unknown]]
    error = float((expected.float() - found.float()).abs().max())
    bound = _AGREE[mar.mask_token.dtype] * float(expected.abs().max())
    if not error <= bound:
        return (
            f"the encoder and decoder of this {type(mar).__name__} compute something else than "
            f"MAR's (largest difference {error:.2g}, at most {bound:.2g} expected)"
        )
    return ""
