"""Images as the trained part of the network sees them: activations at the cut, computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kswapctl.data.images import normalise
from kswapctl.models.threads import run_spread
from kswapctl.models.weights import Weights
from kswapctl.spec import Preprocessing
from kswapctl.training.cache import Cache, key_of
from kswapctl.training.subject import Subject
from kswapctl.training.team import ALONE, Team

CHUNK = 256
"""Images per frozen forward."""


@dataclass
class Pool:
    """N images in V views, as activations at the cut, with what the model said of them before the operation."""

    activations: Tensor
    """(V, N, ...) at the cut, or, uncached, (V, N, C, H, W) uint8 pixels."""
    targets: Tensor
    """(N,) rows of the classifier."""
    features: Tensor
    """(V, N, D) before the operation."""
    outputs: Tensor
    """(V, N, K_known) before the operation."""
    order: Tensor
    """Positions in 0 .. N - 1 to draw from; one that stands twice is drawn twice as often."""
    prepare: Callable[[Tensor], Tensor]
    """Turns a batch of ``activations`` into what the trained part takes."""
    cached: bool
    """Whether ``activations`` are at the cut."""

    def __len__(self) -> int:
        return len(self.targets)

    @torch.no_grad()
    def lift(self, between: nn.Module, subject: Subject) -> None:
        """Move to a higher cut: ``between`` leads from the old one to it."""
        below = self.prepare
        if not self.cached:
            self.prepare = lambda pixels: _run(between, below(pixels), subject)
            return
        lifted = [_run(between, part, subject) for part in self.activations.flatten(0, 1).split(CHUNK)]
        self.activations = torch.cat(lifted).unflatten(0, self.activations.shape[:2])


@dataclass(frozen=True)
class Maker:
    """Makes the pools of one operation."""

    subject: Subject
    preprocessing: Preprocessing
    cache: Cache
    team: Team
    weights: str
    """Fingerprint of the version's weights."""

    @torch.no_grad()
    def make(self, views: Tensor, targets: Tensor, order: Tensor | None = None) -> Pool:
        """Run the frozen part, and the model as it is now, over ``views`` (V, N, C, H, W) uint8.

        Activations are kept in the subject's dtype where the cache has room; else only the pixels are, and the
        frozen part runs again in each step.
        """
        flat = views.flatten(0, 1)
        device, dtype = self.subject.device, self.subject.dtype
        one = self._below(flat[:1])
        shape = (len(flat), *one.shape[1:])
        self.subject.features(one)  # tells how wide they are, also where what follows is recalled
        place = (self.subject.blocks[0].name, *self.subject.watched)
        key = key_of(self.weights, *place, str(dtype), str(self.subject.known_rows()), torch.__version__, flat)
        if found := self.cache.recall(key, shape, dtype):
            activations, before = found
        else:
            room = self.cache.allocate(key, shape, dtype, device)
            before = self._fill(flat, room)
            self.cache.keep(key, before)
            activations = flat if room is None else room
        cached = activations is not flat
        return Pool(
            activations=activations.unflatten(0, views.shape[:2]),
            targets=targets.to(device),
            order=torch.arange(len(targets)) if order is None else order,
            features=before["features"].to(device).unflatten(0, views.shape[:2]),
            outputs=before["outputs"].to(device).unflatten(0, views.shape[:2]),
            prepare=(lambda batch: batch.to(device, non_blocking=True)) if cached else self._below,
            cached=cached,
        )

    def _fill(self, flat: Tensor, room: Tensor | None) -> dict[str, Tensor]:
        """Write activations to ``room``, if there is any, and return the features and outputs of ``flat``."""
        team = self.team if len(flat) >= self.team.size else ALONE
        mine = team.share(len(flat))
        kept, features = [], []
        for start in range(mine.start, mine.stop, CHUNK):
            activations = self._below(flat[start : min(start + CHUNK, mine.stop)])
            if room is not None and team.size == 1:
                room[start : start + len(activations)] = activations
            elif room is not None:
                kept.append(activations)
            features.append(self.subject.features(activations))
        if kept and room is not None:
            room.copy_(team.join(torch.cat(kept), len(flat)))
        joined = team.join(torch.cat(features), len(flat))
        return {"features": joined, "outputs": self.subject.outputs(joined)[:, : self.subject.known_rows()]}

    def _below(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.subject.device, non_blocking=True)
        return _run(self.subject.below, normalise(pixels, self.preprocessing), self.subject)


@torch.no_grad()
def _run(part: nn.Module, inputs: Tensor, subject: Subject) -> Tensor:
    def run(module: nn.Module, _: Weights, rows: Tensor) -> Tensor:
        with subject.autocast():
            outputs: Tensor = module(rows)
        return outputs

    return run_spread(run, part, {}, inputs).to(subject.dtype)
