"""Decoding with `kv_attention` against a device copy and PyTorch of the same run, for each compiled
or Triton backend.

Cases, inputs and rivals are those of `bench_kv_attention`. Bytes counted are the keys and values
that a row has; a copy counts what it reads and writes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

import ardiff_kernels
from ardiff_kernels.dispatch import backends

from . import _harness, bench_kv_attention
from ._harness import Row, Settings

SUITE = "bandwidth"
CASES = (
    "kv_attention/B=64/heads=32:8/D=128/length=8192/bfloat16",
    "kv_attention/B=64/heads=32:8/D=128/length=1-8192/bfloat16",
)
_COPY = "device-copy"


def usable(device: str) -> list[str]:
    """The compiled and Triton backends that can serve the op on a device here."""
    names = ("triton", "cuda") if device == "cuda" else ("cpu",)
    return [name for name in names if not backends.unusable("kv_attention", name, device)]


def run(case: str, settings: Settings) -> Iterator[Row]:
    """For each backend: correctness, time, the share of the copy's bandwidth, speedups.

    Raises:
        ValueError: no backend but the reference can serve the op on the device.
    """
    found = usable(settings.device)
    if not found:
        raise ValueError(f"kv_attention: no compiled or Triton backend serves {settings.device}")
    tensors = bench_kv_attention.inputs(case, settings)
    rivals = settings.pick(tensors.rivals())
    for name in found:
        with ardiff_kernels.backend(name), torch.inference_mode():
            yield from bench_kv_attention.correctness(case, tensors.head(), tuple(rivals), SUITE)
    size = tensors.elements * tensors.k_cache.element_size()
    source = torch.ones(max(1, size // 8), device=settings.device)
    target = torch.empty_like(source)
    for name in found:
        competitors = {name: tensors.ours, **rivals, _COPY: lambda: target.copy_(source)}
        with ardiff_kernels.backend(name), torch.inference_mode():
            seconds = _harness.interleave(competitors, settings)
        moved = {name: size, _COPY: 8 * source.numel()}
        rates = {who: [n / s / 1e9 for s in seconds[who]] for who, n in moved.items()}
        for who, values in rates.items():
            yield _harness.spread_row(SUITE, case, who, "bandwidth", values, "GB/s")
        share = [a / b for a, b in zip(rates[name], rates[_COPY], strict=True)]
        yield _harness.spread_row(SUITE, case, name, "share_of_copy_bandwidth", share, "1")
        for rival in rivals:
            yield _harness.speedup_row(SUITE, case, rival, seconds[rival], seconds[name])
