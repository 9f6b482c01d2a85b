"""The operation itself: from a composed version and chosen images to a trained adapter. Nothing is stored here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from kswapctl.data.images import Images
from kswapctl.data.sets import Chosen, check_disjoint, count, gather
from kswapctl.data.views import make_views, mix_views
from kswapctl.methods import Context, Method, find_method
from kswapctl.models.blocks import choose_blocks, find_blocks, with_all_layers
from kswapctl.models.depths import blocks_at
from kswapctl.models.heads import Labelled, classifier_path, imprint
from kswapctl.models.lora import Shape
from kswapctl.models.weights import fingerprint
from kswapctl.operations.material import Material
from kswapctl.operations.versions import Composed
from kswapctl.progress import Progress
from kswapctl.runtime import deterministic, one_core_each, pick_device, pick_precision, seed_everything
from kswapctl.spec import Change, Knowledge, Role, Targets
from kswapctl.tasks import TASKS
from kswapctl.training.cache import GIB, Cache
from kswapctl.training.loop import Outcome, Plan, train
from kswapctl.training.pool import Maker, Pool
from kswapctl.training.screen import SHARE, screen, shortest
from kswapctl.training.subject import Subject
from kswapctl.training.team import Team, gather_team

AUTO = "auto"
"""The choice of blocks that asks the gradient."""


@dataclass(frozen=True)
class Bench:
    """What all steps of one operation share."""

    composed: Composed
    change: Change
    method: Method
    images: Mapping[str, Images]
    rows: tuple[str, ...]
    """Classifier rows after the operation."""
    known: tuple[str, ...]
    """Classes that must stay."""
    team: Team
    generator: torch.Generator

    def context(self, subject: Subject) -> Context:
        """What the method is told."""
        task = TASKS[self.composed.spec.task]
        return Context(
            task=task,
            known=subject.known_rows(),
            chance=task.chance(len(self.rows)),
            rows=torch.tensor([self.rows.index(name) for name in self.change.classes], device=subject.device),
            retained=torch.tensor([self.rows.index(name) for name in self.known], device=subject.device),
            classifier=subject.head,
            groups=subject.groups,
            layers=subject.layers,
            forward=subject.forward,
            widths=subject.widths,
        )

    def targets(self, part: str) -> torch.Tensor:
        """(N,) rows of the images of ``part``."""
        return self.images[part].targets(self.rows)


def operate(composed: Composed, material: Material, progress: Progress) -> tuple[Outcome, dict[str, Images]]:
    """Train the adapter; nothing is stored."""
    change = material.change
    method = find_method(change.method, change.kind).configure(change.preset, change.settings)
    device = pick_device(change.device)
    dtype = pick_precision(change.precision, device)
    images = _decode(composed, material, progress)
    rows = (*composed.knowledge.classes, *(c for c in change.classes if c not in composed.knowledge.classes))
    team = gather_team(device.type == "cpu")
    bench = Bench(composed, change, method, images, rows, material.known, team, seed_everything(change.seed))
    with deterministic(), one_core_each():
        subject, choice = _subject(bench, device, dtype, progress)
        pools = _pools(bench, subject, progress)
        if subject.known_rows() < len(rows):
            subject.grow(*_first_rows(bench, subject, pools))
        context = bench.context(subject)
        progress.stage("training", method.steps_of(len(pools["retain"])) * method.cycles)
        done = 0

        def report(step: int, figures: dict[str, float]) -> None:
            nonlocal done
            progress.advance(step - done)
            progress.figures(figures)
            done = step

        training: dict[Role, Pool] = {"retain": pools["retain"], change.kind: pools["change"]}
        validation: dict[Role, Pool] = {"retain": pools["retain held"], change.kind: pools["change held"]}
        plan = Plan(bench.generator, report, team)
        outcome = train(subject, method, context, training, validation, change.targets, plan)
        team.wait()
    _tell(outcome, change.targets, change.kind, progress)
    return dataclasses.replace(outcome, choice=choice), images


def _decode(composed: Composed, material: Material, progress: Progress) -> dict[str, Images]:
    chosen: dict[str, Chosen] = {
        "retain": material.retained.train,
        "train": material.changed.train,
        "retain held": material.retained.validation,
        "train held": material.changed.validation,
    }
    if material.missing:
        progress.note(
            f"no images of {len(material.missing)} classes that must stay ({', '.join(material.missing[:3])} ...): "
            "name more data with --retain-data"
        )
    progress.stage("reading images", sum(map(count, chosen.values())))
    images = {
        part: gather(samples, composed.spec.preprocessing, material.change.skip_bad, progress.advance)
        for part, samples in chosen.items()
    }
    for name in (bad for part in images.values() for bad in part.bad):
        progress.note(f"skipped: {name}")
    check_disjoint(images["retain"], images["train"], ("retain", material.change.kind))
    return images


def _subject(bench: Bench, device: torch.device, dtype: torch.dtype, progress: Progress) -> tuple[Subject, str]:
    """The network with the stack folded in, fresh factors on the chosen blocks, and why these."""
    network = bench.composed.network().to(device)
    every = find_blocks(network, classifier_path(network))
    choice = bench.change.blocks or bench.method.blocks
    chosen = every if choice == AUTO else choose_blocks(every, choice)
    method = bench.method
    if method.all_layers:
        chosen = with_all_layers(network, chosen)
    shape = Shape(method.rank, method.scale, method.form == "whole")
    subject = Subject.prepare(network, every, chosen, shape, dtype)
    depths = blocks_at(every)
    subject.watched = tuple(depths[name] for name in method.watched())
    if choice != AUTO:
        return subject, f"{choice}: as asked" if bench.change.blocks else f"{choice}: the method's choice"
    progress.stage("choosing blocks", 1)
    norms = _look(bench, subject)
    count = shortest(norms)
    if count < len(every):
        between = subject.lift(len(every) - count)
        subject.below = nn.Sequential(subject.below, between)
    progress.advance()
    return subject, f"last:{count}: they hold {SHARE:.0%} of the gradient at the start"


def _look(bench: Bench, subject: Subject) -> dict[str, float]:
    """Gradient norm by block, from a few images of each role; ``subject`` is left as it was."""
    maker = _maker(bench, subject, Cache(GIB))
    pools: dict[Role, Pool] = {}
    parts: dict[Role, str] = {"retain": "retain", bench.change.kind: "train"}
    for role, part in parts.items():
        targets = bench.targets(part)
        chosen = _across_classes(targets, bench.method.batch_of(role))
        pools[role] = maker.make(bench.images[part].pixels[None, chosen], targets[chosen])
    known = subject.head
    if subject.known_rows() < len(bench.rows):
        subject.grow(*_first_rows(bench, subject, {"retain": pools["retain"], "change": pools["learn"]}))
    norms = screen(
        subject, bench.method, bench.context(subject), pools, Plan(bench.generator, lambda *_: None, bench.team)
    )
    subject.head = known
    return norms


def _across_classes(targets: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` positions, and one of every class at least: the first of each class, then the second, and so on."""
    seen = torch.zeros(int(targets.max()) + 1, dtype=torch.long)
    turns = torch.zeros(len(targets), dtype=torch.long)
    for index, target in enumerate(targets.tolist()):
        turns[index] = seen[target]
        seen[target] += 1
    return turns.argsort(stable=True)[: max(count, int((seen > 0).sum()))]


def _first_rows(bench: Bench, subject: Subject, pools: Mapping[str, Pool]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the new rows, imprinted from the first view of each image."""
    assert isinstance(subject.head, nn.Linear)
    learn, retain = (Labelled(pools[part].features[0], pools[part].targets) for part in ("change", "retain"))
    weight, bias = imprint(learn, retain, subject.head, range(subject.known_rows(), len(bench.rows)))
    return weight, bias + bench.method.first_bias()


def _maker(bench: Bench, subject: Subject, cache: Cache) -> Maker:
    return Maker(subject, bench.composed.spec.preprocessing, cache, bench.team, fingerprint(bench.composed.weights))


def _pools(bench: Bench, subject: Subject, progress: Progress) -> dict[str, Pool]:
    """Each part in its views, through the frozen blocks.

    What decides whether enough was learned or forgotten is seen in views too: held-out images alone are often
    near copies of trained ones, and too easy.
    """
    change, method = bench.change, bench.method
    roles: dict[str, tuple[str, Role]] = {
        "retain": ("retain", "retain"),
        "change": ("train", change.kind),
        "retain held": ("retain held", "retain"),
        "change held": ("train held", change.kind),
    }
    progress.stage("preparing views", len(roles))
    cache = Cache(int(change.cache_gb * GIB), Path(change.cache_dir) if change.cache_dir else None)
    maker = _maker(bench, subject, cache)
    pools = {}
    for index, (name, (part, role)) in enumerate(roles.items()):
        seed = change.seed * len(roles) + index
        views = _views(bench, part, role, seed, held=name.endswith("held"))
        order = _drawing_order(bench.images[part], bench.composed.knowledge, method.learned_weight)
        pools[name] = maker.make(views, bench.targets(part), order)
        progress.advance()
    return pools


def _views(bench: Bench, part: str, role: Role, seed: int, *, held: bool) -> torch.Tensor:
    """(V, N, C, H, W): each image in the method's views, or in fewer where training would not draw them all."""
    pixels, method = bench.images[part].pixels, bench.method
    if held:
        return make_views(pixels, 1 if role == "retain" else method.views_of(role), seed, method.view_strength)
    draws = method.steps_of(len(bench.images["retain"])) * method.batch_of(role)
    wanted, drawn = method.views_of(role), max(1, round(draws / len(pixels)))
    if drawn == 1 < wanted:
        return mix_views(pixels, 1 / wanted, seed, method.view_strength)
    return make_views(pixels, min(wanted, drawn), seed, method.view_strength)


def _drawing_order(images: Images, knowledge: Knowledge, learned_weight: int) -> torch.Tensor:
    """Positions of the images, those of classes learned earlier ``learned_weight`` times."""
    repeats = torch.tensor([learned_weight if s.label in knowledge.learned else 1 for s in images.samples])
    return torch.arange(len(images)).repeat_interleave(repeats)


def _tell(outcome: Outcome, targets: Targets, kind: str, progress: Progress) -> None:
    if outcome.lost:
        progress.note(f"stored at the method's rank: {outcome.lost:.1%} of the change's norm was left out")
    if outcome.met:
        return
    reached = ", ".join(f"{k} {v:.1%}" for k, v in outcome.validation.items() if k != "loss")
    wanted = f"learn >= {targets.learn:.0%}" if kind == "learn" else f"forget <= {targets.forget:.0%}"
    progress.note(
        f"the targets were not met on the validation part ({reached}; asked for {wanted}, retain drop <= "
        f"{targets.retain_drop:.0%}): try --set cycles=4, more --retain-share, or looser targets"
    )
