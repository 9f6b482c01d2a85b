"""The one loop: joined batches of all roles, one forward a step, a look at the validation part, an early stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from kswapctl.errors import DivergedError
from kswapctl.methods import Context, Method, Seen
from kswapctl.models.lora import Adapter
from kswapctl.spec import Role, Targets
from kswapctl.training.optimiser import build_optimiser, cosine, perturbed, shrink
from kswapctl.training.pool import CHUNK, Pool
from kswapctl.training.subject import Subject
from kswapctl.training.team import ALONE, Team

Pools = Mapping[Role, Pool]
Report = Callable[[int, dict[str, float]], None]
"""Called with the step and the latest figures."""


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
    method.prepare(context, pools)
    optimiser = build_optimiser(subject, method)
    rates = [group["lr"] for group in optimiser.param_groups]
    draws = {role: draw(pool.order, plan.generator) for role, pool in pools.items()}
    history: list[dict[str, float]] = []
    length = method.steps_of(len(pools["retain"]))
    step, lost, losses = 0, 0.0, dict[str, Tensor]()
    trained = [p for group in optimiser.param_groups for p in group["params"]]
    for step in range(1, method.cycles * length + 1):
        context.step = step
        within = (step - 1) % length + 1
        factor = cosine(within - 1, length)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        for roles in method.passes(step):
            optimiser.zero_grad(set_to_none=True)
            with perturbed(trained, method.noise):
                losses = batch_losses(subject, method, context, {r: pools[r] for r in roles}, draws, plan)
                method.backward(context, losses)
            plan.team.average(trained)
            optimiser.step()
            if method.proximal and method.sparsity:
                shrink(optimiser, subject.emptied(), method.sparsity)
        if within == length:
            method.finish(context, pools)
            lost = subject.settle()
        if within % method.check_every == 0 or within == length:
            _lift(subject, [*pools.values(), *validation.values()])
            figures = {"loss": sum(x.item() for x in losses.values())} | validate(subject, validation, plan.team)
            _check_finite(figures["loss"], step)
            history.append({"step": step} | figures)
            plan.report(step, figures)
            if within == length and meets(figures, targets, method.kind):
                break
    figures = {k: v for k, v in history[-1].items() if k != "step"}
    return _outcome(subject, history, Last(figures, step, meets(figures, targets, method.kind), lost))


@dataclass(frozen=True)
class Plan:
    """How steps are computed, and who is told."""

    generator: Generator
    """Decides the order of images."""
    report: Report
    """Told at each look at the validation part."""
    team: Team = ALONE
    """The processes that share each batch."""


def meets(figures: Mapping[str, float], targets: Targets, kind: str) -> bool:
    """Whether figures of the validation part satisfy the targets that apply to ``kind``."""
    kept = figures["retain before"] - figures["retain"] <= targets.retain_drop
    if kind == "learn":
        return kept and figures["learn"] >= targets.learn
    return kept and figures["forget"] <= targets.forget


@torch.no_grad()
def validate(subject: Subject, pools: Pools, team: Team) -> dict[str, float]:
    """Accuracy of each role's pool over its views, now; and of the retained before the operation."""
    figures: dict[str, float] = {}
    for role, pool in pools.items():
        targets = pool.targets.repeat(len(pool.activations))
        flat = pool.activations.flatten(0, 1)
        part = team if len(flat) >= team.size else ALONE
        answers = [
            subject.forward(pool.prepare(activations))[1].argmax(dim=-1)
            for activations in flat[part.share(len(flat))].split(CHUNK)
        ]
        correct = part.join(torch.cat(answers), len(flat)) == targets
        figures[role] = correct.float().mean().item()
        if role == "retain":
            before = pool.outputs.flatten(0, 1).argmax(dim=-1)
            figures["retain before"] = (before == targets).float().mean().item()
    return figures


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
    """The method's losses on one joined batch."""
    picks: dict[Role, tuple[Tensor, Tensor]] = {}
    for role, pool in pools.items():
        size = min(method.batch_of(role), len(pool))
        images = torch.stack([next(draws[role]) for _ in range(size)])
        views = torch.randint(len(pool.activations), (size,), generator=plan.generator)
        picks[role] = views.to(subject.device, non_blocking=True), images.to(subject.device, non_blocking=True)
    count = sum(len(images) for _, images in picks.values())
    features = plan.team.join(subject.features(_rows(pools, picks, plan.team.share(count))), count)
    outputs = subject.outputs(features)
    seen: dict[Role, Seen] = {}
    start = 0
    for role, (views, images) in picks.items():
        rows = slice(start, start := start + len(images))
        pool = pools[role]
        seen[role] = Seen(
            targets=pool.targets[images],
            features=features[rows],
            outputs=outputs[rows],
            before_features=pool.features[views, images],
            before=pool.outputs[views, images],
        )
    return method.loss(context, seen)


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


def _lift(subject: Subject, pools: Sequence[Pool]) -> None:
    """Drop the first adapted blocks that the penalty has emptied, and move the cut and all pools above them."""
    empty = 0
    while not subject.shape.whole and empty < len(subject.blocks) - 1:
        if any(subject.layers[layer].b.any() for layer in subject.blocks[empty].layers):
            break
        empty += 1
    if empty:
        between = subject.lift(empty)
        for pool in pools:
            pool.lift(between, subject)


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
