"""A caller's own encoder and head in the form that ARSampler samples from."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..loop.checks import check_signature
from ..tables.paths import Path, check_prediction, get_path
from .requests import Request


class _WholePrefix:
    """An ``encode(patches)`` as an encoder with a cache: it gets all patches at every step."""

    def __init__(self, encode: Callable[..., Any], blank: Tensor) -> None:
        self.encode, self._blank = encode, blank

    def new_cache(self, batch: int) -> list[Tensor]:
        return [self._blank.expand(batch, 0, -1)]

    def step(self, patch: Tensor | None, cache: list[Tensor], *condition: Any) -> Any:
        if patch is not None:
            cache[0] = torch.cat([cache[0], patch[:, None]], 1)
        return self.encode(cache[0].clone(), *condition)


class OwnModel:
    """What ARSampler needs to know of a model, from functions.

    Args:
        encode: ``encode(patches) -> context``, patches float32 `[B, k, patch_dim]`, the k that are
            made, k = 0 first; the context is what `denoise` takes, a tensor `[B, ...]` if guidance
            is to be used. Or an object with ``new_cache(batch)`` and ``step(patch, cache)``, the
            patch `[B, patch_dim]` just made (None first) and a cache of its own, for encoders that
            keep keys and values. Where samples are drawn with a condition, its rows `[B, ...]` are
            one more argument, the last: ``encode(patches, condition)``, ``step(patch, cache,
            condition)``.
        denoise: ``denoise(x, level, context) -> output`` as :func:`ardiff.sample` calls it, x
            `[B, patch_dim]`; or an object with ``hoist``, such as a head of `ardiff.models`.
        patches, patch_dim: patches of a sample and elements of a patch.
        path, prediction: of `denoise`; names as in :func:`ardiff.solver`.
        null: the context of guidance without a condition, to be broadcast over the batch.
        decode: ``decode(patches [n, patches, patch_dim])`` makes `SampleOutput.images`; None leaves
            the patches.
        device: where states and noise live.

    Raises:
        TypeError, ValueError: something that cannot be called as above, sizes below 1, unknown
            names.
    """

    def __init__(
        self,
        encode: Any,
        denoise: Any,
        *,
        patches: int,
        patch_dim: int,
        path: str | Path,
        prediction: str,
        null: Tensor | None = None,
        decode: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value in (("patches", patches), ("patch_dim", patch_dim)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of 1 or more, got {value!r}")
        if not callable(denoise) and not hasattr(denoise, "hoist"):
            raise TypeError(f"denoise must be callable or have hoist, got {type(denoise).__name__}")
        if not hasattr(denoise, "hoist"):
            check_signature("denoise", denoise, "denoise(x, level, context)")
        self.mean = torch.zeros(1, patch_dim, dtype=torch.float32, device=device)
        if hasattr(encode, "step") and hasattr(encode, "new_cache"):
            self.context = encode
        elif callable(encode):
            self.context = _WholePrefix(encode, self.mean[None])
        else:
            raise TypeError(
                f"encode must be callable or have new_cache and step, got {type(encode).__name__}"
            )
        if decode is not None and not callable(decode):
            raise TypeError(f"decode must be callable, got {type(decode).__name__}")
        self.denoiser, self.null, self.decode = denoise, null, decode
        self.block, self.patch_dim, self.grid = 1, patch_dim, {}
        self.path, self.prediction = get_path(path), check_prediction(prediction)
        self.config = SimpleNamespace(
            patches=patches, context_width=None if null is None else null.shape[-1]
        )

    @property
    def start(self) -> Tensor:
        """Where states and noise live, as models have it."""
        return self.mean

    def check_condition(self, condition: Tensor | None) -> None:
        """Raises TypeError unless `encode` takes a condition where there is one."""
        more = "" if condition is None else ", condition"
        if isinstance(self.context, _WholePrefix):
            check_signature("encode", self.context.encode, f"encode(patches{more})")
        else:
            check_signature("encode.step", self.context.step, f"step(patch, cache{more})")

    def contexts(self, cache: Any, condition: Tensor | None, running: list[Request]) -> list[Any]:
        """The contexts of the next patches of a whole batch, as :func:`ardiff.ar.step.contexts`."""
        first = running[0]
        last = None if first.last is None else torch.cat([request.last for request in running])
        more = () if condition is None else (condition,)
        context = self.context.step(last, cache, *more)
        fixed = first.sources[1:]
        return [context, *(other.to(context).expand_as(context).contiguous() for other in fixed)]

    def clip(self, patch: Tensor, place: Tensor) -> Tensor:
        return patch

    def finished(self, patch: Tensor, k: int) -> Tensor:
        """Patch k as `stream` yields it: a copy, since the patch itself goes on to the encoder."""
        return patch.clone()

    def assemble(self, patches: list[Tensor]) -> Tensor:
        """Patches `[b, patch_dim]` in order -> `[b, patches, patch_dim]`, decoded."""
        whole = torch.stack(patches, 1)
        # clone: a decoder may answer the next batch in the same memory
        return whole if self.decode is None else self.decode(whole).clone()

    def nothing(self) -> Tensor:
        """What `sample(0)` returns."""
        return self.assemble([self.mean[:0]] * self.config.patches)
