"""`head_step` on every implementation: against float64, PyTorch's own modules as the measure, and
to the bit where only the company of a patch changes."""

from __future__ import annotations

import math
import threading

import pytest
import torch

from ardiff_kernels import testing
from ardiff_kernels.dispatch import backends
from ardiff_kernels.testing import same_bits
from tests.kernels.head_step.calls import BF16, F32, FORMS, I8, error, excess, head_call
from tests.kernels.kv_attention.calls import INTERPRETED

# Few programs each, for the interpreter.
SMALL = {
    "layer plain": dict(N=3, ways=2),
    "layer plain int8": dict(N=3, dtype=I8, shared=True, ways=2),
    "layer gated": dict(N=3, mlp="gated", ways=2, inner=40),
    "rms plain bfloat16": dict(N=3, norm="rms", dtype=BF16, outer=F32),
    "rms gated bfloat16": dict(N=2, norm="rms", mlp="gated", dtype=BF16, outer=F32, inner=40),
    "odd": dict(N=3, width=37, inner=19, d=5, out=3, depth=1, modulation=BF16),
}
ODD = dict(width=51, inner=29, d=9, out=7)
CASES = {
    "empty": dict(N=0),
    "width 1": dict(N=3, width=1, inner=1, d=1, out=1, depth=1, norm="rms", mlp="gated"),
    "width 7": dict(N=12, width=7, inner=3, d=2, out=5),
    "odd bfloat16": dict(N=5, width=37, inner=19, d=5, out=3, dtype=BF16),
    "odd int8": dict(N=11, width=37, inner=19, d=5, out=3, dtype=I8, outer=F32),
    "odd gated": dict(N=3, mlp="gated", **ODD),
    "odd rms": dict(N=3, norm="rms", **ODD),
    "odd rms gated": dict(N=3, norm="rms", mlp="gated", **ODD),
    "odd rms gated int8": dict(N=10, norm="rms", mlp="gated", dtype=I8, **ODD),
    "long rows": dict(N=2, width=40, inner=1100, depth=1),
    "long rows bfloat16": dict(N=9, width=40, inner=2100, depth=1, dtype=BF16),
    "long rows float32, many": dict(N=66, width=40, inner=1101, depth=1),
    "three ways": dict(N=5, ways=3),
    "three ways, shared": dict(N=5, ways=3, shared=True, dtype=BF16),
    "three ways of 30": dict(N=30, ways=3, width=64),
    "biases of a gated MLP": dict(N=4, norm="rms", mlp="gated", bias=True),
    "no biases of a plain MLP": dict(N=4, bias=False),
    "bfloat16 modulation": dict(N=4, modulation=BF16, dtype=BF16),
    "wide": dict(N=4, width=512, depth=3),
    "wide bfloat16": dict(N=1, width=512, depth=3, dtype=BF16),
    **{
        f"{N} of {norm} {mlp} {str(dtype)[6:]}": dict(
            N=N, norm=norm, mlp=mlp, dtype=dtype, ways=ways
        )
        for N, ways in ((1, 1), (2, 2), (4, 1), (8, 1), (9, 1), (17, 2), (64, 1), (70, 1))
        for norm, mlp in FORMS
        for dtype in (F32, BF16, I8)
    },
    **SMALL,
}
COMPANY = {
    "float32": dict(N=7, ways=2, width=40, inner=33),
    "bfloat16": dict(N=70, dtype=BF16, modulation=BF16),
    "int8": dict(N=13, ways=3, dtype=I8, width=37, inner=19),
    "rms gated": dict(N=9, norm="rms", mlp="gated", ways=2, shared=True, width=51, inner=29),
    "long rows": dict(N=10, width=40, inner=1100, depth=1),
}


@pytest.fixture
def serving(implementation):
    """The implementation, where it has the op."""
    name, _, variant = implementation.partition("-")
    if reason := backends.unusable("head_step", name, "cuda" if variant == "gpu" else "cpu"):
        pytest.skip(f"{name}: {reason}")
    return implementation


@pytest.mark.parametrize("name", CASES)
def test_error_is_within_twice_that_of_pytorch(serving, name):
    if serving in INTERPRETED and name not in SMALL:
        pytest.skip("too many programs for the interpreter")
    call = head_call(**CASES[name])
    assert excess(call.functional(), call) <= 1


@pytest.mark.parametrize("N", range(1, 71))
def test_any_number_of_patches(N):
    call = head_call(N, width=40, inner=44, depth=1, dtype=(F32, BF16, I8)[N % 3])
    assert excess(call.functional(), call) <= 1


@pytest.mark.parametrize("name", ["set", "x", "eps", "order", "gate", "way"])
def test_a_wrong_call_would_be_noticed(name):
    """Negative control: another set, eps or order of the modulations, or a small error in one
    element of a gate or in x."""
    call = head_call(3, ways=2)
    wrong = head_call(3, ways=2)
    width = call.args["weights"][0].shape[0]
    if name == "set":
        wrong.args["set"] = 2
    elif name == "x":
        wrong.args["x"] = wrong.args["x"] + 1e-4
    elif name == "eps":
        wrong.options["eps"] = 1e-3
    elif name == "order":
        parts = list(wrong.args["modulation"].split(width, -1))
        parts[0], parts[1] = parts[1], parts[0]
        wrong.args["modulation"] = torch.cat(parts, -1)
    elif name == "gate":
        wrong.args["modulation"][..., 2 * width] *= 1.001
    else:
        wrong.args["modulation"] = wrong.args["modulation"].roll(3, 1)
    assert excess(wrong.functional(), call) > 20


@pytest.mark.parametrize("width", [64, 256])
def test_int8_error(serving, width):
    """Rounding to int8 with the absmax of each row costs, relative in RMS, at most twice the
    relative error of a matrix times the root of the number of matrices: errors of layers are
    independent, and no layer here amplifies much."""
    if serving in INTERPRETED:
        pytest.skip("too many programs for the interpreter")
    call = head_call(16, width=width, depth=4, dtype=I8)
    plain = call.changed(weights=call.exact, scales=[])
    exact = plain.oracle()
    worst = max(
        ((code * scale[:, None] - matrix).norm() / matrix.norm()).item()
        for code, scale, matrix in zip(
            call.args["weights"][::2], call.args["scales"], call.exact[::2], strict=True
        )
    )
    relative = error(call.functional(), exact) / exact.norm().item()
    assert 0.1 * worst < relative <= 2 * worst * len(call.args["scales"]) ** 0.5 < 0.1


@pytest.mark.parametrize("name", COMPANY)
def test_a_patch_has_the_same_bits_in_any_company(serving, name):
    """Alone, doubled, in another order, and one condition at a time."""
    if serving in INTERPRETED:
        pytest.skip("too many programs for the interpreter")
    call = head_call(**COMPANY[name])
    together = call.functional(batch_invariant=True)
    N = len(call.args["x"])
    for n in (0, N // 2, N - 1):
        assert same_bits(call.rows([n]).functional(batch_invariant=True), together[:, [n]])
    order = torch.randperm(N, generator=torch.Generator("cpu").manual_seed(1), device="cpu")
    order = torch.cat([order, order[:3]]).to(together.device)
    assert same_bits(call.rows(order).functional(batch_invariant=True), together[:, order])
    for way in range(call.options["ways"]):
        assert same_bits(call.way(way).functional(batch_invariant=True), together[way : way + 1])


@pytest.mark.parametrize("N", range(1, 71, 3))
def test_the_default_is_batch_invariant_on_a_cpu(N):
    """Through every path of the C++ kernels: few rows, blocks of rows, and their rests."""
    if "cpu" not in testing.usable_backends("head_step"):
        pytest.skip("the C++ kernels are not built")
    for dtype in (F32, BF16, I8):
        call = head_call(72, width=40, inner=600, depth=1, dtype=dtype)
        assert same_bits(call.rows(list(range(N))).functional(), call.functional()[:, :N])


def test_a_nan_patch_spoils_no_other(serving):
    if serving in INTERPRETED:
        pytest.skip("too many programs for the interpreter")
    call = head_call(12, ways=2, width=37, inner=19)
    clean = call.functional()
    call.args["x"][5] = math.nan
    spoilt = call.functional()
    keep = [n for n in range(12) if n != 5]
    assert spoilt[:, 5].isnan().all()
    torch.testing.assert_close(spoilt[:, keep], clean[:, keep])


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_give_the_same_bits(threads):
    before = torch.get_num_threads()
    for case in (dict(N=1, width=512), dict(N=40, width=128, ways=2, dtype=BF16)):
        call = head_call(**case)
        try:
            torch.set_num_threads(1)
            alone = call.functional()
            torch.set_num_threads(threads)
            for _ in range(20):
                assert same_bits(call.functional(), alone)
        finally:
            torch.set_num_threads(before)


def test_calls_at_the_same_time():
    """From several Python threads, each of which has activations of its own."""
    calls = [head_call(N, width=256, seed=N) for N in (1, 3, 40)]
    expected = [call.functional() for call in calls]
    found: list[list[torch.Tensor]] = [[] for _ in calls]

    def work(i: int) -> None:
        found[i] = [calls[i].functional() for _ in range(20)]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for results, want in zip(found, expected, strict=True):
        assert len(results) == 20 and all(same_bits(result, want) for result in results)


@pytest.mark.skipif(len(testing.cpu_isas()) < 2, reason="one instruction set only")
@pytest.mark.parametrize("isa", [name for name in testing.cpu_isas() if name != "scalar"])
@pytest.mark.parametrize("name", COMPANY)
def test_instruction_sets_agree_to_the_bit(isa, name):
    call = head_call(**COMPANY[name])
    with testing.cpu_isa("scalar"):
        expected = call.functional()
    with testing.cpu_isa(isa):
        assert same_bits(call.functional(), expected)


def test_blocks_of_different_inner_widths():
    """The second block is narrower than the first: nothing of the first may be left behind it."""
    wide, narrow = head_call(4, inner=61), head_call(4, inner=33, seed=1)
    wide.args["weights"][6:10] = narrow.args["weights"][6:10]
    assert excess(wide.functional(), wide) <= 1


@pytest.mark.parametrize("name", SMALL)
def test_opcheck(serving, name):
    if serving in INTERPRETED:
        pytest.skip("too many programs for the interpreter")
    call = head_call(**SMALL[name])
    call.args["x"] = call.args["x"].contiguous()
    torch.library.opcheck(
        torch.ops.ardiff.head_step.default, tuple(call.args.values()), call.options
    )


def test_compile_fullgraph(monkeypatch):
    """A loop over sets compiles whole, once: the set is no constant of the graph."""
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    call = head_call(3)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def step(x, modulation, index):
        rest = (call.args["weights"], call.args["scales"])
        return torch.ops.ardiff.head_step(x, modulation, index, *rest, **call.options)[0] * 2

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)
    for index in (2, 1, 0):
        expected = step(call.args["x"], call.args["modulation"], index)
        assert same_bits(compiled(call.args["x"], call.args["modulation"], index), expected)
    assert len(graphs) <= 2  # 0 and 1 may be specialised
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True)
    assert same_bits(
        compiled(call.args["x"], call.args["modulation"], 2),
        step(call.args["x"], call.args["modulation"], 2),
    )
