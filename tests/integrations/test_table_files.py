"""A table, or the file of one, wherever a solver is taken: what it draws is what the solver draws,
and a table of another model, or beside a solver, is refused before anything runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import ardiff
from ardiff.ar.engine import AREngine
from ardiff.ar.sampler import ARSampler
from ardiff.commands._parser import main
from ardiff.integrations import kdiffusion, mar, nextstep, vibevoice
from ardiff.tables.table import StepTable
from tests._support.engine_oracle import PATH, tiny_model
from tests._support.head_cases import relative_rms, rows
from tests._support.small_models import small_model
from tests.integrations._support.mar_model import CONTEXT, DIM, loss_of
from tests.integrations._support.tiny_transformers import cosine, token
from tests.integrations._support.tiny_transformers import vibevoice as tiny_vibevoice
from tests.integrations.test_nextstep import head as flow_head

BESIDE = r"a table fixes the solver: do not pass .*{} beside it"


@pytest.fixture
def file(tmp_path):
    """Saves a table and returns the name of its file."""

    def save(solver, path, prediction, steps=6, **options):
        table = ardiff.solver(solver, path=path, prediction=prediction, steps=steps, **options)
        table.save(tmp_path / "a.table.json")
        return tmp_path / "a.table.json"

    return save


def test_sample(file):
    def score(x, level, condition):
        return -x / (1 + level[:, None])

    name = file("dpmpp-2m-sde", "ou", "score", steps=5)
    expected = ardiff.sample(score, (4, 3), "ou", "score", "dpmpp-2m-sde", 5, seed=1)
    assert torch.equal(ardiff.sample(score, (4, 3), table=name, seed=1), expected)
    assert torch.equal(ardiff.sample(score, (4, 3), table=str(name), seed=1), expected)
    with pytest.raises(TypeError, match=BESIDE.format("steps")):
        ardiff.sample(score, (4, 3), table=name, steps=5, seed=1)
    with pytest.raises(TypeError, match="or the name of a table file, got int"):
        ardiff.sample(score, (4, 3), table=3, seed=1)
    with pytest.raises(FileNotFoundError):
        ardiff.sample(score, (4, 3), table="none.table.json", seed=1)


def test_ar_sampler(file):
    model = small_model()
    name = file("dpmpp-2m", "vp-cosine", "sample", grid="karras", rho=5.0)
    by_name = ARSampler(model, "dpmpp-2m", 6, grid="karras", rho=5.0)
    by_file = ARSampler(model, table=name)
    assert by_file.calls == by_name.calls and by_file.table.solver == "dpmpp-2m"
    found, expected = (sampler.sample(2, seed=3).images for sampler in (by_file, by_name))
    assert torch.equal(found, expected)
    other = ARSampler(model, "dpmpp-2m", 6, grid="beta").sample(2, seed=3).images
    assert (other - expected).abs().max() > 1e-3
    expected = ardiff.solver(  # the model's rho is that of its own grid
        "ddim", path="vp-cosine", prediction="sample", steps=6, grid="polyexponential"
    )
    plain = ARSampler(model, "ddim", 6, grid="polyexponential").table
    np.testing.assert_array_equal(plain.level, expected.level)
    for options in ({"solver": "ddim"}, {"steps": 4}, {"stages": 2}, {"grid": "karras"}):
        with pytest.raises(TypeError, match=BESIDE.format(next(iter(options)))):
            ARSampler(model, table=name, **options)
    with pytest.raises(ValueError, match="and this model is sample on path vp-cosine"):
        ARSampler(model, table=StepTable.load(name).on(prediction="epsilon"))
    assert ARSampler(model).steps == [48] * 4


def test_ar_engine(file):
    def draw(engine):
        engine.submit(None, 3, seed=5)
        while engine.step():
            pass
        (found,) = engine.collect()
        return found.patches

    model, name = tiny_model(), file("ddim", **PATH)
    sizes = {"rows": 1, "capacity": 8}
    engine = AREngine(model, table=name, **sizes)
    assert torch.equal(draw(engine), draw(AREngine(model, "ddim", 6, **sizes)))
    with pytest.raises(ValueError, match="the table makes 6 model calls per patch: leave steps"):
        engine.submit(None, 3, seed=5, steps=7)
    with pytest.raises(TypeError, match=BESIDE.format("eta")):
        AREngine(model, table=name, eta=1.0, **sizes)


def test_mar(file):
    z, noise = rows(4, CONTEXT), rows(7, 4, DIM, seed=1)
    name = file("dpmpp-2m", "vp-cosine", "epsilon")
    by_name, by_file = loss_of(), loss_of()
    mar.accelerate(by_name, solver="dpmpp-2m", steps=6)
    mar.accelerate(by_file, table=name)
    assert torch.equal(by_file.sample(z, noise=noise), by_name.sample(z, noise=noise))
    with pytest.raises(ValueError, match="and this model is epsilon on path vp-cosine"):
        mar.accelerate(loss_of(), table=file("dpmpp-2m", "vp-linear", "epsilon"))
    for options in ({"solver": "ddim"}, {"steps": 4}, {"grid": "karras"}):
        with pytest.raises(TypeError, match=BESIDE.format(next(iter(options)))):
            mar.accelerate(loss_of(), table=name, **options)


def test_vibevoice(file):
    model, steps = tiny_vibevoice(), 6
    options = {"grid": "uniform", "shift": 0.9, "ratio_max": 20.0, "ratio_min": 0.05}
    vibevoice.accelerate(model, solver="dpmpp-2m", **options)
    expected = token(model, steps=steps)
    path = vibevoice.DiscretePath(cosine().alphas_cumprod.double().numpy())
    vibevoice.restore(model)
    name = file("dpmpp-2m", path, "v_prediction", **options)
    vibevoice.accelerate(model, table=name)
    assert torch.equal(token(model, steps=steps), expected)
    vibevoice.restore(model)
    vibevoice.accelerate(model, table=file("dpmpp-2m", path, "epsilon"))
    with pytest.raises(ValueError, match="is for a epsilon model"):
        token(model, steps=steps)
    vibevoice.restore(model)
    with pytest.raises(TypeError, match=BESIDE.format("grid")):
        vibevoice.accelerate(model, table=name, grid="uniform")


def test_nextstep(file):
    """Against the ODE by Euler steps in the head's own time, whose velocity points to the data."""
    own, c, noise = flow_head(), rows(3, CONTEXT), rows(7, 3, DIM, seed=1)
    name = file("flow-euler", "flow", "flow", steps=7)
    table = StepTable.load(name)
    x, times = noise[0] * table.init_scale, [*(1 - table.level), 1.0]
    for t, after in zip(times[:-1], times[1:], strict=True):
        v = own.velocity(x, torch.tensor(t, dtype=torch.float32), c, 1.0, 1.0)
        x = x + (after - t) * v
    nextstep.accelerate(own, table=name)
    assert relative_rms(own.sample(c, noise=noise), x) < 1e-5
    with pytest.raises(ValueError, match="and this model is flow on path flow"):
        nextstep.accelerate(flow_head(), table=file("ddim", "flow", "sample"))
    with pytest.raises(ValueError, match="a table needs diffusion rows alone, rtk-uld has others"):
        nextstep.accelerate(flow_head(), table=file("rtk-uld", "flow", "flow", steps=7))


@pytest.mark.parametrize("path", ["edm", "flow"])
def test_k_diffusion(path, file):
    """A table made for a VP model, at its own sigmas, is the solver there."""

    def model(x, sigma):
        return torch.tanh(x) / (1 + sigma[:, None] ** 2)

    name = file("unipc", "vp-linear", "epsilon")
    sigmas = kdiffusion.table_sigmas(name, path)
    assert len(sigmas) == 7 and sigmas[-1] == 0 and sigmas.dtype == torch.float32
    x, seen = rows(3, 5) * sigmas[0], []
    options = {"path": path, "disable": True}
    found = kdiffusion.sample_table(model, x, sigmas, table=name, callback=seen.append, **options)
    expected = kdiffusion.sample_unipc(model, x, sigmas, **options)
    assert relative_rms(found, expected) < 1e-5
    assert [call["i"] for call in seen] == list(range(6))
    np.testing.assert_allclose([float(call["sigma"]) for call in seen], sigmas[:-1], rtol=1e-6)
    for wrong in (sigmas[1:], sigmas * 1.01):
        with pytest.raises(ValueError, match="a table fixes its sigmas: expected the 7 of"):
            kdiffusion.sample_table(model, x, wrong, table=name, **options)
    with pytest.raises(ValueError, match="unknown path 'ou'"):
        kdiffusion.sample_table(model, x, sigmas, table=name, path="ou")


def test_k_diffusion_of_an_adjusted_table(file):
    """Several rows per sigma, and noise; of a table over sigmas as it is."""

    def model(x, sigma):
        return x / (1 + sigma[:, None] ** 2)

    name = file("rtk-uld", "edm", "sample", steps=10, stages=3)
    sigmas = kdiffusion.table_sigmas(name)
    assert len(sigmas) == 5
    x = rows(3, 5) * sigmas[0]
    found = kdiffusion.sample_table(model, x, sigmas, table=name, seed=3, disable=True)
    expected = kdiffusion.sample_rtk_uld(model, x, sigmas, seed=3, disable=True)
    assert relative_rms(found, expected) < 1e-5


def test_the_command_line(file, tmp_path, capsys):
    def draw(*words):
        target = tmp_path / "found.json"
        command = ["sample", "--n", "1", "--seed", "1", "--out", str(tmp_path / "x.png"), *words]
        assert main([*command, "--json", str(target)]) == 0
        found = json.loads(target.read_text())
        rows = found.get("rows", found)
        return (tmp_path / "x.png").read_bytes(), rows

    grid = {"grid": "polyexponential", "rho": 1.5, "shift": 1.25, "ratio_max": 30.0}
    grid["ratio_min"] = 0.02
    name = file("ddim", "vp-cosine", "sample", steps=4, **grid)
    words = [w for option, v in grid.items() for w in ("--" + option.replace("_", "-"), str(v))]
    by_name, _ = draw("--solver", "ddim", "--steps", "4", *words)
    by_file, _ = draw("--table", str(name))
    assert by_file == by_name != draw("--solver", "ddim", "--steps", "4")[0]
    bad = ["sample", "--n", "1", "--out", str(tmp_path / "x.png")]
    assert main([*bad, "--grid", "moon"]) == 2
    assert "known grids: log-snr, uniform, karras" in capsys.readouterr().err
    assert main([*bad, "--table", str(name), "--steps", "4"]) == 2
    assert "--table: a table fixes the solver; leave --steps out" in capsys.readouterr().err
    name.write_text("{}")
    assert main([*bad, "--table", str(name)]) == 2
    assert "not a table file" in capsys.readouterr().err
