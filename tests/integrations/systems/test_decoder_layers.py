"""Decoder layers of transformers at few rows, against the layers themselves."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn

import ardiff
from ardiff.integrations.systems.language.growing_cache import GrowingLayer
from ardiff.integrations.systems.language.swap import swap_language_models
from ardiff.integrations.systems.swaps import Choices
from tests._support.small_models import randomise

KINDS = ("Qwen2", "Qwen3", "Llama", "Mistral")


def language_model(kind: str = "Qwen2", dtype: torch.dtype = torch.float32, **options):
    """Width 128, 3 layers, 4 query heads of 32 channels over 2 key heads."""
    sizes = {
        "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 192, "vocab_size": 50, "head_dim": 32,
        "sliding_window": None,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**sizes | options)
    model = randomise(getattr(transformers, f"{kind}ForCausalLM")(config)).eval()
    return model.requires_grad_(False).to(dtype)


def prompts(batch: int) -> dict[str, torch.Tensor]:
    """Of 5, 3 and 4 tokens, padded on the left."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(2, 50, (batch, 5), generator=generator)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 2, 1)[:batch]):
        mask[row, :padding] = 0
    return {"input_ids": ids, "attention_mask": mask}


def say(model, batch: int = 1, tokens: int = 12, **options):
    """Generated greedily; the ids of all and the logits of each token `[tokens, B, V]`."""
    found = model.generate(
        **prompts(batch), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
        return_dict_in_generate=True, output_logits=True, pad_token_id=0, **options,
    )  # fmt: skip
    return found.sequences, torch.stack(found.logits), found.past_key_values


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference over the largest magnitude."""
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("parts", [("linears", "attention"), ("linears",), ("attention",)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_generation_is_that_of_the_model(kind, batch, parts):
    model = language_model(kind)
    ids, logits, _ = say(model, batch)
    report = ardiff.accelerate(model, parts=parts)
    found_ids, found, cache = say(model, batch)
    assert report.replaced == sorted(parts)
    assert isinstance(cache.layers[0], GrowingLayer) == ("attention" in parts)
    assert torch.equal(found_ids, ids)
    assert worst(found, logits) < 1e-5
    ardiff.restore(model)
    assert torch.equal(say(model, batch)[1], logits)
    assert not any("forward" in vars(module) for module in model.modules())


def test_half_precision_is_as_near_to_float64_as_the_model():
    model = language_model(dtype=torch.bfloat16)
    exact = say(language_model(dtype=torch.float64))[1]
    stock = say(model)[1]
    ardiff.accelerate(model)
    ours = say(model)[1]
    errors = [float((found.double() - exact).square().mean().sqrt()) for found in (ours, stock)]
    assert errors[0] < 1.1 * errors[1]
    assert errors[1] > 1e-3 * float(exact.square().mean().sqrt())  # the bound bounds something


def test_int8_weights_are_asked_for():
    model = language_model()
    expected = say(model, tokens=1)[1]
    ardiff.accelerate(model, weights="int8")
    error = worst(say(model, tokens=1)[1], expected)
    assert 1e-4 < error < 0.05


def test_other_attention_masks_take_the_models_own_attention():
    """A hole in a mask, which is no padding on the left."""
    model = language_model()
    given = prompts(1)
    given["attention_mask"][0, 2] = 0
    options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "pad_token_id": 0}
    options["return_dict_in_generate"] = True
    expected = torch.stack(model.generate(**given, **options).logits)
    whole = torch.stack(model.generate(**prompts(1), **options).logits)
    ardiff.accelerate(model)
    found = torch.stack(model.generate(**given, **options).logits)
    assert worst(found, expected) < 1e-5
    assert worst(whole, expected) > 1e-3  # the hole is seen


@pytest.mark.parametrize("cache", ["static", "quantized-like"])
def test_other_caches_take_the_models_own_attention(cache):
    model = language_model()
    if cache == "static":
        options = {"cache_implementation": "static", "disable_compile": True}
    else:  # a layer class of someone else

        class Own(transformers.cache_utils.DynamicLayer):
            pass

        own = transformers.DynamicCache()
        own.layers, own.layer_class_to_replicate = [Own() for _ in range(3)], None
        options = {"past_key_values": own}
    expected = say(model)[1]
    ardiff.accelerate(model)
    _, found, held = say(model, **options)
    assert worst(found, expected) < 1e-5
    assert not any(isinstance(layer, GrowingLayer) for layer in held.layers)


def test_stock_and_ours_go_on_with_each_others_cache():
    model = language_model()
    ids = torch.randint(2, 50, (2, 30), generator=torch.Generator().manual_seed(3))
    expected = model(ids).logits
    cache, found = transformers.DynamicCache(), []
    for at, token in enumerate(ids.split(1, 1)):
        if at % 10 == 0:
            ardiff.restore(model)
        elif at % 5 == 0:
            ardiff.accelerate(model)
        found.append(model(token, past_key_values=cache).logits)
    assert worst(torch.cat(found, 1), expected) < 1e-5
    assert cache.get_seq_length() == 30


def test_a_cache_is_cropped_reordered_and_repeated_like_any_other():
    model = language_model()
    ids = torch.randint(2, 50, (2, 9), generator=torch.Generator().manual_seed(4))
    found = []
    for accelerated in (False, True):
        if accelerated:
            ardiff.accelerate(model)
        cache = transformers.DynamicCache()
        model(ids, past_key_values=cache)
        for token in ids[:, :3].split(1, 1):
            model(token, past_key_values=cache)
        cache.crop(-2)
        cache.reorder_cache(torch.tensor([1, 0]))
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([3, 0, 1]))
        found.append(model(ids[:1, :1].expand(3, 1), past_key_values=cache).logits)
        assert cache.get_seq_length() == 11
    assert isinstance(cache.layers[0], GrowingLayer)
    assert worst(found[1], found[0]) < 1e-5


def test_a_cache_grows_ahead_and_not_at_each_token():
    model = language_model()
    ardiff.accelerate(model)
    cache, places = transformers.DynamicCache(), set()
    with torch.inference_mode():
        for _ in range(300):
            model(torch.tensor([[5]]), past_key_values=cache)
            places.add(cache.layers[1].keys.data_ptr())
    assert len(places) == 2
    held = cache.layers[1]
    assert held.memory_bytes == 2 * 2 * 32 * 4 * held._keys.shape[2]


@pytest.mark.parametrize("place", ["mlp.up_proj", "self_attn.o_proj", "input_layernorm"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("prompt", [1, 5, 80])
@pytest.mark.parametrize("how", ["in place", "through .data", "replaced"])
def test_changed_parameters_are_followed(how, prompt, layer, place):
    model, other = language_model(), language_model()
    ardiff.accelerate(model)

    def say(m):
        ids = torch.arange(prompt)[None] % 47 + 2
        cache = transformers.DynamicCache()
        found = [m(ids, past_key_values=cache).logits[:, -1:]]
        for token in range(3, 6):
            found.append(m(torch.tensor([[token]]), past_key_values=cache).logits)
        return torch.cat(found, 1)

    before = say(model)
    for m in (model, other):
        own = m.model.layers[layer].get_submodule(place)
        fresh = own.weight * 1.5 + 0.01
        if how == "in place":
            own.weight.copy_(fresh)
        elif how == "through .data":
            own.weight.data.copy_(fresh)
        else:
            own.weight = nn.Parameter(fresh, requires_grad=False)
    found, expected = say(model), say(other)
    assert worst(found, expected) < 1e-5
    assert worst(before, expected) > 1e-3


def test_training_and_gradients_take_the_models_own_layers():
    model = language_model()
    ids = prompts(1)["input_ids"]
    ardiff.accelerate(model)
    model.requires_grad_(True)
    model(ids).logits.sum().backward()
    assert model.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


def test_a_prompt_of_many_rows_is_the_models_own_to_the_bit():
    model = language_model()
    ids = torch.randint(2, 50, (1, 65), generator=torch.Generator().manual_seed(5))
    expected = model(ids).logits
    ardiff.accelerate(model)
    assert torch.equal(model(ids).logits, expected)


def test_rows_do_not_depend_on_each_other_where_asked():
    model = language_model()
    ardiff.accelerate(model, batch_invariant=True)
    ids = torch.randint(2, 50, (3, 70), generator=torch.Generator().manual_seed(6))

    def run(rows):
        cache = transformers.DynamicCache()
        found = [model(rows, past_key_values=cache).logits]
        found += [model(rows[:, i : i + 1], past_key_values=cache).logits for i in range(4)]
        return torch.cat(found, 1)

    assert torch.equal(run(ids)[1:2], run(ids[1:2]))
    ardiff.restore(model)
    assert not torch.equal(run(ids)[1:2], run(ids[1:2]))  # the model's own rows do


class LoRA(nn.Module):
    """A linear layer and a product of low rank beside it, as peft has it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = nn.Linear(128, 2, False), nn.Linear(2, base.out_features, False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def _hook(model):
    model.model.layers[1].mlp.register_forward_hook(lambda *args: None)


def _lora(model):
    layer = model.model.layers[2].self_attn
    layer.q_proj = LoRA(layer.q_proj).requires_grad_(False)


def _compile(model):
    model.model.layers[0].compile()


def _compile_inner(model):
    model.model.layers[0].mlp = torch.compile(model.model.layers[0].mlp, backend="eager")


def _quantise(model):
    torch.ao.quantization.quantize_dynamic(model.model, {nn.Linear}, inplace=True)


def _patch(model):
    mlp = model.model.layers[0].mlp
    mlp.forward = type(mlp).forward.__get__(mlp)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_hook, "hooks"),
        (_lora, "LoRA"),
        (_compile, "compiled"),
        (_compile_inner, "compiled"),
        (_quantise, "Linear"),
        (_patch, "replaced forward"),
    ],
)
def test_what_does_not_fit_is_left_with_the_reason(change, reason):
    model = language_model()
    change(model)
    if change is _compile:
        torch.compiler.set_stance("force_eager")
    try:
        expected = say(model, tokens=3)[1]
        swaps = swap_language_models(model, Choices())
        assert [swap.after for swap in swaps] == ["", ""]
        assert all(reason in swap.reason for swap in swaps)
        assert torch.equal(say(model, tokens=3)[1], expected)
    finally:
        torch.compiler.set_stance("default")


def test_a_hook_or_a_layer_that_comes_later_is_heard():
    model = language_model()
    ardiff.accelerate(model)
    plain = say(model, tokens=4)[1]
    seen = []
    handle = model.model.layers[1].mlp.register_forward_hook(lambda *a: seen.append(1))
    assert worst(say(model, tokens=4)[1], plain) < 1e-5 and len(seen) == 4
    handle.remove()
    other = copy.deepcopy(language_model())
    for m in (model, other):
        _lora(m)
        torch.manual_seed(1)
        for p in (
            m.model.layers[2].self_attn.q_proj.up.weight,
            m.model.layers[2].self_attn.q_proj.down.weight,
        ):
            nn.init.normal_(p)
    expected = say(other, tokens=4)[1]
    assert worst(say(model, tokens=4)[1], expected) < 1e-5
    assert worst(plain, expected) > 1e-3


def test_a_copy_of_an_accelerated_model_is_one():
    model = language_model()
    expected = say(model)[1]
    ardiff.accelerate(model)
    other = copy.deepcopy(model)
    assert worst(say(other)[1], expected) < 1e-5
    ardiff.restore(other)
    assert torch.equal(say(other)[1], expected)
    assert "forward" in vars(model.model.layers[0]) and worst(say(model)[1], expected) < 1e-5


def test_a_buffer_that_is_used_again_for_another_stream():
    """The embeddings of both streams lie in the same memory, one after the other."""

    def run(model):
        caches, found = [transformers.DynamicCache(), transformers.DynamicCache()], []
        model.model(torch.tensor([[3, 4, 5]]), past_key_values=caches[0])
        model.model(torch.tensor([[3]]), past_key_values=caches[1])
        x, generator = torch.empty(1, 1, 128), torch.Generator().manual_seed(2)
        for _ in range(4):
            for cache in caches:
                x.copy_(torch.randn(1, 1, 128, generator=generator))
                step = model.model(inputs_embeds=x, past_key_values=cache)
                found.append(step.last_hidden_state)
        return torch.cat(found)

    model = language_model()
    expected = run(model)
    ardiff.accelerate(model)
    assert worst(run(model), expected) < 1e-5


def test_a_cache_that_is_changed_before_its_stream_is_asked_for():
    def run(model):
        caches = [transformers.DynamicCache() for _ in range(2)]
        x = torch.randn(3, 2, 1, 128, generator=torch.Generator().manual_seed(2))
        model.model(torch.tensor([[3, 4, 5]] * 2), past_key_values=caches[0])
        model.model(torch.tensor([[3], [9]]), past_key_values=caches[1])
        found = []
        for own in x:
            for cache in caches:
                found.append(model.model(inputs_embeds=own, past_key_values=cache))
                caches[1].reorder_cache(torch.tensor([1, 0]))
        return torch.cat([f.last_hidden_state for f in found])

    model = language_model()
    expected = run(model)
    ardiff.accelerate(model)
    assert worst(run(model), expected) < 1e-5


@pytest.mark.parametrize("mask", [-1e9, -2.0])
def test_a_bias_on_attention_is_not_taken_for_a_mask(mask):
    model = language_model()

    def run(m):
        cache = transformers.DynamicCache()
        m(torch.tensor([[3, 4, 5]]), past_key_values=cache)
        bias = torch.zeros(1, 1, 1, 4)
        bias[..., 1] = mask
        full = {"full_attention": bias}
        return m(torch.tensor([[6]]), past_key_values=cache, attention_mask=full).logits

    expected = run(model)
    ardiff.accelerate(model)
    assert worst(run(model), expected) < 1e-5


def test_an_attention_of_someone_else_is_called():
    from transformers import AttentionInterface

    def other(module, q, k, v, mask, **options):
        return q.transpose(1, 2) * 0.5, None

    AttentionInterface.register("halves", other)
    model = language_model()
    model.set_attn_implementation("halves")
    expected = say(model, tokens=4)[1]
    ardiff.accelerate(model)
    assert worst(say(model, tokens=4)[1], expected) < 1e-5


def test_a_lora_around_the_logits_that_comes_later():
    model = language_model()
    ardiff.accelerate(model)
    head = model.lm_head

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = head

        def forward(self, x):
            return 2 * self.base(x)

    plain = model(torch.arange(70)[None] % 47).logits
    model.lm_head = Around()
    assert worst(model(torch.arange(70)[None] % 47).logits, 2 * plain) < 1e-5


def test_gradients_of_a_learned_prefix():
    def run(model):
        generator = torch.Generator().manual_seed(1)
        shape = (1, 2, 4, 32)
        own = [torch.randn(shape, generator=generator).requires_grad_(True) for _ in range(6)]
        cache = transformers.DynamicCache()
        for layer in range(3):
            cache.update(own[2 * layer], own[2 * layer + 1], layer)
        first = model(torch.tensor([[5]]), past_key_values=cache).logits
        second = model(torch.tensor([[6]]), past_key_values=cache).logits
        (first.sum() + second.square().sum()).backward()
        return torch.stack([t.grad for t in own])

    model = language_model()
    expected = run(model)
    ardiff.accelerate(model)
    assert worst(run(model), expected) < 1e-5
    assert expected.abs().max() > 0


def test_a_mask_that_is_given_by_position():
    model = language_model()
    ids = torch.tensor([[3, 4, 5]])
    expected = model.model(ids, torch.ones_like(ids)).last_hidden_state
    ardiff.accelerate(model)
    assert worst(model.model(ids, torch.ones_like(ids)).last_hidden_state, expected) < 1e-5


def test_what_fails_halfway_leaves_nothing(monkeypatch):
    from ardiff.integrations.systems.language import swap

    model = language_model()

    def fail(*args):
        raise MemoryError("no more")

    monkeypatch.setattr(swap, "Streams", fail)
    with pytest.raises(MemoryError, match="no more"):
        ardiff.accelerate(model)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_module_of_a_layer_that_is_replaced_later_is_used():
    model, other = language_model(), language_model()
    ardiff.accelerate(model)
    plain = say(model, tokens=4)[1]
    for m in (model, other):
        m.model.layers[1].mlp = copy.deepcopy(other.model.layers[2].mlp)
        m.model.layers[0].input_layernorm = nn.Identity()
    expected = say(other, tokens=4)[1]
    assert worst(say(model, tokens=4)[1], expected) < 1e-5
    assert worst(plain, expected) > 1e-3


def test_a_cache_with_an_update_of_its_own_is_asked():
    class Halved(transformers.DynamicCache):
        def update(self, k, v, layer, *args, **kwargs):
            return super().update(k, 0.5 * v, layer, *args, **kwargs)

    model = language_model()
    expected = say(model, past_key_values=Halved())[1]
    ardiff.accelerate(model)
    assert worst(say(model, past_key_values=Halved())[1], expected) < 1e-5


def test_streams_with_frequencies_of_their_own_lengths():
    """Dynamic rotary frequencies depend on the longest position of a call."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    model = language_model("Llama", rope_parameters=rope, max_position_embeddings=8)

    def run():
        caches = [transformers.DynamicCache() for _ in range(2)]
        model.model(torch.arange(20)[None] + 3, past_key_values=caches[0])
        model.model(torch.tensor([[3]]), past_key_values=caches[1])
        x = torch.randn(4, 1, 1, 128, generator=torch.Generator().manual_seed(2))
        found = [model.model(inputs_embeds=own, past_key_values=c) for own in x for c in caches]
        return torch.cat([f.last_hidden_state for f in found])

    expected = run()
    ardiff.accelerate(model)
    assert worst(run(), expected) < 1e-5
