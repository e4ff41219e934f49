"""What an AREngine refuses, and how it says so."""
# ruff: noqa: E501  (a case a line)

from __future__ import annotations

import pytest
import torch

from ardiff.ar.engine import AREngine
from ardiff.ar.patch_model import PatchModel
from tests._support.engine_oracle import SOLVER, WIDTH, D, prompt_of, tiny_model


@pytest.mark.parametrize(
    ("prompt", "patches", "options", "message"),
    [
        (None, 0, {}, "patches must lie in [1, 1048576), got 0"),
        (None, 2.5, {}, "patches must be an integer, got 2.5"),
        (torch.zeros(2, 3), 1, {}, f"prompt must be tokens of shape [n, {WIDTH}], got [2, 3]"),
        ([1], 1, {}, f"prompt must be tokens of shape [n, {WIDTH}], got list"),
        (None, 1, {"guidance": 2.0, "uncond": torch.zeros(3)}, f"uncond must be tokens of shape [n, {WIDTH}], got [3]"),
        (None, 1, {"uncond": torch.zeros(1, WIDTH)}, "uncond is the prompt that guidance compares with: pass guidance too"),
        (None, 1, {"guidance": 2.0, "uncond2": torch.zeros(1, WIDTH)}, "uncond2 is the prompt that guidance2 compares with: pass guidance2 too"),
        (None, 1, {"guidance2": 2.0, "uncond2": torch.zeros(1, WIDTH)}, "guidance2 weighs the difference of uncond and uncond2: pass guidance too, 1 for none"),
        (None, 1, {"guidance": 2.0, "guidance2": 2.0}, "guidance2 weighs the difference of uncond and uncond2, which are the same where neither is given: pass at least one"),
        (None, 1, {"guidance": 2.0, "guidance2": "high"}, "guidance2 must be a number, got 'high'"),
        (None, 1, {"guidance": 2.0, "guidance2": 2.0, "uncond2": torch.zeros(3)}, f"uncond2 must be tokens of shape [n, {WIDTH}], got [3]"),
        (None, 1, {"guidance": float("nan")}, "guidance must be finite, got nan"),
        (None, 1, {"guidance": "high"}, "guidance must be a number, got 'high'"),
        (None, 1, {"guidance": 2, "guidance_schedule": "cubic"}, "unknown guidance_schedule 'cubic'; known: constant, linear"),
        (None, 1, {"temperature": -1}, "temperature must be finite and at least 0, got -1"),
        (None, 1, {"seed": 2**63}, f"seed must lie in [{-(2**63)}, {2**63}), got {2**63}"),
        (None, 1, {"sample_id": -1}, f"sample_id must lie in [0, {2**43}), got -1"),
        (None, 2, {"order": [1, 1]}, "order must hold 2 different places in [0, 8), got [1, 1]"),
        (None, 2, {"order": [1, 8]}, "order must hold 2 different places in [0, 8), got [1, 8]"),
        (None, 2, {"order": [1.5, 0]}, "order must hold integers, got [1.5, 0]"),
        (None, 2, {"order": [1]}, "order must hold 2 different places in [0, 8), got [1]"),
        (None, 9, {}, "order must hold 9 different places in [0, 8), got [0, 1, 2, 3, 4, 5, 6, 7, 8]"),
        (prompt_of(9), 4, {}, "the request needs 13 tokens, but the engine's cache holds 12 tokens per sequence; make a larger capacity"),
        (prompt_of(4), 4, {"guidance": 2.0}, "the request needs 2 rows and 3 blocks, but the engine's cache has 1 rows and 3 blocks"),
        (prompt_of(6), 3, {"order": [7, 0, 1]}, "the request reaches position 14, but the encoder has 14 positions"),
    ],
)  # fmt: skip
def test_request_errors(prompt, patches, options, message):
    engine = AREngine(tiny_model(positions=14), SOLVER, 3, rows=1, capacity=12, block_size=4)
    with pytest.raises((TypeError, ValueError)) as error:
        engine.submit(prompt, patches, **{"seed": 0, **options})
    assert str(error.value) == message
    assert not engine.waiting


def test_other_errors():
    model = tiny_model(places=0)
    with pytest.raises(TypeError, match="model must be a PatchModel or an ARModel, got Linear"):
        AREngine(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="both the same, got float16 and an encoder of float16"):
        AREngine(tiny_model().half())
    mixed = tiny_model()
    mixed.encoder.bfloat16()
    with pytest.raises(ValueError, match="got float32 and an encoder of bfloat16"):
        AREngine(mixed)
    with pytest.raises(ValueError, match="unknown solver"):
        AREngine(model, "magic")
    with pytest.raises(ValueError, match='accept="energy" needs a density'):
        AREngine(model, "rtk-mala", 12, accept="energy")
    engine = AREngine(model, SOLVER, 3, rows=1, capacity=12)
    with pytest.raises(ValueError, match="steps"):
        engine.submit(None, 1, steps=0, seed=0)
    with pytest.raises(ValueError, match="makes patches in one order: for another one, train"):
        engine.submit(None, 2, order=[1, 0], seed=0)
    with pytest.raises(KeyError, match="no request 0; ids go from 0 to -1"):
        engine.cancel(0)
    with pytest.raises(ValueError, match=r"block must lie in \[1, 64\], got 65"):
        PatchModel(model.encoder, None, D, path="ou", prediction="score", block=65)
