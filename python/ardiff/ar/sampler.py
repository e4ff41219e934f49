"""ARSampler: draws images from an autoregressive diffusion model, patch after patch."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import Tensor

import ardiff_kernels

from ..guide import Guidance, number
from ..loop.divergence import Nonfinite, check_mode, find, report
from ..loop.lookahead import Rounds, check_lookahead
from ..loop.run import Decision
from ..loop.stats import SampleStats, collect, pool, warn_of_acceptance
from ..models.checkpoint import load_model as load
from ..models.image_model import ARModel
from ..noise import MAX_SAMPLE_ID, make_key, make_stream, sample_id_of
from ..solvers import default_solver
from ..tables.table import StepTable
from .function_model import OwnModel
from .requests import Request
from .step import PatchSolver, contexts

__all__ = ["ARSampler", "SampleOutput", "SampleStats", "StreamedPatch", "load"]


@dataclass(frozen=True)
class SampleOutput:
    """images `[n, C, H, W]`, float32 in [-1, 1], and what they cost; of a caller's own functions,
    patches `[n, patches, patch_dim]` or what `decode` makes of them."""

    images: Tensor
    stats: SampleStats


@dataclass(frozen=True)
class StreamedPatch:
    """Patch `index` (raster order) of the images `sample_ids` `[b]`: pixels `[b, C, p, p]`, or the
    patch `[b, patch_dim]` of a caller's own functions."""

    index: int
    sample_ids: Tensor
    pixels: Tensor


_Watched = tuple[Tensor, Tensor, Tensor, int]  # what `find` takes


class ARSampler:
    """Draws patch k from the diffusion model given patches 0..k-1, with any solver.

    Noise is addressed by (seed, sample id, patch, step, element), so an image does not depend on
    the others drawn with it, but for the rounding of the network's matrix products.

    Args:
        model: an `ARModel`, such as `ardiff.load` returns; the sampler runs on its device. None:
            `encode` and `denoise` are the model.
        solver: a name of `ardiff.solvers`; None takes `ardiff.default_solver` of `steps`, or of the
            fewest where they differ per patch.
        steps: bound on the model calls for each patch, None for 48; or one for each, in order.
        stages: stages of an `rtk-*` solver; None lets `steps` decide.
        guidance: scale w of u + w (c - u); None is plain conditional sampling. Needs a model
            trained with context dropout, and doubles the calls.
        temperature: factor on the step noise, not on the initial state.
        table: a table for all patches, or the name of its file, in place of `solver`, `steps`,
            `stages` and `options`; for the model's path and prediction.
        guidance_schedule: ``constant``, or ``linear`` from none to `guidance` over the patches.
        guidance2, uncond2: three-way guidance u2 + w2 (u - u2) + w (c - u), w2 = `guidance2` on the
            same schedule, u2 at the context `uncond2` `[context_width]`; a third call.
        batch: images drawn together; bounds memory, not n.
        backend: forces a backend of `ardiff_kernels`; None takes the best.
        weights: of the head's blocks, `float32`, `bfloat16` or `int8`.
        lookahead, mode, tolerance: as of :func:`ardiff.sample`, of each patch's run. `stats` then
            has the mean of the states evaluated per image as `calls`, and in `lookahead` what the
            rounds of each patch did, batch after batch.
        noise: ``step``, or ``path``: the step noise of a patch is that of a Brownian path, so that
            images of one seed are near to each other whatever the steps; see `ardiff.sample`.
        encode, denoise: a caller's own functions, ``encode(patches) -> context`` and ``denoise(x,
            level, context) -> output``, in place of `model`; with them go patches, patch_dim, path,
            prediction, and if wanted null, decode and device: see
            :class:`ardiff.ar.function_model.OwnModel`.
        options: the solver's own (inner, tau, gamma, ...) and the time grid, by default the one in
            the model's config.

    Raises:
        TypeError: a model that is no `ARModel`, or functions that cannot be called.
        ValueError: an unknown solver or option, steps out of range, guidance without a null
            context.

    Example:
        >>> import ardiff
        >>> sampler = ardiff.ARSampler(ardiff.load("sun-shadow"), solver="ddim", steps=4)
        >>> sampler.sample(2, seed=0).images.shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        model: ARModel | None = None,
        solver: str | None = None,
        steps: int | Sequence[int] | None = None,
        stages: int | None = None,
        guidance: float | None = None,
        temperature: float = 1.0,
        *,
        table: StepTable | str | PathLike | None = None,
        guidance_schedule: str = "constant",
        guidance2: float | None = None,
        uncond2: Tensor | None = None,
        batch: int = 128,
        backend: str | None = None,
        weights: str = "float32",
        noise: str = "step",
        lookahead: int | str | None = None,
        mode: str | None = None,
        tolerance: float | None = None,
        encode: Any = None,
        denoise: Any = None,
        **options,
    ) -> None:
        if encode is not None or denoise is not None:
            model = _own_model(model, encode, denoise, options)
        elif not isinstance(model, ARModel):
            raise TypeError(
                f"ARSampler: model must be an ardiff.models.ARModel, got {type(model).__name__}; "
                "ardiff.load gives one, encode= and denoise= take functions of your own"
            )
        if guidance is not None and model.null is None:
            raise ValueError(
                "ARSampler: guidance needs a model with a null context; train one with context "
                "dropout (context_dropout above 0)"
            )
        batch = _integer("ARSampler: batch", batch)
        if batch < 1:
            raise ValueError(f"ARSampler: batch must be positive, got {batch}")
        if stages is not None:
            options["stages"] = stages
        if table is not None:
            table = StepTable.alone(table, solver=solver, steps=steps, **options)
            solver, steps = table, table.calls
        steps = 48 if steps is None else steps
        config = model.config
        self.model, self.temperature = model, number("temperature", temperature, 0.0)
        null = None if guidance is None else model.null
        self.guidance = Guidance.of(null, guidance, uncond2, guidance2).per_patch(
            guidance_schedule, config.patches
        )
        if uncond2 is not None and uncond2.shape != (config.context_width,):
            raise ValueError(
                f"ARSampler: uncond2 must be a context of shape [{config.context_width}], got "
                f"{list(uncond2.shape)}"
            )
        self.batch, self.backend, self.weights = batch, backend, weights
        each = list(steps) if isinstance(steps, (list, tuple)) else [steps] * config.patches
        if len(each) != config.patches:
            raise ValueError(
                f"ARSampler: steps must be an integer or {config.patches}, one per patch, got "
                f"{len(each)}"
            )
        self.steps = each
        solver = default_solver(min(each)) if solver is None else solver
        self.lookahead = check_lookahead(lookahead, mode, tolerance)
        self._solver = PatchSolver(model, solver, options, weights, noise, self.lookahead)
        self.tables = [self._solver.table(n) for n in each]
        self.table = self.tables[0]

    @property
    def calls(self) -> int:
        """Model calls for each image: all patches, two or three times as many with guidance."""
        return sum(table.calls for table in self.tables) * self.guidance.outputs

    def sample(
        self,
        n: int,
        seed: int | None = None,
        sample_ids: Sequence[int] | Tensor | None = None,
        progress: Callable[[int, int], None] | None = None,
        *,
        first: int | None = None,
        nonfinite: str = "warn",
        condition: Tensor | None = None,
        prefix: Tensor | None = None,
    ) -> SampleOutput:
        """Draws n images.

        `stats.calls` is `calls` without those of a prefix; it follows from the tables and is not
        counted.

        Args:
            n: how many.
            seed: the key of the noise, any int64: equal seeds give equal images. None draws a key
                from torch's generator: each call gives other images, and `torch.manual_seed` makes
                them reproducible.
            sample_ids: n ids that address the noise, 0..n-1 when None.
            progress: called with (patches done, patches in all) after each patch of each batch.
            first: the first id, in place of `sample_ids`: ids first..first + n - 1, so that later
                calls of one seed go on where an earlier call ended.
            nonfinite: what happens when images are NaN or infinite at the end: ``"warn"``,
                ``"raise"`` or ``"ignore"``. The message names samples, patches, steps and levels;
                so does `stats.nonfinite`. What is clipped to the range of pixels counts as it was
                before.
            condition: `[n, ...]`, a row per image such as its label, handed to `encode`; for own
                functions alone, an `ARModel` has no condition.
            prefix: the first m patches of each image, which are kept and not drawn: pixels
                `[n, m, C, p, p]` in [-1, 1] as `stream` yields them, of own functions patches
                `[n, m, patch_dim]`.

        Raises:
            ValueError, TypeError: n or an id out of range, ids that are not n integers, both
                `sample_ids` and `first`, a bad seed, a condition or a prefix that does not fit.
            FloatingPointError: images that are not finite, with ``nonfinite="raise"``.

        Example:
            >>> import ardiff, torch
            >>> sampler = ardiff.ARSampler(ardiff.load("sun-shadow"), solver="ddim", steps=4)
            >>> parts = [sampler.sample(2, seed=7, first=first).images for first in (0, 2)]
            >>> torch.allclose(torch.cat(parts), sampler.sample(4, seed=7).images, atol=1e-4)
            True
        """
        ids, seed = _checked_ids(n, sample_ids, first), int(make_key(seed, "cpu"))
        check_mode(nonfinite)
        given = self._checked_inputs(len(ids), condition, prefix)
        config = self.model.config
        total, done = len(ids) * config.patches, 0
        parts: list[list[Tensor]] = []
        fared: list[SampleStats] = []
        watched: list[_Watched] = []
        rounds: list[Rounds] = []
        start = time.perf_counter()
        for part in self._draw(ids, seed, fared, watched, rounds, *given):
            if part.index == 0:
                parts.append([])
            parts[-1].append(part.pixels)
            done += len(part.sample_ids)
            if progress is not None:
                progress(done, total)
        images = [self.model.assemble(pixels) for pixels in parts]
        whole = torch.cat(images) if images else self.model.nothing()
        if whole.is_cuda:
            torch.cuda.synchronize(whole.device)
        seconds = time.perf_counter() - start
        calls = sum(table.calls for table in self.tables[given[1].shape[1] :])
        waited = calls * len(parts)
        if self.lookahead is not None:
            calls = sum(made.evaluated for made in rounds) / max(n, 1)
            waited = sum(int(made.rounds.max(initial=0)) for made in rounds)
        stats = pool(calls * self.guidance.outputs, seconds, fared)
        stats = replace(stats, rounds=waited, lookahead=tuple(rounds))
        stats = replace(stats, nonfinite=Nonfinite.of([find(*each) for each in watched]))
        report(stats.nonfinite, n, nonfinite, patches=True)
        warn_of_acceptance(stats, self.tables[0].solver)
        return SampleOutput(whole, stats)

    def stream(
        self,
        n: int,
        seed: int | None = None,
        sample_ids: Sequence[int] | Tensor | None = None,
        *,
        first: int | None = None,
        condition: Tensor | None = None,
        prefix: Tensor | None = None,
    ) -> Iterator[StreamedPatch]:
        """Yields each patch as soon as it is made, the same pixels as `sample` would return; those
        of a prefix too.

        Arguments and errors as `sample`'s; past `batch` images, one batch follows another.
        """
        ids, seed = _checked_ids(n, sample_ids, first), int(make_key(seed, "cpu"))
        return self._draw(
            ids, seed, [], None, None, *self._checked_inputs(len(ids), condition, prefix)
        )

    def _draw(
        self,
        ids: Tensor,
        seed: int,
        fared: list[SampleStats],
        watched: list[_Watched] | None,
        rounds: list[Rounds] | None,
        condition: Tensor | None,
        known: Tensor,
    ) -> Iterator[StreamedPatch]:
        for first in range(0, len(ids), self.batch):
            part = slice(first, first + self.batch)
            rows = None if condition is None else condition[part]
            yield from self._draw_batch(ids[part], seed, fared, watched, rounds, rows, known[part])

    def _draw_batch(
        self,
        ids: Tensor,
        seed: int,
        fared: list[SampleStats],
        watched: list[_Watched] | None,
        rounds: list[Rounds] | None,
        condition: Tensor | None,
        known: Tensor,
    ) -> Iterator[StreamedPatch]:
        model, running = self.model, self._requests(ids.tolist(), seed)
        contexts_of = self._contexts(len(ids), condition)
        for k, table in enumerate(self.tables):
            decisions: list[Decision] = []
            found = None if watched is None else []
            with torch.no_grad(), self._backend():
                context = contexts_of(running)
                if k < known.shape[1]:
                    made = known[:, k]
                else:
                    made = self._solver.draw(running, context, decisions, found, rounds)
            if watched is not None:
                watched += [(rows, levels, ids, k) for rows, levels in found]
            for request, patch in zip(running, made.split(1), strict=True):
                request.keep(patch, patch)
            if decisions:
                fared.append(collect(table, 0, 0.0, decisions))
            yield StreamedPatch(k, ids, model.finished(made, k))

    def _requests(self, ids: list[int], seed: int) -> list[Request]:
        """A request for each image, without a prompt."""
        conditions, weights = self.guidance
        prompt, order = self.model.start.new_empty(0), list(range(self.model.config.patches))
        return [
            Request(
                row, prompts=[prompt], sources=[0, *conditions], weights=list(weights),
                order=order, seed=seed, sample_id=sample_id, steps=self.steps,
                temperature=self.temperature, rows=[row],
            )
            for row, sample_id in enumerate(ids)
        ]  # fmt: skip

    def _checked_inputs(
        self, n: int, condition: Tensor | None, prefix: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        """The condition, and the known patches `[n, m, d]` in the model's units."""
        model, start = self.model, self.model.start
        own = isinstance(model, OwnModel)
        if condition is not None:
            if not own:
                raise TypeError(
                    "condition: an ARModel has none; own functions take one, "
                    "encode(patches, condition)"
                )
            if not isinstance(condition, Tensor) or not condition.dim() or len(condition) != n:
                found = list(condition.shape) if isinstance(condition, Tensor) else condition
                raise ValueError(f"condition must be a tensor of {n} rows, got {found!r}")
            condition = condition.detach().to(start.device)
        if own:
            model.check_condition(condition)
        known = start.new_empty(n, 0, model.patch_dim)
        if prefix is None:
            return condition, known
        pixels = () if own else (model.config.channels, *(model.config.patch_size,) * 2)
        shape, most = pixels or (model.patch_dim,), model.config.patches - 1
        form = f"[{', '.join(map(str, (n, 'm', *shape)))}] with m up to {most}"
        if not isinstance(prefix, Tensor):
            raise TypeError(f"prefix must be a tensor {form}, got {type(prefix).__name__}")
        found = tuple(prefix.shape)
        if found[:1] != (n,) or found[2:] != shape or len(found) < 3 or found[1] > most:
            raise ValueError(f"prefix must be {form}, got {list(found)}")
        if not bool(prefix.isfinite().all()):
            raise ValueError("prefix must be finite, got NaN or inf")
        known = prefix.detach().to(known, copy=True).flatten(2)
        return condition, known if own else model.normalised(known)

    def _contexts(
        self, batch: int, condition: Tensor | None
    ) -> Callable[[list[Request]], list[Any]]:
        """What makes the contexts of a batch's next patches, from an empty cache."""
        if isinstance(self.model, OwnModel):
            return partial(self.model.contexts, self.model.context.new_cache(batch), condition)
        encoder = self.model.encoder
        cache = encoder.new_cache(batch, self.model.config.patches, dtype=encoder.dtype)
        return partial(contexts, self.model, cache)

    def _backend(self) -> AbstractContextManager:
        return ardiff_kernels.backend(self.backend) if self.backend else nullcontext()


def _own_model(model: Any, encode: Any, denoise: Any, options: dict[str, Any]) -> OwnModel:
    """The model of `encode` and `denoise`, with what `options` says of it, which is taken out."""
    if model is not None or encode is None or denoise is None:
        raise TypeError("ARSampler: pass a model, or both encode and denoise in its place")
    known = ("patches", "patch_dim", "path", "prediction")
    missing = [name for name in known if name not in options]
    if missing:
        raise TypeError(f"ARSampler: encode and denoise need {', '.join(missing)} too")
    names = (*known, "null", "decode", "device")
    return OwnModel(encode, denoise, **{n: options.pop(n) for n in names if n in options})


def _checked_ids(n: int, sample_ids: Sequence[int] | Tensor | None, first: int | None) -> Tensor:
    n = _integer("n", n)
    if n < 0:
        raise ValueError(f"n must not be negative, got {n}")
    if first is not None:
        first = _integer("first", first)
        if sample_ids is not None:
            raise ValueError("first counts sample ids up, sample_ids names them: pass one of them")
        if not 0 <= first <= MAX_SAMPLE_ID - n:
            raise ValueError(
                f"first must be in [0, 2^43 - n], for ids below 2^43, got {first} for n = {n}"
            )
        sample_ids = range(first, first + n)
    return sample_id_of(make_stream(sample_ids, n, 0, "cpu"))


def _integer(name: str, value: int) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
