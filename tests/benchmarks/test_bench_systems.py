"""The benchmark of whole systems on tiny models."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

import ardiff
from benchmarks import _harness, bench_systems, systems_nextstep, systems_vibevoice  # noqa: E402

QUICK = _harness.Settings(rounds=2, seconds=1e-4, rivals=["eager"])
CASES = {
    "vibevoice/tiny/float32": ["eager", "two-pass"],
    "vibevoice/tiny/bfloat16/int8": ["eager-bfloat16"],
    "nextstep/tiny/float32": ["eager"],
    "nextstep/tiny/bfloat16": ["eager-bfloat16"],
    "mar/tiny/float32": ["eager"],
    "pocket/tiny/float32": ["eager"],
    "pocket_package/tiny/float32": ["eager", "quantize"],
}


def cached_in(system) -> bool:
    """Whether its backbone has a KV cache of transformers."""
    return system.__name__.rpartition(".")[2] not in ("systems_mar", "systems_pocket_package")


def rows_of(case, **options):
    settings = replace(QUICK, rivals=CASES[case], **options)
    return _harness.gated(bench_systems.run(case, settings))


@pytest.mark.parametrize("case", CASES)
def test_a_case_has_its_rows(case):
    if case.startswith("pocket_package"):
        pytest.importorskip("pocket_tts")
    rows = rows_of(case)
    assert not _harness.failures([asdict(row) for row in rows])
    found = {(row.rival, row.metric): row for row in rows}
    assert {rival for rival, metric in found if metric == "speedup"} == set(CASES[case])
    system = bench_systems.parse(case).module
    model = system.build("tiny", "float32", 0)
    parts = {part for part, _, _ in bench_systems._methods(system, model)} | {"rest"}
    for name in (CASES[case][0], _harness.OURS):
        shares = [found[name, f"share-{part}"].value for part in parts]
        assert all(share > 0 for share in shares) and 98 < sum(shares) < 102
        assert found[name, "time"].value > 0
    assert found["stock", "weights"].value > 0
    cached = [found[name, "kv-cache"].value for name in ("stock", "ardiff") if cached_in(system)]
    assert all(size > 0 for size in cached) and (not cached) == (("stock", "kv-cache") not in found)
    beside = found["ardiff", "beside-weights"].value
    assert 0 < beside < 2 * found["stock", "weights"].value
    for output in system.generate(model, "tiny", 0):
        ours = found["ardiff", f"error-{output}"].value
        assert (0 < ours < 1e-4) == case.endswith("float32")


def test_wrong_outputs_withhold_the_figures(monkeypatch):
    sound = systems_nextstep.NextStepShaped.sample_tokens

    def wrong(self, *args):
        tokens = sound(self, *args)
        return tokens * 1.01 if hasattr(self, "_ardiff_report") else tokens

    monkeypatch.setattr(systems_nextstep.NextStepShaped, "sample_tokens", wrong)
    rows = rows_of("nextstep/tiny/float32")
    assert rows[-1].rival == "ardiff" and rows[-1].value > 1
    assert all("time" not in row.metric for row in rows)


def test_a_twin_has_the_parameters_but_its_own_modules():
    model = systems_nextstep.build("tiny", "bfloat16", 0)
    twin, wide = bench_systems.twin(model), bench_systems.twin(model, torch.float32)
    for a, b, c in zip(*(m.parameters() for m in (model, twin, wide)), strict=True):
        assert a is b and a.dtype == torch.bfloat16
        assert c.dtype == torch.float32 and torch.equal(a.float(), c)
    ardiff.accelerate(twin)
    assert "forward" in vars(twin.model) and "forward" not in vars(model.model)
    assert wide.lm_head.weight.data_ptr() != model.lm_head.weight.data_ptr()


def test_tied_weights_stay_tied_in_a_twin():
    twin = bench_systems.twin(systems_vibevoice.build("tiny", "bfloat16", 0), torch.float32)
    assert twin.lm_head.weight is twin.model.language_model.embed_tokens.weight


@pytest.mark.parametrize(
    "case",
    ["vibevoice", "vibevoice/9b/float32", "other/tiny/float32", "nextstep/tiny/float32/bfloat16",
     "nextstep/tiny/int8", "nextstep/tiny/float32/int8/x"],
)  # fmt: skip
def test_cases_of_another_form_are_named(case):
    with pytest.raises(ValueError, match="expected <system>/<size>/<dtype> with a system of vibe"):
        bench_systems.parse(case)


def test_every_case_can_be_parsed():
    assert all(bench_systems.parse(case).size != "tiny" for case in bench_systems.CASES)


@pytest.mark.parametrize(("size", "text", "head"), [("0.5b", 494e6, 42e6), ("1.5b", 1.54e9, 123e6)])
def test_the_published_sizes_of_vibevoice(size, text, head):
    """The language models are those of Qwen2.5, both tokenizers have 344 million parameters."""
    from transformers import VibeVoiceForConditionalGeneration

    with torch.device("meta"):
        model = VibeVoiceForConditionalGeneration(systems_vibevoice.config(size)).model
    parts = {
        model.language_model: text, model.diffusion_head: head,
        model.audio_tower.decoder: 344e6, model.semantic_tokenizer_encoder: 344e6,
    }  # fmt: skip
    for part, expected in parts.items():
        assert sum(p.numel() for p in part.parameters()) == pytest.approx(expected, rel=0.01)


def test_without_the_third_pass_the_tokens_are_the_same():
    model = systems_vibevoice.build("tiny", "float32", 0)
    expected = systems_vibevoice.generate(model, "tiny", 0)
    calls = {}
    for kind in ("stock", "two-pass"):
        if kind == "two-pass":
            systems_vibevoice.drop_third_pass(model)
        seen = []
        hook = model.model.language_model.register_forward_hook(
            lambda *_, seen=seen: seen.append(1)
        )
        found = systems_vibevoice.generate(model, "tiny", 0)
        hook.remove()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        calls[kind] = len(seen)
    tokens = systems_vibevoice.TOKENS["tiny"]
    assert calls == {"stock": 3 * tokens, "two-pass": 2 * tokens}


@pytest.mark.parametrize("system", [systems_vibevoice, systems_nextstep], ids=lambda s: s.__name__)
def test_the_compiled_rival_compiles_what_runs_at_each_token(system, monkeypatch):
    lengths = []

    def compile_(call, **options):
        def compiled(*args, **kwargs):
            if "inputs_embeds" in kwargs:
                lengths.append(kwargs["inputs_embeds"].shape[1])
            return call(*args, **kwargs)

        return compiled

    model = system.build("tiny", "float32", 0)
    expected = system.generate(model, "tiny", 0)
    monkeypatch.setattr(torch, "compile", compile_)
    system.RIVALS["compile"](model)
    found = system.generate(model, "tiny", 0)
    assert lengths and set(lengths) == {1}
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_caches_are_counted_once_each():
    """Bytes of the keys and values of both rows, 2 heads... of all tokens but the last."""
    model = systems_nextstep.build("tiny", "float32", 0)
    caches = bench_systems._caches(systems_nextstep, model, "tiny", 0)
    held = systems_nextstep.PROMPT["tiny"] + systems_nextstep.TOKENS["tiny"] - 1
    layers, kv_heads, head_dim = 2, 1, 32
    assert len(caches) == 1
    assert bench_systems._cache_bytes(caches[0]) == 2 * layers * 2 * kv_heads * held * head_dim * 4
