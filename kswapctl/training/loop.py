"""The one loop: joined batches of all roles, one forward a step, a look at the validation part, an early stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from kswapctl.errors import DivergedError
from kswapctl.methods import Context, Method
from kswapctl.models.lora import Adapter
from kswapctl.spec import Role, Targets
from kswapctl.training.items import item_pools, sort_items
from kswapctl.training.optimiser import build_optimiser, cosine, perturbed, shrink
from kswapctl.training.pool import Pool, chunk_of
from kswapctl.training.subject import Subject
from kswapctl.training.team import ALONE, Team

Pools = Mapping[Role, Pool]
Report = Callable[[int, dict[str, float]], None]
"""Called with the step and the latest figures."""
ROUNDING = 1e-9
"""What the difference of two shares may be off by."""


@dataclass(frozen=True)
class Outcome:
    """What training gives back."""

    adapter: Adapter
    """The change."""
    validation: dict[str, float]
    """Accuracies on the validation part, and the retained accuracy before."""
    steps: int
    """Steps taken."""
    met: bool
    """Whether the targets hold on the validation part."""
    history: tuple[dict[str, float], ...]
    """Figures of each look at the validation part."""
    changed: tuple[str, ...]
    """Blocks whose change is not zero."""
    lost: float
    """Share of the change's norm that the adapter's rank could not store; 0 where adapters were trained."""
    choice: str = ""
    """Which blocks were adapted, and why these."""


def train(
    subject: Subject,
    method: Method,
    context: Context,
    pools: Pools,
    validation: Pools,
    targets: Targets,
    plan: Plan,
) -> Outcome:
    """Train ``subject``'s adapters in cycles until the targets hold on ``validation`` or no cycle is left.

    Only the end of a cycle counts, where the learning rate has fallen to zero: before, weights are still on their way.
    A loss or a weight that is not finite, and a change of exactly nothing, are a :class:`DivergedError`.
    """
    items = item_pools(pools, context.rows)
    method.prepare(context, items)
    optimiser = build_optimiser(subject, method)
    rates = [group["lr"] for group in optimiser.param_groups]
    draws = {role: draw(pool.order, plan.generator) for role, pool in pools.items()}
    history: list[dict[str, float]] = []
    context.length = length = plan.length
    step, lost, losses = 0, 0.0, dict[str, Tensor]()
    trained = [p for group in optimiser.param_groups for p in group["params"]]
    for step in range(1, method.cycles * length + 1):
        context.step = step
        within = (step - 1) % length + 1
        factor = cosine(within - 1, length)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        for roles in method.passes(context):
            optimiser.zero_grad(set_to_none=True)
            with perturbed(trained, method.noise):
                losses = batch_losses(subject, method, context, {r: pools[r] for r in roles}, draws, plan)
                if not losses:  # these images have no item of some role
                    continue
                method.backward(context, losses)
            plan.team.average(trained)
            optimiser.step()
            if method.proximal and method.sparsity:
                shrink(optimiser, subject.emptied(), method.sparsity)
        if within == length:
            method.finish(context, items)
            lost = subject.settle()
        if within % method.check_every == 0 or within == length:
            if _lift(subject, [*pools.values(), *validation.values()]):
                items = item_pools(pools, context.rows)
            figures = {"loss": sum(x.item() for x in losses.values())} | validate(
                subject, context, validation, plan.team
            )
            _check_finite(figures["loss"], step)
            history.append({"step": step} | figures)
            plan.report(step, figures)
            if within == length and meets(figures, targets, method.kind):
                break
    figures = {k: v for k, v in history[-1].items() if k != "step"}
    taken = step if method.stepped else 0
    return _outcome(subject, history, Last(figures, taken, meets(figures, targets, method.kind), lost))


@dataclass(frozen=True)
class Plan:
    """How steps are computed, and who is told."""

    generator: Generator
    """Decides the order of images."""
    report: Report
    """Told at each look at the validation part."""
    length: int
    """Steps of one cycle."""
    team: Team = ALONE
    """The processes that share each batch."""


def meets(figures: Mapping[str, float], targets: Targets, kind: str) -> bool:
    """Whether figures of the validation part satisfy the targets that apply to ``kind``."""
    kept = figures["retain before"] - figures["retain"] <= targets.retain_drop + ROUNDING
    if kind == "learn":
        return kept and figures["learn"] >= targets.learn
    return kept and figures["forget"] <= targets.forget


@torch.no_grad()
def validate(subject: Subject, context: Context, pools: Pools, team: Team) -> dict[str, float]:
    """Share of each role's items that are right, over the views, now; and of the retained before the operation."""
    figures: dict[str, float] = {}
    for role, pool in pools.items():
        flat = pool.activations.flatten(0, 1)
        part = team if len(flat) >= team.size else ALONE
        mine = part.share(len(flat))
        items = []
        chunk = chunk_of(flat)
        for start in range(mine.start, mine.stop, chunk):
            activations = pool.prepare(flat[start : min(start + chunk, mine.stop)])
            which = torch.arange(start, start + len(activations), device=pool.truth.device) % len(pool)
            items.append(context.task.items(*subject.forward(activations), pool.truth[which]))
        outputs, targets = (
            part.join(torch.cat(parts), len(flat))
            for parts in zip(*((i.outputs, i.targets) for i in items), strict=True)
        )
        figures[role] = _right(context, outputs, targets, role)
        if role == "retain":
            figures["retain before"] = _right(context, pool.before.outputs, pool.before.targets, role)
    return figures


def _right(context: Context, outputs: Tensor, targets: Tensor, role: Role) -> float:
    """Share of the items of ``role`` whose answer is right, of (B, S, K) outputs and (B, S) targets."""
    mine = (targets >= 0) & (torch.isin(targets, context.rows) != (role == "retain"))
    right = context.task.correct(outputs[mine], targets[mine])
    return int(right.sum()) / len(right) if len(right) else math.nan


Picks = Mapping[Role, tuple[Tensor, Tensor]]
"""By role, the views and the images of one batch."""


def batch_losses(
    subject: Subject,
    method: Method,
    context: Context,
    pools: Pools,
    draws: Mapping[Role, Iterator[Tensor]],
    plan: Plan,
) -> dict[str, Tensor]:
    """The method's losses on one joined batch, and what the task asks aside; nothing where a role has no item."""
    picks: dict[Role, tuple[Tensor, Tensor]] = {}
    for role, pool in pools.items():
        size = min(method.batch_of(role, context.task), len(pool))
        images = torch.stack([next(draws[role]) for _ in range(size)])
        views = torch.randint(len(pool.activations), (size,), generator=plan.generator)
        picks[role] = views.to(subject.device, non_blocking=True), images.to(subject.device, non_blocking=True)
    count = sum(len(images) for _, images in picks.values())
    team = plan.team if count >= plan.team.size else ALONE
    features, outputs = subject.see(_rows(pools, picks, team.share(count)), team, count)
    now, before, aside = [], [], []
    start = 0
    for role, (views, images) in picks.items():
        part = slice(start, start := start + len(images))
        truth = pools[role].truth[images]
        now.append(context.task.items(features[part], outputs[part], truth))
        before.append(pools[role].before_at(views, images))
        aside.append(context.task.aside(outputs[part], truth, context.gone))
    seen = {r: s for r, s in sort_items(now, before, context.rows, method.kind).items() if r in pools}
    if not all(len(s.targets) for s in seen.values()):
        return {}
    others = {f"aside {i}": a for i, a in enumerate(aside) if a is not None} | method.penalty(context)
    return dict(method.loss(context, seen)) | others


def _rows(pools: Pools, picks: Picks, mine: slice) -> Tensor:
    """The activations of rows ``mine`` of the batch that joins all roles."""
    parts = []
    start = 0
    for role, (views, images) in picks.items():
        chosen = slice(max(mine.start - start, 0), max(mine.stop - start, 0))
        start += len(images)
        if len(images[chosen]):
            place = pools[role].activations.device
            parts.append(
                pools[role].prepare(pools[role].activations[views[chosen].to(place), images[chosen].to(place)])
            )
    return torch.cat(parts)


def _lift(subject: Subject, pools: Sequence[Pool]) -> bool:
    """Drop the first adapted blocks that the penalty has emptied, and move the cut and all pools above them, if any.

    Not where a method watches blocks: it wants the features of all of them.
    """
    empty = 0
    while not subject.shape.whole and not subject.watched and empty < len(subject.blocks) - 1:
        if any(subject.layers[layer].b.any() for layer in subject.blocks[empty].layers):
            break
        empty += 1
    if empty:
        between = subject.lift(empty)
        for pool in pools:
            pool.lift(between, subject)
    return empty > 0


def draw(order: Tensor, generator: Generator) -> Iterator[Tensor]:
    """The positions in ``order``, shuffled, over and over: each as often as it stands there."""
    while True:
        yield from order[torch.randperm(len(order), generator=generator)]


def _check_finite(loss: float, step: int) -> None:
    if not torch.isfinite(torch.tensor(loss)):
        raise DivergedError(
            f"the loss became {loss} at step {step}; nothing was registered",
            "try a smaller learning rate: --set lr=...",
        )


@dataclass(frozen=True)
class Last:
    """Where training ended."""

    figures: dict[str, float]
    step: int
    met: bool
    lost: float


def _outcome(subject: Subject, history: Sequence[dict[str, float]], last: Last) -> Outcome:
    adapter = subject.adapter()
    for name, tensor in adapter.tensors().items():
        if not torch.isfinite(tensor).all():
            raise DivergedError(f"{name} became infinite or NaN; nothing was registered", "try a smaller lr")
    if not adapter.factors and not adapter.head:
        raise DivergedError(
            "training changed nothing; nothing was registered", "lower --set sparsity, or take more steps"
        )
    changed = tuple(b.name for b in subject.blocks if any(layer in adapter.factors for layer in b.layers))
    return Outcome(adapter, last.figures, last.step, last.met, tuple(history), changed, last.lost)
