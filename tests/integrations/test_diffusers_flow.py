"""Flow models: configurations of flow matching schedulers, their sigmas and shifts, and pipelines.

The law is judged by Kolmogorov's distance of N = 2^14 independent elements to the exact marginal.
By Massart's inequality its false-alarm rate for exact draws is below 1e-6 at D = 0.0211.
"""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from scipy.special import ndtr

from ardiff.integrations import diffusers as ours
from ardiff.integrations.diffusers import TableScheduler
from tests.integrations._support.diffusers_cases import SHAPE, model

KOLMOGOROV = 0.0211
MEAN, WIDTH = 0.5, 0.2
FLOW = (
    ours.FusedDPMSolverMultistepScheduler,
    ours.RTKULDScheduler,
    ours.RTKMALAScheduler,
    ours.TableScheduler,
)
every = pytest.mark.parametrize("kind", FLOW, ids=lambda kind: kind.__name__)
OPTIONS = {
    "static": ({"shift": 3.0}, None),
    "no dynamic shift": ({"shift": 3.0}, 0.9),  # FLUX.1-schnell's pipeline passes mu all the same
    "dynamic": ({"shift": 3.0, "use_dynamic_shifting": True}, 0.9),
    "linear": ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, 2.5),
    "terminal": ({"use_dynamic_shifting": True, "shift_terminal": 0.1}, 0.9),
    "karras": ({"shift": 2.0, "use_karras_sigmas": True}, None),
    "exponential": ({"shift": 2.0, "use_exponential_sigmas": True}, None),
    "beta": ({"shift": 2.0, "use_beta_sigmas": True}, None),
}


def theirs(**options) -> diffusers.FlowMatchEulerDiscreteScheduler:
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


@every
@pytest.mark.parametrize("name", OPTIONS)
def test_sigmas_and_mu_as_flow_match_euler_has_them(kind, name):
    options, mu = OPTIONS[name]
    stock, sigmas = theirs(**options), np.linspace(1, 1 / 8, 8).tolist()
    stock.set_timesteps(sigmas=sigmas, mu=mu)
    for config in (stock.config, {**stock.config, "_class_name": type(stock).__name__}):
        scheduler = kind.from_config(config)
        assert scheduler.config.prediction_type == "flow_prediction"
        assert scheduler.config.flow_shift == options.get("shift", 1.0)
        for given in (sigmas, [*sigmas, 0.0], np.array(sigmas)):
            scheduler.set_timesteps(sigmas=given, mu=mu)
            levels = scheduler.timesteps.unique_consecutive()  # one for each call
            assert torch.allclose(levels, stock.timesteps, rtol=1e-6)
    # both are accepted by FlowMatchEulerDiscreteScheduler, and passed by some pipelines
    scheduler.set_timesteps(8, sigmas=sigmas, mu=mu)
    assert torch.equal(scheduler.timesteps.unique_consecutive(), levels)


def test_flow_euler_is_flow_match_euler():
    """On the number of steps alone too, where the spacing is theirs; the samples are the same."""
    for options, mu in OPTIONS.values():
        stock = theirs(**options)
        mine = TableScheduler.from_config(
            stock.config, solver="flow-euler", timestep_spacing="linspace"
        )
        ends = []
        for scheduler in (stock, mine):
            scheduler.set_timesteps(9, mu=mu)
            x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
            for t in scheduler.timesteps:
                x = scheduler.step(model(x, t), t, x).prev_sample
            ends.append(x)
        assert torch.allclose(mine.timesteps, stock.timesteps, rtol=1e-6)
        assert torch.allclose(mine.sigmas, stock.sigmas, rtol=1e-6)
        assert torch.allclose(ends[0], ends[1], atol=1e-5)


def test_log_snr_spacing_of_a_flow():
    """From pure noise, then evenly in log(sigma / alpha); a shift multiplies sigma / alpha."""

    def ratios(mu=None, **options) -> np.ndarray:
        scheduler = TableScheduler(prediction_type="flow_prediction", **options)
        scheduler.set_timesteps(20, mu=mu)
        sigma = scheduler.timesteps.double().numpy() / 1000
        assert sigma[0] == 1 and len(sigma) == 20
        return sigma[1:] / (1 - sigma[1:])

    plain = ratios()
    assert plain[0] == pytest.approx(40, rel=1e-4) and plain[-1] == pytest.approx(0.002, rel=1e-4)
    assert np.diff(np.log(plain)) == pytest.approx(np.log(0.002 / 40) / 18, rel=1e-4)
    assert ratios(flow_shift=3.0) == pytest.approx(3 * plain, rel=1e-3)
    dynamic = {"use_dynamic_shifting": True}
    assert ratios(mu=1.1, **dynamic) == pytest.approx(np.exp(1.1) * plain, rel=1e-3)
    linear = ratios(mu=1.1, time_shift_type="linear", **dynamic)
    assert linear == pytest.approx(1.1 * plain, rel=1e-3)
    assert ratios(shift_terminal=0.1)[-1] == pytest.approx(1 / 9, rel=1e-4)
    stages = ours.RTKULDScheduler(prediction_type="flow_prediction")
    stages.set_timesteps(5)  # one stage goes all the way
    assert stages.timesteps.tolist() == pytest.approx([1000] + [2 / 1.002] * 4)


def distance(scheduler, steps: int, **options) -> float:
    """Of samples under the exact velocity of N(MEAN, WIDTH^2) to that law."""
    scheduler.set_timesteps(steps, **options)
    generator = torch.Generator().manual_seed(7)
    x = torch.randn((2**10, 4, 2, 2), generator=generator)
    for t in scheduler.timesteps:
        sigma = max(float(t), 1e-3) / 1000  # the control is called at 0 too
        gain = (1 - sigma) * WIDTH**2 / ((1 - sigma) ** 2 * WIDTH**2 + sigma**2)
        x0 = MEAN + gain * (x - (1 - sigma) * MEAN)
        x = scheduler.step((x - x0) / sigma, t, x, generator=generator).prev_sample
    ordered = ndtr((np.sort(x.double().numpy().ravel()) - MEAN) / WIDTH)
    n = len(ordered)
    return float(max((np.arange(1, n + 1) / n - ordered).max(), (ordered - np.arange(n) / n).max()))


def test_law_from_a_flow_configuration():
    """SD3's configuration. Control: its velocity taken for noise, as without the prediction."""
    config = theirs(shift=3.0).config
    assert distance(TableScheduler.from_config(config), 30) < KOLMOGOROV
    fused = ours.FusedDPMSolverMultistepScheduler.from_config(config)
    assert distance(fused, 60) < KOLMOGOROV
    epsilon = TableScheduler.from_config(config, prediction_type="epsilon")
    assert distance(epsilon, 30) > 5 * KOLMOGOROV


def test_configurations_there_and_back():
    """The shift and its options stay; other kinds of configurations are taken as they are."""
    config = theirs(shift=3.0, use_dynamic_shifting=True, base_shift=0.4).config
    for kind in FLOW:
        scheduler = kind.from_config(kind.from_config(config).config)
        assert scheduler.config.flow_shift == 3.0 and scheduler.config.use_dynamic_shifting
        assert scheduler.config.base_shift == 0.4  # what pipelines make mu of
        back = diffusers.FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
        assert {k: back.config[k] for k in config if k[0] != "_"} == {
            k: config[k] for k in config if k[0] != "_"
        }
        given = kind.from_config(config, flow_shift=5.0)
        assert given.config.flow_shift == 5.0
        epsilon = kind.from_config(diffusers.DDIMScheduler().config)
        assert epsilon.config.prediction_type == "epsilon"
        unipc = diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0
        )
        assert kind.from_config(unipc.config).config.flow_shift == 2.0


def test_what_is_refused():
    scheduler = TableScheduler(prediction_type="flow_prediction", use_dynamic_shifting=True)
    with pytest.raises(ValueError, match="use_dynamic_shifting needs mu"):
        scheduler.set_timesteps(10)
    for kind in (TableScheduler, ours.RTKULDScheduler):
        with pytest.raises(ValueError, match=r"sigmas of a flow model must lie in \(0, 1\]"):
            kind(prediction_type="flow_prediction").set_timesteps(sigmas=[14.6, 2.0])
        with pytest.raises(ValueError, match="mu shifts the sigmas of a flow model"):
            kind().set_timesteps(10, mu=0.5)
        with pytest.raises(ValueError, match="pass one of num_inference_steps, timesteps and"):
            kind().set_timesteps(10, sigmas=[3.0, 1.0])
        with pytest.raises(ValueError, match="unknown time_shift_type 'cubic'"):
            kind(time_shift_type="cubic")
        with pytest.raises(ValueError, match="shift_terminal must lie in"):
            kind(shift_terminal=1.5)
    inverted = TableScheduler.from_config(theirs(invert_sigmas=True).config)
    with pytest.raises(ValueError, match="invert_sigmas is not supported"):
        inverted.set_timesteps(sigmas=[1.0, 0.5])
    with pytest.raises(ValueError, match="for rectified flow use TableScheduler"):
        ours.FusedDDPMScheduler.from_config(theirs().config)
    fused = ours.FusedDPMSolverMultistepScheduler(prediction_type="flow_prediction")
    with pytest.raises(ValueError, match="need use_flow_sigmas=True"):
        fused.set_timesteps(sigmas=[1.0, 0.5])


def test_sigmas_of_other_models():
    """sigma / alpha, as EulerDiscreteScheduler takes them, here Align Your Steps' for SDXL."""
    sigmas = [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.38, 0.234, 0.113, 0.0]
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    stock = diffusers.EulerDiscreteScheduler(**config)
    stock.set_timesteps(sigmas=sigmas)
    for kind in FLOW:
        scheduler = kind(**config)
        scheduler.set_timesteps(sigmas=sigmas)
        levels = scheduler.timesteps.unique_consecutive()
        assert torch.allclose(levels, stock.timesteps.float(), atol=0.02)
        assert scheduler.timesteps.dtype == torch.float32
    with pytest.raises(ValueError, match="must be sigma / alpha between"):
        TableScheduler(**config).set_timesteps(sigmas=[80.0, 1.0])


def autoencoder(channels: int) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(4,), norm_num_groups=2, latent_channels=channels, sample_size=8,
        scaling_factor=1.0, shift_factor=0.0, use_quant_conv=False, use_post_quant_conv=False,
    ).eval()  # fmt: skip


def flux(scheduler) -> diffusers.FluxPipeline:
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=8, pooled_projection_dim=8,
        axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    return diffusers.FluxPipeline(
        scheduler=scheduler, vae=autoencoder(1), transformer=transformer.eval(), text_encoder=None,
        tokenizer=None, text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip


def sd3(kind, scheduler):
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=1,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8, pooled_projection_dim=8,
        caption_projection_dim=16, pos_embed_max_size=8,
    )  # fmt: skip
    none = dict.fromkeys(f"{part}{n}" for part in ("text_encoder", "tokenizer") for n in ("", "_2"))
    return kind(
        transformer=transformer.eval(), scheduler=scheduler, vae=autoencoder(4), **none,
        text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


def latents(pipeline, steps: int = 7, **options) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    torch.manual_seed(1)
    return pipeline(
        prompt_embeds=torch.randn(1, 4, 8), pooled_prompt_embeds=torch.randn(1, 8), height=8,
        width=8, num_inference_steps=steps, generator=torch.Generator().manual_seed(3),
        output_type="latent", guidance_scale=1.0, **options,
    ).images  # fmt: skip


DYNAMIC = {"shift": 3.0, "use_dynamic_shifting": True}


def test_flux_pipeline():
    """It passes mu, and sigmas unless the scheduler's configuration has `use_flow_sigmas`."""
    expected = latents(flux(theirs(**DYNAMIC)))
    own = {"prediction_type": "flow_prediction", "use_dynamic_shifting": True}
    given = TableScheduler(solver="flow-euler", **own)
    fused = ours.FusedFlowMatchEulerDiscreteScheduler.from_config(theirs(**DYNAMIC).config)
    for scheduler in (given, fused):
        assert torch.allclose(latents(flux(scheduler)), expected, atol=1e-5)
    for kind in FLOW:
        scheduler = kind.from_config(theirs(**DYNAMIC).config)
        found = latents(flux(scheduler))
        assert found.isfinite().all() and len(scheduler.timesteps) == 7


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"])
def test_sd3_pipelines(name):
    """Image-to-image noises the image by scale_noise."""
    kind = getattr(diffusers, name)
    image = {} if name == "StableDiffusion3Pipeline" else {"image": torch.rand(1, 3, 8, 8)}
    stock = theirs(shift=3.0)
    euler = TableScheduler.from_config(
        stock.config, solver="flow-euler", timestep_spacing="linspace"
    )
    expected = latents(sd3(kind, stock), **image)
    fused = ours.FusedFlowMatchEulerDiscreteScheduler.from_config(stock.config)
    for scheduler in (euler, fused):
        assert torch.allclose(latents(sd3(kind, scheduler), **image), expected, atol=1e-5)
    for scheduler in (other.from_config(stock.config) for other in FLOW):
        found = latents(sd3(kind, scheduler), **image)
        assert found.isfinite().all() and scheduler.step_index == 7
