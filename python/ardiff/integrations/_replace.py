"""Replacing methods of one object of another package by the head engine, on the object's own
weights, so that everything can be undone. Of no package's own: nothing foreign is imported here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .._files.checkpoints import CheckpointError
from ..heads.base import Head
from ..heads.fused import FusedHead
from ..heads.loading import load_head
from ..heads.packing import WEIGHTS, hooked, tensors_of, unknown

HANDLE = "_ardiff_accelerator"  # the attribute of an object that holds what replaces its methods


class Replacement:
    """Stands in for some methods of one object, until :meth:`restore`.

    Args:
        owner: the object, which has or is a diffusion head.
        options: `weights`, `batch_invariant` and those of the system.
    """

    system = ""
    methods: dict[str, tuple[str, ...]] = {}  # replaced, with the names of their first parameters

    def __init__(self, owner: Any, options: dict[str, Any]) -> None:
        self.owner, self.options = owner, options
        self._source: tuple = ()
        self._fused: FusedHead | None = None

    @classmethod
    def check_owner(cls, owner: Any) -> None:
        """Raises for an object that is none of the system's, or of another version."""
        raise NotImplementedError

    @classmethod
    def check_options(cls, options: dict[str, Any]) -> None:
        """Raises ValueError for options that do not fit, whatever the object."""
        weights = options["weights"]
        if weights is not None and weights not in WEIGHTS:
            known = ", ".join(WEIGHTS)
            raise ValueError(f"weights must be None or one of {known}, got {weights!r}")

    def stock_head(self) -> nn.Module:
        """The object's own head."""
        raise NotImplementedError

    def shared_head(self, stock: nn.Module) -> Head:
        """Ours on the tensors of `stock`, compared with it; ValueError for one that differs."""
        raise NotImplementedError

    def head(self) -> FusedHead:
        """The engine's head, on the modules and parameters that the object has now.

        Raises:
            ValueError, RuntimeError: a head that was changed so that ours no longer computes what
                it does; :func:`share` and :meth:`shared_head` say how.
        """
        stock = self.stock_head()
        _refuse_hooks(self.system, stock)
        source = (*stock.modules(), *tensors_of(stock))
        if len(source) != len(self._source) or any(
            a is not b for a, b in zip(source, self._source, strict=True)
        ):
            head = self.shared_head(stock)
            dtype = str(next(stock.parameters()).dtype)[6:]
            weights = self.options["weights"] or (dtype if dtype in WEIGHTS else "float32")
            invariant = self.options["batch_invariant"] or None
            self._fused = FusedHead(head, weights, batch_invariant=invariant)
            self._source = source
        return self._fused

    def installed_again(self) -> None:
        """Called where the same is installed a second time."""

    def restore(self) -> None:
        """Gives the object its own methods back."""
        for name in (*self.methods, HANDLE):
            vars(self.owner).pop(name, None)


Kind = TypeVar("Kind", bound=Replacement)


def install(kind: type[Kind], owner: Any, options: dict[str, Any]) -> Kind:
    """Puts a replacement of `kind` into `owner`; the one there if it is equal.

    Raises:
        RuntimeError: methods that were replaced already.
        ImportError, TypeError, RuntimeError, ValueError: as `kind` has them for an object, options
            or a head that do not fit.
    """
    kind.check_owner(owner)
    kind.check_options(options)
    name = type(owner).__name__
    present = vars(owner).get(HANDLE)
    if present is not None:
        if type(present) is kind and present.options == options:
            present.installed_again()
            return present
        given = ", ".join(f"{option}={value!r}" for option, value in present.options.items())
        raise RuntimeError(
            f"{kind.system}: this {name} is accelerated already, with other options ({given}); "
            "call restore first"
        )
    replaced = [method for method in kind.methods if method in vars(owner)]
    if replaced:
        raise RuntimeError(
            f"{kind.system}: {replaced[0]} of this {name} was replaced by something else; undo "
            "that first, accelerate would hide it"
        )
    handle = kind(owner, options)
    handle.head()
    for method in kind.methods:
        setattr(owner, method, getattr(handle, method))
    setattr(owner, HANDLE, handle)
    return handle


def uninstall(kind: type[Replacement], owner: Any) -> None:
    """Undoes :func:`install`; nothing where nothing was installed."""
    handle = vars(owner).get(HANDLE)
    if handle is None:
        return
    if not isinstance(handle, kind):
        name = type(owner).__name__
        raise TypeError(f"this {name} is accelerated by {type(handle).__name__}, not {kind.system}")
    handle.restore()


def other_parameters(
    kind: type[Replacement], owner: Any
) -> tuple[str, tuple[str, ...] | None] | None:
    """The first method of `owner` whose first parameters are not those that `kind` knows, and its
    parameters, None for a method that is absent; None where all are known."""
    for name, known in kind.methods.items():
        method = getattr(type(owner), name, None)
        if method is None:
            return name, None
        found = tuple(inspect.signature(method).parameters)[1:]
        if found[: len(known)] != known:
            return name, found
    return None


def share(
    system: str,
    stock: nn.Module,
    options: dict[str, Any],
    renamed: Callable[[str], str] = lambda name: name,
) -> Head:
    """A `Head` that has the parameters and buffers of `stock` themselves, not copies.

    Args:
        options: of `load_head`, where no tensor tells them.
        renamed: the name that a `Head` has for a tensor of `stock`.

    Raises:
        ValueError: modules or tensors that a `Head` does not have.
    """
    name = f"{system}: the head {type(stock).__name__}"
    tensors = {renamed(k): t for k, t in stock.state_dict(keep_vars=True).items()}
    if any(t.is_meta for t in tensors.values()):
        raise ValueError(f"{name} has no weights here (they are offloaded); load the whole model")
    try:
        with torch.device("meta"):
            head = load_head({k: t.to("meta") for k, t in tensors.items()}, "", **options)
    except CheckpointError as error:
        raise ValueError(f"{name} is not the known one, perhaps it was changed: {error}") from None
    for path, tensor in tensors.items():
        owner, _, leaf = path.rpartition(".")
        module = head.get_submodule(owner)
        held = module._parameters if leaf in module._parameters else module._buffers
        held[leaf] = tensor
    reason = unknown(head)
    if reason:
        raise ValueError(f"{name} cannot be accelerated: {reason}")
    return head


def _refuse_hooks(system: str, stock: nn.Module) -> None:
    """Raises ValueError for modules that do more when they are called than our head would.

    A `forward` that was set on a module is such a hook (LoRA by patching), but for those by which
    the package accelerate moves inputs to the module's device.
    """
    patched = any("forward" in vars(m) and not hasattr(m, "_hf_hook") for m in stock.modules())
    if patched or hooked(stock):
        what = "a forward that was replaced" if patched else "forward hooks"
        raise ValueError(
            f"{system}: the head {type(stock).__name__} cannot be accelerated: it has {what}, "
            "which would not be called; remove that (merge a LoRA), or restore(model)"
        )


def probe(inputs: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """States `[2, inputs]` and conditions `[2, width]`, always the same numbers, with dtype and
    device of `like`, on which two heads are compared."""
    generator = torch.Generator().manual_seed(0)
    x, c = (
        torch.randn(2, size, generator=generator, dtype=torch.float32).to(like)
        for size in (inputs, width)
    )
    return x, c


def agree(
    name: str,
    known: str,
    expected: Tensor,
    found: Tensor,
    *,
    share_of_largest: float,
    error: type[Exception],
) -> None:
    """Compares what a head and ours on its weights give, so that another head with the same names
    is not taken for the one that we know.

    Args:
        name: of the head, for messages; `known`: what it is compared with.
        expected: what the head gives; `found`: what ours gives.
        share_of_largest: the largest difference, over the largest magnitude expected.

    Raises:
        ValueError: NaN or infinity in what the head gives.
        error: a larger difference.
    """
    if not expected.isfinite().all():
        raise ValueError(f"{name}: the head's weights give NaN or infinity")
    difference = float((found.float() - expected.float()).abs().max())
    bound = share_of_largest * float(expected.float().abs().max())
    if not difference <= bound:
        raise error(
            f"{name} computes something else than {known} (largest difference {difference:.2g}, at "
            f"most {bound:.2g} expected); use this model without accelerate, and report it"
        )
