"""What holds for every accelerated head: a later change of the head is followed or refused, and no
head outlives its model."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from ardiff.integrations import mar, nextstep, pocket_tts, vibevoice
from tests._support.head_cases import rows
from tests.integrations._support import tiny_transformers as tiny
from tests.integrations._support.mar_model import CONTEXT, DIM, loss_of
from tests.integrations.test_nextstep import head as flow_head


class System(NamedTuple):
    """How to make a model, its head, a linear layer of the head, and tokens on fixed noise."""

    package: object
    model: Callable[[], nn.Module]
    head: str
    layer: str
    sample: Callable[[nn.Module], Tensor]


NOISE = rows(5, 4, DIM, seed=1)


def frame(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.sample_latent(rows(3, 32), rows(3, 8, seed=1), 2)


SYSTEMS = {
    "mar": System(
        mar, lambda: loss_of(4), "net", "res_blocks.0.mlp.0",
        lambda own: own.sample(rows(4, CONTEXT), noise=NOISE),
    ),
    "nextstep": System(
        nextstep, lambda: flow_head().requires_grad_(False), "net", "res_blocks.0.mlp.0",
        lambda own: own.sample(rows(4, CONTEXT), num_sampling_steps=5, noise=NOISE),
    ),
    "vibevoice": System(
        vibevoice, tiny.vibevoice, "model.diffusion_head", "layers.0.ffn.down_proj",
        lambda model: tiny.token(model, steps=3),
    ),
    "pocket": System(pocket_tts, tiny.pocket_tts, "flow_head", "layers.0.fc1", frame),
}  # fmt: skip


@pytest.fixture(params=SYSTEMS, scope="module")
def system(request) -> System:
    """With one model for all tests, which copy it."""
    found = SYSTEMS[request.param]
    model = found.model()
    return found._replace(model=lambda: copy.deepcopy(model))


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("weights", [None, "int8"])
def test_a_copy_of_averaged_weights_is_followed(system, weights):
    """`EMAModel.copy_to` writes through ``.data``: the tokens are those of a model accelerated
    afterwards, to the bit, and without quantised weights the stock loop's."""
    model = system.model()
    system.package.accelerate(model, weights=weights)
    head, old = model.get_submodule(system.head), system.sample(model)
    average = EMAModel(head.parameters())
    average.shadow_params = [1.1 * p for p in average.shadow_params]
    average.copy_to(head.parameters())
    found = system.sample(model)
    system.package.restore(model)
    if weights is None:
        assert far(found, system.sample(model)) < 1e-4
    system.package.accelerate(model, weights=weights)
    assert torch.equal(found, system.sample(model)) and far(old, found) > 1e-2


class LowRank(nn.Module):
    """A layer of LoRA around a linear one."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.down = base, nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Doubled(nn.Linear):
    """Has the names of a linear layer, and computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def hook(layer: nn.Module) -> Callable[[], object]:
    return layer.register_forward_hook(lambda module, inputs, out: 0 * out).remove


def pre_hook(layer: nn.Module) -> Callable[[], object]:
    return layer.register_forward_pre_hook(lambda module, inputs: (0 * inputs[0],)).remove


def patched_forward(layer: nn.Module) -> Callable[[], object]:
    own = layer.forward
    layer.forward = lambda x: 2 * own(x)
    return lambda: vars(layer).pop("forward")


def weight_norm(layer: nn.Module) -> Callable[[], object]:
    nn.utils.parametrizations.weight_norm(layer)

    def undo() -> None:
        nn.utils.parametrize.remove_parametrizations(layer, "weight")

    return undo


CHANGES = {hook: "forward hooks", pre_hook: "forward hooks", patched_forward: "was replaced"}


@pytest.mark.parametrize("change", [*CHANGES, weight_norm], ids=lambda change: change.__name__)
def test_what_would_not_be_called_is_refused_until_it_is_undone(system, change):
    model = system.model()
    system.package.accelerate(model)
    old = system.sample(model)
    undo = change(model.get_submodule(system.head).get_submodule(system.layer))
    with pytest.raises(ValueError, match=CHANGES.get(change, "perhaps it was changed")):
        system.sample(model)
    undo()
    assert far(system.sample(model), old) < 1e-5


@pytest.mark.parametrize("kind", [LowRank, Doubled])
def test_a_layer_that_is_replaced_is_refused(system, kind):
    """A layer of other names; and one of the same names and weights whose formula is another."""
    model = system.model()
    system.package.accelerate(model)
    old = system.sample(model)
    place, _, name = system.layer.rpartition(".")
    owner = model.get_submodule(f"{system.head}.{place}")
    layer = getattr(owner, name)
    other = kind(layer) if kind is LowRank else kind(layer.in_features, layer.out_features)
    if kind is Doubled:
        other.weight, other.bias = layer.weight, layer.bias
    setattr(owner, name, other)
    with pytest.raises((ValueError, RuntimeError), match="perhaps it was changed|something else"):
        system.sample(model)
    setattr(owner, name, layer)
    assert torch.equal(system.sample(model), old)


@pytest.mark.parametrize("restored", [False, True])
def test_a_model_that_was_accelerated_is_freed(system, restored):
    model = system.model()
    handle = system.package.accelerate(model)
    system.sample(model)
    gone = [weakref.ref(model), weakref.ref(handle.head().model)]
    if restored:
        system.package.restore(model)
    del model, handle
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
