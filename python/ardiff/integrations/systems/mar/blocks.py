"""Blocks of MAR's transformers (`Block` of timm): at all rows, or at those that are asked for.

At MAR's 128 to 640 rows a block is four matrix products, which arithmetic bounds. `PRODUCTS` are
the ways to compute them: PyTorch's own, oneDNN's on the weights where they are, with GELU in the
same pass, and the packed ones of `ardiff_kernels` in other dtypes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..packed_linears import PackedLinears, Place
from ..swaps import why_not

PRODUCTS = ("plain", "onednn", "packed")
LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
_KINDS = {
    "norm1": nn.LayerNorm, "norm2": nn.LayerNorm, "mlp.act": nn.GELU,
    **dict.fromkeys(LINEARS, nn.Linear),
}  # fmt: skip
_NOTHING = ("Identity", "Dropout", "DropPath")  # in evaluation
# Largest difference of a block and ours, over its largest output: roundings of the dtype.
_AGREE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
_ROUNDED = 0.1  # with narrower weights


class BlockForward:
    """The forward of a block, on its own parameters.

    Args:
        block: as `reason_against` finds nothing against.
        product: of `PRODUCTS`.
        weights: dtype of packed matrices, None for their own.

    Attributes:
        memory_bytes: of packed matrices.
    """

    def __init__(self, block: nn.Module, product: str, weights: str | None = None) -> None:
        self.block, self.product = block, product
        self.packed: dict[str, PackedLinears] = {}
        if product == "packed":
            for name in LINEARS:
                parent, _, leaf = name.partition(".")
                place = Place(block.get_submodule(parent), leaf)
                self.packed[name] = PackedLinears([place], weights)

    @property
    def memory_bytes(self) -> int:
        return sum(packed.memory_bytes for packed in self.packed.values())

    def refresh(self) -> None:
        """Follows writes to the parameters that leave no trace but their bits."""
        for packed in self.packed.values():
            packed.refresh(read=True)

    def forward(self, x: Tensor, asked: slice | None = None) -> Tensor:
        """As the block: `[B, T, D]` to the same, or to the rows `asked` of T alone, whose keys and
        values are still those of all rows."""
        block = self.block
        if not self._fits(x):
            whole = type(block).forward(block, x)
            return whole if asked is None else whole[:, asked]
        heads, width = block.attn.num_heads, x.shape[2]
        normed = block.norm1(x)
        if asked is None or self.packed:
            q, k, v = self._linear("attn.qkv", normed).chunk(3, 2)
            q = q if asked is None else q[:, asked]
        else:
            q = self._linear("attn.qkv", normed[:, asked], slice(width))
            k, v = self._linear("attn.qkv", normed, slice(width, None)).chunk(2, 2)
        x = x if asked is None else x[:, asked]
        q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self._linear("attn.proj", attended)
        hidden = self._linear("mlp.fc1", block.norm2(x), gelu=True)
        return x + self._linear("mlp.fc2", hidden)

    def _linear(
        self, name: str, x: Tensor, rows: slice | None = None, gelu: bool = False
    ) -> Tensor:
        """A layer's product, or some rows of its matrix times x."""
        if self.packed:
            flat = self.packed[name](x.flatten(0, 1))
            found = flat.unflatten(0, x.shape[:2])
            return F.gelu(found) if gelu else found
        layer = _inner(self.block, name)
        weight, bias = layer.weight, layer.bias
        if rows is not None:
            weight, bias = weight[rows], None if bias is None else bias[rows]
        if self.product == "onednn":
            fused = ("gelu", [], "none") if gelu else ("none", [], "")
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *fused)
        found = F.linear(x, weight, bias)
        return F.gelu(found) if gelu else found

    def _fits(self, x: Tensor) -> bool:
        """Whether the block may be passed by now; its own forward runs otherwise."""
        block = self.block
        if block.training or x.dim() != 3 or torch.is_autocast_enabled(x.device.type):
            return False
        layers = [_inner(block, name) for name in LINEARS]
        if any(type(layer) is not nn.Linear for layer in layers):
            return False
        weights = [layer.weight for layer in layers]
        if any(w.dtype != x.dtype or w.device != x.device for w in weights):
            return False
        if torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in weights)):
            return False
        for packed in self.packed.values():
            packed.refresh()
        return True


def _inner(block: nn.Module, name: str) -> nn.Module:
    parent, _, leaf = name.partition(".")
    return block._modules[parent]._modules[leaf]


def reason_against(block: nn.Module) -> str:
    """Why `BlockForward` cannot stand for a block; empty if it can."""
    name = type(block).__name__
    found = {path: module for path, module in block.named_modules() if _is_leaf(module)}
    for path, kind in _KINDS.items():
        if not isinstance(found.get(path), kind):
            other = type(found[path]).__name__ if path in found else "nothing"
            return f"{name}: expected a {kind.__name__} as {path}, got {other}"
    for path, module in found.items():
        if path not in _KINDS and type(module).__name__ not in _NOTHING:
            return f"{name} has {path}, a {type(module).__name__}, which is not known"
    if found["mlp.act"].approximate != "none" or not hasattr(block.attn, "num_heads"):
        return f"{name} is not timm's Block with an exact GELU"
    return why_not(block, [found[path] for path in LINEARS])


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def differs(ours: BlockForward) -> str:
    """Whether a block computes something else than ours on probes: the reason, empty if not."""
    block = ours.block
    weight = _inner(block, "attn.qkv").weight
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, weight.shape[1], generator=generator).to(weight)
    with torch.inference_mode(), torch.autocast(weight.device.type, enabled=False):
        expected = type(block).forward(block, x)
        pairs = [(expected, ours.forward(x))]
        pairs.append((expected[:, 2:4], ours.forward(x, slice(2, 4))))
    own = ours.product != "packed"
    bound = (_AGREE[weight.dtype] if own else _ROUNDED) * float(expected.abs().max())
    for right, found in pairs:
        error = float((right.float() - found.float()).abs().max())
        if not error <= bound:
            return (
                f"a {type(block).__name__} computes something else than timm's (largest difference "
                f"{error:.2g}, at most {bound:.2g} expected)"
            )
    return ""


def forwards(
    blocks: Iterator[nn.Module], product: str, weights: str | None = None
) -> tuple[list[BlockForward], str]:
    """Ours for each of several blocks; or none, and the reason."""
    made = []
    for block in blocks:
        reason = reason_against(block)
        if not reason:
            made.append(BlockForward(block, product, weights))
            reason = differs(made[-1])
        if reason:
            return [], reason
    return made, ""
