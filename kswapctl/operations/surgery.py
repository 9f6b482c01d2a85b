"""The operation itself: from a composed version and chosen images to a trained adapter. Nothing is stored here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from kswapctl.data.images import Images
from kswapctl.data.sets import Chosen, check_disjoint, count, gather
from kswapctl.export.files import made_folder
from kswapctl.methods import find_method
from kswapctl.models.blocks import AUTO, choose_blocks, find_blocks, with_all_layers
from kswapctl.models.dense import Dense
from kswapctl.models.depths import blocks_at
from kswapctl.models.heads import Labelled, classifier_path, imprint
from kswapctl.models.lora import Shape
from kswapctl.operations.bench import Bench
from kswapctl.operations.material import Material
from kswapctl.operations.pools import make_pools, maker_of
from kswapctl.operations.versions import Composed
from kswapctl.progress import Progress
from kswapctl.runtime import deterministic, hand_back, one_core_each, pick_device, pick_precision, seed_everything
from kswapctl.spec import Change, Role, listed, named
from kswapctl.tasks import Task, flatten
from kswapctl.training.cache import GIB, Cache
from kswapctl.training.dense import DenseSubject
from kswapctl.training.loop import Outcome, Plan, train
from kswapctl.training.pool import Pool
from kswapctl.training.screen import SHARE, screen, shortest
from kswapctl.training.subject import Subject
from kswapctl.training.team import gather_team

MOST_ROOM = 1e6
"""GiB for activations: more, even without an end, is the same."""


def operate(composed: Composed, material: Material, progress: Progress) -> tuple[Outcome, dict[str, Images]]:
    """Train the adapter; nothing is stored."""
    change = material.change
    method = find_method(change.method, change.kind).configure(change.preset, change.settings)
    device = pick_device(change.device)
    dtype = pick_precision(change.precision, device)
    kept = made_folder(Path(change.cache_dir)) if change.cache_dir else None
    images = _decode(composed, material, progress)
    rows = (*composed.knowledge.classes, *(c for c in change.classes if c not in composed.knowledge.classes))
    team = gather_team(device.type == "cpu")
    bench = Bench(composed, change, method, images, rows, material.known, team, seed_everything(change.seed))
    with deterministic(), one_core_each():
        cache = Cache(int(min(MOST_ROOM, change.cache_gb) * GIB), kept)
        subject, choice = _subject(bench, cache, dtype, progress)
        pools = make_pools(bench, subject, cache, progress)
        subject.room = cache.left
        hand_back()
        if subject.known_rows() < len(rows):
            subject.grow(*_first_rows(bench, subject, pools))
        training: dict[Role, Pool] = {"retain": pools["retain"], change.kind: pools["change"]}
        context = bench.context(subject, training)
        progress.stage("training", bench.length * method.cycles)
        done = 0

        def report(step: int, figures: dict[str, float]) -> None:
            nonlocal done
            progress.advance(step - done)
            progress.figures(figures)
            done = step

        validation: dict[Role, Pool] = {"retain": pools["retain held"], change.kind: pools["change held"]}
        plan = Plan(bench.generator, report, bench.length, team)
        outcome = train(subject, method, context, training, validation, change.targets, plan)
        team.wait()
    _tell(outcome, change, progress)
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
            f"no images of {len(material.missing)} classes that must stay ({listed(material.missing[:3])} ...): "
            "name more data with --retain-data (of swap: --data)"
        )
        for problem in material.gone:
            progress.note(problem)
    progress.stage("reading images", sum(map(count, chosen.values())))
    images = {
        part: gather(samples, composed.spec.preprocessing, material.change.skip_bad, progress.advance)
        for part, samples in chosen.items()
    }
    for name in (bad for part in images.values() for bad in part.bad):
        progress.note(f"skipped: {name}")
    check_disjoint(images["retain"], images["train"], ("retain", material.change.kind))
    return images


def _subject(bench: Bench, cache: Cache, dtype: torch.dtype, progress: Progress) -> tuple[Subject, str]:
    """The network with the stack folded in, fresh factors on the chosen blocks, and why these."""
    network = bench.composed.network().to(pick_device(bench.change.device))
    every = find_blocks(network, classifier_path(network))
    choice = bench.change.blocks or bench.method.blocks
    chosen = choose_blocks(every, choice)
    method = bench.method
    if method.all_layers:
        chosen = with_all_layers(network, chosen)
    shape = Shape(method.rank, method.scale, method.form == "whole")
    kind = DenseSubject if isinstance(network, Dense) else Subject
    subject = kind.prepare(network, every, chosen, shape, dtype)
    subject.room = cache.left
    depths = blocks_at(every)
    subject.watch(tuple(depths[name] for name in method.watched()))
    if choice != AUTO:
        return subject, f"{choice}: as asked" if bench.change.blocks else f"{choice}: the method's choice"
    progress.stage("choosing blocks", 1)
    norms = _look(bench, subject)
    count = shortest(norms)
    if count < len(every):
        between = subject.lift(len(every) - count)
        subject.below = nn.Sequential(subject.below, between)
    hand_back()
    progress.advance()
    return subject, f"last:{count}: they hold {SHARE:.0%} of the gradient at the start"


def _look(bench: Bench, subject: Subject) -> dict[str, float]:
    """Gradient norm by block, from a few images of each role; ``subject`` is left as it was."""
    maker = maker_of(bench, subject, Cache(GIB))
    pools: dict[Role, Pool] = {}
    parts: dict[Role, str] = {"retain": "retain", bench.change.kind: "train"}
    for role, part in parts.items():
        targets = bench.targets(part)
        wanted = bench.method.batch_of(role, bench.task)
        if bench.task.marks == "labels":
            chosen = _across_classes(targets, wanted)
        else:
            chosen = _showing(bench.images[part], bench.change.classes if role != "retain" else (), wanted)
        pools[role] = maker.make(bench.images[part].pixels[None, chosen], targets[chosen])
    known = subject.heads()
    if subject.known_rows() < len(bench.rows):
        subject.grow(*_first_rows(bench, subject, {"retain": pools["retain"], "change": pools["learn"]}))
    plan = Plan(bench.generator, lambda *_: None, 1, bench.team)
    norms = screen(subject, bench.method, bench.context(subject, pools), pools, plan)
    subject.put_back(known)
    return norms


def _showing(images: Images, classes: Sequence[str], count: int) -> torch.Tensor:
    """``count`` positions, first one for each of ``classes`` that shows it."""
    shown = images.shown()
    first = (i for name in classes for i in [i for i, names in enumerate(shown) if name in names][:1])
    order = dict.fromkeys((*first, *range(len(shown))))
    return torch.tensor([*order][: max(count, len(classes))])


def _across_classes(targets: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` positions, and one of every class at least: the first of each class, then the second, and so on."""
    seen = torch.zeros(int(targets.max()) + 1, dtype=torch.long)
    turns = torch.zeros(len(targets), dtype=torch.long)
    for index, target in enumerate(targets.tolist()):
        turns[index] = seen[target]
        seen[target] += 1
    return turns.argsort(stable=True)[: max(count, int((seen > 0).sum()))]


def _first_rows(bench: Bench, subject: Subject, pools: Mapping[str, Pool]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the new rows: as the network would have them, or imprinted from the untouched images."""
    known = range(subject.known_rows())
    new = range(len(known), len(bench.rows))
    rows = subject.first_rows(len(new))
    if rows is None:
        assert isinstance(subject.head, nn.Linear | nn.Conv2d)
        learn, retain = (
            _labelled(pools[name], len(bench.images[part]), bench.task, subject.widths[-1])
            for name, part in (("change", "train"), ("retain", "retain"))
        )
        rows = imprint(learn, retain.among(known), subject.head, new)
    return rows[0], rows[1] + bench.method.first_bias(bench.task)


def _labelled(pool: Pool, count: int, task: Task, width: int) -> Labelled:
    """The classifier's inputs, the last ``width`` of the features, and the rows of the untouched images' items."""
    features, _, targets, _ = flatten(pool.before_at(torch.tensor(0), torch.arange(min(count, len(pool)))))
    return Labelled(features[:, -width:], targets - task.spare)


def share(value: float) -> str:
    """A share as it was asked for, in percent."""
    return f"{100 * value:g}%"


def _tell(outcome: Outcome, change: Change, progress: Progress) -> None:
    if outcome.lost:
        progress.note(f"stored at the method's rank: {outcome.lost:.1%} of the change's norm was left out")
    if outcome.met:
        return
    reached = ", ".join(f"{k} {v:.1%}" for k, v in outcome.validation.items() if k != "loss")
    targets = change.targets
    wanted = f"learn >= {share(targets.learn)}" if change.kind == "learn" else f"forget <= {share(targets.forget)}"
    longer = ", or more training (--set cycles=4)" if outcome.steps else ""
    progress.note(
        f"{change.kind} {named(change.classes)}: the targets were not met on the validation part ({reached}; asked for "
        f"{wanted}, retain drop <= {share(targets.retain_drop)}): try more rehearsal (--retain-share), looser targets"
        f"{longer}"
    )
