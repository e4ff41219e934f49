"""Random calls of `head_step`, their float64 oracle, and the same head as PyTorch modules do it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ardiff_kernels.dispatch import backends

F32, BF16, I8 = torch.float32, torch.bfloat16, torch.int8
# Every form of a head: its norm and its MLP.
FORMS = [("layer", "plain"), ("rms", "gated"), ("layer", "gated"), ("rms", "plain")]


def quantized(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes and the scale of each row: absmax / 127."""
    scale = matrix.abs().amax(1) / 127
    return (matrix / scale[:, None]).round().to(I8), scale


@dataclass
class Call:
    """Arguments of `head_step`; `exact` are the weights before they were rounded."""

    x: Tensor
    modulation: Tensor
    weights: list[Tensor]
    exact: list[Tensor]
    scales: list[Tensor] = field(default_factory=list)
    set: int = 1
    options: dict[str, int | float | bool | str] = field(default_factory=dict)

    def args(self) -> tuple:
        return self.x, self.modulation, self.set, self.weights, self.scales

    def run(self, **more: bool) -> Tensor:
        return torch.ops.ardiff.head_step.default(*self.args(), **self.options, **more)

    def oracle(self) -> Tensor:
        """The float64 reference on the identical inputs."""
        function = backends.reference_function("head_step")
        return function(self.x.double(), *self.args()[1:], **self.options)

    def rows(self, index: Tensor | list[int]) -> Call:
        """The call of some of the patches, or of some again."""
        ways = self.options["ways"]
        sets, rows, columns = self.modulation.shape
        modulation = self.modulation
        if rows != ways:
            modulation = modulation.view(sets, ways, -1, columns)[:, :, index]
            modulation = modulation.reshape(sets, -1, columns)
        return replace(self, x=self.x[index], modulation=modulation)

    def way(self, way: int) -> Call:
        """The call of one condition per patch."""
        ways = self.options["ways"]
        sets, rows, columns = self.modulation.shape
        modulation = self.modulation.view(sets, ways, rows // ways, columns)[:, way].contiguous()
        return replace(self, modulation=modulation, options=self.options | {"ways": 1})

    def eager(self) -> Tensor:
        """The head in modules of the weights' dtype; int8 weights as float32."""
        dtype = self.weights[2].dtype if self.weights[2].dtype == BF16 else F32
        ways, depth = self.options["ways"], self.options["depth"]
        matrices = list(self.weights[::2])
        for i, scale in enumerate(self.scales):
            if len(scale):
                matrices[i] = matrices[i].float() * scale[:, None]
        layers = [
            (w.to(dtype), b.to(dtype) if len(b) else None)
            for w, b in zip(matrices, self.weights[1::2], strict=True)
        ]
        h = F.linear(self.x.to(dtype), *layers[0])
        width = (h.shape[-1],)
        h = h.expand(ways, *h.shape)
        m = self.modulation[self.set].to(dtype)
        m = m.view(ways, len(m) // ways, -1).split(width[0], -1)
        norm = {"layer": F.layer_norm, "rms": F.rms_norm}[self.options["norm"]]
        for i in range(depth):
            y = norm(h, width, eps=self.options["eps"]) * m[3 * i + 1] + m[3 * i]
            y = F.linear(y, *layers[2 * i + 1])
            if self.options["mlp"] == "gated":
                gate, up = y.chunk(2, -1)
                y = F.silu(gate) * up
            else:
                y = F.silu(y)
            h = h + m[3 * i + 2] * F.linear(y, *layers[2 * i + 2])
        return F.linear(norm(h, width, eps=self.options["eps"]) * m[-1] + m[-2], *layers[-1])


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return (found.double() - exact).norm().item()


def excess(found: torch.Tensor, call: Call) -> float:
    """The RMS error over twice that of PyTorch's modules and a float32 rounding of the result."""
    exact = call.oracle()
    assert found.shape == exact.shape and found.dtype == F32 and found.is_contiguous()
    assert found.isfinite().all()
    if not found.numel():
        return 0.0
    return error(found, exact) / (2 * error(call.eager(), exact) + 2.0**-23 * exact.norm().item())


def head_call(
    N: int,
    norm: str = "layer",
    mlp: str = "plain",
    width: int = 48,
    depth: int = 2,
    d: int = 16,
    out: int = 32,
    inner: int | None = None,
    ways: int = 1,
    shared: bool = False,
    dtype: torch.dtype = F32,
    outer: torch.dtype | None = None,
    modulation: torch.dtype = F32,
    bias: bool | None = None,
    seed: int = 0,
) -> Call:
    """`outer` is the dtype of the first and last matrix; x lies in rows with NaN between them."""
    generator = torch.Generator("cpu").manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, device="cpu")).to(
            torch.get_default_device()
        )

    inner = width if inner is None else inner
    gated = mlp == "gated"
    bias = not gated if bias is None else bias
    shapes = [(width, d)]
    shapes += [((1 + gated) * inner, width), (width, inner)] * depth + [(out, width)]
    weights, exact, scales = [], [], []
    for i, (rows, columns) in enumerate(shapes):
        matrix = normal(rows, columns, scale=columns**-0.5)
        kind = (outer or dtype) if i in (0, len(shapes) - 1) else dtype
        code, scale = quantized(matrix) if kind == I8 else (matrix.to(kind), matrix.new_empty(0))
        vector = normal(rows, scale=0.1) if bias else matrix.new_empty(0)
        weights += [code, vector]
        exact += [matrix, vector]
        scales.append(scale)
    rows = ways if shared else ways * N
    columns = (3 * depth + 2) * width
    x = torch.full((N, d + 3), math.nan)
    x[:, :d] = normal(N, d)
    options = {"norm": norm, "mlp": mlp, "depth": depth, "eps": 1e-6, "ways": ways}
    return Call(
        x[:, :d],
        (normal(3, rows, columns, scale=0.5) + 0.5).to(modulation),
        weights,
        exact,
        scales if any(w.dtype == I8 for w in weights) else [],
        options=options,
    )
