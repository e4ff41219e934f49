"""MAR's loop over sets of tokens (Li et al. 2024), computing no more than the next set needs.

Places are kept in the order in which they are drawn, the last ones first. So the known, the unknown
and the asked places of a step are slices, whose bounds are known before the first one: nothing is
searched, and nothing waits for a device. What does not change between steps is computed once: the
buffer of the class, a token's embedding, the unknown places. The decoder's last block gives
outputs at the asked places alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm


class Step(NamedTuple):
    """Of the places in drawn order, those before `unknown` are not known yet, and those from
    `later` to `unknown` are drawn; `weight` is that of guidance."""

    unknown: int
    later: int
    weight: float


def steps_of(length: int, num_iter: int, cfg: float, cfg_schedule: str) -> list[Step]:
    """The sets of tokens of a run: their sizes follow a cosine, the last takes what is left.

    Raises:
        NotImplementedError: a schedule other than linear and constant, as MAR has it.
    """
    if cfg_schedule not in ("linear", "constant"):
        raise NotImplementedError(
            f"sample_tokens: cfg_schedule must be linear or constant, got {cfg_schedule!r}"
        )
    steps, unknown = [], length
    for step in range(num_iter):
        later = math.floor(length * math.cos(math.pi / 2 * (step + 1) / num_iter))
        later = max(1, min(unknown - 1, later))
        weight = cfg
        if cfg_schedule == "linear":
            weight = 1 + (cfg - 1) * (length - later) / length
        steps.append(Step(unknown, 0 if step == num_iter - 1 else later, weight))
        unknown = later
    return steps


def drawn_order(orders: Tensor, steps: list[Step]) -> Tensor:
    """MAR's orders int64 `[B, L]`, ascending within each set: the order of rows that the head gets
    from MAR's own loop."""
    length = orders.shape[1]
    which = [0] * length
    for number, step in enumerate(steps):
        which[step.later : step.unknown] = [len(steps) - number] * (step.unknown - step.later)
    sets = torch.tensor(which, device=orders.device)
    return (sets * length + orders).sort(1).values % length


class TokenSets:
    """Stands in for the `sample_tokens` of a MAR.

    Args:
        mar: the model, the last block of whose decoder takes the rows that are asked for.
        own: the `sample_tokens` that it stands in for, which runs in training mode.
        refresh: called before a run, to follow the parameters.
    """

    def __init__(
        self,
        mar: nn.Module,
        own: Callable[..., Tensor],
        refresh: Callable[[], None],
    ) -> None:
        self.mar, self.own, self.refresh = mar, own, refresh

    def sample_tokens(
        self,
        bsz: int,
        num_iter: int = 64,
        cfg: float = 1.0,
        cfg_schedule: str = "linear",
        labels: Tensor | None = None,
        temperature: float = 1.0,
        progress: bool = False,
    ) -> Tensor:
        """As the model's own, without gradients.

        Args:
            bsz: samples, B.
            num_iter: sets of tokens.
            cfg: guidance weight; 1 for none.
            cfg_schedule: linear, from 1 to `cfg` with the known places, or constant.
            labels: classes, int64 `[B]`; None draws samples of no class.
            temperature: factor on the noise of the head's steps.
            progress: show a bar.

        Returns:
            float32 latents `[B, d, h, w]`.

        Raises:
            NotImplementedError: another schedule.
            ValueError: labels of another number; with guidance, more sets than places.
        """
        mar = self.mar
        if mar.training:
            return self.own(bsz, num_iter, cfg, cfg_schedule, labels, temperature, progress)
        steps = steps_of(mar.seq_len, num_iter, cfg, cfg_schedule)
        if labels is not None and labels.shape != (bsz,):
            raise ValueError(
                f"sample_tokens: labels must have shape [{bsz}], one for each of bsz samples, got "
                f"{list(labels.shape)}"
            )
        with torch.no_grad():
            self.refresh()
            null = mar.fake_latent.expand(bsz, -1)
            classes = null if labels is None else mar.class_emb(labels)
            if cfg != 1.0:
                classes = torch.cat([classes, null])
            places = drawn_order(mar.sample_orders(bsz), steps)
            run = Run(mar, places, classes)
            for step in tqdm(steps) if progress else steps:
                z = run.contexts(step.unknown, step.later)
                found = mar.diffloss.sample(z, temperature, step.weight)
                run.draw(found[: len(found) // 2] if cfg != 1.0 else found, step)
            return mar.unpatchify(run.result())


class Run:
    """The state of one run, places in drawn order.

    Args:
        mar: the model, whose last block takes the rows that are asked for.
        places: int64 `[B, L]`, in drawn order.
        classes: embeddings `[B, D]`, or `[2B, D]`, those of guidance below.
    """

    def __init__(self, mar: nn.Module, places: Tensor, classes: Tensor) -> None:
        self.mar, self.places = mar, places
        count, length = places.shape
        self.ways, buffer = len(classes) // count, mar.buffer_size
        first = mar.encoder_pos_embed_learned[:, :buffer]
        self.buffer = mar.z_proj_ln(classes[:, None] + first)
        self.encoder_at, self.decoder_at, self.head_at = (
            p[0, skip:][places]
            for p, skip in (
                (mar.encoder_pos_embed_learned, buffer),
                (mar.decoder_pos_embed_learned, buffer),
                (mar.diffusion_pos_embed_learned, 0),
            )
        )
        self.decoder_buffer = mar.decoder_pos_embed_learned[:, :buffer]
        self.tokens = torch.zeros(count, length, mar.token_embed_dim, device=places.device)
        self.embedded = self.buffer.new_zeros(count, length, self.buffer.shape[2])

    def contexts(self, unknown: int, later: int) -> Tensor:
        """What the head needs to draw the places `later` to `unknown`: `[ways B n, D]`."""
        mar, ways = self.mar, self.ways
        if later == unknown:
            return self.head_at.new_empty(0, self.head_at.shape[2])
        known = self.embedded[:, unknown:].repeat(ways, 1, 1)
        x = torch.cat([self.buffer, known], 1)
        for block in mar.encoder_blocks:
            x = block(x)
        x = mar.decoder_embed(mar.encoder_norm(x))
        size = mar.buffer_size
        blank = mar.mask_token.to(x.dtype) + self.decoder_at[:, :unknown]
        x = torch.cat(
            [
                x[:, :size] + self.decoder_buffer,
                blank.repeat(ways, 1, 1),
                x[:, size:] + self.decoder_at[:, unknown:].repeat(ways, 1, 1),
            ],
            1,
        )
        *blocks, last = mar.decoder_blocks
        for block in blocks:
            x = block(x)
        asked = slice(size + later, size + unknown)
        x = mar.decoder_norm(last(x, asked))
        return (x + self.head_at[:, later:unknown].repeat(ways, 1, 1)).flatten(0, 1)

    def draw(self, drawn: Tensor, step: Step) -> None:
        """Takes the tokens `[B n, d]` of a set."""
        mar, rows = self.mar, slice(step.later, step.unknown)
        drawn = drawn.unflatten(0, (len(self.tokens), step.unknown - step.later))
        self.tokens[:, rows] = drawn
        embedded = mar.z_proj(drawn.to(mar.fake_latent.dtype)) + self.encoder_at[:, rows]
        self.embedded[:, rows] = mar.z_proj_ln(embedded)

    def result(self) -> Tensor:
        """The tokens `[B, L, d]` in the order of places."""
        index = self.places[..., None].expand_as(self.tokens)
        return torch.empty_like(self.tokens).scatter(1, index, self.tokens)
