"""Every invalid call gives its own message, the same on every backend."""

from __future__ import annotations

import re

import pytest
import torch

from ardiff_kernels import ops, testing
from ardiff_kernels.dispatch import library, load

F32, F64, I32, I64 = torch.float32, torch.float64, torch.int32, torch.int64


def change(make, **new):
    """A step call with some arguments replaced; in-place options are passed to the twin."""

    def invalid():
        call = make(4, 8)
        extra = {}
        for name, value in new.items():
            if name in call.args:
                call.args[name] = value
            elif name in ("x0", "z_model"):
                extra[name] = value
            else:
                call.options[name] = value
        if extra or new.get("written") is not None:
            call.options.pop("written", None)
            function = getattr(ops, f"{call.op}_")
        else:
            function = getattr(ops, call.op)
        function(*call.args.values(), **call.options, **extra)

    return invalid


uld, diffusion = testing.uld_call, testing.diffusion_call


def invalid_calls() -> dict[str, tuple]:
    """Calls and their messages; tensors on the default device."""
    some, same = torch.zeros(4, 8), torch.zeros(4, 8)
    key, stream, long, wide = (
        torch.tensor([1]),
        torch.arange(4),
        torch.zeros(40),
        torch.zeros(4, 20),
    )
    return {
        "philox key dtype": (
            lambda: ops.philox_normal(key.float(), 0, stream, 4),
            "philox_normal: key must be a contiguous int64 [1], got float32 [1]",
        ),
        "philox key length": (
            lambda: ops.philox_normal(stream, 0, stream, 4),
            "philox_normal: key must be a contiguous int64 [1], got int64 [4]",
        ),
        "philox stream": (
            lambda: ops.philox_normal(key, 0, stream.int(), 4),
            "philox_normal: stream must be a contiguous int64 [B], got int32 [4]",
        ),
        "philox counter": (
            lambda: ops.philox_normal(key, -1, stream, 4),
            "philox_normal: counter must lie in [0, 4294967295], got -1",
        ),
        "philox counter too large": (
            lambda: ops.philox_normal(key, 2**32, stream, 4),
            "philox_normal: counter must lie in [0, 4294967295], got 4294967296",
        ),
        "philox n": (
            lambda: ops.philox_normal(key, 0, stream, -2),
            "philox_normal: n must lie in [0, 17179869184], got -2",
        ),
        "philox out dtype": (
            lambda: ops.philox_normal_(some.double(), key, 0, stream),
            "philox_normal_: out must be float32, got float64",
        ),
        "philox out dimensions": (
            lambda: ops.philox_normal_(some[0], key, 0, stream),
            "philox_normal_: out must be [B, n], got 1 dimensions",
        ),
        "philox out overlap": (
            lambda: ops.philox_normal_(some[:1].expand(4, 8), key, 0, stream),
            "philox_normal_: out is written in place but its rows overlap (row stride 0, 8 "
            "elements per row); clone it first",
        ),
        "increment key": (
            lambda: ops.brownian_increment(key.float(), stream, some[0, :1], some[0, :1], 4),
            "brownian_increment: key must be a contiguous int64 [1], got float32 [1]",
        ),
        "increment stream": (
            lambda: ops.brownian_increment(key, stream.int(), some[0, :1], some[0, :1], 4),
            "brownian_increment: stream must be a contiguous int64 [B], got int32 [4]",
        ),
        "increment start": (
            lambda: ops.brownian_increment(key, stream, some[0, :3], some[0, :1], 4),
            "brownian_increment: start must be a contiguous float32 [4] or [1], got float32 [3]",
        ),
        "increment end dtype": (
            lambda: ops.brownian_increment(key, stream, some[0, :4], some[0, :4].double(), 4),
            "brownian_increment: end must be a contiguous float32 [4] or [1], got float64 [4]",
        ),
        "increment d": (
            lambda: ops.brownian_increment(key, stream, some[0, :4], some[0, :4], -1),
            "brownian_increment: d must lie in [0, 17179869184], got -1",
        ),
        "increment out": (
            lambda: ops.brownian_increment_(some[0], key, stream, some[0, :4], some[0, :4]),
            "brownian_increment_: out must be [B, d], got 1 dimensions",
        ),
        "increment out dtype": (
            lambda: ops.brownian_increment_(some.half(), key, stream, same[0, :4], same[0, :4]),
            "brownian_increment_: out must be float32, got float16",
        ),
        "uld dimensions": (
            change(uld, z=torch.zeros(8)),
            "uld_step: z must be [B, d] or [B, ...], got 1 dimensions",
        ),
        "uld dtype": (
            change(uld, z=some.double()),
            "uld_step: z must be float32, got float64",
        ),
        "uld bfloat16 state": (
            change(uld, z=some.bfloat16()),
            "uld_step: z must be float32, got bfloat16",
        ),
        "uld empty rows": (
            change(uld, z=torch.zeros(4, 0)),
            "uld_step: z must have between 1 and 8589934592 elements per row, got 0",
        ),
        "uld velocity shape": (
            change(uld, v=torch.zeros(4, 7)),
            "uld_step: v must have the shape of z [4, 8], got [4, 7]",
        ),
        "uld velocity dtype": (
            change(uld, v=some.half()),
            "uld_step: v must have the dtype of z (float32), got float16",
        ),
        "uld anchor shape": (
            change(uld, anchor=torch.zeros(3, 8)),
            "uld_step: anchor must have the shape of z [4, 8], got [3, 8]",
        ),
        "uld output dtype": (
            change(uld, model_out=some.double()),
            "uld_step: model_out must be float32, float16 or bfloat16, got float64",
        ),
        "uld output shape": (
            change(uld, model_out=torch.zeros(4, 16)),
            "uld_step: model_out must have the shape of z [4, 8], got [4, 16]",
        ),
        "uld table columns": (
            change(uld, coef=torch.zeros(3, 14)),
            "uld_step: coef must be a contiguous float32 [T, 20] table with T >= 1, "
            "got float32 [3, 14]",
        ),
        "uld table dtype": (
            change(uld, coef=torch.zeros(3, 20, dtype=F64)),
            "uld_step: coef must be a contiguous float32 [T, 20] table with T >= 1, "
            "got float64 [3, 20]",
        ),
        "uld empty table": (
            change(uld, coef=torch.zeros(0, 20)),
            "uld_step: coef must be a contiguous float32 [T, 20] table with T >= 1, "
            "got float32 [0, 20]",
        ),
        "uld row dtype": (
            change(uld, row=torch.zeros(4, dtype=I64)),
            "uld_step: row must be a contiguous int32 [4] or [1], got int64 [4]",
        ),
        "uld row length": (
            change(uld, row=torch.zeros(3, dtype=I32)),
            "uld_step: row must be a contiguous int32 [4] or [1], got int32 [3]",
        ),
        "uld draw length": (
            change(uld, draw=torch.zeros(2, dtype=I32)),
            "uld_step: draw must be a contiguous int32 [4] or [1], got int32 [2]",
        ),
        "uld key": (
            change(uld, key=torch.zeros(1, dtype=I32)),
            "uld_step: key must be a contiguous int64 [1], got int32 [1]",
        ),
        "uld stream": (
            change(uld, stream=torch.zeros(1, dtype=I64)),
            "uld_step: stream must be a contiguous int64 [4], got int64 [1]",
        ),
        "uld guidance alone": (
            change(uld, guidance=torch.ones(1)),
            "uld_step: uncond_out and guidance go together: pass both or neither",
        ),
        "uld uncond alone": (
            change(uld, uncond_out=some),
            "uld_step: uncond_out and guidance go together: pass both or neither",
        ),
        "uld second guidance alone": (
            change(uld, uncond_out2=some, guidance2=torch.ones(1)),
            "uld_step: uncond_out2 and guidance2 go together, and only beside uncond_out and "
            "guidance",
        ),
        "uld one noise": (
            change(uld, noise=some),
            "uld_step: noise and noise2 go together: pass both or neither",
        ),
        "uld uncond dtype": (
            change(uld, uncond_out=some.half(), guidance=torch.ones(1)),
            "uld_step: uncond_out must be float32 [4, 8], got float16 [4, 8]",
        ),
        "uld guidance shape": (
            change(uld, uncond_out=some, guidance=torch.ones(2)),
            "uld_step: guidance must be a contiguous float32 [4] or [1], got float32 [2]",
        ),
        "uld noise scale dtype": (
            change(uld, noise_scale=torch.ones(1, dtype=F64)),
            "uld_step: noise_scale must be a contiguous float32 [4] or [1], got float64 [1]",
        ),
        "uld noise dtype": (
            change(uld, noise=some.bfloat16(), noise2=some),
            "uld_step: noise must be float32 [4, 8], got bfloat16 [4, 8]",
        ),
        "uld stride": (
            change(uld, model_out=torch.zeros(8, 4).t()),
            "uld_step: model_out must have unit stride in its last dimension, got strides [1, 4]; "
            "call .contiguous() first",
        ),
        "uld overlap": (
            change(uld, written=True, v=some[:1].expand(4, 8)),
            "uld_step_: v is written in place but its rows overlap (row stride 0, 8 elements per "
            "row); clone it first",
        ),
        "uld same memory": (
            change(uld, written=True, v=same, z=same),
            "uld_step_: z and v are written in place but share their memory; clone one",
        ),
        "uld partly the same memory": (
            change(uld, written=True, v=long[8:40].view(4, 8), z=long[:32].view(4, 8)),
            "uld_step_: z and v are written in place but share their memory; clone one",
        ),
        "uld reads what it writes": (
            change(uld, written=True, z=long[:32].view(4, 8), model_out=long[1:33].view(4, 8)),
            "uld_step_: z is written in place but shares its memory with model_out; clone one",
        ),
        "uld reads rows between those it writes": (
            change(uld, written=True, z=wide[:, :8], noise=wide[:, 7:15], noise2=some),
            "uld_step_: z is written in place but shares its memory with noise; clone one",
        ),
        "uld None": (
            lambda: ops.uld_step(some, some, None, some, *list(uld(4, 8).args.values())[4:]),
            "uld_step: model_out must be a tensor, got None",
        ),
        "uld written None": (
            lambda: ops.uld_step_(some, None, some, some, *list(uld(4, 8).args.values())[4:]),
            "uld_step_: v must be a tensor, got None",
        ),
        "uld negated": (
            change(uld, written=True, z=(some + 1j * some).conj().imag),
            "uld_step_: z is written in place but is a view that negates or conjugates its memory "
            "(as .imag of a conjugate); call .resolve_neg() or .resolve_conj() first",
        ),
        "philox reads what it writes": (
            lambda: ops.philox_normal_(long[:32].view(4, 8), key, 0, long.view(I64)[12:16]),
            "philox_normal_: out is written in place but shares its memory with stream; clone one",
        ),
        "uld z_model dtype": (
            change(uld, written=True, z_model=torch.zeros(4, 8)),
            "uld_step_: z_model must be bfloat16 [4, 8], got float32 [4, 8]",
        ),
        "diffusion dtype": (
            change(diffusion, x=some.half()),
            "diffusion_step: x must be float32 or bfloat16, got float16",
        ),
        "diffusion memory dtype": (
            change(diffusion, memory=some.bfloat16()),
            "diffusion_step: memory must have the dtype of x (float32), got bfloat16",
        ),
        "diffusion memory shape": (
            change(diffusion, memory=torch.zeros(4, 7)),
            "diffusion_step: memory must have the shape of x [4, 8] (or [4, 16] or [4, 24] "
            "with more memories), got [4, 7]",
        ),
        "diffusion second memory overlap": (
            change(diffusion, written=True, memory=torch.zeros(4, 32).as_strided((4, 16), (8, 1))),
            "diffusion_step_: memory is written in place but its rows overlap (row stride 8, 16 "
            "elements per row); clone it first",
        ),
        "diffusion same memory": (
            change(diffusion, written=True, x=same, x0=same.view(4, 8)),
            "diffusion_step_: x and x0 are written in place but share their memory; clone one",
        ),
        "diffusion output shape": (
            change(diffusion, model_out=torch.zeros(4, 9)),
            "diffusion_step: model_out must have the shape of x [4, 8] (or [4, 16] with "
            "learned-range variance), got [4, 9]",
        ),
        "diffusion uncond width": (
            change(
                diffusion, model_out=torch.zeros(4, 16), uncond_out=some, guidance=torch.ones(1)
            ),
            "diffusion_step: uncond_out must be float32 [4, 16], got float32 [4, 8]",
        ),
        "diffusion clamp": (
            change(diffusion, x0_clamp=-1.0),
            "diffusion_step: x0_clamp must be positive, got -1.0",
        ),
        "diffusion x0": (
            change(diffusion, x0=torch.zeros(4, 7)),
            "diffusion_step_: x0 must be float32 [4, 8], got float32 [4, 7]",
        ),
    }


@pytest.mark.parametrize("name", invalid_calls())
def test_message(implementation, name):
    invalid, message = invalid_calls()[name]
    with pytest.raises(RuntimeError, match="^" + re.escape(message)):
        invalid()


def test_negated_views_are_read_as_they_are():
    """`.imag` of a conjugate negates what lies in memory; the ops get what it stands for."""
    call = uld(4, 8)
    out = call.args["model_out"].contiguous()
    call.args["model_out"] = torch.complex(out, -out).conj().imag
    assert call.args["model_out"].is_neg() and torch.equal(call.args["model_out"], out)
    for function in (call.functional, call.in_place):
        for got, want in zip(function(), call.changed(model_out=out).functional(), strict=False):
            assert torch.equal(got, want)


@pytest.mark.skipif(not load.CPU.loaded, reason="the message of the C++ kernels")
def test_no_room_for_a_result():
    """A result of 64 TiB. On a CPU torch's own error is a RuntimeError too."""
    stream = torch.zeros(2**10, dtype=I64)
    message = r"^philox_normal: out of memory on cpu for a result, float32 \[1024, 17179869184\]$"
    with pytest.raises(RuntimeError, match=message):
        ops.philox_normal(torch.tensor([1]), 0, stream, 2**34)


def test_no_room_on_a_gpu_is_the_error_of_torch():
    def full(*args, **options):
        raise RuntimeError("uld_step: out of memory on cuda:0 for a result, float32 [4, 8]")

    with pytest.raises(torch.OutOfMemoryError, match="^uld_step: out of memory on cuda:0"):
        library._caller(full)()


def test_mixed_devices():
    call = testing.uld_call(4, 8)
    call.args["v"] = call.args["v"].to("meta")
    with pytest.raises(RuntimeError, match="all tensors must be on one device, but z is on cpu"):
        call.functional()
