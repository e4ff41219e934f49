"""A lookahead in the integrations that are handed the model."""

from __future__ import annotations

import pytest
import torch

from ardiff.integrations import kdiffusion, mar, nextstep
from ardiff.integrations.vibevoice import accelerate as accelerate_vibevoice
from tests._support.couplings import unit_mixture
from tests._support.head_cases import rows
from tests.integrations._support.mar_model import CONTEXT, loss_of
from tests.integrations._support.tiny_transformers import token, vibevoice
from tests.integrations.test_nextstep import head as flow_head

SAME = {"lookahead": 12, "mode": "picard", "tolerance": 0.0}
SIGMAS = torch.tensor([20.0, 12.0, 7.0, 4.0, 2.0, 1.0, 0.4, 0.1, 0.0])
KDIFFUSION = (kdiffusion.sample_ddpm_fused, kdiffusion.sample_dpmpp_2m_sde_fused)


def _mar(z: torch.Tensor, **options) -> torch.Tensor:
    loss = loss_of()
    mar.accelerate(loss, solver="dpmpp-2m-sde", steps=12, batch_invariant=True, **options)
    torch.manual_seed(4)
    return loss.sample(z, 0.9, 1.5)


def test_mar_without_tolerance_has_its_bits():
    z = rows(6, CONTEXT)
    assert torch.equal(_mar(z, **SAME), _mar(z))
    assert not torch.equal(_mar(z, lookahead=4), _mar(z))


def test_mar_refuses_its_learned_variance():
    with pytest.raises(ValueError, match="takes the variance of its noise from the model"):
        mar.accelerate(loss_of(), lookahead=4)


def _nextstep(c: torch.Tensor, **options) -> torch.Tensor:
    owner = flow_head()
    nextstep.accelerate(owner, batch_invariant=True, **options)
    torch.manual_seed(4)
    return owner.sample(c, cfg=1.5, num_sampling_steps=12)


def test_nextstep_without_tolerance_has_its_bits():
    c = rows(6, 24)
    assert torch.equal(_nextstep(c, **SAME), _nextstep(c))
    assert not torch.equal(_nextstep(c, lookahead=4), _nextstep(c))


def _vibevoice(**options) -> torch.Tensor:
    model = vibevoice()
    accelerate_vibevoice(model, batch_invariant=True, **options)
    return token(model, rows=3, steps=12)


def test_vibevoice_without_tolerance_has_its_bits():
    assert torch.equal(_vibevoice(**SAME), _vibevoice())
    ahead = {"lookahead": 4, "mode": "picard", "tolerance": 0.1}
    assert not torch.equal(_vibevoice(**ahead), _vibevoice())
    with pytest.raises(ValueError, match="mode and tolerance go with lookahead"):
        _vibevoice(tolerance=0.1)


def _denoiser():
    mixture = unit_mixture(4).model("edm", "sample", row_by_row=True)

    def model(x, sigma, shift, factor):
        return (mixture(x.flatten(1), sigma) + factor * shift).view(x.shape)

    return model


@pytest.mark.parametrize("sampler", KDIFFUSION)
def test_kdiffusion_without_tolerance_has_its_bits(sampler):
    x = 20 * rows(3, 4, 1, 1)
    extra = {"shift": rows(3, 4, seed=2), "factor": 0.1}
    given = {"extra_args": extra, "seed": 5, "disable": True, "s_noise": 0.9}
    expected = sampler(_denoiser(), x, SIGMAS, **given)
    assert torch.equal(sampler(_denoiser(), x, SIGMAS, **given, **SAME), expected)
    ahead = sampler(_denoiser(), x, SIGMAS, **given, lookahead=4)
    alone = {**given, "extra_args": {"shift": extra["shift"][1:2], "factor": 0.1}}
    one = sampler(_denoiser(), x[1:2], SIGMAS, **alone, sample_ids=[1], lookahead=4)
    assert torch.equal(ahead[1], one[0])
    assert not torch.equal(ahead, expected)


@pytest.mark.parametrize("sampler", KDIFFUSION)
def test_kdiffusion_refusals(sampler):
    x, extra = rows(3, 4, 1, 1), {"shift": torch.zeros(3, 4), "factor": 0.0}
    given = {"extra_args": extra, "disable": True, "lookahead": 4}
    with pytest.raises(ValueError, match="a callback is asked for one after the other"):
        sampler(_denoiser(), x, SIGMAS, callback=print, **given)
    with pytest.raises(ValueError, match="a noise sampler is asked for"):
        sampler(_denoiser(), x, SIGMAS, noise_sampler=lambda a, b: x, **given)
    with pytest.raises(ValueError, match="adds no noise"):
        sampler(_denoiser(), x, SIGMAS, eta=0.0, **given)
