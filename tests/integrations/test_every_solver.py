"""Every solver in every face: the bits of `ardiff.loop.run` on the same levels, key and streams."""

from __future__ import annotations

import inspect

import pytest
import torch

import ardiff
from ardiff.integrations import _sigma_loop, _sigma_plan, kdiffusion
from ardiff.loop.run import run
from ardiff.noise import make_key
from ardiff.solvers import SOLVERS, solver_options
from ardiff.tables.plan import uniform
from ardiff.tables.ragged import RaggedTable

SHAPE = (3, 2, 3, 4)
DIM = 24
SIGMAS = {
    "edm": [14.5, 6.0, 2.5, 1.0, 0.6, 0.3, 0.125, 0.0],
    "edm-ends": [14.5, 6.0, 2.5, 1.0, 0.6, 0.3],
    "flow": [0.96875, 0.875, 0.75, 0.5, 0.34375, 0.1875, 0.0625, 0.0],
}
ADJUSTED = [name for name in SOLVERS if "accept" in solver_options(name)]
VARIANTS = [
    *((name, {}) for name in SOLVERS),
    *((name, {"accept": "simpson"}) for name in ADJUSTED),
]
IDS = ["-".join([name, *own.values()]) for name, own in VARIANTS]
every = pytest.mark.parametrize(("name", "own"), VARIANTS, ids=IDS)


def denoiser(x, sigma, **extra_args):
    """No Gaussian's, elementwise, so that a sample knows only itself."""
    s = sigma.view(-1, 1, 1, 1)
    return x / (1 + s**2) + torch.tanh(x / (1 + s**2).sqrt()) * s / (1 + s**2)


def start(scale: float) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)) * scale


def sampler_of(name: str):
    return getattr(kdiffusion, "sample_" + name.replace("-", "_"))


def table_of(name: str, sigmas: list[float], path: str, own: dict):
    """What `ardiff.solver` makes of the sigmas, with the calls that these take."""
    levels = sigmas[:-1] if sigmas[-1] == 0 else sigmas
    own = own | ({"dim": DIM} if "dim" in solver_options(name) else {})
    for steps in range(1, 80):
        try:
            return ardiff.solver(
                name, path=path, prediction="sample", steps=steps, grid=levels,
                denoise_last=sigmas[-1] == 0, **own,
            )  # fmt: skip
        except ValueError as error:
            refused = error
    raise refused


@every
@pytest.mark.parametrize("given", SIGMAS)
def test_samplers_over_sigmas(name, own, given):
    sigmas, path, seen = SIGMAS[given], given.partition("-")[0], []
    table = table_of(name, sigmas, path, own)
    at, x = torch.tensor(sigmas, dtype=torch.float64), start(sigmas[0])
    plan = _sigma_plan.SigmaPlan(tuple(sigmas), None, tuple(sigmas), (), {}, ())
    address = _sigma_loop.Noise(x, None, 5, None, [4, 0, 9], plan)
    calls = []

    def model(x, sigma, **extra_args):
        calls.append(float(sigma[0]))
        return denoiser(x, sigma)

    found = sampler_of(name)(
        model, x, at, None, seen.append, True, path=path, seed=5, sample_ids=[4, 0, 9], **own
    )
    wanted = run(
        table, lambda x, level, _: denoiser(x.view(SHAPE), level).flatten(1), x.flatten(1),
        key=make_key(5, "cpu"), stream=address.stream,
    )  # fmt: skip
    assert torch.equal(found, wanted.view(SHAPE))
    levels = table.level[table.calls_model].astype("float32").tolist()
    assert calls == levels
    # an interval is told once, x and the answer there
    assert [info["i"] for info in seen] == list(range(len(sigmas) - 1))
    assert [float(info["sigma"]) for info in seen] == at[:-1].float().tolist()
    assert torch.equal(seen[0]["x"], x) and torch.equal(
        seen[0]["denoised"], denoiser(x, at[:1].float())
    )


@every
def test_no_shown_tensor_is_written_and_noise_may_be_drawn(name, own):
    """Of model, callback and noise sampler; a model may answer in the same memory each time."""
    sigmas, kept, buffer = torch.tensor(SIGMAS["edm"]), [], torch.empty(SHAPE)

    def keep(*tensors):
        kept.extend((t, t.clone()) for t in tensors)

    def model(x, sigma, **extra_args):
        keep(x)
        return denoiser(x, sigma)

    def static(x, sigma, **extra_args):
        return buffer.copy_(denoiser(x, sigma))

    def drawn(call, callback=None):
        generator = torch.Generator().manual_seed(1)
        draw = lambda a, b: torch.randn(SHAPE, generator=generator)  # noqa: E731
        options = {"disable": True, "seed": 2, "noise_sampler": draw, "s_noise": 0.75, **own}
        return sampler_of(name)(call, start(14.5), sigmas, callback=callback, **options)

    found = drawn(model, lambda info: keep(info["x"], info["denoised"]))
    assert found.isfinite().all() and all(torch.equal(t, then) for t, then in kept)
    assert torch.equal(found, drawn(static))


def test_a_second_memory_is_as_wide_as_the_table_needs():
    """A memory of the wrong width gave other samples and no error."""
    sigmas = SIGMAS["edm"]
    table = table_of("rtk-harmonic", sigmas, "edm", {})
    assert table.memories == 2
    stage = tuple(range(len(table)))
    plan = _sigma_plan.SigmaPlan(
        tuple(sigmas), table, (*table.level.tolist(), 0.0), stage, {}, ({},) * len(table)
    )
    x = start(sigmas[0])
    noise = _sigma_loop.Noise(x, None, 5, None, None, plan)
    found = _sigma_loop.run_plan(plan, denoiser, x, None, None, True, 1.0, noise)
    model = lambda x, level, _: denoiser(x.view(SHAPE), level).flatten(1)  # noqa: E731
    wanted = run(table, model, x.flatten(1), key=noise.key, stream=noise.stream)
    assert torch.equal(found.flatten(1), wanted)


@pytest.mark.parametrize("name", ADJUSTED)
def test_energies_are_refused_before_any_call(name):
    def model(*args, **options):
        raise AssertionError("the model was called")

    if name == "rtk-mala":
        message = "unknown accept 'energy'"
    else:
        message = f"solver {name} with accept='energy' compares energies"
    with pytest.raises(ValueError, match=message):
        sampler_of(name)(
            model, start(14.5), torch.tensor(SIGMAS["edm"]), disable=True, accept="energy"
        )


def test_a_plan_has_one_table_for_all_samples():
    table = table_of("ddim", SIGMAS["edm"], "edm", {})
    for other in (RaggedTable([table, table], [0, 1, 0]), uniform(table.to("cpu"))):
        with pytest.raises(TypeError, match="run one StepTable for all samples"):
            _sigma_plan.SigmaPlan((2.0, 1.0), other, (2.0, 1.0), (), {}, ())


REFUSED = {
    "sample_heun: solver heun takes no eta, got 1.0": ("heun", {"eta": 1.0}),
    "sample_rtk_ula takes no stages": ("rtk-ula", {"stages": 3}),
    "solver heun does not take the option 'inner'": ("heun", {"inner": 3}),
    "tau must be positive and finite": ("rtk-ula", {"tau": -1.0}),
    "unknown warm_start 'cold'": ("rtk-harmonic", {"warm_start": "cold"}),
    "solver rtk-ula cannot run on 2 given levels: rtk-ula needs two": (
        "rtk-ula", {"sigmas": torch.tensor([2.0, 1.0, 0.0])}
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_a_sampler_refuses(message):
    name, options = REFUSED[message]
    given = {"sigmas": torch.tensor(SIGMAS["edm"]), "disable": True, **options}
    with pytest.raises(ValueError, match=message):
        sampler_of(name)(denoiser, start(14.5), **given)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_sampler_says_what_it_takes(name):
    sample = sampler_of(name)
    assert kdiffusion.SOLVER_SAMPLERS[name.replace("-", "_")] is sample
    assert sample.__name__ == "sample_" + name.replace("-", "_") and sample.__doc__
    parameters = inspect.signature(sample).parameters
    assert list(parameters)[:9] == [
        "model", "x", "sigmas", "extra_args", "callback", "disable", "eta", "s_noise",
        "noise_sampler",
    ]  # fmt: skip
    assert set(solver_options(name)) - {"stages", "warm_start", "dim"} <= set(parameters)


@every
def test_one_interval_to_the_data_is_the_models_answer(name, own):
    x = start(2.0)
    found = sampler_of(name)(denoiser, x, torch.tensor([2.0, 0.0]), disable=True, **own)
    assert torch.equal(found, denoiser(x, torch.tensor([2.0])))
