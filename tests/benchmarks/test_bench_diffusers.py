"""A step is several times faster than diffusers' at [1, 4, 64, 64], both measured in turns."""

from __future__ import annotations

import pytest
import torch

from benchmarks import _harness, bench_diffusers  # noqa: E402


@pytest.mark.parametrize("case", bench_diffusers.CASES)
def test_speed(case):
    """At least 3 times, loosely: `ardiff bench integrations` on an idle core says how many."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # other tests' threads would be waited for
    try:
        settings = _harness.Settings(rounds=15, seconds=0.005)
        rows = _harness.gated(bench_diffusers.run(case, settings))
    finally:
        torch.set_num_threads(threads)
    assert _harness.failures([vars(row) for row in rows]) == []
    (speedup,) = [row.value for row in rows if row.metric == "speedup"]
    assert speedup >= 3
