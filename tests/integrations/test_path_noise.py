"""`PathNoiseSampler` and ``noise="path"`` of the samplers over sigmas: one path whatever the steps,
for samplers of k-diffusion too, whose loop is written here from its formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ardiff.integrations import kdiffusion
from ardiff.integrations.kdiffusion import PathNoiseSampler

SHAPE = (3, 2, 4, 4)


def sigmas(n: int, low: float = 0.05, high: float = 10.0) -> Tensor:
    return torch.exp(torch.linspace(0, 1, n + 1) * torch.tensor(low / high).log()) * high


def start() -> Tensor:
    return 10 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


def denoiser(x: Tensor, sigma: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
    """One that is no Gaussian's, without a choice between modes, of x = alpha x0 + sigma eps."""
    total = alpha**2 + sigma**2
    return x * alpha / total + torch.tanh(x / total.sqrt()) * sigma * alpha / total


def on_edm(x: Tensor, sigma: Tensor, **extra_args) -> Tensor:
    return denoiser(x, sigma.view(-1, *[1] * (x.dim() - 1)))


def on_flow(x: Tensor, sigma: Tensor, **extra_args) -> Tensor:
    sigma = sigma.view(-1, *[1] * (x.dim() - 1))
    return denoiser(x, sigma, 1 - sigma)


def ancestral(x: Tensor, x0: Tensor, a: Tensor, b: Tensor, noise: Tensor) -> Tensor:
    """The ancestral step of k-diffusion at eta = 1, from sigma a to b."""
    up = b * (1 - (b / a) ** 2).sqrt()
    return (b / a) ** 2 * x + (1 - (b / a) ** 2) * x0 + up * noise


def dpmpp_sde(model, x: Tensor, levels: Tensor, noise_sampler) -> Tensor:
    """SDE-DPM-Solver++(S) at r = 1/2 and eta = 1, two calls a step, k-diffusion's
    `sample_dpmpp_sde`: noise of the first half of the interval, then of the whole."""
    for a, b in zip(levels[:-1], levels[1:], strict=True):
        middle = (a * b).sqrt()
        x0 = model(x, a)
        halfway = ancestral(x, x0, a, middle, noise_sampler(a, middle))
        x = ancestral(x, model(halfway, middle), a, b, noise_sampler(a, b))
    return x


def test_noise_of_two_parts_is_that_of_the_whole_through_a_solver():
    """Where the data prediction is constant the steps are exact: one step of any length, and any
    number of steps of one or two calls, end at the same x. Not so with independent noise."""
    noise = PathNoiseSampler(start(), seed=5)
    data = torch.linspace(-1, 1, 4)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return data.expand_as(x)

    whole = dpmpp_sde(model, start(), sigmas(1), noise)
    for n in (2, 7, 64):
        assert (dpmpp_sde(model, start(), sigmas(n), noise) - whole).abs().max() < 1e-5
    apart = dpmpp_sde(model, start(), sigmas(2), lambda a, b: torch.randn(SHAPE))
    assert (apart - whole).abs().max() > 0.05


def test_two_calls_a_step_converge_on_one_path():
    """The error against 512 steps of the same path falls with the step; on another path not."""
    one, other = (PathNoiseSampler(torch.zeros(64, 8), seed=seed) for seed in (5, 6))
    x = 10 * torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    exact = dpmpp_sde(on_edm, x, sigmas(512), one)

    def error(n: int, noise: PathNoiseSampler) -> float:
        return float((dpmpp_sde(on_edm, x, sigmas(n), noise) - exact).norm())

    assert error(16, one) > 3 * error(64, one)
    assert error(16, other) < 1.2 * error(64, other)


@pytest.mark.parametrize("sampler", ["ddpm_fused", "dpmpp_2m_sde_fused", "flow_sde"])
@pytest.mark.parametrize("path", ["edm", "flow"])
def test_our_samplers_on_one_path(sampler, path):
    """Nearer to another number of steps than step noise is, by 4; as with the sampler passed; and
    split in two as whole."""
    sample, x = getattr(kdiffusion, f"sample_{sampler}"), start()

    def grid(n: int) -> Tensor:
        return sigmas(n) if path == "edm" else torch.linspace(1, 0.02, n + 1)

    model, x = (on_edm, x) if path == "edm" else (on_flow, x / 10)

    def run(n: int, **options) -> Tensor:
        return sample(model, x, grid(n), disable=True, path=path, **{"seed": 4, **options})

    def gap(**options) -> float:
        return float((run(40, **options) - run(80, **options)).norm())

    assert 4 * gap(noise="path") < gap()
    transform = {"transform": lambda sigma: sigma / (1 - sigma)} if path == "flow" else {}
    given = PathNoiseSampler(x, grid(9)[-1], grid(9)[0], seed=4, **transform)
    assert torch.equal(run(9, noise="path"), run(9, noise_sampler=given))
    if sampler != "dpmpp_2m_sde_fused":  # which has a memory
        levels, options = grid(8), {"disable": True, "path": path, "seed": 4, "noise": "path"}
        half = sample(model, x, levels[:5], **options)
        assert torch.equal(sample(model, half, levels[4:], **options), run(8, noise="path"))


def test_seeds_and_ids():
    x = torch.zeros(SHAPE, dtype=torch.bfloat16)
    whole = PathNoiseSampler(x, seed=2**64 - 3)(3.0, 2.0)
    assert whole.shape == SHAPE and whole.dtype == torch.bfloat16
    assert torch.equal(PathNoiseSampler(x, seed=-3)(3.0, 2.0), whole)
    alone = PathNoiseSampler(x[1:2], seed=-3, sample_ids=[1])
    assert torch.equal(alone(torch.tensor(3.0), torch.tensor(2.0)), whole[1:2])
    each = PathNoiseSampler(x, seed=[5, 9, 5])(3.0, 2.0)
    assert torch.equal(each[0], each[2]) and not torch.equal(each[0], each[1])
    assert torch.equal(PathNoiseSampler(x[:1], seed=[9])(3.0, 2.0), each[1:2])
    torch.manual_seed(0)
    first, second = PathNoiseSampler(x), PathNoiseSampler(x)
    assert not torch.equal(first(3.0, 2.0), second(3.0, 2.0))
    assert PathNoiseSampler(x, seed=1)(1e-3, 0.0).isfinite().all()
    with pytest.raises(ValueError, match="seed must be one integer, or 3, one for each sample"):
        PathNoiseSampler(x, seed=[1, 2])


def test_what_a_path_cannot_give_is_refused():
    options = {"disable": True, "seed": 1}
    message = 'noise="path" needs a solver that adds noise once on each interval.*rtk-ubu adds more'
    with pytest.raises(ValueError, match=message):
        kdiffusion.SOLVER_SAMPLERS["rtk_ubu"](on_edm, start(), sigmas(6), noise="path", **options)
    with pytest.raises(ValueError, match="unknown noise 'brown'; known: step, path"):
        kdiffusion.sample_ddpm_fused(on_edm, start(), sigmas(6), noise="brown", **options)
