"""A small model of NextStep-1's form with random weights, for the suite `systems`: from a prompt to
the tokens of one image.

A language model of transformers makes a context for each token, with and without text; the flow
head, 20 steps with guidance 7.5, makes the token from both. Of NextStep-1 it has the form and the
256 tokens of 64 numbers, but 1/90 of its weights, in much the same proportion: a token reads each
weight of the language model once and each of the head's 20 times.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from ._random_weights import fill, made
from .reference_nextstep import FlowHead

UNIT = "image"
BACKBONE = "model"
DIM, STEPS, GUIDANCE, SHIFT = 64, 20, 7.5, 3.0
# width, layers, heads, key and value heads, feed-forward width, head's width and depth
SIZES = {"small": (1024, 12, 16, 8, 2816, 768, 6), "tiny": (64, 2, 2, 1, 96, 32, 2)}
TOKENS = {"small": 256, "tiny": 3}
PROMPT = {"small": 64, "tiny": 5}
VOCABULARY = 1000  # of the prompt; the loop reads no logits


class NextStepShaped(Qwen2ForCausalLM):
    """A language model with `image_in_projector`, `image_out_projector` and `image_head`."""

    def __init__(self, config: Qwen2Config, head_width: int, head_depth: int) -> None:
        super().__init__(config)
        self.image_in_projector = nn.Linear(DIM, config.hidden_size)
        self.image_out_projector = nn.Linear(config.hidden_size, config.hidden_size)
        self.image_head = FlowHead(DIM, config.hidden_size, head_width, head_depth)

    @torch.no_grad()
    def sample_tokens(self, prompts: Tensor, tokens: int, noise: Tensor) -> Tensor:
        """`prompts [2, n]`, with text and without, `noise [tokens, STEPS, 1, DIM]` ->
        `[tokens, DIM]`."""
        cache = DynamicCache(config=self.config)
        inputs = {"input_ids": prompts}
        made = []
        for row in noise[:tokens]:
            hidden = self.model(**inputs, past_key_values=cache, use_cache=True).last_hidden_state
            contexts = self.image_out_projector(hidden[:, -1])
            token = self.image_head.sample(
                contexts, cfg=GUIDANCE, timesteps_shift=SHIFT, num_sampling_steps=STEPS, noise=row
            )
            made.append(token)
            embedded = self.image_in_projector(token.to(contexts.dtype))
            inputs = {"inputs_embeds": embedded.expand(2, 1, -1)}
        return torch.cat(made)


def build(size: str, dtype: str, seed: int) -> NextStepShaped:
    """A model of a size with random weights."""
    width, layers, heads, kv_heads, ffn, head_width, head_depth = SIZES[size]
    config = Qwen2Config(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, intermediate_size=ffn, vocab_size=VOCABULARY,
    )  # fmt: skip
    model = made(lambda: NextStepShaped(config, head_width, head_depth), getattr(torch, dtype))
    return fill(model, seed)


def generate(model: Any, size: str, seed: int) -> dict[str, Tensor]:
    """The tokens `[tokens, d]` of one image, on the noise of a seed."""
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(VOCABULARY, (2, PROMPT[size]), generator=generator)
    noise = torch.randn(TOKENS[size], STEPS, 1, DIM, generator=generator)
    return {"tokens": model.sample_tokens(prompts, TOKENS[size], noise)}


def amount(size: str) -> float:
    """Images of a run."""
    return 1.0


def methods(model: NextStepShaped) -> list[tuple[str, Any, str]]:
    """Part, owner and name of each method whose time is that of a part."""
    return [("language model", model.model, "forward"), ("head", model.image_head, "sample")]


def compile_both(model: NextStepShaped) -> None:
    """The language model compiled where it is called for one token, and the head's net."""
    backbone, net = model.model, model.image_head.net
    stock = backbone.forward
    compiled = torch.compile(stock, dynamic=True)

    @functools.wraps(stock)
    def forward(*args: Any, **options: Any) -> Any:
        return (stock if options.get("inputs_embeds") is None else compiled)(*args, **options)

    backbone.forward = forward
    net.forward = torch.compile(net.forward, dynamic=False)


RIVALS = {"compile": compile_both}
