"""Learned-range variance, a bound on the data prediction and given noise, through every face."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ardiff
from ardiff.heads import token
from ardiff.heads.mar import DiffusionHead
from ardiff.heads.token import denoise_token
from ardiff.loop import cuda_graphs as graphs
from ardiff.loop.run import run
from ardiff.noise import initial_state
from ardiff.tables.ragged import RaggedTable
from ardiff.tables.table import COLUMNS, WIDTH, StepTable
from tests._support import graph_on_cpu
from tests._support.head_cases import CONTEXT, Plain, relative_rms, rows
from tests._support.small_models import randomise

B, D = 4, 6
KEY, STREAM = torch.tensor([7]), torch.arange(B) << 20
PLACE = {"path": "vp-cosine", "prediction": "epsilon"}


def learned(steps: int = 9) -> StepTable:
    """DDPM whose noise has from half to three times its own variance."""
    fixed = ardiff.solver("ddpm", steps=steps, **PLACE)
    coefficients, columns = fixed.coefficients.copy(), COLUMNS["diffusion"]
    noisy = fixed.column("x_n") != 0
    variance = np.log(fixed.column("x_n")[noisy] ** 2)
    coefficients[noisy, columns.index("lv_min")] = variance + np.log(0.5)
    coefficients[noisy, columns.index("lv_max")] = variance + np.log(3)
    return StepTable(
        coefficients, fixed.level, fixed.calls_model, fixed.op, fixed.init_scale, fixed.path,
        fixed.prediction, "mine",
    )  # fmt: skip


def outputs(x, level, condition):
    """Row by row, without a matrix product; the second half holds shares beyond [-1, 1] too."""
    shift = 0.0 if condition is None else condition
    mean = torch.tanh(x + 0.001 * level[:, None] + shift)
    return torch.cat([mean, 1.4 * torch.sin(3 * x + shift)], 1)


def by_formula(table, x, noise, model=outputs, temperature=1.0, clamp=None):
    """Nichol & Dhariwal 2021, in float64."""
    x = x.double()
    for i, level in enumerate(table.level):
        c = {n: table.column(n)[i] for n in COLUMNS["diffusion"]}
        out, share = model(x, torch.full((len(x),), level), None).double().chunk(2, 1)
        x0 = c["p_x"] * x + c["p_o"] * out
        x0 = x0 if clamp is None else x0.clamp(-clamp, clamp)
        x = c["x_x"] * x + c["x_0"] * x0
        if c["x_n"]:
            low, high = np.exp(c["lv_min"]), np.exp(c["lv_max"])
            std = low ** (0.25 * (1 - share)) * high ** (0.25 * (1 + share))
            x = x + temperature * std * noise[i].double()
    return x


def start(table, batch=B):
    return initial_state(table, KEY, STREAM[:batch], D)


@pytest.mark.parametrize("clamp", [None, 0.8])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_run_on_given_noise_is_the_formula(clamp, temperature):
    table, noise = learned(), rows(9, B, D)
    where = {"key": KEY, "stream": STREAM, "noise": noise, "x0_clamp": clamp}
    found = run(
        table, outputs, start(table), noise_scale=torch.tensor([temperature]), **where
    )  # fmt: skip
    expected = by_formula(table, start(table), noise, temperature=temperature, clamp=clamp)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-5)
    fixed = run(table, outputs, start(table), **where | {"noise": torch.zeros_like(noise)})
    assert (found - fixed).abs().max() > 0.05


def test_guidance_acts_on_the_mean_alone():
    """With weight 0 the mean is the unconditional one, the variance still the conditional one."""
    table, noise = learned(), rows(9, B, D)

    def mixed(x, level, _):
        return torch.cat([outputs(x, level, 0.4)[:, :D], outputs(x, level, -0.2)[:, D:]], 1)

    found = run(
        table, outputs, start(table), key=KEY, stream=STREAM, noise=noise,
        condition=-0.2, uncond=0.4, guidance=torch.zeros(1),
    )  # fmt: skip
    expected = by_formula(table, start(table), noise, mixed)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-5)


def test_a_model_without_a_variance_has_that_of_the_table():
    table, fixed = learned(), ardiff.solver("ddpm", steps=9, **PLACE)
    place = {"key": KEY, "stream": STREAM}
    found, expected = (run(t, bare, start(table), **place) for t in (table, fixed))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("ways", [1, 2, 3])
def test_a_fused_head_with_a_learned_variance(ways, monkeypatch):
    """As on a GPU too, where `head_loop` must leave such tables alone."""
    monkeypatch.setattr(
        token,
        "unsuitable",
        lambda table, schedule, *_: token.unsuitable_table(table, schedule),
    )
    head = randomise(DiffusionHead(D, CONTEXT, 32, 2, out=2 * D)).eval()
    table, c, options = learned(40), rows(B, CONTEXT), {}
    if ways > 1:
        options = {"uncond": rows(B, CONTEXT, seed=5), "guidance": torch.tensor([1.5])}
    if ways > 2:
        options |= {"uncond2": rows(B, CONTEXT, seed=6), "guidance2": torch.tensor([1.2])}
    for more in ({}, {"x0_clamp": 1.5}, {"noise": rows(40, B, D)}):
        found = denoise_token(head, c, table, KEY, 0, STREAM, **options, **more)
        expected = run(
            table, Plain(head), start(table), key=KEY, stream=STREAM, condition=c, **options, **more
        )
        assert relative_rms(found, expected) < 1e-4


def test_tables_of_their_own():
    tables, index = [learned(5), learned(9)], [0, 1, 0, 1]
    table = RaggedTable(tables, index)
    found = run(table, outputs, start(table), key=KEY, stream=STREAM, x0_clamp=0.7)
    for i, own in enumerate(index):
        place = {"key": KEY, "stream": STREAM[i : i + 1], "x0_clamp": 0.7}
        alone = run(tables[own], outputs, start(table)[i : i + 1], **place)
        assert torch.equal(found[i : i + 1], alone)
    fixed = ardiff.solver("ddpm", steps=5, **PLACE)
    with pytest.raises(ValueError, match="tables of one run must agree in learned_range"):
        RaggedTable([fixed, learned(5)], index)


def test_it_compiles():
    table = learned()

    def loop():
        return run(table, outputs, start(table), key=KEY, stream=STREAM, x0_clamp=0.8)

    torch.compiler.reset()
    compiled = torch.compile(loop, fullgraph=True, backend="aot_eager")()
    assert torch.equal(compiled, loop())


def pixels(x, level, condition):
    """Of images `[B, 2, 1, 3]`: four channels, the means before the variances."""
    return outputs(x.flatten(1), level, condition).view(len(x), 4, 1, 3)


def test_sample_takes_images_of_twice_the_channels():
    table = learned()
    found = ardiff.sample(pixels, (B, 2, 1, 3), table=table, seed=7, x0_clamp=0.8)
    flat = ardiff.sample(outputs, (B, D), table=table, seed=7, x0_clamp=0.8)
    assert found.shape == (B, 2, 1, 3) and torch.equal(found.flatten(1), flat)
    assert not torch.equal(flat, ardiff.sample(outputs, (B, D), table=table, seed=7))
    assert ardiff.sample(pixels, (0, 2, 1, 3), table=table, seed=0).shape == (0, 2, 1, 3)


def test_a_graph_is_of_one_clamp_and_one_variance(monkeypatch):
    made = []

    def record(function):
        made.append(function)
        return graph_on_cpu.record(function)

    monkeypatch.setattr(graphs, "record", record)
    monkeypatch.setattr("ardiff.sampling.check_graph", lambda *_: None)
    graphs.clear_graphs()
    fixed = ardiff.solver("ddpm", steps=9, **PLACE)
    for table, model in ((learned(), outputs), (fixed, lambda *args: outputs(*args)[:, :D])):
        for clamp in (None, 0.8, 0.5):
            options = {"table": table, "x0_clamp": clamp}
            captured, loop = (
                ardiff.sample(model, (B, D), cuda_graph=graph, **options, seed=0)
                for graph in (True, False)
            )
            assert torch.equal(captured, loop)
    assert len(made) == 6
    graphs.clear_graphs()


def given(table=None, model=outputs, **options):
    table = learned() if table is None else table
    return lambda: run(table, model, start(table), key=KEY, stream=STREAM, **options)


def bare(x, level, condition):
    return x


KINETIC = ardiff.solver("rtk-uld", steps=12, **PLACE)
ALONE = "needs a table of diffusion rows alone, without velocity and accept steps"
BAD = {
    "width": (
        given(model=lambda x, *_: x[:, :5]),
        r"shape of its input \[4, 6\] \(or \[4, 12\] with its variance\), got \[4, 5\]",
    ),
    "fixed": (
        given(ardiff.solver("ddpm", steps=4, **PLACE)),
        r"shape of its input \[4, 6\], got \[4, 12\]; only a table with lv_min and lv_max",
    ),
    "noise": (given(noise=rows(3, B, D)), r"noise must have shape \[9, 4, 6\], .* got \[3, 4, 6\]"),
    "kinetic-noise": (given(KINETIC, bare, noise=rows(1)), f"noise {ALONE}"),
    "kinetic-clamp": (given(KINETIC, bare, x0_clamp=1.0), f"x0_clamp {ALONE}"),
    "clamp": (given(x0_clamp=-1.0), "x0_clamp must be a positive number, got -1.0"),
    "clamp-kind": (given(x0_clamp=True), "x0_clamp must be a positive number, got True"),
    "sample-clamp": (
        lambda: ardiff.sample(bare, (B, D), table=KINETIC, x0_clamp=1.0), f"x0_clamp {ALONE}",
    ),
    "sample-adapted": (
        lambda: ardiff.sample(
            bare, (B, D), solver="rtk-mala", steps=9, adapt="sample", x0_clamp=1.0, **PLACE, seed=0
        ),
        f"x0_clamp {ALONE}",
    ),
    "channels": (
        lambda: ardiff.sample(lambda x, *_: x.view(B, 3, 2), (B, 2, 3), table=learned(), seed=0),
        r"shape of its input \[4, 2, 3\] \(or \[4, 4, 3\] with its variance\), got \[4, 3, 2\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_named(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_table_of_other_ops_takes_no_learned_variance():
    coefficients = np.zeros((2, WIDTH))
    coefficients[0, COLUMNS["diffusion"].index("lv_min")] = -1.0
    with pytest.raises(ValueError, match="need a table of diffusion rows alone, got diffusion, u"):
        StepTable(
            coefficients, np.ones(2), np.ones(2, bool), ("diffusion", "uld"), 1.0, "vp-cosine",
            "epsilon", "mine",
        )  # fmt: skip
