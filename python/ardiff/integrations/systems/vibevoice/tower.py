"""A tower of VibeVoice's codec, decoder or encoder, on the chunks of a stream."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ....heads.packing import bit_sums, hooked_everywhere
from ..swaps import why_not
from .layers import ConvNext, Convolution, Transposed

MODULE = "transformers.models.vibevoice_acoustic_tokenizer.modeling_vibevoice_acoustic_tokenizer"
_PREFIX = "VibeVoiceAcousticTokenizer"
DECODER, ENCODER = f"{_PREFIX}DecoderModel", f"{_PREFIX}EncoderModel"

# Tokens of all samples together up to which a chunk is computed here. Processor time of the encoder
# of VibeVoice, stock over ours: bfloat16 3.4 for 1 token, 3.7 for 16; float32 1.1 for 1, 2.4 for 2,
# 1.15 for 16 (AMD EPYC "Zen 4" with AVX-512 BF16, one thread).
MOST_TOKENS = 16

_KINDS = {
    f"{_PREFIX}CausalConv1d": Convolution,
    f"{_PREFIX}CausalConvTranspose1d": Transposed,
    f"{_PREFIX}ConvNext1dLayer": ConvNext,
}


def layers_of(tower: nn.Module) -> Iterator[nn.Module]:
    """The layers of a tower in the order in which its activations pass them."""
    yield tower.stem.conv
    yield from tower.stem.stage
    for layer in tower.conv_layers:
        yield layer.convtr if hasattr(layer, "convtr") else layer.conv
        yield from layer.stage
    yield tower.head


def reason_against(tower: nn.Module) -> str:
    """Why a tower cannot be computed here; empty if it can."""
    name = type(tower).__name__
    if name not in (DECODER, ENCODER) or type(tower).__module__ != MODULE:
        return f"a {name} stands where a {DECODER} or {ENCODER} is expected"
    layers = list(layers_of(tower))
    for layer in layers:
        kind = type(layer).__name__
        if kind not in _KINDS or type(layer).__module__ != MODULE:
            return f"a {kind} stands where a layer of the codec is expected"
    blocks = [layer for layer in layers if _KINDS[type(layer).__name__] is ConvNext]
    linears = [linear for b in blocks for linear in (b.ffn.linear1, b.ffn.linear2)]
    reason = why_not(tower, linears)
    if reason:
        return reason
    for module in tower.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            other = _other_convolution(module)
            if other:
                return other
    found = {(str(p.dtype)[6:], p.device.type) for p in tower.parameters()}
    if len(found) > 1 or not found <= {("float32", "cpu"), ("bfloat16", "cpu")}:
        kinds = " and ".join(f"{dtype} on {device}" for dtype, device in sorted(found))
        return f"weights are {kinds}, expected all of float32 or all of bfloat16, on a CPU"
    return ""


def _other_convolution(conv: nn.Module) -> str:
    """Why a convolution is none that the layers here compute; empty if it is one."""
    if type(conv) not in (nn.Conv1d, nn.ConvTranspose1d) or conv.bias is None:
        return f"a {type(conv).__name__} without bias or of another kind is among the convolutions"
    size, stride = conv.kernel_size[0], conv.stride[0]
    plain = conv.dilation == (1,) and conv.padding == (0,) and conv.padding_mode == "zeros"
    if isinstance(conv, nn.ConvTranspose1d):
        known = size == 2 * stride and conv.groups == 1 and conv.output_padding == (0,)
    else:
        known = conv.groups == 1 or (conv.groups == conv.in_channels == conv.out_channels)
    if plain and known:
        return ""
    return f"a convolution of another kind than the codec's is in it: {conv}"


def stamp(modules: Iterator[nn.Module]) -> list | None:
    """What tells a change of modules and all within: which they are, where their parameters lie
    and how often those were written to; None where calls of one would be seen by a hook."""
    found: list = []
    pending = list(modules)
    while pending:
        module = pending.pop()
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return None
        found.append(id(module))
        for t in module._parameters.values():
            if t is not None:
                found.append((t.data_ptr(), 0 if t.is_inference() else t._version))
        pending.extend(module._modules.values())
    return found


class Tower:
    """Stands in for the `forward` of a decoder or an encoder, for chunks of a stream.

    All else goes to the stock forward: calls without a cache, of many tokens or of steps that are
    no whole tokens, with gradients, in training, under autocast; and a tower that was changed so
    that its layers cannot be computed here. Writes to the parameters are followed at each chunk,
    those through ``.data`` where a stream begins.

    Args:
        stock: the tower, for which :func:`reason_against` gave no reason.
        weights: as `Choices` has it.
        batch_invariant: as `Choices` has it.
    """

    def __init__(self, stock: nn.Module, weights: str | None, batch_invariant: bool) -> None:
        self.stock = stock
        self._options = {"weights": weights, "packed_only": batch_invariant}
        self._home = importlib.import_module(MODULE)
        config = stock.config
        self._decodes = type(stock).__name__ == DECODER
        self._inputs = config.hidden_size if self._decodes else config.channels
        self._token = 1 if self._decodes else math.prod(config.downsampling_ratios)
        self._layers: list = []
        self._stamps: list = []
        self._stamp: list | None = None
        self._sums: Tensor | None = None
        self._reason = ""

    @property
    def memory_bytes(self) -> int:
        """What the layers hold beside the parameters."""
        return sum(p.memory_bytes for layer in self._layers for p in layer.products)

    def prepare(self) -> None:
        """Makes what a chunk of one token needs, so that the first one does not wait for it."""
        self._follow(read=True)
        first = next(self.stock.parameters())
        x = first.new_zeros(1, self._inputs, self._token)
        with torch.no_grad():
            self._run(x, None)

    def _follow(self, read: bool) -> bool:
        """Makes the layers anew whose parameters changed; whether all can be computed here.

        Args:
            read: compare the bits of the parameters too, in which alone a write through ``.data``
                leaves a trace.
        """
        found = stamp(self.stock.children())
        if found is None or hooked_everywhere():
            return False
        if read:
            sums = bit_sums([p.detach() for p in self.stock.parameters()])
            if self._sums is not None and not torch.equal(sums, self._sums):
                self._stamp, self._stamps = None, []
            self._sums = sums
        if found != self._stamp:
            replaced = vars(self.stock).pop("forward", None)
            try:
                self._reason = reason_against(self.stock)
            finally:
                if replaced is not None:
                    vars(self.stock)["forward"] = replaced
            if not self._reason:
                self._make()
            self._stamp = found
        return not self._reason

    def _make(self) -> None:
        modules = list(layers_of(self.stock))
        stamps = [stamp(iter([module])) for module in modules]
        kept = self._layers or [None] * len(modules)
        old = self._stamps or [None] * len(modules)
        self._layers = [
            layer if before == now else _KINDS[type(module).__name__](module, self._options)
            for module, layer, before, now in zip(modules, kept, old, stamps, strict=True)
        ]
        self._stamps = stamps

    def _continues(self, cache: Any, x: Tensor) -> bool:
        """Whether what a cache holds was put there by a stream like that of x."""
        if type(cache) is not self._home.VibeVoiceAcousticTokenizerConv1dPaddingCache:
            return False
        return all(
            not layer.is_initialized
            or (layer.cache.dtype == x.dtype and len(layer.cache) == len(x) and layer.cache.is_cpu)
            for layer in cache.layers.values()
        )

    def _fits(self, x: Any, cache: Any, use_cache: bool) -> bool:
        if not isinstance(x, Tensor) or x.dim() != 3 or not x.is_cpu:
            return False
        batch, channels, steps = x.shape
        tokens = batch * steps / self._token
        if channels != self._inputs or steps % self._token or not 0 < tokens <= MOST_TOKENS:
            return False
        first = next(self.stock.parameters())
        if x.dtype != first.dtype or self.stock.training or torch.is_autocast_enabled("cpu"):
            return False
        if torch.is_grad_enabled() and (
            x.requires_grad or any(p.requires_grad for p in self.stock.parameters())
        ):
            return False
        return self._continues(cache, x) if cache is not None else bool(use_cache)

    def forward(
        self, hidden_states: Tensor, padding_cache: Any = None, use_cache: bool = False, **kwargs
    ) -> Any:
        """Latents `[batch, size, tokens]` to audio `[batch, 1, samples]` (decoder), or audio to
        latents `[batch, tokens, size]` (encoder), as the stock forward returns them.

        The cache is the stock one and is continued in place; stock may go on with it.
        """
        begins = padding_cache is None or not padding_cache.layers
        fits = self._fits(hidden_states, padding_cache, use_cache)
        if not fits or not self._follow(read=begins):
            return type(self.stock).forward(
                self.stock, hidden_states, padding_cache, use_cache, **kwargs
            )
        with torch.no_grad():
            return self._run(hidden_states, padding_cache)

    def _run(self, x: Tensor, cache: Any) -> Any:
        home = self._home
        if cache is None:
            cache = home.VibeVoiceAcousticTokenizerConv1dPaddingCache()
        x = x.transpose(1, 2)
        for layer in self._layers:
            key = layer.convolution.cache_key
            if key not in cache.layers:
                cache.layers[key] = home.VibeVoiceAcousticTokenizerConv1dCacheLayer()
            x = layer(x, cache)
        if self._decodes:
            return home.VibeVoiceAcousticTokenizerDecoderOutput(
                audio=x.transpose(1, 2), padding_cache=cache
            )
        return home.VibeVoiceAcousticTokenizerEncoderOutput(latents=x, padding_cache=cache)
