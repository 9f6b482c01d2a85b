"""Learn, forget, swap: train one adapter an operation, and commit it as a new version."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from kswap_registry import Operation, Registry, Version
from torch import nn

from kswapctl.data.images import Images, normalise
from kswapctl.data.sets import Chosen, Parts, changed_part, check_disjoint, count, first_with, gather, retained_part
from kswapctl.data.sources import Source, open_source
from kswapctl.data.views import make_views
from kswapctl.errors import DataError, NotFoundError, UsageError, nearest
from kswapctl.methods import Context, Method, find_method
from kswapctl.models.blocks import choose_blocks, find_blocks
from kswapctl.models.heads import Labelled, classifier_path, grow, imprint
from kswapctl.models.lora import compose, save
from kswapctl.models.weights import fingerprint
from kswapctl.operations.home import environment
from kswapctl.operations.versions import Composed, load_version
from kswapctl.progress import Progress
from kswapctl.runtime import deterministic, pick_device, pick_precision, seed_everything
from kswapctl.spec import Change, Knowledge, Role, Targets
from kswapctl.tasks import TASKS
from kswapctl.training.loop import Outcome, Plan, train
from kswapctl.training.pool import Pool, make_pool
from kswapctl.training.subject import Subject, features_of

CACHE_BYTES = 2 * 2**30
"""Most memory for activations below the first adapted block."""


@dataclass(frozen=True)
class Result:
    """A committed operation."""

    version: Version
    outcome: Outcome
    seconds: float


@dataclass(frozen=True)
class Material:
    """The images of an operation, chosen but not yet read."""

    change: Change
    known: tuple[str, ...]
    """Classes to retain."""
    changed: Parts
    retained: Parts
    missing: tuple[str, ...]
    """Classes to retain of which there are no images."""


def apply(registry: Registry, name: str, change: Change, command: str, progress: Progress) -> Result:
    """Do one learn or forget on ``name``'s head; nothing is registered unless all of it succeeds."""
    start = time.monotonic()
    find_method(change.method, change.kind).configure(change.preset, change.settings)
    parent = registry.resolve(name)
    composed = load_version(registry, parent)
    material = choose(composed.knowledge, change)
    change = material.change
    with registry.operation(
        parent.model,
        kind=change.kind,
        method=change.method,
        spec=change.to_json(),
        command=command,
        environment=environment(),
    ) as operation:
        if operation.parent.number != parent.number:  # the head moved while this waited for its turn
            composed = load_version(registry, operation.parent)
            material = choose(composed.knowledge, change)
        outcome, images = operate(composed, material, progress)
        version = _commit(registry, operation, composed, material, outcome, images)
    return Result(version, outcome, time.monotonic() - start)


def apply_all(
    registry: Registry, name: str, changes: Sequence[Change], command: str, progress: Progress
) -> list[Result]:
    """Do ``changes`` one after the other, one adapter each; all are checked before the first begins.

    A kind that comes twice does its change again: forget, learn, forget repairs what the learning undid.
    """
    results: list[Result] = []
    for change in changes:
        find_method(change.method, change.kind).configure(change.preset, change.settings)
    _check_apart(changes)
    for index, change in enumerate(changes):
        repeated = any(earlier.kind == change.kind for earlier in changes[:index])
        results.append(
            apply(registry, name, dataclasses.replace(change, again=change.again or repeated), command, progress)
        )
    return results


def _check_apart(changes: Sequence[Change]) -> None:
    """No class may both come and go."""
    both = {c for a in changes for c in a.classes for b in changes if b.kind != a.kind and c in b.classes}
    if both:
        raise DataError(f"class {min(both)!r} is both to be learned and to be forgotten", "name it in one of the two")


def choose(knowledge: Knowledge, change: Change) -> Material:
    """Check the request against what is known, and choose the images."""
    before = [open_source(name) for name in knowledge.sources]
    sources = [open_source(change.source)] if change.source else before
    if not sources:
        raise UsageError("no data to take images from", "name it: --data DIR")
    check = _classes_to_learn if change.kind == "learn" else _classes_to_forget
    classes = check(knowledge, change, sources)
    found, absent = first_with(sources, classes)
    if absent:
        sources[0].require(absent)
    change = dataclasses.replace(change, classes=classes, source=found[0][0].name)
    known = tuple(c for c in knowledge.known if c not in classes)
    retain = [open_source(change.retain_source)] if change.retain_source else [*sources, *before]
    retained, missing = retained_part(retain, known, change.rehearsal, change.seed)
    if not count(retained.train):
        raise DataError(
            f"no images of any of the {len(known)} classes to retain in {sources[0].name}",
            "name them with --retain-data, or when adding the model: kswapctl add --data",
        )
    return Material(change, known, changed_part(sources, classes, change.rehearsal, change.seed), retained, missing)


def _classes_to_learn(knowledge: Knowledge, change: Change, sources: Sequence[Source]) -> tuple[str, ...]:
    settled = knowledge.known if change.again else knowledge.classes
    names = change.classes or tuple(c for c in sources[0].classes if c not in settled)
    if not names:
        raise DataError(f"every class of {sources[0].name} is known already", "nothing to learn")
    for name in names:
        if name in knowledge.known and not change.again:
            raise DataError(f"class {name!r} is known already", "learn only new classes, or say --again")
    return _unique(names)


def _classes_to_forget(knowledge: Knowledge, change: Change, sources: Sequence[Source]) -> tuple[str, ...]:
    if not change.classes:
        raise UsageError("no classes to forget", "name them: --classes A,B")
    for name in change.classes:
        if name not in knowledge.classes:
            raise NotFoundError(f"the model has no class {name!r}", nearest(name, knowledge.known))
        if name in knowledge.forgotten and not change.again:
            raise DataError(f"class {name!r} is forgotten already", "nothing to do; --again forgets it once more")
    if set(change.classes) >= set(knowledge.known):
        raise UsageError("these are all the classes the model knows", "leave at least one to retain")
    return _unique(change.classes)


def _unique(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


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
            classifier=subject.head,
            groups=subject.groups,
        )
        progress.stage("training", method.steps * method.cycles)
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
    return Subject.prepare(network, every, blocks, method.rank, method.scale)


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
    """Each part in its views, through the frozen blocks."""
    roles: dict[str, tuple[str, Role]] = {
        "retain": ("retain", "retain"),
        "change": ("train", change.kind),
        "retain held": ("retain held", "retain"),
        "change held": ("train held", change.kind),
    }
    progress.stage("preparing views", len(roles))
    pools = {}
    for index, (name, (part, role)) in enumerate(roles.items()):
        count_ = method.views_of(role) if part in {"retain", "train"} else 1
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
    if outcome.met:
        return
    reached = ", ".join(f"{k} {v:.1%}" for k, v in outcome.validation.items() if k != "loss")
    wanted = f"learn >= {targets.learn:.0%}" if kind == "learn" else f"forget <= {targets.forget:.0%}"
    progress.note(
        f"the targets were not met on the validation part ({reached}; asked for {wanted}, retain drop <= "
        f"{targets.retain_drop:.0%}): try --set cycles=4, more --retain-share, or looser targets"
    )


def _commit(
    registry: Registry,
    operation: Operation,
    composed: Composed,
    material: Material,
    outcome: Outcome,
    images: Mapping[str, Images],
) -> Version:
    change, knowledge = material.change, composed.knowledge
    depth = len(registry.stack(operation.parent)) + 1
    after = knowledge.after_learning if change.kind == "learn" else knowledge.after_forgetting
    state = after(change.classes, depth, change.source)
    record = {
        "classes": list(change.classes),
        "changed blocks": list(outcome.changed),
        "steps": outcome.steps,
        "met": outcome.met,
        "history": list(outcome.history),
        "data": {
            part: {
                "images": len(i),
                "commitment": registry.commitment(i.fingerprint().encode()),
                "skipped": len(i.bad),
            }
            for part, i in images.items()
        },
    }
    return operation.commit(
        save(outcome.adapter, operation.folder, operation.parent.model),
        state=state.to_json() | {"record": record},
        adapter=outcome.adapter.fingerprint,
        weights=fingerprint(compose(composed.weights, [outcome.adapter])),
        metrics=outcome.validation,
    )
