"""Schemas and fakes of the ops, in the torch library namespace `ardiff`."""

from __future__ import annotations

from collections.abc import Callable

import torch

NAMESPACE = "ardiff"
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")

CHECKS: dict[str, Callable[..., None]] = {}
PARTS: dict[str, tuple[str, ...]] = {}
ROWWISE: set[str] = set()  # ops whose Python backends are given rows [B, d] for [B, ...]


def define(
    schema: str,
    check: Callable[..., None],
    fake: Callable | None = None,
    parts: tuple[str, ...] = (),
    rowwise: bool = False,
) -> None:
    """Define an op, its argument check and its fake (None for an in-place op: no results).

    The check also guards the fake, so that a mistake is reported while tracing. An op whose
    reference calls other ops, its `parts`, is served by every backend that serves them. A `rowwise`
    op takes tensors `[B, ...]` with contiguous rows in place of `[B, d]`; its first is the state.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    CHECKS[name] = check
    if parts:
        PARTS[name] = parts
    if rowwise:
        ROWWISE.add(name)

    def checked_fake(*args, **kwargs):
        check(*args, **kwargs)
        return None if fake is None else fake(*args, **kwargs)

    torch.library.register_fake(f"{NAMESPACE}::{name}", checked_fake, lib=_LIBRARY)


def implement_autograd(name: str, kernel: Callable) -> None:
    """Register `kernel(keyset, *args, **kwargs)` at an op's Autograd key, for every device."""
    _LIBRARY.impl(name, kernel, "Autograd", with_keyset=True)
