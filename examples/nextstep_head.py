"""A flow head of NextStep-1's form with random weights, accelerated: three-way guidance."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ardiff.integrations import nextstep  # noqa: E402
from benchmarks.reference_mar import HeadNet  # noqa: E402

TOKENS, DIM, CONTEXT = 4, 64, 512


class FlowHead(nn.Module):
    """Stands for NextStep's `image_head`; its own loop is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.net = HeadNet(DIM, CONTEXT, width=256, depth=4, out=DIM)

    def sample(self, c, cfg=1.0, cfg2=1.0, timesteps_shift=1.0, num_sampling_steps=20):
        raise NotImplementedError


def main() -> None:
    torch.manual_seed(0)
    head = FlowHead().eval().requires_grad_(False)
    nextstep.accelerate(head)
    # Conditions with text and image, with the image alone, with neither.
    c = torch.randn(3 * TOKENS, CONTEXT)
    for cfg, cfg2, ways in ((1.0, 1.0, 1), (7.5, 1.0, 2), (7.5, 1.5, 3)):
        torch.manual_seed(1)
        tokens = head.sample(c[: ways * TOKENS], cfg, cfg2, 3.0, 28)
        print(f"cfg {cfg}, cfg2 {cfg2}: tokens {list(tokens.shape)}, deviation {tokens.std():.2f}")
    print("times:", " ".join(f"{t:.2f}" for t in nextstep.shifted_times(8, 3.0)))
    nextstep.restore(head)


if __name__ == "__main__":
    main()
