"""The operation itself: from a composed version and chosen images to a trained adapter. Nothing is stored here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from kswapctl.data.images import Images, normalise
from kswapctl.data.sets import Chosen, check_disjoint, count, gather
from kswapctl.data.views import make_views
from kswapctl.methods import Context, Method, find_method
from kswapctl.models.blocks import choose_blocks, find_blocks, with_all_layers
from kswapctl.models.heads import Labelled, classifier_path, grow, imprint
from kswapctl.operations.material import Material
from kswapctl.operations.versions import Composed
from kswapctl.progress import Progress
from kswapctl.runtime import deterministic, pick_device, pick_precision, seed_everything
from kswapctl.spec import Change, Knowledge, Role, Targets
from kswapctl.tasks import TASKS
from kswapctl.training.loop import Outcome, Plan, train
from kswapctl.training.pool import Pool, make_pool
from kswapctl.training.subject import Shape, Subject, features_of

CACHE_BYTES = 2 * 2**30
"""Most memory for activations below the first adapted block."""


def operate(composed: Composed, material: Material, progress: Progress) -> tuple[Outcome, dict[str, Images]]:
    """Train the adapter; nothing is stored."""
    change = material.change
    method = find_method(change.method, change.kind).configure(change.preset, change.settings)
    device = pick_device(change.device)
    dtype = pick_precision(change.precision, device)
    generator = seed_everything(change.seed)
    images = _decode(composed, material, progress)
    rows = (*composed.knowledge.classes, *(c for c in change.classes if c not in composed.knowledge.classes))
    with deterministic():
        subject = _subject(composed, method, change, images, rows, device)
        pools = _pools(subject, composed, images, rows, method, change, dtype, progress)
        context = Context(
            task=TASKS[composed.spec.task],
            known=subject.known_rows(),
            chance=TASKS[composed.spec.task].chance(len(rows)),
            rows=torch.tensor([rows.index(name) for name in change.classes], device=device),
            retained=torch.tensor([rows.index(name) for name in material.known], device=device),
            classifier=subject.head,
            groups=subject.groups,
            layers=subject.layers,
            forward=subject.forward,
        )
        progress.stage("training", method.steps_of(len(pools["retain"])) * method.cycles)
        done = 0

        def report(step: int, figures: dict[str, float]) -> None:
            nonlocal done
            progress.advance(step - done)
            progress.figures(figures)
            done = step

        training: dict[Role, Pool] = {"retain": pools["retain"], change.kind: pools["change"]}
        validation: dict[Role, Pool] = {"retain": pools["retain held"], change.kind: pools["change held"]}
        outcome = train(subject, method, context, training, validation, change.targets, Plan(generator, dtype, report))
    _tell(outcome, change.targets, change.kind, progress)
    return outcome, images


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


def _subject(
    composed: Composed,
    method: Method,
    change: Change,
    images: Mapping[str, Images],
    rows: tuple[str, ...],
    device: torch.device,
) -> Subject:
    """The network with the stack folded in, its classifier grown where classes come, and fresh adapters on it."""
    network = composed.network().to(device)
    every = find_blocks(network, classifier_path(network))
    new = range(len(composed.knowledge.classes), len(rows))
    if new:
        _grow(network, composed, method, images, rows, new)
    blocks = choose_blocks(every, change.blocks or method.blocks)
    if method.all_layers:
        blocks = with_all_layers(network, blocks)
    return Subject.prepare(network, every, blocks, Shape(method.rank, method.scale, method.form == "whole"))


def _grow(
    network: nn.Module,
    composed: Composed,
    method: Method,
    images: Mapping[str, Images],
    rows: tuple[str, ...],
    new: Sequence[int],
) -> None:
    path = classifier_path(network)
    head = network.get_submodule(path)
    assert isinstance(head, nn.Linear)

    def labelled(part: str) -> Labelled:
        pixels = images[part].pixels.to(head.weight.device)
        features = features_of(network, normalise(pixels, composed.spec.preprocessing))
        return Labelled(features, images[part].targets(rows).to(features.device))

    weight, bias = imprint(labelled("train"), labelled("retain"), head, new)
    grow(network, path, weight, bias + method.first_bias())


def _pools(
    subject: Subject,
    composed: Composed,
    images: Mapping[str, Images],
    rows: tuple[str, ...],
    method: Method,
    change: Change,
    dtype: torch.dtype,
    progress: Progress,
) -> dict[str, Pool]:
    """Each part in its views, through the frozen blocks.

    What decides whether enough was learned or forgotten is seen in views too: held-out images alone are often
    near copies of trained ones, and too easy.
    """
    roles: dict[str, tuple[str, Role]] = {
        "retain": ("retain", "retain"),
        "change": ("train", change.kind),
        "retain held": ("retain held", "retain"),
        "change held": ("train held", change.kind),
    }
    progress.stage("preparing views", len(roles))
    pools = {}
    for index, (name, (part, role)) in enumerate(roles.items()):
        count_ = 1 if name == "retain held" else method.views_of(role)
        views = make_views(
            images[part].pixels, count_, seed=change.seed * len(roles) + index, strength=method.view_strength
        )
        targets = images[part].targets(rows)
        order = _drawing_order(images[part], composed.knowledge, method.learned_weight)
        pools[name] = make_pool(subject, views, targets, composed.spec.preprocessing, dtype, CACHE_BYTES, order)
        progress.advance()
    return pools


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
