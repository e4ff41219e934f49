"""An audio token of VibeVoice: the loop of transformers over its diffusion head, and ours.

A case is `<head>/N=<tokens>/<dtype>`: random weights at the sizes of a released head, 10 steps of
DPM-Solver++ with guidance 1.3, and the dtype of our blocks' weights. Rivals are the model's own
loop in that dtype, its head eager or compiled (`_rivals.py`). The language model and the
tokenizers, which the loop does not call, are small.

    python -m ardiff bench vibevoice --case vibevoice-0.5b/N=1/float32
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ardiff.heads.packing import WEIGHTS

from . import _harness, _rivals
from ._harness import Row, Settings
from ._rivals import Rival

SUITE = "vibevoice"
WIDTHS = {"vibevoice-0.5b": 896, "vibevoice-1.5b": 1536, "tiny": 32}
CASES = tuple(
    f"{model}/N={n}/{dtype}"
    for model in WIDTHS
    if model != "tiny"
    for n in (1, 4)
    for dtype in WEIGHTS
)
STEPS, GUIDANCE, LATENT, DEPTH = 10, 1.3, 64, 4
# Of latents on the same noise: the largest difference in float32; relative RMS of int8 weights.
ERROR, INT8_ERROR = 1e-3, 0.03
# Of a rival's latents, relative RMS: its state is rounded to bfloat16 at each step too.
RIVAL_ERRORS = {"float32": 1e-4, "bfloat16": 0.15, "int8": 0.15}


def parse(case: str) -> tuple[int, int, str]:
    """Width, tokens and dtype of a case.

    Raises:
        ValueError: a name of another form.
    """
    parts = case.split("/")
    if len(parts) == 3 and parts[0] in WIDTHS and parts[2] in WEIGHTS:
        n = parts[1].removeprefix("N=")
        if n.isdecimal() and int(n) > 0:
            return WIDTHS[parts[0]], int(n), parts[2]
    raise ValueError(
        f"case {case!r}: expected <head>/N=<tokens>/<dtype> with a head of "
        f"{', '.join(m for m in WIDTHS if m != 'tiny')} and a dtype of {', '.join(WEIGHTS)}"
    )


def build(width: int, seed: int):
    """A random `VibeVoiceForConditionalGeneration` whose head has unit gain."""
    from transformers import VibeVoiceConfig, VibeVoiceForConditionalGeneration

    sizes = {"num_filters": 2, "downsampling_ratios": [2], "depths": [1, 1]}
    tokenizer = "vibevoice_acoustic_tokenizer"
    config = VibeVoiceConfig(
        text_config={
            "model_type": "qwen2", "hidden_size": width, "num_hidden_layers": 1, "vocab_size": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 8,
        },
        audio_config={"model_type": tokenizer, "hidden_size": LATENT, **sizes},
        semantic_model_config={"model_type": f"{tokenizer}_encoder", "hidden_size": 8, **sizes},
        diffusion_head_config={"intermediate_size": 3 * width, "num_hidden_layers": DEPTH},
        pad_token_id=0, eos_token_id=1, audio_bos_token_id=2, audio_eos_token_id=3,
        audio_token_id=4,
    )  # fmt: skip
    model = VibeVoiceForConditionalGeneration(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.model.diffusion_head.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1
        parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def loop(model, conditions: Tensor) -> Callable[[], Tensor]:
    """What `generate` calls at a token, `[N, 1, d]`."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
    )

    def call() -> Tensor:
        torch.manual_seed(0)
        return model._sample_audio_latent(*conditions, scheduler, STEPS, GUIDANCE)

    return call


def loop_of(stock, rival: Rival, conditions: Tensor) -> Callable[[], Tensor]:
    """The stock loop with a form of its head, in the dtype that it takes."""
    model = copy.deepcopy(stock)
    head = model.model.diffusion_head
    head.forward = lambda x, t, condition: rival.call(x, t, condition)
    return loop(model, conditions.to(rival.dtype))


def run(case: str, settings: Settings) -> Iterator[Row]:
    """Correctness, then tokens a second and speedups."""
    from ardiff.integrations.vibevoice import accelerate

    width, n, weights = parse(case)
    generator = torch.Generator().manual_seed(settings.seed)
    conditions = torch.randn(2, n, width, generator=generator).to(settings.device)
    with torch.no_grad():
        stock = build(width, settings.seed).to(settings.device)
        ours = copy.deepcopy(stock)
        accelerate(ours, weights=weights)
        yield from _correctness(case, weights, stock, ours, conditions)
        rivals = _rivals.made(stock.model.diffusion_head, weights, settings)
        loops = {name: loop_of(stock, rival, conditions) for name, rival in rivals.items()}
        exact = loop(stock, conditions)()
        yield from _rivals.correctness(SUITE, case, loops, exact, RIVAL_ERRORS)
        seconds = _harness.interleave({_harness.OURS: loop(ours, conditions)} | loops, settings)
        for name, values in seconds.items():
            rates = [n / value for value in values]
            yield _harness.spread_row(SUITE, case, name, "throughput", rates, "tokens/s")
        for name in loops:
            yield _harness.speedup_row(SUITE, case, name, seconds[name], seconds[_harness.OURS])


def _correctness(case: str, weights: str, stock, ours, conditions: Tensor) -> Iterator[Row]:
    """Against the stock loop on the same noise; bfloat16 weights against twice the error that the
    stock loop has in bfloat16."""
    found, expected = loop(ours, conditions)(), loop(stock, conditions)()
    excess = _harness.relative_error(found, expected)
    yield Row(SUITE, case, _harness.OURS, "error", float(excess))
    if weights == "float32":
        yield _harness.error_row(SUITE, case, _harness.OURS, found, expected, ERROR)
        return
    allowed = INT8_ERROR
    if weights == "bfloat16":
        half = loop(copy.deepcopy(stock).bfloat16(), conditions.bfloat16())()
        allowed = 2 * _harness.relative_error(half, expected)
    yield _harness.error_row(SUITE, case, _harness.OURS, excess, torch.zeros(()), allowed)
