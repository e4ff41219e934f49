"""What accelerators of transformers models share: methods replaced in one model, a head on the
model's own parameters, and noise with an address."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._checkpoint_files import CheckpointError
from ..heads.base import Head
from ..heads.fused import FusedHead, unknown
from ..heads.loading import load_head
from ..heads.packing import WEIGHTS, tensors_of
from ..noise import make_key, make_stream

try:
    import transformers
except ImportError:
    raise ImportError(
        "this integration needs transformers: pip install 'ardiff-kernels[transformers]'"
    ) from None

_HANDLE = "_ardiff_accelerator"
# Largest error of our plain head against the model's, over its largest output, both in one dtype:
# float32 sums of 4096 terms differ by 1e-5, half precision keeps 3 digits through 12 blocks.
_AGREE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class Accelerator:
    """Stands in for some methods of one model, until :meth:`restore`.

    Attributes:
        model: the model.
        options: those it was made with.
        sample_ids: the ids that address noise, one a sample of the next `generate`; None: 0 up.
    """

    system = ""
    model_class = ""  # of `module`
    module = ""
    since = ""  # version of transformers
    methods: dict[str, tuple[str, ...]] = {}  # replaced, with the names of their first parameters

    def __init__(self, model: Any, options: dict) -> None:
        self.model, self.options = model, options
        self.sample_ids = options["sample_ids"]
        self._addresses: Addresses | None = None
        self._source: tuple = ()
        self._fused: FusedHead | None = None

    def stock_head(self) -> nn.Module:
        """The model's own head."""
        raise NotImplementedError

    def head_options(self) -> dict:
        """Of `load_head`, where no tensor tells them."""
        return {}

    def check_head(self) -> None:
        """Raises ValueError for a head that ours cannot follow."""

    def evaluate_stock(self, x: Tensor, time: Tensor, c: Tensor) -> Tensor:
        """The model's head as `Head.forward` computes it."""
        raise NotImplementedError

    def head(self) -> FusedHead:
        """Ours, on the parameters that the model has now."""
        stock = self.stock_head()
        source = (id(stock), *map(id, tensors_of(stock)))
        if self._fused is None or source != self._source:
            self.check_head()
            head = share(self.system, stock, self.head_options())
            self._agree(head)
            weights, invariant = self.options["weights"], self.options["batch_invariant"]
            dtype = str(next(stock.parameters()).dtype)[6:]
            weights = weights or (dtype if dtype in WEIGHTS else "float32")
            self._fused = FusedHead(head, weights, batch_invariant=invariant or None)
            self._source = source
        return self._fused

    @torch.no_grad()
    def _agree(self, head: Head) -> None:
        """Compares one evaluation with the model's, so that another version's head is not taken
        for the one that we know."""
        parameter = next(head.parameters())
        generator = torch.Generator().manual_seed(0)

        def draw(size: int) -> Tensor:
            return torch.randn(2, size, generator=generator).to(parameter)

        x, c = draw(head.loop_layers()[0].weight.shape[1]), draw(head.cond_proj.in_features)
        time = torch.tensor([0.125, 0.75], device=parameter.device)
        expected, found = self.evaluate_stock(x, time, c), self.evaluate_ours(head, x, time, c)
        if not expected.isfinite().all():
            raise ValueError(f"{self.system}: the head's weights give NaN or infinity")
        error = float((found.float() - expected.float()).abs().max())
        bound = _AGREE[parameter.dtype] * float(expected.float().abs().max())
        if not error <= bound:
            raise RuntimeError(
                f"{self.system}: the {type(self.stock_head()).__name__} of this model computes "
                f"something else than the head known to ardiff (largest difference {error:.2g}, "
                f"at most {bound:.2g} expected); use the model without accelerate, and report it"
            )

    def evaluate_ours(self, head: Head, x: Tensor, time: Tensor, c: Tensor) -> Tensor:
        raise NotImplementedError

    def begin(self, batch: int, device: torch.device) -> None:
        """A new generation of `batch` samples."""
        if self.options["seed"] is not None:
            self._addresses = Addresses(self.options["seed"], self.sample_ids, batch, device)

    def restore(self) -> None:
        """Gives the model its own methods back."""
        for name in self.methods:
            vars(self.model).pop(name, None)
        vars(self.model).pop(_HANDLE, None)

    def refuse_gradients(self, *inputs: Tensor) -> None:
        if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
            raise RuntimeError(
                f"{self.system}: an accelerated head has no gradients; call within "
                "torch.no_grad(), or restore(model) first"
            )


class Addresses:
    """The streams of one generation: sample_id * 2^20 + how many tokens the sample has."""

    def __init__(
        self, seed: int, sample_ids: Sequence[int] | None, batch: int, device: torch.device
    ) -> None:
        self.key = make_key(seed, device)
        self._streams = make_stream(sample_ids, batch, 0, device)

    def take(self, chosen: Tensor | None = None) -> Tensor:
        """The streams int64 `[n]` of the next token of the samples `chosen`, bool `[B]`."""
        if chosen is None:
            taken = self._streams.clone()
            self._streams += 1
            return taken
        chosen = chosen.to(self._streams.device)
        taken = self._streams[chosen]
        self._streams += chosen
        return taken


def share(system: str, stock: nn.Module, options: dict) -> Head:
    """A `Head` that has the parameters and buffers of `stock` themselves, not copies.

    Raises:
        ValueError: modules, tensors or hooks that a `Head` does not have.
    """
    name = f"{system}: the head {type(stock).__name__}"
    tensors = stock.state_dict(keep_vars=True)
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
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in stock.modules())
    reason = "forward hooks, which would not be called" if hooked else unknown(head)
    if reason:
        raise ValueError(f"{name} cannot be accelerated: {reason}")
    return head


def install(kind: type[Accelerator], model: Any, options: dict) -> Accelerator:
    """Makes an accelerator of `kind` and puts it into `model`; the one there if it is equal.

    Raises:
        ImportError: transformers is absent or too old.
        TypeError: a model of another class.
        RuntimeError: a version of other methods, or a model that has replaced methods already.
        ValueError: options or a head that do not fit.
    """
    _check_model(kind, model)
    _check_options(options)
    present = vars(model).get(_HANDLE)
    if present is not None:
        if type(present) is kind and present.options == options:
            present.sample_ids = options["sample_ids"]
            return present
        raise RuntimeError(
            f"this {type(model).__name__} is accelerated already, with other options "
            f"({_text(present.options)}); call restore(model) first"
        )
    replaced = [name for name in kind.methods if name in vars(model)]
    if replaced:
        raise RuntimeError(
            f"{replaced[0]} of this {type(model).__name__} was replaced by something else; undo "
            "that first, accelerate would hide it"
        )
    handle = kind(model, options)
    handle.head()
    for name in kind.methods:
        setattr(model, name, getattr(handle, name))
    setattr(model, _HANDLE, handle)
    return handle


def uninstall(kind: type[Accelerator], model: Any) -> None:
    """Undoes :func:`install`; nothing where nothing was installed."""
    handle = vars(model).get(_HANDLE)
    if handle is None:
        return
    if not isinstance(handle, kind):
        raise TypeError(f"this model is accelerated by {type(handle).__name__}, not {kind.system}")
    handle.restore()


def _check_model(kind: type[Accelerator], model: Any) -> None:
    try:
        expected = getattr(importlib.import_module(kind.module), kind.model_class)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"transformers {transformers.__version__} has no {kind.model_class} ({error}); "
            f"expected {kind.since} or later: pip install -U 'ardiff-kernels[transformers]'"
        ) from None
    if not isinstance(model, expected):
        raise TypeError(
            f"expected a transformers {kind.model_class}, got {type(model).__name__}; unwrap it if "
            "something wraps it (peft: merge_and_unload)"
        )
    for name, parameters in kind.methods.items():
        method = getattr(type(model), name, None)
        found = tuple(inspect.signature(method).parameters)[1:] if method else ()
        if found[: len(parameters)] != parameters:
            takes = f"takes {', '.join(found)}" if method else "is absent"
            raise RuntimeError(
                f"{type(model).__name__}.{name} {takes} in transformers "
                f"{transformers.__version__}, expected {', '.join(parameters)}: ardiff knows "
                f"{kind.since} to 5.23; use one of these, or the model without accelerate"
            )


def _check_options(options: dict) -> None:
    weights, seed = options["weights"], options["seed"]
    if weights is not None and weights not in WEIGHTS:
        raise ValueError(f"weights must be None or one of {', '.join(WEIGHTS)}, got {weights!r}")
    if seed is not None:
        make_key(seed, "cpu")
    ids = options["sample_ids"]
    if ids is not None:
        if seed is None:
            raise ValueError("sample_ids address the noise of a seed: pass seed too")
        options["sample_ids"] = tuple(ids.tolist() if isinstance(ids, Tensor) else ids)
        make_stream(options["sample_ids"], len(options["sample_ids"]), 0, "cpu")


def _text(options: dict) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())
