"""What accelerators of transformers models share: methods replaced in one model, a head on the
model's own parameters, and noise with an address."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..heads.base import Head
from ..heads.fused import FusedHead
from ..noise import make_key, make_stream
from ._replace import Replacement, agree, other_parameters, probe, share
from ._tree import Tree

try:
    import transformers
except ImportError:
    raise ImportError(
        "this integration needs transformers: pip install 'transformers>=5.21'"
    ) from None

# Largest error of our plain head against the model's, over its largest output, both in one dtype:
# float32 sums of 4096 terms differ by 1e-5, half precision keeps 3 digits through 12 blocks.
_AGREE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class Accelerator(Replacement):
    """Stands in for some methods of one model, until :meth:`restore`.

    Attributes:
        model: the model.
        options: those it was made with.
        sample_ids: the ids that address noise, one per sample of the next `generate`; None: 0 up.
    """

    model_class = ""  # of `module`
    module = ""
    since = ""  # version of transformers

    def __init__(self, model: Any, options: dict[str, Any]) -> None:
        super().__init__(model, options)
        self.model = model
        self.sample_ids = options["sample_ids"]
        self._addresses: Addresses | None = None
        self._generating = self._read = False
        self._tree: Tree | None = None

    @classmethod
    def check_owner(cls, owner: Any) -> None:
        """Raises ImportError for another version of transformers without the class, TypeError for a
        model of another class, RuntimeError for a version of other methods."""
        version = transformers.__version__
        try:
            expected = getattr(importlib.import_module(cls.module), cls.model_class)
        except (ImportError, AttributeError) as error:
            raise ImportError(
                f"transformers {version} has no {cls.model_class} ({error}); "
                f"expected {cls.since} or later: pip install 'transformers>={cls.since}'"
            ) from None
        if not isinstance(owner, expected):
            raise TypeError(
                f"expected a transformers {cls.model_class}, got {type(owner).__name__}; unwrap it "
                "if something wraps it (peft: merge_and_unload)"
            )
        other = other_parameters(cls, owner)
        if other is not None:
            name, found = other
            takes = "is absent" if found is None else f"takes {', '.join(found)}"
            raise RuntimeError(
                f"{type(owner).__name__}.{name} {takes} in transformers {version}, expected "
                f"{', '.join(cls.methods[name])}: ardiff knows {cls.since} to 5.23; use one of "
                "these, or the model without accelerate"
            )

    @classmethod
    def check_options(cls, options: dict[str, Any]) -> None:
        """Makes `sample_ids` a tuple."""
        super().check_options(options)
        seed, ids = options["seed"], options["sample_ids"]
        if seed is not None:
            make_key(seed, "cpu")
        if ids is not None:
            if seed is None:
                raise ValueError("sample_ids address the noise of a seed: pass seed too")
            options["sample_ids"] = tuple(ids.tolist() if isinstance(ids, Tensor) else ids)
            make_stream(options["sample_ids"], len(options["sample_ids"]), 0, "cpu")

    def head_options(self) -> dict[str, Any]:
        """Of `load_head`, where no tensor tells them."""
        return {}

    def check_head(self) -> None:
        """Raises ValueError for a head that ours cannot follow."""

    def evaluate_stock(self, x: Tensor, time: Tensor, c: Tensor) -> Tensor:
        """The model's head as `Head.forward` computes it."""
        raise NotImplementedError

    def evaluate_ours(self, head: Head, x: Tensor, time: Tensor, c: Tensor) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def shared_head(self, stock: nn.Module) -> Head:
        """Compared in the model's own dtype."""
        self.check_head()
        head = share(self.system, stock, self.head_options())
        like = next(head.parameters())
        x, c = probe(head.loop_layers()[0].weight.shape[1], head.cond_proj.in_features, like)
        time = torch.tensor([0.125, 0.75], dtype=torch.float32, device=like.device)
        expected, found = self.evaluate_stock(x, time, c), self.evaluate_ours(head, x, time, c)
        agree(
            f"{self.system}: the {type(stock).__name__} of this model",
            "the head known to ardiff", expected, found,
            share_of_largest=_AGREE[like.dtype], error=RuntimeError,
        )  # fmt: skip
        return head

    def head(self) -> FusedHead:
        """As of a `Replacement`. Within a generation the parameters' bits, in which alone writes
        through ``.data`` leave a trace, are read at its first token."""
        tree = self._tree
        if self._generating and not self._read and tree.same() and not tree.hooked():
            return self._fused
        fused = super().head()
        fused.follow()
        if self._generating:
            fused.hold()
            self._tree, self._read = Tree(self.stock_head()), False
        return fused

    def _has_unfinished_sequences(self, this_peer_finished: bool, *args, **kwargs) -> bool:
        """Asked before each token of a generation, and after its last."""
        stock = type(self.model)._has_unfinished_sequences
        self._generating &= (found := stock(self.model, this_peer_finished, *args, **kwargs))
        return found

    def begin(self, batch: int, device: torch.device) -> None:
        """A new generation of `batch` samples."""
        self._generating = self._read = True
        if self.options["seed"] is not None:
            self._addresses = Addresses(self.options["seed"], self.sample_ids, batch, device)

    def installed_again(self) -> None:
        """Takes back a later change of `sample_ids`."""
        self.sample_ids = self.options["sample_ids"]

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
