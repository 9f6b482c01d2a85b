"""What an operation works on: the request checked against what is known, and the images chosen for it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

from kswap_registry import Model

from kswapctl.data.sets import Parts, changed_part, count, first_with, retained_part
from kswapctl.data.sources import Source, open_left, open_source
from kswapctl.errors import DataError, NotFoundError, UsageError, nearest
from kswapctl.methods import find_method
from kswapctl.models.blocks import Block, choose_blocks
from kswapctl.runtime import pick_device, pick_precision
from kswapctl.spec import Change, Knowledge
from kswapctl.tasks import TASKS, Marks


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
    gone: tuple[str, ...] = ()
    """What is wrong with data used before that cannot be opened any more."""


def choose(knowledge: Knowledge, change: Change, marks: Marks) -> Material:
    """Check the request against what is known, and choose the images, which are to have ``marks``."""
    opened = functools.cache(open_source)
    before, gone = open_left(knowledge.sources, opened)
    if gone and not change.source:
        raise gone[0]
    sources = [opened(change.source)] if change.source else before
    if not sources:
        raise UsageError("no data to take images from", "name it: --data DIR")
    retain = [opened(change.retain_source)] if change.retain_source else [*sources, *before]
    for source in (*sources, *retain):
        source.check_marks(marks)
    check = _classes_to_learn if change.kind == "learn" else _classes_to_forget
    classes = check(knowledge, change, sources)
    found, absent = first_with(sources, classes)
    if absent:
        sources[0].require(absent)
        raise DataError(
            f"class {absent[0]!r} has no training image in {sources[0].name}",
            "add some to its train part (without parts, some images of each class are for testing), "
            "or name the other classes: --classes",
        )
    known = tuple(c for c in knowledge.known if c not in classes)
    told = retain[0].name if change.retain_source else ""
    change = dataclasses.replace(change, classes=classes, source=found[0][0].name, retain_source=told)
    retained, missing = retained_part(retain, known, change.rehearsal, change.seed)
    if not known:
        raise UsageError("no class would be left to retain", "the model knows none but these")
    if not count(retained.train):
        where = ", ".join(dict.fromkeys(source.name for source in retain))
        raise DataError(
            f"no images of any of the {len(known)} classes to retain in {where}",
            "name them with --retain-data (of swap: --data), or when adding the model: kswapctl add --data",
        )
    changed = changed_part(sources, classes, change.rehearsal, change.seed)
    return Material(change, known, changed, retained, missing, tuple(error.message for error in gone))


def foresee(model: Model, knowledge: Knowledge, change: Change) -> tuple[Material, Knowledge]:
    """What :func:`choose` gives, and what will be known after the change, which ``model`` can go through.

    The blocks are the model's, the images are marked as it needs, and device and precision are to be had here.
    """
    pick_precision(change.precision, pick_device(change.device))
    method = find_method(change.method, change.kind).configure(change.preset, change.settings)
    every = tuple(Block(b["name"], tuple(b["layers"])) for b in model.spec["blocks"])
    choose_blocks(every, change.blocks or method.blocks)
    material = choose(knowledge, change, TASKS[model.task].marks)
    return material, knowledge.after(material.change, 1)


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
