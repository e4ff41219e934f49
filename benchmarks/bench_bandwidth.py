"""Memory bandwidth of the in-place step ops against a device copy of the same run, and the host
time of a call.

Bytes counted are those that an op cannot avoid: `uld_step` reads z, v, anchor and the model output
and writes z and v; `diffusion_step` (a DDPM row, memory unused) reads x and the model output and
writes x. On a CPU it runs too, on small sizes, so that the code is exercised without a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

import ardiff_kernels
from ardiff_kernels.dispatch import backends

from . import _harness, _ops, bench_diffusion_step, bench_uld_step
from ._harness import Row, Settings

SUITE = "bandwidth"
ELEMENTS = 2**26
CASES = tuple(
    f"{op}/{ELEMENTS}/{dtype}"
    for op in ("uld_step", "diffusion_step")
    for dtype in ("float32", "bfloat16")
)
_MODULES = {"uld_step": bench_uld_step, "diffusion_step": bench_diffusion_step}
_STATE = {"uld_step": ("z", "v", "anchor"), "diffusion_step": ("x", "memory")}
_STATE_BYTES = {"uld_step": 5 * 4, "diffusion_step": 2 * 4}
_HOST_CALLS = 500
_COPY = "device-copy"


def usable(op: str, device: str) -> list[str]:
    """The compiled and Triton backends that can serve an op on a device here."""
    names = ("triton", "cuda") if device == "cuda" else ("cpu",)
    return [name for name in names if not backends.unusable(f"{op}_", name, device)]


def run(case: str, settings: Settings) -> Iterator[Row]:
    """For each backend: correctness, the share of the copy's bandwidth, host time per call.

    Raises:
        ValueError: no backend but the reference can serve the op on the device.
    """
    shape = _ops.parse(case)
    op = shape.op
    found = usable(op, settings.device)
    if not found:
        raise ValueError(f"{op}: no compiled or Triton backend serves {settings.device} here")
    tensors = _MODULES[op].inputs(shape, settings)
    for name in found:
        with ardiff_kernels.backend(name):
            yield from _MODULES[op].correctness(shape, tensors, SUITE)
    for name in found:
        with ardiff_kernels.backend(name), torch.inference_mode():
            yield from _bandwidth(shape, op, name, tensors, settings)
            yield _host_time(case, op, name, settings)


def _in_place(op: str, tensors: dict[str, torch.Tensor]) -> Callable[[], object]:
    arguments = {n: t.clone() if n in _STATE[op] else t for n, t in tensors.items()}
    function = getattr(torch.ops.ardiff, f"{op}_").default
    values = tuple(arguments.values())
    return lambda: function(*values)


def _bandwidth(
    shape: _ops.Shape,
    op: str,
    backend: str,
    tensors: dict[str, torch.Tensor],
    settings: Settings,
) -> Iterator[Row]:
    source = torch.ones(shape.elements, device=settings.device)
    target = torch.empty_like(source)
    seconds = _harness.interleave(
        {backend: _in_place(op, tensors), _COPY: lambda: target.copy_(source)}, settings
    )
    moved = {
        backend: (_STATE_BYTES[op] + tensors["model_out"].element_size()) * shape.elements,
        _COPY: 2 * 4 * shape.elements,
    }
    rates = {name: [moved[name] / s / 1e9 for s in values] for name, values in seconds.items()}
    for name, values in rates.items():
        yield _harness.spread_row(SUITE, shape.case, name, "bandwidth", values, "GB/s")
    share = [a / b for a, b in zip(rates[backend], rates[_COPY], strict=True)]
    yield _harness.spread_row(SUITE, shape.case, backend, "share_of_copy_bandwidth", share, "1")


def _host_time(case: str, op: str, backend: str, settings: Settings) -> Row:
    small = _ops.parse(f"{op}/1024/{case.rsplit('/', 1)[1]}")
    call = _in_place(op, _MODULES[op].inputs(small, settings))
    microseconds = []
    for _ in range(settings.rounds + 1):
        _harness.synchronize(settings.device)
        start = time.perf_counter()
        for _ in range(_HOST_CALLS):
            call()
        microseconds.append((time.perf_counter() - start) / _HOST_CALLS * 1e6)
        _harness.synchronize(settings.device)
    return _harness.spread_row(
        SUITE, case, backend, "host_time_of_a_1024_element_call", microseconds[1:], "us"
    )
