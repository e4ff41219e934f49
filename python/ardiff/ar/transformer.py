"""A pre-norm transformer block, over a whole sequence or over new tokens and a KV cache."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ardiff_kernels import ops

from .kv_cache import CacheView

NORMS = ("rms", "layer")
MLPS = ("swiglu", "gelu")
POSITIONS = ("rotary", "learned", "none")


@dataclass(frozen=True)
class EncoderConfig:
    """What a `CausalEncoder` is.

    Attributes:
        width, depth, heads: of the transformer.
        kv_heads: key and value heads, a divisor of `heads`; 0 for `heads`.
        head_dim: 32 to 256, a multiple of 8; 0 for width / heads. Without rotary positions and
            qk_norm any up to 256, which the cache fills up with zeros.
        ffn: hidden channels of the MLP; 0 for 4 width.
        norm: ``rms`` or ``layer``; norm_eps: added to its mean square or variance.
        mlp: ``swiglu`` (Shazeer 2020) or ``gelu``.
        position: ``rotary`` (Su et al. 2021), ``learned`` (added to the tokens) or ``none``.
        positions: how many the tables hold.
        rotary_base: of the wavelengths; rotary_dims: rotated dimensions a head, 0 for all.
        qkv_bias, proj_bias, mlp_bias: which linear layers have a bias.
        qk_norm: an RMS norm of each query and key head before the rotation (Qwen3).
        window: keys that a token sees at most, itself included; 0 is no limit.

    Raises:
        ValueError: a value out of range, heads or dimensions that do not go together.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    kv_heads: int = 0
    head_dim: int = 0
    ffn: int = 0
    norm: str = "rms"
    norm_eps: float = 1e-6
    mlp: str = "swiglu"
    position: str = "rotary"
    positions: int = 4096
    rotary_base: float = 10000.0
    rotary_dims: int = 0
    qkv_bias: bool = False
    proj_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    window: int = 0

    def __post_init__(self) -> None:
        for name, known in (("norm", NORMS), ("mlp", MLPS), ("position", POSITIONS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        optional = ("kv_heads", "head_dim", "ffn", "rotary_dims", "window")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type not in ("int", "float"):
                continue
            if field.name in optional and not value >= 0:
                raise ValueError(f"{field.name} must not be negative, got {value}")
            if field.name not in optional and not value > 0:
                raise ValueError(f"{field.name} must be positive, got {value}")
        derived = {
            "kv_heads": self.heads,
            "head_dim": self.width // self.heads,
            "ffn": 4 * self.width,
        }
        for name, value in derived.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        if not self.rotary_dims:
            object.__setattr__(self, "rotary_dims", self.head_dim)
        if self.heads % self.kv_heads:
            raise ValueError(
                f"kv_heads must divide heads, got {self.kv_heads} and {self.heads} heads"
            )
        fills = self.position != "rotary" and not self.qk_norm
        if fills and self.head_dim > 256:
            raise ValueError(f"head_dim must be at most 256, got {self.head_dim}")
        if not fills and (self.head_dim > 256 or self.head_dim != self.cache_head_dim):
            raise ValueError(
                f"head_dim must be a multiple of 8 from 32 to 256, got {self.head_dim}"
            )
        if self.rotary_dims % 2 or self.rotary_dims > self.head_dim:
            raise ValueError(
                f"rotary_dims must be even and at most head_dim {self.head_dim}, got "
                f"{self.rotary_dims}"
            )

    @property
    def cache_head_dim(self) -> int:
        """Of a head in the cache: `head_dim`, filled up to what the attention kernels take."""
        return max(32, -(-self.head_dim // 8) * 8)


class Rotary(NamedTuple):
    """Tables float32 `[P, R / 2]`; None for an encoder without rotation."""

    cos: Tensor | None
    sin: Tensor | None

    def rotate(self, x: Tensor, position: Tensor) -> Tensor:
        """x `[B, T, H, D]` at position `[B, T]`: dimensions i and i + R / 2 turn together."""
        if self.cos is None:
            return x
        c, s = (table[position][:, :, None] for table in self)
        half = c.shape[-1]
        first, second, rest = x.float().split([half, half, x.shape[-1] - 2 * half], -1)
        return torch.cat([first * c - second * s, second * c + first * s, rest], -1).to(x.dtype)


class SwiGLU(nn.Module):
    """down(SiLU(gate(x)) * up(x)), gate and up in one product."""

    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias)
        self.down = nn.Linear(hidden, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


def make_norm(config: EncoderConfig) -> nn.Module:
    kind = nn.RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(config.width, eps=config.norm_eps)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = c = config
        # In the order in which training checkpoints number them.
        self.norm1 = make_norm(c)
        self.qkv = nn.Linear(c.width, (c.heads + 2 * c.kv_heads) * c.head_dim, c.qkv_bias)
        self.proj = nn.Linear(c.heads * c.head_dim, c.width, c.proj_bias)
        self.norm2 = make_norm(c)
        self.q_norm = nn.Parameter(torch.ones(c.head_dim)) if c.qk_norm else None
        self.k_norm = nn.Parameter(torch.ones(c.head_dim)) if c.qk_norm else None
        if c.mlp == "swiglu":
            self.mlp: nn.Module = SwiGLU(c.width, c.ffn, c.mlp_bias)
        else:
            up, down = nn.Linear(c.width, c.ffn, c.mlp_bias), nn.Linear(c.ffn, c.width, c.mlp_bias)
            self.mlp = nn.Sequential(up, nn.GELU(), down)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q `[B, T, Hq, D]`, k and v `[B, T, Hkv, D]`: slices of the fused projection."""
        c = self.config
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (c.heads + 2 * c.kv_heads, c.head_dim))
        return qkv.split([c.heads, c.kv_heads, c.kv_heads], 2)

    def _close(self, x: Tensor, attended: Tensor) -> Tensor:
        """x `[B, T, width]` and what the heads found `[B, T, Hq, D]`."""
        x = x + self.proj(attended.flatten(2))
        return x + self.mlp(self.norm2(x))

    def whole(
        self, x: Tensor, position: Tensor, rotary: Rotary, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A whole sequence, causal unless `mask` says otherwise; with its keys and values."""
        q, k, v = self._heads(x)
        if self.q_norm is not None:
            q = _head_norm(q, self.q_norm, self.config.norm_eps)
            k = _head_norm(k, self.k_norm, self.config.norm_eps)
        q, k = rotary.rotate(q, position), rotary.rotate(k, position)
        attended = F.scaled_dot_product_attention(
            *(t.transpose(1, 2) for t in (q, k, v)),
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=self.config.kv_heads != self.config.heads,
        )
        return self._close(x, attended.transpose(1, 2)), self._filled(k), self._filled(v)

    def extend(
        self,
        x: Tensor,
        view: CacheView,
        layer: int,
        count: Tensor,
        position: Tensor | None,
        rotary: Rotary,
        causal: bool,
    ) -> Tensor:
        """New tokens `[B, T, width]` behind those that the cache holds."""
        q, k, v = map(self._filled, self._heads(x))
        place = {"count": count, "block_table": view.block_table}
        if rotary.cos is not None:
            place |= {"cos": rotary.cos, "sin": rotary.sin, "position": position}
        norms = (None, None) if self.q_norm is None else (self.q_norm.float(), self.k_norm.float())
        eps = {"norm_eps": self.config.norm_eps}
        write(view, layer, k, v, k_norm=norms[1], **place, **eps)
        attended = ops.kv_attention(
            q,
            view.keys[layer],
            view.values[layer],
            view.length,
            q_norm=norms[0],
            k_scale=view.k_scale[layer],
            v_scale=view.v_scale[layer],
            scale=self.config.head_dim**-0.5,
            window=self.config.window,
            causal=causal,
            **place,
            **eps,
        )
        return self._close(x, attended[..., : self.config.head_dim])

    def _filled(self, heads: Tensor) -> Tensor:
        """Heads `[B, T, H, D]` as the cache holds them."""
        missing = self.config.cache_head_dim - self.config.head_dim
        return F.pad(heads, (0, missing)) if missing else heads


def _head_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.float(), (x.shape[-1],), weight.float(), eps).to(x.dtype)


def write(view: CacheView, layer: int, k: Tensor, v: Tensor, **options: Tensor | None) -> None:
    """Keys and values of new tokens into the cache; while compiling, a new cache in its place."""
    caches = (view.keys[layer], view.values[layer])
    scales = {"k_scale": view.k_scale[layer], "v_scale": view.v_scale[layer]}
    if not torch.compiler.is_compiling():
        ops.kv_append_(k, v, *caches, view.length, **scales, **options)
        return
    found = ops.kv_append(k, v, *caches, view.length, **scales, **options)
    view.keys[layer], view.values[layer] = found[:2]
    if view.k_scale[layer] is not None:
        view.k_scale[layer], view.v_scale[layer] = found[2:]
