"""MAR (Li et al. 2024) and models with its head: the DDPM loop of each token by the head engine.

MAR draws every token by a DDPM of 1000 cosine steps respaced to 100, with learned-range variance
(Nichol & Dhariwal 2021), evaluating the whole head at each step. Here everything that depends on
timestep and context alone is computed once per token, and a step is one `head_step` and one
`diffusion_step`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..guide import Guidance, per_sample
from ..heads.fused import FusedHead
from ..loop.lookahead import Lookahead, check_lookahead, run_lookahead
from ..loop.run import make_schedule, run
from ..noise import initial_state, make_key, make_stream
from ..solvers import solver as make_table
from ..solvers import solver_options
from ..tables.diffusers_schedules import beta_schedule, ddpm_table
from ..tables.plan import Schedule
from ..tables.table import StepTable
from ._head_sampler import HeadSampler, owner_of
from ._mar_checkpoint import load_checkpoint, load_tensors
from ._replace import install, uninstall

__all__ = [
    "MARSampler", "accelerate", "load_checkpoint", "load_tensors", "respaced_table", "restore",
    "space_timesteps",
]  # fmt: skip

TRAINING_STEPS = 1000


def space_timesteps(steps: int | str, training_steps: int = TRAINING_STEPS) -> list[int]:
    """The timesteps that are kept, ascending: those of a spacing as OpenAI's diffusion code has it.

    Args:
        steps: how many; or text: a number, ``ddimN`` (N of an integer stride from 0), or numbers
            with commas, each for a section of the timesteps of (almost) equal size, within which
            they are spread evenly from its first to its last.

    Raises:
        ValueError: other text, or more than there are.
    """
    text = str(steps)
    what = f"steps {steps!r}"
    if text.startswith("ddim") and text[4:].isdecimal():
        wanted = int(text[4:])
        for stride in range(1, training_steps):
            if len(range(0, training_steps, stride)) == wanted:
                return list(range(0, training_steps, stride))
        raise ValueError(f"{what}: no integer stride takes {wanted} of {training_steps} timesteps")
    counts = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(counts) < 1:
        raise ValueError(
            f"{what}: expected a positive number, numbers separated by commas, or ddim and a number"
        )
    size, larger = divmod(training_steps, len(counts))
    kept, first = [], 0
    for section, count in enumerate(counts):
        length = size + (section < larger)
        if count > length:
            raise ValueError(f"{what}: {count} of a section of {length} timesteps")
        stride, place = (length - 1) / (count - 1) if count > 1 else 1.0, 0.0
        for _ in range(count):  # summed, not multiplied: roundings of halves depend on it
            kept.append(first + round(place))
            place += stride
        first += length
    return kept


def respaced_table(
    steps: int | str | list[int] = 100, *, variance: str = "learned_range"
) -> StepTable:
    """MAR's DDPM: cosine betas, 1000 steps respaced to `steps` (see :func:`space_timesteps`), or to
    a list of the timesteps that are kept, ascending."""
    kept = steps if isinstance(steps, list) else space_timesteps(steps)
    return ddpm_table(_alphas_cumprod(), kept[::-1], prediction="epsilon", variance=variance)


def _alphas_cumprod() -> np.ndarray:
    return np.cumprod(1 - beta_schedule("squaredcos_cap_v2", TRAINING_STEPS))


class _Outputs:
    """The head as `run` takes it, on a state of N rows.

    halves=True copies MAR's guidance: the state has 2N rows, N conditional and N unconditional.
    Both are moved by the guided mean computed at the first half; each keeps its own predicted
    variance. The rows of the second half are guided as c + (1 - w) (u - c), which is the same
    u + w (c - u) with the conditions exchanged.
    """

    def __init__(self, fused: FusedHead, dim: int, learned: bool, halves: bool) -> None:
        self.fused, self.dim, self.learned, self.halves = fused, dim, learned, halves

    def hoist_guided(
        self, levels: Tensor, conditions: Sequence[Tensor]
    ) -> Callable[[int, Tensor], Sequence[Tensor]]:
        if self.halves:
            call = self.fused.hoist_guided(levels, conditions[0].chunk(2))

            def both(row: int, x: Tensor) -> Sequence[Tensor]:
                c, u = call(row, x[: len(x) // 2])
                return [torch.cat([c, u]), torch.cat([u, c])]

            return both
        call = self.fused.hoist_guided(levels, conditions)
        if self.learned:
            return call
        return lambda row, x: [out[:, : self.dim] for out in call(row, x)]

    def hoist_rows(
        self, levels: Tensor, conditions: Sequence[Tensor]
    ) -> Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]]:
        """Of tables without learned variance."""
        call = self.fused.hoist_rows(levels, conditions)
        return lambda rows, samples, x: [
            out[:, : self.dim].contiguous() for out in call(rows, samples, x)
        ]


class MARSampler(HeadSampler):
    """What :func:`accelerate` returns.

    Attributes:
        table: the solver's rows.
    """

    system = "MAR"
    methods = {"sample": ("z", "temperature", "cfg")}

    def __init__(self, owner: nn.Module, options: dict[str, Any]) -> None:
        super().__init__(owner, options)
        steps, name, own = options["steps"], options["solver"], options["options"]
        if steps is None and options["table"] is None:
            kept = _own_timesteps(owner)
            steps = kept if name == "ddpm" else len(kept)
        if options["table"] is not None:
            self.table = options["table"]
            self.table.check_model("vp-cosine", "epsilon")
        elif name == "ddpm":
            if own:
                raise ValueError(f"solver ddpm takes no option {next(iter(own))!r}")
            self.table = respaced_table(steps)
        else:
            number = int(steps) if str(steps).isdecimal() else steps
            if "dim" in solver_options(name):
                own = {"dim": owner.net.input_proj.in_features, **own}
            self.table = make_table(
                name, path="vp-cosine", prediction="epsilon", steps=number, **own
            )
        if self.table.energy:
            raise ValueError('accept="energy" needs a density; use "trapezoid" or "simpson"')
        self._lookahead: Lookahead | None = options["lookahead"]
        if self._lookahead is not None:
            if self.table.learned_range:
                raise ValueError(
                    "lookahead: MAR's own ddpm takes the variance of its noise from the model, "
                    "which no draft knows; choose a solver that has its own, such as dpmpp-2m-sde"
                )
            self._lookahead.check(self.table)
        self._schedules: dict[torch.device, Schedule] = {}

    def head(self) -> FusedHead:
        fused = super().head()
        dim = fused.model.input_proj.in_features
        outputs = fused.model.final_layer.linear.out_features
        if outputs != 2 * dim:
            raise ValueError(
                f"MAR: expected a head with {2 * dim} outputs, a mean and a variance for each of "
                f"{dim} inputs, got {outputs}"
            )
        return fused

    def sample(
        self,
        z: Tensor,
        temperature: float | Tensor = 1.0,
        cfg: float | Tensor = 1.0,
        *,
        noise: Tensor | None = None,
    ) -> Tensor:
        """A token for each context, as ``diffloss.sample``.

        Args:
            z: `[N, D]`; with `cfg` other than 1 `[2N, D]`, those of the conditions first.
            temperature: factor on the step noise, a number or one per token.
            cfg: guidance weight, a number, or a tensor `[]`, `[1]` or `[N]`.
            noise: `[1 + steps, rows of z, d]` normals in place of drawn ones, the first for the
                initial state (of its N first rows). Then torch's generator is not drawn from.

        Returns:
            float32, a row for each of z. With guidance the first half are the tokens; the second is
            what MAR returns there too, which its callers drop (with other solvers than ``ddpm`` the
            tokens again).

        Raises:
            ValueError, TypeError: shapes that do not go together, or guidance of no rows.
        """
        fused = self.head()
        weight = fused.model.cond_embed.weight
        if z.dim() != 2 or z.shape[1] != weight.shape[1]:
            raise ValueError(f"z must be [N, {weight.shape[1]}], got {list(z.shape)}")
        several = isinstance(cfg, Tensor) and cfg.numel() != 1
        guided = several or bool(cfg != 1)
        if guided and len(z) % 2:
            raise ValueError(
                f"z must hold two halves, with and without the condition, got {len(z)} rows; pass "
                "cfg=1 for no guidance"
            )
        if guided and not len(z):  # where `torch.split` fails in MAR's own head
            raise ValueError(
                "z has no rows, for which MAR's own guidance fails: sample_tokens asks for them "
                "where num_iter is above the number of tokens; pass a smaller num_iter, or cfg=1"
            )
        with torch.inference_mode(), torch.autocast(z.device.type, enabled=False):
            found = self._sample(fused, z.to(weight), temperature, cfg, guided, noise)
        return found.clone()  # no inference tensor

    def _sample(
        self,
        fused: FusedHead,
        z: Tensor,
        temperature: float | Tensor,
        cfg: float | Tensor,
        guided: bool,
        noise: Tensor | None,
    ) -> Tensor:
        device, dim = z.device, fused.model.input_proj.in_features
        learned = self.table.learned_range
        halves, count = guided and learned, len(z) // (1 + guided)
        modifiers: dict[str, Any] = {"condition": z}
        if guided:
            guidance = Guidance((z[count:],), (cfg,)).per_sample(count, device, names=("cfg",))
            modifiers = {"condition": z[:count], **guidance.arguments()}
            if halves:
                w = guidance.weights[0].expand(count)
                guidance = Guidance((z,), (torch.cat([w, 1 - w]),))
                modifiers = {"condition": z, **guidance.arguments()}
        if isinstance(temperature, Tensor) or temperature != 1:
            scale = per_sample("temperature", temperature, count, device, low=0.0)
            modifiers["noise_scale"] = scale.repeat(2) if halves and len(scale) > 1 else scale
        rows = 2 * count if halves else count
        shape = (1 + len(self.table), len(z), dim)
        if noise is not None and noise.shape != shape:
            raise ValueError(f"noise must have shape {list(shape)}, got {list(noise.shape)}")
        if not len(z):
            return torch.zeros(0, dim, device=device)
        stream = make_stream(None, rows, 0, device)
        if noise is None:
            key = make_key(None, device)
            start = initial_state(self.table, key, stream[:count], dim)
        else:
            key = stream.new_zeros(1)  # addresses nothing
            start = noise[0, :count] * self.table.init_scale
            modifiers["noise"] = noise[1:, :rows].contiguous()
        if device not in self._schedules:
            self._schedules[device] = make_schedule(self.table, start)
        outputs = _Outputs(fused, dim, learned, halves)
        modifiers |= {"key": key, "stream": stream}
        if self._lookahead is not None:
            x, _ = run_lookahead(self.table, outputs, start, self._lookahead, **modifiers)
        else:
            start = torch.cat([start, start]) if halves else start
            x = run(self._schedules[device], outputs, start, **modifiers)
        return x if len(x) == len(z) else torch.cat([x, x])


def _own_timesteps(owner: nn.Module) -> list[int]:
    """The timesteps that the model keeps, ascending; 100 of them where it does not say."""
    own = getattr(owner, "gen_diffusion", None)
    kept = getattr(own, "timestep_map", None)
    if kept is None:
        return space_timesteps(100)
    kept, bars = [int(t) for t in kept], _alphas_cumprod()
    fits = kept and kept[0] >= 0 and kept[-1] < TRAINING_STEPS
    if fits and all(a < b for a, b in zip(kept, kept[1:], strict=False)):
        if np.allclose(np.asarray(own.alphas_cumprod), bars[kept], rtol=1e-6, atol=0):
            return kept
    raise ValueError(
        f"MAR: the gen_diffusion of this {type(owner).__name__} is not {TRAINING_STEPS} cosine "
        f"steps respaced to {len(kept)}; pass steps if such a one may replace it"
    )


def accelerate(
    model: nn.Module,
    *,
    solver: str = "ddpm",
    steps: int | str | None = None,
    table: StepTable | str | PathLike | None = None,
    weights: str | None = None,
    batch_invariant: bool = False,
    lookahead: int | str | None = None,
    mode: str | None = None,
    tolerance: float | None = None,
    **options: Any,
) -> MARSampler:
    """Replaces ``model.diffloss.sample`` by the head engine; :func:`restore` undoes it.

    The distribution of the samples stays that of the model's own loop. Noise is drawn from torch's
    global generator (one number per call), so that `torch.manual_seed` seeds it; the numbers are
    others than those of the model's own loop.

    Args:
        model: with a `diffloss` whose `net` has MAR's state-dict names, or that `diffloss`.
        solver: ``ddpm``, the model's own, or a name of `ardiff.solvers` (``rtk-uld``,
            ``rtk-harmonic``, ``dpmpp-2m``, ...), on which the learned variance has no effect.
        steps: model calls per token; for ``ddpm`` also text as of :func:`space_timesteps`. None: of
            the model's own `gen_diffusion` the timesteps themselves for ``ddpm`` and their number
            for another solver; 100 where it has none.
        table: a table on path ``vp-cosine`` for ``epsilon`` models, or the name of its file, in
            place of `solver`, `steps` and `options`; :meth:`~ardiff.tables.table.StepTable.on`
            converts tables.
        weights: dtype of the blocks' weights (``float32``, ``bfloat16``, ``int8``), None: theirs.
        batch_invariant: a token's bits depend on its context and noise alone.
        lookahead, mode, tolerance: as of :func:`ardiff.sample`, of each token's run; for solvers
            other than ``ddpm``, whose learned variance no draft knows.
        options: of the solver, such as `stages`, `inner`, `tau`, `gamma`.

    Returns:
        The sampler now in place; its ``sample`` takes given noise too.

    Raises:
        TypeError: a model without such a `diffloss`.
        ValueError: a head of another form, other training steps, options that do not fit.
        RuntimeError: a `sample` of other parameters, or one that was replaced already.
    """
    if table is not None:
        own = None if solver == "ddpm" else solver
        table = StepTable.alone(table, solver=own, steps=steps, **options)
    return install(
        MARSampler, owner_of("MAR", model, "diffloss"),
        {
            "solver": solver, "steps": steps, "table": table, "weights": weights,
            "batch_invariant": batch_invariant, "options": options,
            "lookahead": check_lookahead(lookahead, mode, tolerance),
        },
    )  # fmt: skip


def restore(model: nn.Module) -> None:
    """Gives the model its own loop back; nothing where none was replaced."""
    uninstall(MARSampler, owner_of("MAR", model, "diffloss"))
