"""What methods see: items in place of images, sorted by whether their class is being changed.

On one image some objects can go and others stay, so not the image decides which role an item has but its class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kswapctl.methods import Seen
from kswapctl.spec import Role
from kswapctl.tasks import Items, Task
from kswapctl.training.pool import Pool

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Prepared activations to features and outputs."""


@dataclass(frozen=True)
class ItemPool:
    """The M items of one role in V views, as methods take them: like images with one label each."""

    activations: Tensor
    """(V, M, ...) what ``Context.forward`` takes, once prepared."""
    targets: Tensor
    """(M,) columns of the outputs."""
    features: Tensor
    """(V, M, D) before the operation."""
    outputs: Tensor
    """(V, M, K_known) before the operation."""
    order: Tensor
    """Positions to draw from."""
    prepare: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.targets)


def item_pools(pools: Mapping[Role, Pool], rows: Tensor) -> dict[Role, ItemPool]:
    """Each role's items; ``rows`` are the columns that are being changed."""
    return {role: _item_pool(pool, index, role, rows) for index, (role, pool) in enumerate(pools.items())}


def item_forward(forward: Forward, pools: Mapping[Role, Pool], task: Task) -> Forward:
    """``forward`` for the activations of item pools: images, or references where an image has several items."""
    listed = list(pools.values())
    if all(pool.truth.dim() == 1 for pool in listed):  # an image is the item
        return forward

    def run(references: Tensor) -> tuple[Tensor, Tensor]:
        where, slots = references[:, :3].long(), references[:, 3].long()
        images, places = where.unique(dim=0, return_inverse=True)
        activations = torch.cat([listed[r].prepare(listed[r].activations[v, i][None]) for r, v, i in images.tolist()])
        truth = _padded([listed[r].truth[i][None] for r, _, i in images.tolist()])
        items = task.items(*forward(activations), truth)
        return items.features[places, slots], items.outputs[places, slots]

    return run


def sort_items(now: Sequence[Items], before: Sequence[Items], rows: Tensor, changed: Role) -> dict[Role, Seen]:
    """The items of several batches by role: those whose column is among ``rows`` are ``changed``, the others stay."""
    there = [(n.targets >= 0) & (b.targets >= 0) for n, b in zip(now, before, strict=True)]

    def joined(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part[mask] for part, mask in zip(parts, there, strict=True)]).to(rows.device)

    targets = joined([n.targets for n in now])
    features, outputs = joined([n.features for n in now]), joined([n.outputs for n in now])
    old_features, old_outputs = joined([b.features for b in before]), joined([b.outputs for b in before])
    goes = torch.isin(targets, rows)
    masks: dict[Role, Tensor] = {"retain": ~goes, changed: goes}
    return {
        role: Seen(targets[m], features[m].float(), outputs[m].float(), old_features[m], old_outputs[m])
        for role, m in masks.items()
    }


def _item_pool(pool: Pool, index: int, role: Role, rows: Tensor) -> ItemPool:
    views, count = pool.activations.shape[:2]
    targets = pool.before.targets.unflatten(0, (views, count))  # (V, N, S)
    features, outputs = (t.unflatten(0, (views, count)) for t in (pool.before.features, pool.before.outputs))
    if pool.truth.dim() == 1:
        return ItemPool(
            pool.activations, targets[0, :, 0], features[:, :, 0], outputs[:, :, 0], pool.order, pool.prepare
        )
    wanted = torch.isin(targets[0], rows) != (role == "retain")
    image, slot = torch.nonzero((targets >= 0).all(0) & wanted, as_tuple=True)
    references = torch.stack([torch.full_like(image, index), torch.zeros_like(image), image, slot], dim=1)
    activations = references.repeat(views, 1, 1)  # (V, M, 4)
    activations[:, :, 1] = torch.arange(views, device=image.device)[:, None]
    return ItemPool(
        activations,
        targets[0, image, slot],
        features[:, image, slot],
        outputs[:, image, slot],
        torch.arange(len(image)),
        lambda batch: batch,
    )


def _padded(parts: Sequence[Tensor]) -> Tensor:
    """Truths of (1, S, ...) each, filled up to the longest with -1."""
    longest = max(part.shape[1] for part in parts)
    return torch.cat([torch.cat([p, p.new_full((1, longest - p.shape[1], *p.shape[2:]), -1)], dim=1) for p in parts])
