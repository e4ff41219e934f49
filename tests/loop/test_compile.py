"""A table that was never run compiles with the loop, and keeps no inference tensors."""

from __future__ import annotations

import pytest
import torch

import ardiff
from ardiff.loop.run import run
from ardiff.noise import initial_state

KEY, STREAM = torch.tensor([3]), torch.arange(4)


def gaussian(x, level, condition):
    return -x / (1 + level[:, None])


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m-sde", "rtk-uld"])
def test_compiles_before_any_eager_run(solver):
    table = ardiff.solver(solver, path="edm", prediction="score", steps=7, ratio_max=31.0)

    def loop():
        x = initial_state(table, KEY, STREAM, 6)
        return run(table, gaussian, x, key=KEY, stream=STREAM)

    torch.compiler.reset()
    compiled = torch.compile(loop, fullgraph=True, backend="aot_eager")()
    assert torch.equal(compiled, loop())


def test_a_table_made_in_inference_mode_serves_outside_it():
    with torch.inference_mode():
        table = ardiff.solver("ddim", path="ou", prediction="score", steps=9, ratio_max=29.0)
    assert not any(t.is_inference() for t in table.to("cpu") if torch.is_tensor(t))
