"""What the accelerators of MAR-type heads share: one module's `sample`, replaced by the head engine
on the module's own parameters."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..heads.mar import DiffusionHead
from ._replace import Replacement, agree, other_parameters, probe, share

# Largest error of our plain head against the module's, over its largest output: float32 sums of
# 4096 terms differ by 1e-5.
_AGREE = 1e-3


class HeadSampler(Replacement):
    """Stands in for the `sample` of one module that has a `net` of MAR's form."""

    @classmethod
    def check_owner(cls, owner: nn.Module) -> None:
        other = other_parameters(cls, owner)
        if other is not None:
            (name, known), (_, found) = *cls.methods.items(), other
            raise RuntimeError(
                f"{cls.system}: {type(owner).__name__}.{name} takes ({', '.join(found)}), expected "
                f"({', '.join(known)}, ...): use this model without accelerate"
            )

    def stock_head(self) -> nn.Module:
        return self.owner.net

    @torch.no_grad()
    def shared_head(self, stock: nn.Module) -> DiffusionHead:
        """Compared in float32."""
        head = share(self.system, stock, {})
        name = f"{self.system}: the head {type(stock).__name__}"
        if not isinstance(head, DiffusionHead):
            raise ValueError(f"{name} is a {type(head).__name__}, expected one of MAR's form")
        plain, theirs = head, stock
        if head.input_proj.weight.dtype != torch.float32:
            plain, theirs = copy.deepcopy(head).float(), copy.deepcopy(stock).float()
        like = plain.input_proj.weight
        x, c = probe(head.input_proj.in_features, head.cond_embed.in_features, like)
        time = torch.tensor([0.25, 40.0], dtype=torch.float32, device=like.device)
        with torch.autocast(like.device.type, enabled=False):
            expected, found = theirs(x, time, c), plain(x, time, c)
        agree(name, "MAR's", expected, found, share_of_largest=_AGREE, error=ValueError)
        return head

    def sample(self, *args: Any, **options: Any) -> Tensor:
        """In place of the module's own."""
        raise NotImplementedError


def owner_of(system: str, model: Any, name: str) -> nn.Module:
    """``model.<name>``, or `model` itself; TypeError unless it has `net` and `sample`."""
    owner = getattr(model, name, model)
    has = isinstance(getattr(owner, "net", None), nn.Module) and hasattr(owner, "sample")
    if not (isinstance(owner, nn.Module) and has):
        raise TypeError(
            f"{system}: expected a model with {name}.net and {name}.sample, or that {name}, got "
            f"{type(model).__name__}; unwrap it if something wraps it"
        )
    return owner
