"""The flow head of the package pocket-tts by the head engine, at the times its sampler asks for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ....heads.base import Head
from ....heads.fused import FusedHead
from ....heads.packing import WEIGHTS
from ..._replace import agree, probe, share
from ..._tree import Tree
from ..swaps import Choices

SYSTEM = "pocket-tts"
_AGREE = 1e-3  # of the largest output: float32 sums of 1024 terms through 6 blocks differ by 1e-5
# The package's names of parts of a head, and those of transformers, which `PocketHead` has.
_NAMES = (
    (r"^time_embed\.", "timestep_embeddings."),
    (r"^cond_embed\.", "cond_proj."),
    (r"^res_blocks\.(\d+)\.in_ln\.", r"layers.\1.norm."),
    (r"^res_blocks\.", "layers."),
    (r"^final_layer\.linear\.", "final_layer.proj."),
    (r"\.adaLN_modulation\.1\.", ".adaln_proj."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.2\.", ".fc2."),
    (r"\.mlp\.3\.alpha$", ".norm.weight"),
)


def renamed(name: str) -> str:
    """The name in `PocketHead` of a tensor of the package's SimpleMLPAdaLN."""
    for pattern, other in _NAMES:
        name = re.sub(pattern, other, name)
    return name


class PackageHead:
    """Stands in for the `forward` of one SimpleMLPAdaLN and of the language model around it.

    Parameters that PyTorch wrote to or that were replaced are found at each call; writes through
    ``.data`` when a text or a voice is read, which begins each utterance.

    Args:
        flow_lm: the FlowLMModel.
        choices: of weights and batch invariance.

    Raises:
        ValueError: a head that ours does not compute.
    """

    def __init__(self, flow_lm: nn.Module, choices: Choices) -> None:
        self.flow_lm, self.stock, self._choices = flow_lm, flow_lm.flow_net, choices
        self._read = False  # the bits of the parameters at the next call
        self.head: FusedHead | None = self._share()
        self._tree = Tree(self.stock)
        self.head.hold()

    @property
    def memory_bytes(self) -> int:
        return self.head.memory_bytes

    def forward_language_model(
        self, sequence: Tensor, text_embeddings: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """The FlowLMModel's own; where a prompt is read the head's parameters are too."""
        if text_embeddings.shape[1]:
            self._read = True
        stock = type(self.flow_lm).forward
        return stock(self.flow_lm, sequence, text_embeddings, *args, **kwargs)

    def forward(self, c: Tensor, *args: Tensor) -> Tensor:
        """As the head's own: c `[B, context]`, times `[B, 1]` each, x `[B, d]` -> `[B, d]`."""
        times, x = args[:-1], args[-1]
        if not self._serves(c, times, x):
            return type(self.stock).forward(self.stock, c, *args)
        head = self._current()
        if head is None:
            return type(self.stock).forward(self.stock, c, *args)
        levels = [1.0] if not times else [1 - float(t.flatten()[0]) for t in times]
        # A flow map ends at the next level, at 0 after the last.
        levels = levels[:1] if levels[-1] == 0 else levels
        return -head.hoist(torch.tensor(levels), c)(0, x)

    def _serves(self, c: Tensor, times: Sequence[Tensor], x: Tensor) -> bool:
        if c.dtype != torch.float32 or x.dtype != torch.float32 or not (c.is_cpu and x.is_cpu):
            return False
        if c.dim() != 2 or x.dim() != 2 or not len(x) or len(times) != self.stock.num_time_conds:
            return False
        if torch.is_grad_enabled() and (c.requires_grad or x.requires_grad):
            return False
        if self._tree.hooked() or self._tree.wants_gradients():
            return False
        if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return False
        if times and not float(times[1].flatten()[0]) > float(times[0].flatten()[0]):
            return False
        return all(len(t) == 1 or bool((t == t[0]).all()) for t in times)

    def _current(self) -> FusedHead | None:
        """The engine's head on the modules and parameters that the package's has now; None where
        these are no longer those of a head that is known."""
        if not self._read and self._tree.same():
            return self.head
        if self._tree.replaced():
            try:
                self.head = self._share()
            except ValueError:
                self.head = None
        self._tree.look()
        self._read = False
        if self.head is not None:
            self.head.hold()
        return self.head

    @torch.no_grad()
    def _share(self) -> FusedHead:
        stock, choices = self.stock, self._choices
        if stock.num_time_conds not in (0, 2):
            raise ValueError(
                f"{SYSTEM}: a head of {stock.num_time_conds} time is not known, expected 2 "
                "(Lagrangian self-distillation) or none"
            )
        options = {"eps": stock.final_layer.norm_final.eps}
        if stock.num_time_conds:
            options["time_eps"] = stock.time_embed[0].mlp[3].eps
        head = share(SYSTEM, stock, options, renamed)
        self._compare(head)
        dtype = str(head.input_proj.weight.dtype)[6:]
        weights = choices.weights or (dtype if dtype in WEIGHTS else "float32")
        # The modulations of one step at a time, whatever they take.
        return FusedHead(head, weights, batch_invariant=choices.batch_invariant, budget=1)

    def _compare(self, head: Head) -> None:
        like = head.input_proj.weight
        x, c = probe(like.shape[1], head.cond_proj.in_features, like)
        times = [torch.full((2, 1), t).to(like) for t in (0.125, 0.75)]
        own = times if self.stock.num_time_conds else []
        expected = type(self.stock).forward(self.stock, c, *own, x)
        start, end = (1 - t[:, 0] for t in times)
        agree(
            f"{SYSTEM}: the {type(self.stock).__name__} of this model",
            "the head known to ardiff", expected, -head(x, start, c, end),
            share_of_largest=_AGREE, error=ValueError,
        )  # fmt: skip
