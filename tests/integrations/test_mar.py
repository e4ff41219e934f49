"""MAR: the engine draws what the model's own loop draws, on the same noise and in law."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from scipy.stats import ks_2samp
from torch import nn

from ardiff.integrations import mar
from ardiff.loop.run import run
from ardiff.noise import initial_state, make_key
from ardiff.solvers import solver as make_table
from ardiff_kernels import testing
from tests._support.head_cases import relative_rms, rows
from tests.integrations._support.mar_model import CONTEXT, DIM, RespacedDDPM, loss_of, mar_like

CFG = {
    "none": 1.0,
    "number": 2.9,
    "tensor": torch.tensor(1.7),
    "one": torch.tensor([0.4]),
    "tokens": torch.tensor([1.0, 2.0, 0.0, 3.5]),
}


@pytest.mark.parametrize("temperature", [1.0, 0.9])
@pytest.mark.parametrize("cfg", CFG)
def test_the_same_noise_gives_the_same_samples(cfg, temperature):
    """All rows: of guidance both halves."""
    own, weight = loss_of(), CFG[cfg]
    n = 4 if cfg == "none" else 8
    z, noise = rows(n, CONTEXT), rows(101, n, DIM, seed=1)
    column = weight[:, None] if cfg == "tokens" else weight
    net, plain = own.net, own.sample
    if cfg == "tokens":  # whose comparison with 1 is no bool
        expected = plain(z, temperature, Column(column), noise)
    else:
        expected = plain(z, temperature, weight, noise)
    mar.accelerate(own)
    found = own.sample(z, temperature, weight, noise=noise)
    assert own.net is net and found.shape == (n, DIM) and found.dtype == torch.float32
    assert relative_rms(found, expected) < 1e-4 and not found.is_inference()
    if n == 8:
        assert relative_rms(found[4:], found[:4]) > 0.1
        alone = own.sample(z[:4], temperature, 1.0, noise=noise[:, :4])
        assert relative_rms(found[:4], alone) > 1e-2


class Column:
    """Weights `[N, 1]` that compare with 1 as a number does."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return False

    def __mul__(self, other: torch.Tensor) -> torch.Tensor:
        return self.value * other


@pytest.mark.parametrize(("weights", "bound"), [("bfloat16", 1e-3), ("int8", 0.01)])
def test_narrower_weights(weights, bound, monkeypatch):
    """Multiplied as float32 they are within a bound; by the CPU's dot products, which take what
    they multiply in bfloat16, a quarter of the error of the model in bfloat16 at most."""
    z, noise = rows(8, CONTEXT), rows(101, 8, DIM, seed=1)

    def draw(own) -> torch.Tensor:
        return own.sample(z, 1.0, 1.5, noise=noise)[:4]

    expected, own, half = draw(loss_of()), loss_of(), loss_of()
    mar.accelerate(own, weights=weights)
    net = copy.deepcopy(half.net).bfloat16()
    monkeypatch.setattr(
        half.net, "forward", lambda x, t, c: net(x.bfloat16(), t, c.bfloat16()).float()
    )
    stock = relative_rms(draw(half), expected)
    for way in testing.cpu_dots_here() or [""]:
        with testing.cpu_dots(way) if way else nullcontext():
            error = relative_rms(draw(own), expected)
        assert 3e-5 < error < (bound if way in ("common", "") else stock / 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision(dtype):
    """Its weights as they are, the state in float32."""
    own = loss_of().to(dtype)
    z, noise = rows(4, CONTEXT).to(dtype), rows(101, 4, DIM, seed=1)
    exact = copy.deepcopy(own).float().sample(z.float(), noise=noise)
    handle = mar.accelerate(own)
    assert handle.head().weights == ("bfloat16" if dtype == torch.bfloat16 else "float32")
    found = own.sample(z, noise=noise)
    assert found.dtype == torch.float32 and relative_rms(found, exact) < 0.02


@pytest.mark.parametrize("steps", [1, 2, 7, 250])
def test_the_table_is_that_of_the_respaced_loop(steps):
    table, own = mar.respaced_table(steps), RespacedDDPM(steps)
    assert table.level.astype(int).tolist() == own.timestep_map[::-1]
    names = {"p_x": "x0_x", "x_0": "mean_x0", "x_x": "mean_x", "lv_max": "log_high"}
    for ours, theirs in names.items():
        assert table.column(ours) == pytest.approx(own.columns[theirs][::-1], rel=1e-9)
    assert -table.column("p_o") == pytest.approx(own.columns["x0_eps"][::-1], rel=1e-9)
    low = table.column("lv_min")[:-1]
    assert low == pytest.approx(own.columns["log_low"][:0:-1], rel=1e-9)
    assert (table.column("x_n") != 0).tolist() == [True] * (steps - 1) + [False]


def test_spacings():
    """Sections: each count from the first to the last timestep of its section."""
    assert mar.space_timesteps(100) == [round(i * 999 / 99) for i in range(100)]
    assert mar.space_timesteps("1000") == list(range(1000))
    assert mar.space_timesteps("ddim50") == list(range(0, 1000, 20))
    assert mar.space_timesteps("ddim25", 300) == list(range(0, 300, 12))
    found = mar.space_timesteps("10,15,20", 300)
    parts = [[t for t in found if low <= t < low + 100] for low in (0, 100, 200)]
    assert [len(part) for part in parts] == [10, 15, 20]
    assert [(part[0], part[-1]) for part in parts] == [(0, 99), (100, 199), (200, 299)]
    assert mar.space_timesteps("1,2", 5) == [0, 3, 4]
    for bad, message in (
        ("fast", "expected a positive number, numbers separated by commas, or ddim"),
        (0, "expected a positive number"),
        ("3,", "expected a positive number"),
        (1001, "steps 1001: 1001 of a section of 1000 timesteps"),
        ("ddim999", "no integer stride takes 999 of 1000"),
    ):
        with pytest.raises(ValueError, match=message):
            mar.space_timesteps(bad)


# Two samples of 20,000 tokens of 3 numbers and 3 combinations of them: 6 tests, each at 1e-7, so a
# false alarm has a probability of 6e-7 at most. Fixed variance and a temperature of .7 must fail.
ALARM, TOKENS = 1e-7, 20_000


def p_value(a: torch.Tensor, b: torch.Tensor) -> float:
    spread = torch.cat([torch.eye(3), torch.tensor([[1.0, 1, 0], [0, 1, 1], [1, 0, -1]])]).T
    projections = zip((a @ spread).T.tolist(), (b @ spread).T.tolist(), strict=True)
    return min(ks_2samp(x, y, method="asymp").pvalue for x, y in projections)


def test_the_law_is_that_of_its_own_loop():
    own = loss_of(list(range(0, 1000, 100)), dim=3, width=32, depth=2)
    z = rows(2, CONTEXT).repeat_interleave(TOKENS, 0)
    torch.manual_seed(1)
    expected = own.sample(z, 1.0, 1.5)[:TOKENS]
    handle = mar.accelerate(own)
    found = own.sample(z, 1.0, 1.5)[:TOKENS]
    assert p_value(found, expected) > ALARM
    assert p_value(own.sample(z, 0.7, 1.5)[:TOKENS], expected) < ALARM
    fixed = mar.respaced_table("ddim10", variance="fixed_small")
    key, stream = make_key(5, "cpu"), torch.arange(TOKENS) << 20
    mean = run(
        fixed, Epsilon(handle.owner.net), initial_state(fixed, key, stream, 3), key=key,
        stream=stream, condition=z[:TOKENS], uncond=z[TOKENS:], guidance=torch.tensor([1.5]),
    )  # fmt: skip
    assert p_value(mean, expected) < ALARM


class Epsilon:
    """The first half of a net's outputs, computed in float64."""

    def __init__(self, net: nn.Module) -> None:
        self.net = copy.deepcopy(net).double()

    def __call__(self, x, level, c):
        return self.net(x.double(), level.double(), c.double())[:, : x.shape[1]].float()


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_images_token_set_after_token_set(cfg):
    model = mar_like()

    def noisy(sample):
        generator = torch.Generator().manual_seed(0)
        return lambda z, temperature, weight: sample(
            z, temperature, weight, noise=torch.randn(21, len(z), model.dim, generator=generator)
        )

    def images(sample):
        torch.manual_seed(0)
        model.diffloss.sample = noisy(sample)
        return model.sample_tokens(3, 4, cfg)

    expected = images(model.diffloss.sample)
    del model.diffloss.sample
    handle = mar.accelerate(model)
    assert relative_rms(images(handle.sample), expected) < 1e-3
    torch.manual_seed(1)
    handle.restore()
    mar.accelerate(model)
    first = model.sample_tokens(3, 4, cfg)
    torch.manual_seed(1)
    assert torch.equal(model.sample_tokens(3, 4, cfg), first)
    assert not torch.equal(model.sample_tokens(3, 4, cfg), first)


SOLVERS = {
    "rtk-uld": {"steps": 31},
    "rtk-mala": {"steps": 31, "tau": 0.2},
    "rtk-harmonic": {"steps": "12"},
    "dpmpp-2m": {},
    "dpmpp-2m-sde": {"steps": 9, "grid": "karras"},
}


@pytest.mark.parametrize("cfg", [1.0, 2.0])
@pytest.mark.parametrize("name", SOLVERS)
def test_other_solvers_on_the_mean(name, cfg):
    own = loss_of(20)
    net = own.net
    handle = mar.accelerate(own, solver=name, **SOLVERS[name])
    assert name in handle.table.solver and handle.table.calls <= 31
    z = rows(10 if cfg != 1 else 5, CONTEXT)
    torch.manual_seed(3)
    found = own.sample(z, 0.8, cfg)
    torch.manual_seed(3)
    key, stream = make_key(None, "cpu"), torch.arange(5) << 20
    guidance = {"uncond": z[5:], "guidance": torch.tensor([cfg])} if cfg != 1 else {}
    options = {"steps": 20} | SOLVERS[name]
    options["steps"] = int(options["steps"])
    table = make_table(name, path="vp-cosine", prediction="epsilon", **options)
    expected = run(
        table, Epsilon(net), initial_state(table, key, stream, DIM), key=key, stream=stream,
        condition=z[:5], noise_scale=torch.tensor([0.8]), **guidance,
    )  # fmt: skip
    assert relative_rms(found[:5], expected) < 1e-4
    assert torch.equal(found[-5:], found[:5])


def test_autocast_does_not_reach_the_loop():
    own = loss_of()
    z, noise = rows(4, CONTEXT), rows(101, 4, DIM, seed=1)
    mar.accelerate(own)
    expected = own.sample(z, noise=noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(own.sample(z, noise=noise), expected)


def test_batch_invariance():
    own = loss_of()
    z, noise = rows(40, CONTEXT), rows(101, 40, DIM, seed=1)
    mar.accelerate(own, batch_invariant=True)
    alone = own.sample(z[7:8], noise=noise[:, 7:8])
    assert torch.equal(own.sample(z, noise=noise)[7:8], alone)


def test_restore_gives_the_model_back():
    model = mar_like()
    before, kept = model.state_dict().keys(), copy.deepcopy(model)
    handle = mar.accelerate(model)
    assert mar.accelerate(model.diffloss) is handle and model.state_dict().keys() == before
    with pytest.raises(RuntimeError, match="accelerated already, with other options"):
        mar.accelerate(model, steps=7)
    mar.restore(model)
    mar.restore(model)
    assert vars(model.diffloss).keys() == vars(kept.diffloss).keys()
    z, noise = rows(2, 48), rows(21, 2, 4)
    assert torch.equal(model.diffloss.sample(z, noise=noise), kept.diffloss.sample(z, noise=noise))


def test_new_parameters_are_used():
    """Written to, replaced, or cast."""
    own, z, noise = loss_of(), rows(3, CONTEXT), rows(101, 3, DIM)
    mar.accelerate(own)

    def follows():
        found = own.sample(z, noise=noise)
        stock = type(own).sample(own, z.to(own.net.cond_embed.weight), noise=noise)
        assert relative_rms(found, stock) < 1e-4
        return found

    first = follows()
    with torch.no_grad():
        own.net.final_layer.linear.bias.add_(0.5)
    second = follows()
    own.load_state_dict(loss_of().state_dict(), assign=True)
    assert relative_rms(first, second) > 1e-2 and relative_rms(follows(), first) < 1e-5
    own.net = loss_of(width=32, depth=1).net
    assert relative_rms(follows(), first) > 1e-2


@pytest.mark.parametrize("num_iter", [4, 5, 9])
def test_more_iterations_than_tokens(num_iter):
    """Some sets have no tokens then: nothing is computed nor drawn for them, as in the model's own
    loop. Its guidance fails on them, which is refused."""
    model, noises, sets = mar_like(tokens=4, steps=3), rows(9, 4, 4, 4), []

    def images(sample, *cfg):
        def noisy(z, temperature, weight):
            sets.append(len(z))
            return sample(z, temperature, weight, noise=noises[len(sets) - 1, :, : len(z)])

        sets.clear()
        model.diffloss.sample = noisy
        torch.manual_seed(0)
        return model.sample_tokens(1, num_iter, *cfg)

    expected = images(model.diffloss.sample)
    assert sum(sets) == 4 and sets.count(0) >= num_iter - 4
    del model.diffloss.sample
    sample = mar.accelerate(model).sample
    assert relative_rms(images(sample), expected) < 1e-3
    before = torch.get_rng_state()
    assert sample(torch.zeros(0, 48)).shape == (0, 4)
    assert torch.equal(torch.get_rng_state(), before)
    if 0 in sets:
        with pytest.raises(ValueError, match="num_iter is above the number of tokens; pass a smal"):
            images(sample, 3.0)
    else:
        assert images(sample, 3.0).isfinite().all()


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_given_noise_leaves_the_generator_alone(cfg):
    own, z, noise = loss_of(4), rows(4, CONTEXT), rows(5, 4, DIM)
    mar.accelerate(own)
    before = torch.get_rng_state()
    own.sample(z, 1.0, cfg, noise=noise)
    assert torch.equal(torch.get_rng_state(), before)
    own.sample(z, 1.0, cfg)
    assert not torch.equal(torch.get_rng_state(), before)


def test_steps_are_those_of_the_model_unless_given():
    assert len(mar.accelerate(loss_of(25)).table) == 25
    assert len(mar.accelerate(loss_of(25), steps="ddim50").table) == 50
    own = loss_of(25)
    del own.gen_diffusion
    assert len(mar.accelerate(own).table) == 100
    for spacing in ("ddim25", "10,15,20", "7"):
        kept = mar.space_timesteps(spacing)
        assert mar.accelerate(loss_of(kept)).table.level.tolist() == kept[::-1]
        other = mar.accelerate(loss_of(kept), solver="dpmpp-2m")
        assert other.table.calls == len(kept)
    own = loss_of(mar.space_timesteps("10,15,20"))
    z, noise = rows(4, CONTEXT), rows(46, 4, DIM, seed=1)
    expected = own.sample(z, 1.0, 1.0, noise)
    mar.accelerate(own)
    assert relative_rms(own.sample(z, noise=noise), expected) < 1e-4
    own = loss_of(25)
    own.gen_diffusion.alphas_cumprod = own.gen_diffusion.alphas_cumprod * 0.99
    with pytest.raises(ValueError, match="not 1000 cosine steps respaced to 25; pass steps"):
        mar.accelerate(own)
    assert len(mar.accelerate(own, steps=25).table) == 25
