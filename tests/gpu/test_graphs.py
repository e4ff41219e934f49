"""CUDA graphs replay with noise that follows key and draw; the ops compile as one graph."""

from __future__ import annotations

import pytest
import torch

import ardiff
import ardiff_kernels
from ardiff.solvers import SOLVERS
from ardiff_kernels.testing import Call

from . import calls

OPS = tuple(calls.BOUNDS)


class Captured:
    """One in-place step, captured in a CUDA graph; `replay` starts from the same state."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.start = {name: call.args[name].clone() for name in call.state}
        self.function = getattr(torch.ops.ardiff, f"{call.op}_").default
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._step()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._step()

    def _step(self) -> None:
        self.function(*self.call.args.values(), **self.call.options)

    def replay(self) -> list[torch.Tensor]:
        for name, value in self.start.items():
            self.call.args[name].copy_(value)
        self.graph.replay()
        torch.cuda.synchronize()
        return [self.call.args[name].clone() for name in self.call.state]


@pytest.mark.parametrize("backend", calls.BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_replay_follows_key_and_draw(op: str, backend: str) -> None:
    calls.require(op, backend)
    call = calls.on_gpu(calls.make(op, 4, 129))
    call.args["row"].zero_()
    with torch.inference_mode(), ardiff_kernels.backend(backend):
        captured = Captured(call)
        key, draw = call.args["key"].clone(), call.args["draw"].clone()
        first = captured.replay()
        call.args["key"].add_(1)
        other_key = captured.replay()
        call.args["key"].copy_(key)
        call.args["draw"].add_(1)
        other_draw = captured.replay()
        call.args["draw"].copy_(draw)
        again = captured.replay()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other_key[0])
    assert not torch.equal(first[0], other_draw[0])
    assert not torch.equal(other_key[0], other_draw[0])


@pytest.mark.parametrize("backend", calls.BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_replay_equals_the_eager_call(op: str, backend: str) -> None:
    calls.require(op, backend)
    call = calls.on_gpu(calls.make(op, 4, 129))
    with torch.inference_mode(), ardiff_kernels.backend(backend):
        expected = call.functional()
        replayed = Captured(call).replay()
    for got, wanted in zip(replayed, expected, strict=False):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("backend", calls.BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_compiles_as_one_graph(op: str, backend: str) -> None:
    calls.require(op, backend)
    call = calls.on_gpu(calls.make(op, 4, 129))
    function = getattr(torch.ops.ardiff, op).default
    order = list(call.args)

    def three_steps(*args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        now = dict(zip(order, args, strict=True))
        for _ in range(3):
            results = function(*now.values())
            now.update(zip(call.state, results, strict=False))
            now["draw"] = now["draw"] + 1
        return tuple(now[name] for name in call.state)

    with torch.inference_mode(), ardiff_kernels.backend(backend):
        expected = three_steps(*call.args.values())
        got = torch.compile(three_steps, fullgraph=True)(*call.args.values())
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("solver", SOLVERS)
def test_sample_by_replays(solver: str) -> None:
    """Other keys, ids, conditions and guidance through one capture: the loop's samples, to the bit.
    A batch of 3 is captured as 3, one of 5 padded to 6."""
    weight = torch.linspace(-1, 1, 36, device=calls.DEVICE).view(6, 6)

    def model(x, level, condition):
        return torch.tanh((x[:, None] * weight).sum(2) + 0.001 * level[:, None] + condition)

    ardiff.clear_graphs()
    for batch in (3, 5):
        for seed in range(3):
            options = {
                "condition": torch.full((batch, 1), 0.1 * seed, device=calls.DEVICE),
                "uncond": torch.zeros(batch, 1, device=calls.DEVICE),
                "guidance": 1.0 + seed, "temperature": 0.9, "seed": seed, "device": calls.DEVICE,
                "sample_ids": list(range(seed, seed + batch)),
            }  # fmt: skip
            arguments = (model, (batch, 6), "vp-cosine", "v_prediction", solver, 25)
            replayed = ardiff.sample(*arguments, cuda_graph=True, **options, seed=0)
            assert torch.equal(replayed, ardiff.sample(*arguments, **options, seed=0))
    ardiff.clear_graphs()


def test_the_noise_of_a_path_by_replays() -> None:
    """A Brownian path of its own for each seed through one capture: the loop's samples."""

    def model(x, level, condition):
        return torch.tanh(x + 0.001 * level[:, None])

    ardiff.clear_graphs()
    for seed in range(3):
        options = {"noise": "path", "seed": seed, "device": calls.DEVICE}
        arguments = (model, (5, 6), "vp-cosine", "v_prediction", "ddpm", 25)
        replayed = ardiff.sample(*arguments, cuda_graph=True, **options)
        assert torch.equal(replayed, ardiff.sample(*arguments, **options))
    ardiff.clear_graphs()
