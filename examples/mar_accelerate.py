"""A model of MAR's form, its checkpoint, and `accelerate`: the same tokens on the same noise.

The model has random weights. With MAR's own repository and weights the lines that differ are those
that make the model (docs/integrations/mar.md).
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ardiff.integrations import mar  # noqa: E402
from benchmarks.reference_mar import DiffLoss, randomise  # noqa: E402

TOKENS, DIM, CONTEXT, STEPS = 4, 16, 256, 50


class Model(torch.nn.Module):
    """What is left of MAR without its transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.diffloss = DiffLoss(DIM, CONTEXT, depth=3, width=512, kept=STEPS)


def seconds(call) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    trained = Model()
    randomise(trained.diffloss)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint-last.pth"
        torch.save({"model": trained.state_dict(), "model_ema": trained.state_dict()}, path)
        model = Model().eval()
        model.load_state_dict(mar.load_tensors(path))

    torch.manual_seed(0)
    z = torch.randn(2 * TOKENS, CONTEXT)  # contexts with the class, then without
    cfg = torch.tensor(2.9)
    noise = torch.randn(1 + STEPS, 2 * TOKENS, DIM)
    own = model.diffloss.sample(z, 1.0, cfg, noise=noise)
    before = seconds(lambda: model.diffloss.sample(z, 1.0, cfg))

    mar.accelerate(model)
    found = model.diffloss.sample(z, 1.0, cfg, noise=noise)
    after = seconds(lambda: model.diffloss.sample(z, 1.0, cfg))
    error = float((found - own).abs().max() / own.abs().max())
    print(f"largest difference on the same noise: {error:.1e} of the largest number")
    print(
        f"{TOKENS} tokens with guidance, {STEPS} steps: {1e3 * before:.0f} -> {1e3 * after:.0f} ms"
    )

    mar.restore(model)
    mar.accelerate(model, solver="rtk-harmonic", steps=24)
    tokens = model.diffloss.sample(z, 1.0, cfg)[:TOKENS]
    print(f"rtk-harmonic, 24 calls: tokens {list(tokens.shape)}, deviation {tokens.std():.2f}")


if __name__ == "__main__":
    main()
