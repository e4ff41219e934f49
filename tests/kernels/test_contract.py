"""What every op promises: opcheck, in-place twins, compile, strides, any size, 64-bit offsets."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import ardiff_kernels
from ardiff_kernels import ops, testing

OPS = torch.ops.ardiff


def rows_of(rows: int, d: int, seed: int) -> torch.Tensor:
    return testing.random_rows(seed, rows, d)


def calls() -> dict[str, testing.Call]:
    guided = testing.uld_call(3, 10, torch.bfloat16)
    guided.options |= testing.guidance_options(guided, three_way=True)
    given = testing.uld_call(2, 5)
    given.options |= {"noise": rows_of(2, 5, seed=60), "noise2": rows_of(2, 5, seed=61)}
    clamped = testing.diffusion_call(3, 6, torch.float16, learned_range=True)
    clamped.options |= {"x0_clamp": 1.0, "noise_scale": torch.tensor([0.9])}
    return {
        "uld": testing.uld_call(4, 9),
        "uld-guided": guided,
        "uld-given-noise": given,
        "diffusion": testing.diffusion_call(4, 9),
        "diffusion-bf16": testing.diffusion_call(2, 8, torch.bfloat16, state_dtype=torch.bfloat16),
        "diffusion-learned-range": clamped,
        "diffusion-all-terms": testing.diffusion_call(
            4, 8, torch.bfloat16, state_dtype=torch.bfloat16, memories=3, unconditional=True
        ),
    }


def widest_diffusion_call(rows: int, d: int) -> testing.Call:
    return testing.diffusion_call(rows, d, learned_range=True, memories=3, unconditional=True)


def contiguous(call: testing.Call) -> testing.Call:
    """opcheck compares whole storages, so NaN padding between rows would never be equal."""
    call.args = {k: v.contiguous() for k, v in call.args.items()}
    call.options = {k: v.contiguous() if torch.is_tensor(v) else v for k, v in call.options.items()}
    return call


@pytest.mark.parametrize("name", calls())
def test_opcheck(implementation, name):
    call = contiguous(calls()[name])
    functional = getattr(OPS, call.op).default
    in_place = getattr(OPS, f"{call.op}_").default
    torch.library.opcheck(functional, tuple(call.args.values()), call.options)
    written = tuple(v.clone() for v in call.args.values())
    extra = {"z_model": torch.zeros_like(written[0], dtype=torch.bfloat16)}
    torch.library.opcheck(in_place, written, call.options | extra)


def test_opcheck_philox_normal(implementation):
    key, stream = torch.tensor([3]), torch.arange(4)
    torch.library.opcheck(OPS.philox_normal.default, (key, 1, stream, 7))
    torch.library.opcheck(OPS.philox_normal_.default, (torch.zeros(4, 7), key, 1, stream))


def test_opcheck_brownian_increment(implementation):
    key, stream = torch.tensor([3]), torch.arange(2)
    times = torch.tensor([0.5]), torch.tensor([4.0])
    torch.library.opcheck(OPS.brownian_increment.default, (key, stream, *times, 7))
    out = torch.zeros(2, 7)
    torch.library.opcheck(OPS.brownian_increment_.default, (out, key, stream, *times))


@pytest.mark.parametrize("name", calls())
def test_in_place_twin_gives_the_same_bits(implementation, name):
    call = calls()[name]
    expected = call.functional()
    lead = call.args[call.state[0]]
    extra = {"z_model": torch.zeros(lead.shape, dtype=torch.bfloat16)}
    if call.op == "diffusion_step":
        extra["x0"] = torch.zeros(lead.shape, dtype=lead.dtype)
        assert torch.equal(call.in_place(x0=extra["x0"])[0], expected[0])
        assert torch.equal(extra["x0"], expected[2])
    for got, want in zip(call.in_place(**extra), expected, strict=False):
        assert torch.equal(got, want)
    assert torch.equal(extra["z_model"], expected[0].bfloat16())


@pytest.mark.parametrize("make", [testing.uld_call, testing.diffusion_call])
def test_empty_batch(implementation, make):
    for result in make(0, 7).functional():
        assert result.shape == (0, 7)
    make(0, 7).in_place()


@pytest.mark.parametrize("make", [testing.uld_call, testing.diffusion_call])
def test_row_strides_and_expanded_inputs(implementation, make):
    """Rows of wider buffers (the test inputs all are) and a row shared by all samples."""
    call = make(3, 12)
    shared = call.args["model_out"][:1]
    call.args["model_out"] = shared.expand(3, 12)
    got = call.functional()
    call.args["model_out"] = shared.repeat(3, 1)
    for a, b in zip(got, call.functional(), strict=True):
        assert a.is_contiguous() and torch.equal(a, b)


@pytest.mark.parametrize("make", [testing.uld_call, testing.diffusion_call])
def test_large_d(implementation, make):
    """Both ends of a row of 2^20 elements (a slow implementation: 2^16 + 3) against float64."""
    fast = implementation in ("cpu-avx2", "cpu-avx512", "triton-gpu", "cuda-gpu")
    call = make(1, 2**20 if fast else 2**16 + 3)
    bounds = testing.uld_bounds if call.op == "uld_step" else testing.diffusion_bounds
    for got, exact, bound in zip(call.functional(), call.oracle(), bounds(call), strict=True):
        for end in (slice(0, 4099), slice(-4099, None)):
            testing.assert_within(got[:, end], exact[:, end], bound[:, end])


def sparse_storage(folder: Path, size: int) -> torch.Tensor:
    """float32 `[size]`: a sparse file mapping, memory on the GPU."""
    if torch.get_default_device().type == "cpu":
        return torch.from_file(str(folder / "sparse"), shared=True, size=size)
    if torch.cuda.mem_get_info()[0] < 5 * size:
        pytest.skip(f"{5 * size / 2**30:.0f} GiB of free GPU memory are needed")
    return torch.empty(size)


@pytest.mark.parametrize("make", [testing.uld_call, testing.diffusion_call, widest_diffusion_call])
def test_offsets_past_2_to_31(implementation, make, tmp_path):
    """Every tensor with rows has three, 2^30 + 64 elements apart, so that the last offset passes
    2^31 elements; both forms equal the same call on small tensors."""
    d, stride = 20, 2**30 + 64
    call, wide = make(3, d), make(3, d)
    call.options |= testing.guidance_options(call, three_way=True)
    noises = ("noise", "noise2") if call.op == "uld_step" else ("noise",)
    call.options |= {name: rows_of(3, d, seed=70 + i) for i, name in enumerate(noises)}
    wide.options |= call.options
    lead = call.args[call.state[0]]
    written = {"z_model": torch.zeros(3, d, dtype=torch.bfloat16)}
    if call.op == "diffusion_step":
        written["x0"] = torch.zeros_like(lead)
    moved = {**call.args, **call.options, **written}
    moved = {n: t for n, t in moved.items() if t.dim() == 2 and n != "coef"}
    assert {*call.state, "model_out", "uncond_out", "uncond_out2", *noises} < moved.keys()
    storage = sparse_storage(tmp_path, 2 * stride + 64 * len(moved))
    far = {}
    for i, (name, t) in enumerate(moved.items()):
        scale = 4 // t.element_size()
        view = storage.view(t.dtype).as_strided(t.shape, (scale * stride, 1), scale * 64 * i)
        far[name] = view.copy_(t)
    for name, view in far.items():
        owner = wide.args if name in wide.args else wide.options
        if name not in written:
            owner[name] = view
    expected = call.functional()
    for got, want in zip(wide.functional(), expected, strict=True):
        assert torch.equal(got, want)
    far_written = {name: far[name] for name in written}
    getattr(OPS, f"{wide.op}_").default(*wide.args.values(), **wide.options, **far_written)
    for name, want in zip(wide.state, expected, strict=False):
        assert torch.equal(far[name], want)
    assert torch.equal(far["z_model"], expected[0].bfloat16())
    assert "x0" not in written or torch.equal(far["x0"], expected[2])


def loop(call: testing.Call, steps: int) -> tuple[torch.Tensor, ...]:
    args = dict(call.args)
    function = getattr(ops, call.op)
    for _ in range(steps):
        results = function(*args.values(), **call.options)
        args.update(zip(call.state, results, strict=False))
        args["draw"] = args["draw"] + 1
    return tuple(args[name] for name in call.state)


@pytest.mark.parametrize("make", [testing.uld_call, testing.diffusion_call])
def test_compile_fullgraph(make, monkeypatch):
    """A loop with the functional op compiles whole; offset views as inputs keep their values."""
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    torch.compiler.reset()
    compiled = torch.compile(loop, fullgraph=True)
    call = make(5, 33)
    for name in call.state:
        call.args[name] = torch.cat([torch.zeros(1, 36), call.args[name].new_zeros(5, 36)])[1:, :33]
        call.args[name].copy_(make(5, 33).args[name])
    for a, b in zip(compiled(call, 3), loop(call, 3), strict=True):
        assert torch.equal(a, b)


def test_compiling_an_op_that_writes_two_views_of_one_tensor_is_refused():
    """torch's functionalisation loses what is written to one of them: here where one is a view of a
    detached alias, elsewhere where sizes are dynamic. One view is written rightly."""
    call = testing.uld_call(2, 8)
    _, _, *rest = call.args.values()
    state = torch.cat(list(call.args.values())[:2], 1)

    def two(state):
        z, v = state.detach()[:, :8], state[:, 8:]
        ops.uld_step_(z, v, *rest)
        return state * 2

    def one(state):
        ops.uld_step_(state.detach()[:, :8], state[:, 8:].clone(), *rest)
        return state * 2

    torch.compiler.reset()
    message = "uld_step_: z and v are views of one tensor, both written in place.*call uld_step"
    with pytest.raises(RuntimeError, match=message):
        torch.compile(two, backend="aot_eager")(state.clone())
    expected = state.clone()
    assert torch.equal(torch.compile(one, backend="aot_eager")(state.clone()), one(expected))
    assert torch.equal(two(state.clone())[:, :8], one(state.clone())[:, :8])


def test_the_default_dtype_changes_nothing(implementation):
    """Nor the inputs that `testing` makes."""

    def results():
        found = []
        for call in (testing.uld_call(4, 9), testing.diffusion_call(4, 9, memories=2)):
            call.options |= testing.guidance_options(call, three_way=True)
            out = call.args["model_out"].requires_grad_()
            made = call.functional()
            found += [*made, torch.autograd.grad(sum(t.sum() for t in made), out)[0]]
            with torch.no_grad():
                found += [*call.in_place(), *call.oracle()]
        return found

    expected = results()
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            got = results()
        finally:
            torch.set_default_dtype(torch.float32)
        for a, b in zip(got, expected, strict=True):
            assert testing.same_bits(a, b)


def test_forcing_a_backend_that_cannot_serve():
    with pytest.raises(ValueError, match="unknown backend 'gpu': expected one of reference"):
        with ardiff_kernels.backend("gpu"):
            pass
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="backend 'cuda' cannot serve here .*no CUDA"):
            with ardiff_kernels.backend("cuda"):
                pass
    call = testing.uld_call(2, 3)
    before = call.functional()[0]
    with ardiff_kernels.backend("reference"):
        assert torch.allclose(call.functional()[0], before, atol=1e-5)
    assert torch.equal(call.functional()[0], before)


def test_temperature_zero_is_deterministic(implementation):
    call = testing.uld_call(2, 8)
    call.options["noise_scale"] = torch.zeros(1)
    first = call.functional()
    call.args["key"] = call.args["key"] + 1
    for a, b in zip(first, call.functional(), strict=True):
        assert torch.equal(a, b)
    call.options["noise_scale"] = torch.full((1,), math.nan)
    assert call.functional()[0][call.args["row"] != 2].isnan().all()
