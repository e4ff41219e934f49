"""Which backend serves a call: the choice of the caller's own thread or coroutine, every time."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor

import ardiff_kernels
from ardiff_kernels import ops, testing
from ardiff_kernels.dispatch import backends, load
from tests import ROOT

pytestmark = pytest.mark.skipif(not load.CPU.loaded, reason="it takes two backends of the CPU")
CALL = testing.uld_call(4, 33)


def values() -> Tensor:
    """The two backends round differently, so its bits tell which one served."""
    return torch.cat(CALL.functional())


def results_of(name: str) -> Tensor:
    with ardiff_kernels.backend(name):
        return values()


OF = {name: results_of(name) for name in ("reference", "cpu")}


def served() -> str:
    (name,) = [name for name, bits in OF.items() if torch.equal(values(), bits)]
    return name


def in_thread(function, *args) -> None:
    thread = threading.Thread(target=function, args=args)
    thread.start()
    thread.join()


def test_the_two_backends_can_be_told_apart():
    """Without this the others would show nothing."""
    assert not torch.equal(OF["reference"], OF["cpu"])
    assert torch.allclose(OF["reference"], OF["cpu"], atol=1e-5)


def test_threads_force_each_their_own():
    """Two threads enter in turn and leave in the order in which they came."""
    turns = [threading.Event() for _ in range(3)]
    seen = {}

    def first():
        with ardiff_kernels.backend("reference"):
            turns[0].set()
            turns[1].wait(60)
            seen["first"] = served()
        turns[2].set()

    def second():
        turns[0].wait(60)
        with ardiff_kernels.backend("cpu"):
            turns[1].set()
            turns[2].wait(60)
            seen["second"] = served()

    threads = [threading.Thread(target=function) for function in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"first": "reference", "second": "cpu"}
    assert ardiff_kernels.forced_backend() is None and served() == "cpu"


def test_coroutines_force_each_their_own():
    seen = []

    async def task(name: str, wanted: str) -> None:
        with ardiff_kernels.backend(name) if name else contextlib.nullcontext():
            for _ in range(3):
                seen.append((wanted, served()))
                await asyncio.sleep(0)

    async def all_tasks() -> None:
        await asyncio.gather(task("reference", "reference"), task("", "cpu"), task("cpu", "cpu"))

    asyncio.run(all_tasks())
    assert len(seen) == 9 and all(wanted == got for wanted, got in seen)
    assert ardiff_kernels.forced_backend() is None


def test_leaving_out_of_order_leaves_nothing_behind():
    """A generator that is closed inside another `with`."""

    def generator():
        with ardiff_kernels.backend("reference"):
            yield

    outer = generator()
    next(outer)
    with ardiff_kernels.backend("cpu"):
        outer.close()
        assert ardiff_kernels.forced_backend() == "cpu" and served() == "cpu"
    assert ardiff_kernels.forced_backend() is None and served() == "cpu"


def test_nested_and_left_by_an_error():
    with ardiff_kernels.backend("cpu"):
        with pytest.raises(KeyError), ardiff_kernels.backend("reference"):
            assert served() == "reference"
            raise KeyError
        assert served() == "cpu"
    assert ardiff_kernels.forced_backend() is None


def test_threads_started_inside():
    """One that gets a copy of the context has its choice, until that ends; another the default."""
    seen = []

    def note():
        seen.append(served())

    with ardiff_kernels.backend("reference"):
        in_thread(note)
        copy = contextvars.copy_context()
        in_thread(copy.run, note)
    in_thread(copy.run, note)
    assert seen == ["cpu", "reference", "cpu"]


def test_a_compiled_function_asks_at_every_call():
    torch.compiler.reset()
    compiled = torch.compile(values, fullgraph=True, backend="eager")
    for name in ("reference", "cpu", "reference"):
        with ardiff_kernels.backend(name):
            assert torch.equal(compiled(), OF[name])
    assert torch.equal(compiled(), OF["cpu"])


def test_the_backward_pass_runs_where_the_forward_pass_did(monkeypatch):
    forced = []
    original = backends._function

    def note(op, name, device):
        forced.append((op, name))
        return original(op, name, device)

    monkeypatch.setattr(backends, "_function", note)
    out = CALL.args["model_out"].clone().requires_grad_()
    args = {**CALL.args, "model_out": out}
    with ardiff_kernels.backend("reference"):
        loss = sum(t.sum() for t in ops.uld_step(*args.values()))
    loss.backward()
    assert forced == [("uld_step", "reference"), ("uld_step_backward", "reference")]
    assert ardiff_kernels.forced_backend() is None


def test_errors_come_through_with_their_types(monkeypatch):
    """A forced backend is called by C++, through which no Python error can pass."""
    message = "^philox_normal: counter must lie in .* got -1$"
    key, stream = torch.tensor([1]), torch.arange(2)
    with ardiff_kernels.backend("reference"):
        for function in (ops.philox_normal, torch.ops.ardiff.philox_normal):
            with pytest.raises(RuntimeError, match=message):
                function(key, -1, stream, 4)

    def fail(*args):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(backends, "_function", lambda op, name, device: fail)
    with ardiff_kernels.backend("reference"):
        with pytest.raises(torch.OutOfMemoryError, match="^no room$"):
            ops.philox_normal(key, 0, stream, 4)
        with pytest.raises(RuntimeError, match="^no room$"):
            torch.ops.ardiff.philox_normal(key, 0, stream, 4)


TOGGLE = """
import threading, torch
import ardiff_kernels
from ardiff_kernels import testing
call = testing.uld_call(4, 33)
assert ardiff_kernels.forced_backend() == "reference"
assert ardiff_kernels.chosen_backend("uld_step", "cpu") == "reference"
want, wrong, calls = call.functional()[0], [], [0]
entered, done = threading.Event(), threading.Event()

def toggle():
    turns = 0
    while turns < 100 or calls[0] < 100:  # until the others have called meanwhile
        with ardiff_kernels.backend("cpu"):
            entered.set()
            if torch.equal(call.functional()[0], want):
                wrong.append("toggled")
        turns += 1
    done.set()

def use():
    entered.wait(60)
    while not done.is_set():
        if not torch.equal(call.functional()[0], want):
            wrong.append("other")
        calls[0] += 1

threads = [threading.Thread(target=f) for f in (toggle, use, use, use)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert calls[0] > 0 and not wrong, (calls, wrong[:5])
"""


def test_a_process_with_a_backend_of_its_own_and_a_thread_that_forces_another():
    """ARDIFF_BACKEND. A dispatcher that changes under the calls of others ends in a segfault."""
    command = [sys.executable, "-c", TOGGLE]
    environment = {**os.environ, "ARDIFF_BACKEND": "reference"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
