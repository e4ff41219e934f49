"""Test environment: Triton runs interpreted on CPU tensors where there is no GPU.

Torch has two threads, or one in a worker of pytest-xdist, since other workers use the other cores.
"""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

IN_WORKER = "PYTEST_XDIST_WORKER" in os.environ
torch.set_num_threads(1 if IN_WORKER else min(2, os.cpu_count() or 1))
