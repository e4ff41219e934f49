"""In CI no implementation may be missing: tests/kernels tests those that it finds."""

from __future__ import annotations

import os

import pytest
import torch

from ardiff_kernels import host, testing
from ardiff_kernels.dispatch import backends, load


def missing() -> dict[str, str]:
    """The implementations that are required here and cannot serve the ops, and why."""
    names = ["reference", "cpu"]
    if not torch.cuda.is_available():
        names.append("triton")  # interpreted; with a GPU, tests/kernels runs it there
    reasons = {
        f"{name} ({op})": backends.unusable(op, name, "cpu")
        for name in names
        for op in ("uld_step", "diffusion_step", "philox_normal")
    }
    features = host.cpu_features()
    vectors = all(features.get(name) for name in ("avx2", "fma"))
    for isa in ("scalar", "avx2") if vectors else ("scalar",):
        absent = isa not in testing.cpu_isas()
        reasons[f"cpu-{isa}"] = (load.CPU.reason or "refused by the library") * absent
    return {name: reason for name, reason in reasons.items() if reason}


@pytest.mark.skipif(os.environ.get("CI") != "true", reason="required with CI=true only")
def test_every_implementation_is_here():
    assert missing() == {}


def test_a_missing_library_is_found(monkeypatch):
    """Negative control."""
    monkeypatch.setattr(load, "CPU", load.Library("_C", "not built"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    found = missing()
    assert {"cpu (uld_step)", "cpu-scalar"} <= found.keys()
    assert torch.cuda.is_available() or "triton (uld_step)" in found
