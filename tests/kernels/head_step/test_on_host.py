"""The CUDA kernels of `head_step` and `head_loop` run on the host, phase by phase over all blocks
and threads, in both orders (csrc/cuda/phases.cuh): within twice the error of PyTorch's modules, and
to the bit whatever the device and a patch's company. Shared and scratch memory begin as NaN."""

import subprocess

import pytest
import torch

import ardiff_kernels
from ardiff_kernels import ops
from ardiff_kernels.testing import same_bits
from tests import ROOT
from tests._support import build_cache
from tests.kernels.head_loop.calls import INVALID, assert_refused, errors, loop_call
from tests.kernels.head_step.calls import BF16, F32, FORMS, I8, head_call
from tests.kernels.head_step.on_host import DEVICES, USUAL, usual_host


@pytest.fixture
def host():
    return usual_host()


def excess(found, call):
    """The RMS error over twice that of PyTorch's modules and a float32 rounding of the result."""
    exact = call.oracle()
    assert found.shape == exact.shape and found.isfinite().all()
    theirs = (call.eager().double() - exact).norm()
    bound = 2 * theirs + 2.0**-23 * exact.norm()
    return ((found.double() - exact).norm() / bound).item()


STEPS = {
    "width 1": dict(N=3, width=1, inner=1, d=1, out=1, depth=1, norm="rms", mlp="gated"),
    "width 7": dict(N=12, width=7, inner=3, d=2, out=5),
    "odd": dict(N=3, width=37, inner=19, d=5, out=3, depth=1, modulation=BF16),
    "odd bfloat16": dict(N=5, width=37, inner=19, d=5, out=3, dtype=BF16),
    "odd int8": dict(N=11, width=37, inner=19, d=5, out=3, dtype=I8, outer=F32),
    "odd gated": dict(N=3, mlp="gated", width=51, inner=29, d=9, out=7),
    "odd rms": dict(N=3, norm="rms", width=51, inner=29, d=9, out=7),
    "odd rms gated": dict(N=3, norm="rms", mlp="gated", width=51, inner=29, d=9, out=7),
    "int8 outside too": dict(N=3, d=16, dtype=I8),
    "bfloat16 outside too": dict(N=3, d=16, dtype=BF16, modulation=BF16),
    "several slices": dict(N=18, width=40, inner=1101, depth=1),
    "several slices bfloat16": dict(N=9, width=48, inner=1104, depth=1, dtype=BF16),
    "several slices int8": dict(N=9, width=48, inner=1104, depth=1, dtype=I8, ways=2),
    "shared": dict(N=5, ways=3, shared=True, dtype=BF16),
    "biases of a gated MLP": dict(N=4, norm="rms", mlp="gated", bias=True),
    "no biases of a plain MLP": dict(N=4, bias=False),
    **{
        f"{N} of {norm} {mlp} {str(dtype)[6:]}": dict(
            N=N, norm=norm, mlp=mlp, dtype=dtype, outer=F32, ways=ways, width=40, inner=56
        )
        for N, ways in ((1, 1), (3, 2), (8, 3), (20, 1))
        for norm, mlp in FORMS
        for dtype in (F32, BF16, I8)
    },
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_on_any_device(host, name):
    call = head_call(**STEPS[name])
    found = host.step(call)
    assert excess(found, call) <= 1
    for device in DEVICES[1:]:
        host.on(*device)
        assert same_bits(host.step(call), found)


COMPANY = {
    "float32": dict(N=7, ways=2, width=40, inner=33),
    "bfloat16": dict(N=20, dtype=BF16, modulation=BF16),
    "int8": dict(N=13, ways=3, dtype=I8, width=37, inner=19),
    "rms gated": dict(N=9, norm="rms", mlp="gated", ways=2, shared=True, width=51, inner=29),
    "several slices": dict(N=10, width=40, inner=1100, depth=1),
}


@pytest.mark.parametrize("name", COMPANY)
def test_a_patch_has_the_same_bits_in_any_company(host, name):
    """Alone, doubled, in another order, and one condition at a time, in tiles of several sizes."""
    call = head_call(**COMPANY[name])
    together, N = host.step(call), len(call.args["x"])
    for n in (0, N // 2, N - 1):
        assert same_bits(host.step(call.rows([n])), together[:, [n]])
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    order = torch.cat([order, order[:3]])
    assert same_bits(host.step(call.rows(order)), together[:, order])
    for way in range(call.options["ways"]):
        assert same_bits(host.step(call.way(way)), together[way : way + 1])


LOOPS = {
    "odd": dict(N=5, d=5, width=37, inner=19, kinetic=True),
    "in tiles": dict(N=20, ways=2, d=5, kinetic=True),
    "one element": dict(N=2, d=1, ways=2),
    "several slices": dict(N=3, ways=2, d=16, width=48, inner=1104, dtype=BF16, depth=1),
    **{
        f"{N} of {norm} {mlp} {str(dtype)[6:]}": dict(
            N=N, norm=norm, mlp=mlp, dtype=dtype, ways=ways, kinetic=kinetic, shared=N == 3
        )
        for N, ways, kinetic in ((1, 1, True), (3, 2, False), (8, 3, True), (20, 1, False))
        for norm, mlp in FORMS
        for dtype in (F32, BF16, I8)
    },
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_on_any_device(host, name):
    """Within twice the error of the C++ CPU library's ops; 2^-22 where that has none."""
    call = loop_call(**LOOPS[name])
    found, exact = call.functional(host.ops), call.oracle()
    for mine, theirs in zip(errors(found, exact), errors(call.functional(), exact), strict=True):
        assert mine <= 2 * theirs + 2.0**-22
    assert all(map(same_bits, call.in_place(host.ops), found))
    for device in DEVICES[1:]:
        host.on(*device)
        assert all(map(same_bits, call.functional(host.ops), found))


def test_mar_b_as_an_h200_and_an_a100_would(host):
    """At the published size: all weights kept in shared memory, and a part of them."""
    wide = dict(d=16, width=1024, depth=6, dtype=BF16, modulation=BF16)
    call = loop_call(1, ways=2, kinetic=True, **wide)
    host.on(132, (227 << 10) - 1024, False)
    found = call.functional(host.ops)
    expected = [t.double() for t in call.functional()]
    assert max(errors(found, expected)) <= 1e-5
    host.on(108, 163 << 10, True)
    assert all(map(same_bits, call.functional(host.ops), found))


def test_a_loop_is_the_steps_of_the_same_kernel(host):
    """`head_step` walked, then the step ops of the CPU, whose arithmetic is the kernel's: to the
    bit."""
    call = loop_call(7, ways=3, kinetic=True)
    found = call.functional(host.ops)
    x, memory, v = call.args["x"], call.args["memory"], call.options["v"]
    names = ("guidance", "guidance2", "noise_scale")
    options = {name: call.options[name] for name in names}
    with ardiff_kernels.backend("cpu"):
        for k, index in enumerate(call.args["set"].tolist()):
            if index > 2:
                continue
            out, uncond, uncond2 = host.step(call.head.changed(x=x, set=index))
            options |= {"uncond_out": uncond, "uncond_out2": uncond2}
            row = torch.tensor([k], dtype=torch.int32)
            place = (
                call.args["coef"],
                row,
                call.args["draw"] + k,
                torch.tensor([-5]),
                call.args["stream"],
            )
            if call.options["op"][k]:
                x, v, memory = ops.uld_step(x, v, out, memory, *place, **options)
            else:
                x, memory, _ = ops.diffusion_step(x, out, memory, *place, **options)
    assert all(map(same_bits, found, (x, memory, v)))


@pytest.mark.parametrize("dtype", [F32, BF16, I8], ids=str)
def test_a_loop_has_the_same_bits_in_any_company(host, dtype):
    call = loop_call(9, ways=2, kinetic=True, dtype=dtype)
    together = call.functional(host.ops)
    for index in ([0], [8], [5, 2, 7, 7]):
        part = call.rows(torch.tensor(index))
        assert all(
            same_bits(a, b[index]) for a, b in zip(part.functional(host.ops), together, strict=True)
        )


def test_blocks_that_do_not_wait_are_noticed(host):
    """Negative control: without the barriers a block reads what is not there yet."""
    step, loop = head_call(3, ways=2), loop_call(3)
    host.on(3, 32 << 10, False, waits=False)
    assert not host.step(step).isfinite().all()
    assert not loop.functional(host.ops)[0].isfinite().all()


def test_too_little_memory_and_too_many_layers_are_named(host):
    host.on(3, 1 << 10, False)
    with pytest.raises(RuntimeError, match="head_step: a row of 384 activations does not fit into"):
        host.step(head_call(2, width=300))
    host.on(*USUAL)
    with pytest.raises(RuntimeError, match="head_step: the CUDA kernel takes a depth of at most"):
        host.step(head_call(1, width=4, depth=32))


def test_work_and_memory_are_divided(tmp_path):
    cxx = build_cache.find_compiler()
    if cxx is None:
        pytest.skip("no C++ compiler was found")
    program, source = tmp_path / "layout", str(ROOT / "tests/kernels/head_step/head_layout.cpp")
    subprocess.run([cxx, "-std=c++17", "-O1", "-w", source, "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_empty_batches(host):
    assert host.step(head_call(0)).shape == (1, 0, 32)
    assert loop_call(0).functional(host.ops)[0].shape == (0, 6)


@pytest.mark.parametrize("name", INVALID)
@pytest.mark.parametrize("form", ["head_loop", "head_loop_"])
def test_messages_are_those_of_the_other_backends(host, name, form):
    assert_refused(host.ops, form, name)
