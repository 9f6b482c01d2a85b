"""Images as the trained part of the network sees them: activations at the cut, computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kswapctl.data.images import normalise
from kswapctl.models.threads import run_spread
from kswapctl.models.weights import Weights, fingerprint
from kswapctl.spec import Preprocessing
from kswapctl.tasks import Items, Task
from kswapctl.training.cache import Cache, key_of
from kswapctl.training.subject import Subject
from kswapctl.training.team import ALONE, Team

CHUNK = 256
"""Most images per frozen forward."""
AREA = CHUNK * 64 * 64
"""Most pixels of them."""
TOKEN = 16 * 16
"""Most pixels that a token counts for: the patch that it stands for, however wide it is."""


@dataclass
class Pool:
    """N images in V views, as activations at the cut, with what the model said of them before the operation."""

    activations: Tensor
    """(V, N, ...) at the cut, or, uncached, (V, N, C, H, W) uint8 pixels."""
    truth: Tensor
    """(N, ...) what the task must know of the images' targets."""
    before: Items
    """(V * N, S, ...) items before the operation, outputs (V * N, S, K_known); view by view."""
    order: Tensor
    """Positions in 0 .. N - 1 to draw from; one that stands twice is drawn twice as often."""
    prepare: Callable[[Tensor], Tensor]
    """Turns a batch of ``activations`` into what the trained part takes."""
    cached: bool
    """Whether ``activations`` are at the cut."""

    def __len__(self) -> int:
        return len(self.truth)

    def before_at(self, views: Tensor, images: Tensor) -> Items:
        """(B, S, ...) items of images in certain views, before the operation."""
        place = views * len(self) + images
        return Items(self.before.features[place], self.before.outputs[place], self.before.targets[place])

    @torch.no_grad()
    def lift(self, between: nn.Module, subject: Subject) -> None:
        """Move to a higher cut: ``between`` leads from the old one to it."""
        below = self.prepare
        if not self.cached:
            self.prepare = lambda pixels: _run(between, below(pixels), subject)
            return
        flat = self.activations.flatten(0, 1)
        lifted = [_run(between, part, subject) for part in flat.split(chunk_of(flat))]
        self.activations = torch.cat(lifted).unflatten(0, self.activations.shape[:2])


@dataclass(frozen=True)
class Maker:
    """Makes the pools of one operation."""

    subject: Subject
    task: Task
    preprocessing: Preprocessing
    cache: Cache
    team: Team
    network: str
    """What the network computes depends on this: architecture, arguments and the fingerprint of its weights."""

    @torch.no_grad()
    def make(self, views: Tensor, targets: Tensor, order: Tensor | None = None) -> Pool:
        """Run the frozen part, and the model as it is now, over ``views`` (V, N, C, H, W) uint8.

        Activations are kept in the subject's dtype where the cache has room; else only the pixels are, and the
        frozen part runs again in each step.
        """
        flat = views.flatten(0, 1)
        device, dtype = self.subject.device, self.subject.dtype
        example = self._below(flat[:1])
        shape = (len(flat), *example.shape[1:])
        _, outputs = self.subject.forward(example)  # also tells how wide features are, where the rest is recalled
        truth = self.task.truth(targets, outputs).to(device)
        place = (self.subject.blocks[0].name, *self.subject.watched, fingerprint({"truth": truth}))
        key = key_of(
            self.network,
            repr(self.preprocessing),
            *place,
            str(dtype),
            self.subject.device.type,
            str(self.subject.known_rows()),
            torch.__version__,
            flat,
        )
        if found := self.cache.recall(key, shape, dtype):
            activations, before = found
        else:
            room = self.cache.allocate(key, shape, dtype, device)
            before = self._fill(flat, truth, room)
            self.cache.keep(key, before)
            activations = flat if room is None else room
        cached = activations is not flat
        return Pool(
            activations=activations.unflatten(0, views.shape[:2]),
            truth=truth,
            before=Items(**{name: tensor.to(device) for name, tensor in before.items()}),
            order=torch.arange(len(targets)) if order is None else order,
            prepare=(lambda batch: batch.to(device, non_blocking=True)) if cached else self._below,
            cached=cached,
        )

    def _fill(self, flat: Tensor, truth: Tensor, room: Tensor | None) -> dict[str, Tensor]:
        """Write activations to ``room``, if there is any, and return the items of ``flat``."""
        team = self.team if len(flat) >= self.team.size else ALONE
        mine = team.share(len(flat))
        kept: list[Tensor] = []
        items: list[Items] = []
        chunk = chunk_of(flat)
        for start in range(mine.start, mine.stop, chunk):
            activations = self._below(flat[start : min(start + chunk, mine.stop)])
            if room is not None and team.size == 1:
                room[start : start + len(activations)] = activations
            elif room is not None:
                kept.append(activations)
            features, outputs = self.subject.forward(activations)
            which = torch.arange(start, start + len(activations), device=truth.device) % len(truth)
            known = self.task.known(outputs, self.subject.known_rows())
            items.append(self.task.items(features, known, truth[which]))
        if kept and room is not None:
            room.copy_(team.join(torch.cat(kept), len(flat)))
        return {
            name: team.join(torch.cat([getattr(part, name) for part in items]), len(flat))
            for name in ("features", "outputs", "targets")
        }

    def _below(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.subject.device, non_blocking=True)
        return _run(self.subject.below, normalise(pixels, self.preprocessing), self.subject)


def chunk_of(images: Tensor) -> int:
    """How many of (N, C, H, W) ``images`` or (N, T, D) activations go through the network at once."""
    area = images.shape[1] * min(images.shape[2], TOKEN) if images.dim() == 3 else images[0].shape[-2:].numel()
    return max(1, min(CHUNK, AREA // area))


@torch.no_grad()
def _run(part: nn.Module, inputs: Tensor, subject: Subject) -> Tensor:
    def run(module: nn.Module, _: Weights, rows: Tensor) -> Tensor:
        with subject.autocast():
            outputs: Tensor = module(rows)
        return outputs

    return run_spread(run, part, {}, inputs).to(subject.dtype)
