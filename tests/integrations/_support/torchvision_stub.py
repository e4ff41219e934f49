"""What torch-fidelity imports of torchvision, whose published builds do not load with a CPU build
of torch; to read images it uses `Compose` and `pil_to_tensor` alone."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch


def pil_to_tensor(image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class Compose:
    def __init__(self, steps) -> None:
        self.steps = steps

    def __call__(self, image):
        for step in self.steps:
            image = step(image)
        return image


@pytest.fixture
def fidelity(monkeypatch):
    """torch_fidelity with an extractor `tiny`, also in place of Inception: mean colours of thirds
    of the rows and their squares."""
    modules = {
        "torchvision": {},
        "torchvision.datasets": dict.fromkeys(("CIFAR10", "STL10", "CIFAR100"), object),
        "torchvision.transforms": {"Compose": Compose},
        "torchvision.transforms.functional": {"pil_to_tensor": pil_to_tensor},
    }
    for name in [name for name in sys.modules if name.startswith("torch_fidelity")]:
        monkeypatch.delitem(sys.modules, name)
    for name, contents in modules.items():
        module = types.ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], leaf, module)
    import torch_fidelity
    from torch_fidelity import registry
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class Tiny(FeatureExtractorBase):
        def __init__(self, name, features_list, **options):
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list():
            return ("colours",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "colours"

        @staticmethod
        def can_be_compiled():
            return False

        def forward(self, pixels):
            parts = pixels.float().div(255).tensor_split(3, 2)
            means = torch.cat([part.mean((2, 3)) for part in parts], 1)
            return (torch.cat([means, means.square()], 1),)

    monkeypatch.setitem(registry.FEATURE_EXTRACTORS_REGISTRY, "inception-v3-compat", Tiny)
    torch_fidelity.register_feature_extractor("tiny", Tiny)
    yield torch_fidelity
    for name in [name for name in sys.modules if name.startswith("torch_fidelity")]:
        monkeypatch.delitem(sys.modules, name)
