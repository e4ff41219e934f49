"""The run loop: which model calls it makes, where its noise comes from, its options."""

from __future__ import annotations

import itertools

import pytest
import torch

import ardiff
from ardiff import sampling
from ardiff.loop.run import run
from ardiff.noise import initial_state, make_key, make_stream
from ardiff.solvers import SOLVERS, solver_options
from ardiff_kernels import ops

B, D = 6, 5
OPTIONS = {"path": "vp-cosine", "prediction": "v_prediction", "steps": 13}


def model(x, level, condition):
    shift = 0.0 if condition is None else condition
    return torch.tanh(x + shift) * torch.cos(level / 300)[:, None]


def addresses(seed=3, batch=B, patch=0):
    return {"key": make_key(seed, "cpu"), "stream": make_stream(None, batch, patch, "cpu")}


def start(table, **kwargs):
    where = addresses(**kwargs)
    return initial_state(table, where["key"], where["stream"], D), where


def by_hand(table, x, key, stream, call=model):
    """The table executed with the functional ops, one row at a time."""
    width = x.shape[1] * table.memories
    coef, memory, v = table.coef(), torch.zeros(len(x), width), torch.zeros_like(x)
    out, origin, kinetic, ball = torch.full_like(x, torch.nan), {}, "uld" in table.op, None
    for i, level in enumerate(table.level):
        place = torch.tensor([i], dtype=torch.int32)
        where = (coef, place, place, key, stream)
        if table.midpoint[i]:
            level = torch.full((len(x),), level, dtype=torch.float32)
            origin["out_mid"] = call((origin["x"] + x) / 2, level, None)
            continue
        if table.calls_model[i]:
            out = call(x, torch.full((len(x),), level, dtype=torch.float32), None)
        if table.saves_origin[i]:
            origin = {"x": x, "v": v, "out": out}
        if table.ball_margin[i] > 0:
            still = ops.diffusion_step(x, out, memory, *where, noise=torch.zeros_like(x))[0]
            ball = still.norm(dim=1) + table.ball_margin[i]
        if table.op[i] == "uld":
            x, v, memory = ops.uld_step(x, v, out, memory, *where)
        elif table.op[i] == "diffusion":
            x, memory, _ = ops.diffusion_step(x, out, memory, *where)
        else:
            states = (origin["x"], x, origin["out"], out, memory)
            velocities = {"v_x": origin["v"], "v_y": v} if kinetic else {}
            more = {"out_mid": origin.get("out_mid"), "ball_radius": ball}
            found = ops.mala_accept(*states, *where, **velocities, **more)
            x, out, v = found[0], found[1], found[2] if kinetic else v
    return x


PROJECTED = "rtk-mala-projected"
FACTOR = [name for name in SOLVERS if "warm_start" in solver_options(name)]
ADJUSTED = [name for name in SOLVERS if "accept" in solver_options(name)]
VARIANTS = [
    *((name, {}) for name in SOLVERS),
    *((name, {"warm_start": "gaussian-factor"}) for name in FACTOR),
    *((name, {"accept": "simpson", "inner": 1}) for name in ADJUSTED),
    *((name, {"inner": 2, "refresh": "persistent"}) for name in SOLVERS if name == "rtk-hmc"),
]
VARIANTS = [(name, own | ({"dim": D} if name == PROJECTED else {})) for name, own in VARIANTS]
IDS = ["-".join([name, *map(str, own.values())]) for name, own in VARIANTS]


@pytest.mark.parametrize(("name", "own"), VARIANTS, ids=IDS)
def test_loop_is_the_table_row_after_row(name, own):
    table = ardiff.solver(name, **OPTIONS, **own)
    x, where = start(table)
    kept = x.clone()
    torch.testing.assert_close(
        run(table, model, x, **where), by_hand(table, x, **where), rtol=0, atol=0
    )
    assert torch.equal(x, kept)
    assert torch.equal(run(table.to("cpu"), model, x, **where), run(table, model, x, **where))


def test_result_is_an_ordinary_tensor():
    table = ardiff.solver("ddpm", **OPTIONS)
    x, where = start(table)
    result = run(table, model, x, **where)
    assert not result.is_inference()
    result.requires_grad_()


def test_initial_state_is_purpose_one():
    table = ardiff.solver("ddim", path="edm", prediction="sample", steps=4)
    x, where = start(table)
    assert torch.equal(x, 40 * ops.philox_normal(where["key"], 1, where["stream"], D))


@pytest.mark.parametrize(("name", "own"), VARIANTS, ids=IDS)
def test_calls_are_those_of_the_table(name, own):
    calls = []

    def counting(x, level, condition):
        assert level.dtype == torch.float32 and level.shape == (B,) and x.shape == (B, D)
        calls.append(float(level[0]))
        return model(x, level, condition)

    table = ardiff.solver(name, **OPTIONS, **own)
    x, where = start(table)
    run(table, counting, x, **where)
    assert len(calls) == table.calls <= OPTIONS["steps"]
    expected = torch.tensor(table.level[table.calls_model], dtype=torch.float32)
    assert torch.equal(torch.tensor(calls), expected)


class Hoisted:
    """What depends on level and condition, once."""

    def __init__(self):
        self.hoists = 0

    def hoist(self, levels, condition):
        self.hoists += 1
        gain = torch.cos(levels / 300)
        shift = 0.0 if condition is None else condition
        return lambda row, x: torch.tanh(x + shift) * gain[row]


def test_hoisted_model_equals_the_plain_one():
    table = ardiff.solver("rtk-uld", **OPTIONS)
    x, where = start(table)
    hoisted, condition = Hoisted(), torch.linspace(-1, 1, D)
    a = run(table, hoisted, x, condition=condition, **where)
    assert hoisted.hoists == 1
    assert torch.equal(a, run(table, model, x, condition=condition, **where))
    assert not torch.equal(a, run(table, model, x, **where))


@pytest.mark.parametrize("name", ["ddpm", "rtk-uld", "rtk-ula"])
def test_guidance_is_the_mix_of_two_calls(name):
    table = ardiff.solver(name, **OPTIONS)
    x, where = start(table)
    weight = torch.linspace(0.5, 4, B)
    cond, uncond = torch.full((D,), 0.3), torch.full((D,), -0.2)

    def mixed(x, level, condition):
        c, u = model(x, level, cond), model(x, level, uncond)
        return torch.lerp(u, c, weight[:, None])

    guided = run(table, model, x, condition=cond, uncond=uncond, guidance=weight, **where)
    torch.testing.assert_close(guided, run(table, mixed, x, **where), rtol=1e-4, atol=1e-5)
    plain = run(table, model, x, condition=cond, **where)
    one = run(table, model, x, condition=cond, uncond=uncond, guidance=torch.ones(1), **where)
    torch.testing.assert_close(one, plain, rtol=1e-4, atol=1e-5)
    assert float((guided - plain).abs().max()) > 0.01


@pytest.mark.parametrize("name", ["ddpm", "rtk-uld"])
def test_temperature_scales_step_noise_of_its_own_sample(name):
    table = ardiff.solver(name, **OPTIONS)
    x, where = start(table)
    scale = torch.ones(B)
    scale[2] = 0
    mixed = run(table, model, x, noise_scale=scale, **where)
    plain = run(table, model, x, **where)
    keep = torch.arange(B) != 2
    assert torch.equal(mixed[keep], plain[keep]) and not torch.equal(mixed[2], plain[2])
    other = {**where, "key": where["key"] + 1}
    assert torch.equal(run(table, model, x, noise_scale=scale, **other)[2], mixed[2])


def test_noise_depends_on_key_and_patch():
    table = ardiff.solver("ddpm", **OPTIONS)
    x, where = start(table)
    result = run(table, model, x, **where)
    assert torch.equal(result, run(table, model, x, **where))
    for other in (addresses(seed=4), addresses(patch=1)):
        assert not torch.equal(result, run(table, model, x, **other))


def test_model_that_returns_its_input():
    table = ardiff.solver("ddpm", path="ou", prediction="sample", steps=5)
    x, where = start(table)
    same = run(table, lambda x, level, condition: x, x, **where)
    assert torch.equal(same, run(table, lambda x, level, condition: x.clone(), x, **where))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_outputs(dtype):
    table = ardiff.solver("rtk-uld", **OPTIONS)
    x, where = start(table)
    low = run(table, lambda *a: model(*a).to(dtype), x, **where)
    same = run(table, lambda *a: model(*a).to(dtype).float(), x, **where)
    assert low.dtype == torch.float32 and torch.equal(low, same)


def test_bfloat16_state():
    table = ardiff.solver("ddim", **OPTIONS)
    x, where = start(table)
    low = run(table, lambda *a: model(*a).bfloat16(), x.bfloat16(), **where)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), run(table, model, x, **where), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", SOLVERS)
def test_any_layout_of_the_state(name):
    table = ardiff.solver(name, **OPTIONS, **({"dim": D} if name == PROJECTED else {}))
    x, where = start(table)
    result = run(table, model, x, **where)
    assert torch.equal(run(table, model, x.t().contiguous().t(), **where), result)
    wide = torch.full((B, D + 3), torch.nan)
    wide[:, 1 : 1 + D] = x
    assert torch.equal(run(table, model, wide[:, 1 : 1 + D], **where), result)


@pytest.mark.parametrize("name", SOLVERS)
def test_empty_batch(name):
    x = ardiff.sample(model, (0, D), "ou", "v_prediction", name, 9, seed=0)
    assert x.shape == (0, D)


def test_sample_restores_the_shape_and_counts(monkeypatch):
    seen = []
    clock = itertools.count(10, 3)
    monkeypatch.setattr(sampling.time, "perf_counter", lambda: next(clock))

    def image_model(x, level, condition):
        seen.append(tuple(x.shape))
        return x * 0.5

    shape = (3, 2, 4, 4)
    arguments = (shape, "flow", "flow", "rtk-uld", 20)
    x, stats = ardiff.sample(image_model, *arguments, seed=7, return_stats=True)
    assert x.shape == shape and set(seen) == {shape} and stats.calls == len(seen) == 19
    assert stats.seconds == 3 and stats.acceptance is None and stats.rejected_nonfinite == 0
    flat = ardiff.sample(image_model, (3, 32), *arguments[1:], seed=7)
    assert torch.equal(x.reshape(3, 32), flat)
    _, stats = ardiff.sample(
        image_model, *arguments, return_stats=True, uncond=0, guidance=2.0, seed=0
    )  # fmt: skip
    assert stats.calls == 38


def test_sample_seeds():
    arguments = (model, (B, D), "ou", "v_prediction", "ddpm", 8)
    assert torch.equal(ardiff.sample(*arguments, seed=0), ardiff.sample(*arguments, seed=0))
    assert not torch.equal(ardiff.sample(*arguments, seed=0), ardiff.sample(*arguments, seed=-5))

    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        return ardiff.sample(*arguments, seed=None, generator=generator)

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    a, b = (ardiff.sample(*arguments, seed=None) for _ in range(2))
    assert not torch.equal(a, b)


def test_sample_from_a_table():
    table = ardiff.solver("rtk-baoab", **OPTIONS, tau=0.3)
    arguments = (model, (B, D))
    named = ardiff.sample(
        *arguments,
        OPTIONS["path"],
        OPTIONS["prediction"],
        "rtk-baoab",
        OPTIONS["steps"],
        tau=0.3,
        seed=0,
    )
    assert torch.equal(ardiff.sample(*arguments, table=table, seed=0), named)


def test_equal_ids_give_equal_samples():
    x = ardiff.sample(
        model, (3, D), "ou", "v_prediction", "rtk-uld", 8, sample_ids=[4, 2**43 - 1, 4], seed=0
    )
    assert torch.equal(x[0], x[2]) and not torch.equal(x[0], x[1])
