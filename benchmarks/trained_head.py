"""A trained head of MAR-B's size, since random weights cannot show how far rows can be drafted.

Its tokens are the first 16 principal components of the patches of Sun/Shadow images, its contexts
those of the shipped model. It is trained once, for some minutes, and kept in `out/`.

    python -m benchmarks.trained_head
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import ardiff
from ardiff.data.sun_shadow import sun_shadow
from ardiff.heads.base import Head

from ._heads import MODELS, Shape

FILE = Path(__file__).resolve().parents[1] / "out/mar-b-trained.safetensors"
IMAGES, HELD_OUT = 6000, 64  # held out: contexts to sample at
STEPS, BATCH, RATE = 1500, 64, 4e-4


def trained_head(file: Path = FILE) -> tuple[Shape, Head, Tensor]:
    """The shape, the head, and `[n, 768]` contexts that it was not trained on."""
    shape = MODELS["mar-b"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = shape.kind(shape.dim, shape.context, shape.width, shape.depth)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        contexts = _train(shape, head)
        tensors = {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
        save_file({**tensors, "contexts": contexts}, file)
    tensors = load_file(file)
    contexts = tensors.pop("contexts")
    head.load_state_dict({name.removeprefix("head."): t for name, t in tensors.items()})
    return shape, head.eval().requires_grad_(False), contexts


def _data() -> tuple[Tensor, Tensor]:
    """Tokens `[n, 16]` of unit variance, and contexts `[n, 768]`."""
    model = ardiff.load("sun-shadow")
    images, _ = sun_shadow(IMAGES, seed=0)
    with torch.inference_mode():
        patches = model.to_patches(torch.as_tensor(images))
        found = [model.context.encode(part) for part in patches.split(500)]
        contexts = torch.cat([f[0] if isinstance(f, tuple) else f for f in found]).flatten(0, 1)
        flat = patches.flatten(0, 1)
        flat = flat - flat.mean(0)
        _, _, axes = torch.linalg.svd(flat[:4000], full_matrices=False)
        tokens = flat @ axes[:16].T
    return (tokens / tokens.std()).clone(), contexts.repeat(1, 3).clone()


def _train(shape: Shape, head: Head) -> Tensor:
    tokens, contexts = _data()
    held = HELD_OUT * 4
    path = ardiff.get_path(shape.path)
    generator = torch.Generator().manual_seed(0)
    head.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(head.parameters(), RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    start = time.perf_counter()
    for step in range(STEPS):
        rows = held + torch.randint(len(tokens) - held, (BATCH,), generator=generator)
        level = torch.rand(BATCH, generator=generator) * 999
        alpha = torch.from_numpy(path.alpha(level.double().numpy())).float()[:, None]
        sigma = torch.from_numpy(path.sigma(level.double().numpy())).float()[:, None]
        noise = torch.randn(BATCH, tokens.shape[1], generator=generator)
        x = alpha * tokens[rows] + sigma * noise
        with torch.autocast("cpu", torch.bfloat16):
            out = head(x, level, contexts[rows])
        loss = nn.functional.mse_loss(out.float(), noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            spent = time.perf_counter() - start
            print(f"step {step}: loss {loss.item():.4f}, {spent:.0f} s", flush=True)
    return contexts[:held].contiguous()


if __name__ == "__main__":
    trained_head()
