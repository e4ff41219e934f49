"""What the accelerators of MAR-type heads share: one module's `sample`, replaced by the head engine
on the module's own parameters."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..heads.fused import FusedHead
from ..heads.mar import DiffusionHead
from ..heads.packing import WEIGHTS
from ._accelerator import share

_HANDLE = "_ardiff_accelerator"
# Largest error of our plain head against the module's, over its largest output: float32 sums of
# 4096 terms differ by 1e-5.
_AGREE = 1e-3


class HeadSampler:
    """Stands in for the `sample` of one module, until :meth:`restore`.

    Args:
        owner: with a `net` of MAR's form and a method `sample`.
        options: weights, batch_invariant and those of the system.
    """

    system = ""
    takes: tuple[str, ...] = ()  # the first parameters of `sample`

    def __init__(self, owner: nn.Module, options: dict[str, Any]) -> None:
        self.owner, self.options = owner, options
        self._source: tuple = ()
        self._fused: FusedHead | None = None

    def head(self) -> FusedHead:
        """The engine's head, on the parameters that the module has now."""
        net = self.owner.net
        source = (net, *net.parameters())
        if len(source) != len(self._source) or any(
            a is not b for a, b in zip(source, self._source, strict=True)
        ):
            head = _share(self.system, net)
            _agree(self.system, net, head)
            weights, dtype = self.options["weights"], str(head.input_proj.weight.dtype)[6:]
            weights = weights or (dtype if dtype in WEIGHTS else "float32")
            self._fused = FusedHead(
                head, weights, batch_invariant=self.options["batch_invariant"] or None
            )
            self._source = source
        return self._fused

    def sample(self, *args: Any, **options: Any) -> Tensor:
        """In place of the module's own."""
        raise NotImplementedError

    def restore(self) -> None:
        """Gives the module its own `sample` back."""
        for name in ("sample", _HANDLE):
            vars(self.owner).pop(name, None)


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


def install(kind: type[HeadSampler], owner: nn.Module, options: dict[str, Any]) -> HeadSampler:
    """Puts a sampler of `kind` in place of ``owner.sample``; the one there if it is equal.

    Raises:
        RuntimeError: a `sample` of other parameters, or one that was replaced already.
        ValueError: options or a head that do not fit.
    """
    name = type(owner).__name__
    present = vars(owner).get(_HANDLE)
    if present is not None:
        if type(present) is kind and present.options == options:
            return present
        raise RuntimeError(
            f"{kind.system}: this {name} is accelerated already, with other options "
            f"({present.options}); call restore first"
        )
    if "sample" in vars(owner):
        raise RuntimeError(
            f"{kind.system}: sample of this {name} was replaced by something else; undo that "
            "first, accelerate would hide it"
        )
    found = tuple(inspect.signature(owner.sample).parameters)
    if found[: len(kind.takes)] != kind.takes:
        raise RuntimeError(
            f"{kind.system}: {name}.sample takes ({', '.join(found)}), expected "
            f"({', '.join(kind.takes)}, ...): use this model without accelerate"
        )
    weights = options["weights"]
    if weights is not None and weights not in WEIGHTS:
        raise ValueError(f"weights must be None or one of {', '.join(WEIGHTS)}, got {weights!r}")
    handle = kind(owner, options)
    handle.head()
    owner.sample = handle.sample
    setattr(owner, _HANDLE, handle)
    return handle


def uninstall(kind: type[HeadSampler], owner: nn.Module) -> None:
    """Undoes :func:`install`; nothing where nothing was installed."""
    handle = vars(owner).get(_HANDLE)
    if handle is None:
        return
    if not isinstance(handle, kind):
        raise TypeError(f"this module is accelerated by {type(handle).__name__}, not {kind.system}")
    handle.restore()


def _share(system: str, net: nn.Module) -> DiffusionHead:
    """A head of MAR's form that has the parameters of `net` themselves; ValueError for others."""
    head = share(system, net, {})
    if not isinstance(head, DiffusionHead):
        raise ValueError(
            f"{system}: the head {type(net).__name__} is a {type(head).__name__}, expected one of "
            "MAR's form"
        )
    return head


@torch.no_grad()
def _agree(system: str, net: nn.Module, head: DiffusionHead) -> None:
    """Compares one float32 evaluation, so that another head with the same names is not taken for
    ours."""
    if head.input_proj.weight.dtype != torch.float32:
        net, head = copy.deepcopy(net).float(), copy.deepcopy(head).float()
    like, generator = head.input_proj.weight, torch.Generator().manual_seed(0)
    sizes = (head.input_proj.in_features, head.cond_embed.in_features)
    x, c = (torch.randn(2, size, generator=generator).to(like) for size in sizes)
    time = torch.tensor([0.25, 40.0], device=like.device)
    with torch.autocast(like.device.type, enabled=False):
        expected, found = net(x, time, c), head(x, time, c)
    error, bound = float((found - expected).abs().max()), float(expected.abs().max())
    if not error <= _AGREE * bound:
        raise ValueError(
            f"{system}: the head {type(net).__name__} computes something else than MAR's "
            f"(largest difference {error:.2g} of {bound:.2g}); use this model without accelerate"
        )
