"""The cells of a study: one contender, one split, one order, one seed; and how one is run."""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kswap_registry import Registry

from kswapctl.data.sources import open_source
from kswapctl.errors import DivergedError, UsageError
from kswapctl.operations.home import environment
from kswapctl.operations.studies.claims import result_file
from kswapctl.operations.studies.schema import KINDS, Contender, Split, Study, place
from kswapctl.operations.studies.scores import Sets, measure
from kswapctl.operations.studies.subsets import images_needed, write_subset
from kswapctl.operations.studies.workshop import MODEL, Workshop
from kswapctl.progress import Progress
from kswapctl.spec import Change, Rehearsal


@dataclass(frozen=True)
class Cell:
    """What is run as one piece."""

    contender: Contender
    split: Split
    order: str
    seed: int
    key: str
    """Its name, with a hash of everything that decides its result: a study that changes has new cells."""

    def told(self) -> dict[str, Any]:
        """What it is, for its result."""
        names = {"contender": self.contender.name, "split": self.split.name}
        return names | {"order": self.order, "seed": self.seed}


def cells_of(study: Study, given: dict[str, str]) -> list[Cell]:
    """All cells; those of the first seed come first, so that a study that was stopped early has a whole table."""
    found = []
    for seed in study.seeds:
        for split in study.splits:
            for contender in study.contenders:
                if contender.splits and split.name not in contender.splits:
                    continue
                found += [_cell(study, given, contender, split, o, seed) for o in contender.orders or study.orders]
    return found


def _cell(study: Study, given: Mapping[str, str], contender: Contender, split: Split, order: str, seed: int) -> Cell:
    recipes = contender.model_dump(exclude={"splits", "orders"})
    values = [asdict(contender.recipe(KINDS[letter]).configured(KINDS[letter])) for letter in order]
    decides = [study.base, study.data, dict(given), recipes, values, split.model_dump(), order, seed]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]
    words = f"{contender.name}-{split.name}-{order}-{seed}"
    return Cell(contender, split, order, seed, f"{re.sub(r'[^A-Za-z0-9]+', '-', words)}-{digest}")


def seeds_done(folder: Path) -> list[int]:
    """The seeds of the results in a study's folder, as their names say."""
    named = (re.search(r"-(\d+)-[0-9a-f]{8}$", file.stem) for file in result_file(folder, "").parent.glob("*.json"))
    return sorted({int(found[1]) for found in named if found})


def run_cell(workshop: Workshop, study: Study, given: dict[str, str], cell: Cell, progress: Progress) -> dict[str, Any]:
    """Do the operations of ``cell`` one after the other, the first on the base, and measure after each.

    A method that diverges has that for its result.
    """
    start = time.monotonic()
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"cell": cell.told(), "rows": rows, "error": "", "environment": environment()}
    sets = _sets(study, given, workshop.registry, cell)
    sources = [data for data, _ in lessons_of(cell.split)]
    parent = 0
    try:
        for index, letter in enumerate(cell.order):
            order = cell.order[: index + 1]
            change = _change(study, given, workshop.registry.folder, cell, sets, index)
            done = workshop.do(parent, change, cell.key, progress)
            parent = done.number
            names = dict.fromkeys([study.data, *(sources[: order.count("l")])])
            scores = workshop.scores(parent, [place(study, given, name) for name in names])
            if not rows:
                rows.append({"stage": "Start"} | measure(scores, sets, "", None))
            figures = measure(scores, sets, order, rows[-1])
            rows.append({"stage": "->".join(order.upper())} | figures | done.costs | {"kind": letter, "met": done.met})
    except DivergedError as error:
        result["error"] = error.message
    return result | {"seconds": time.monotonic() - start, "classes": asdict(sets)}


def _sets(study: Study, given: dict[str, str], registry: Registry, cell: Cell) -> Sets:
    known = tuple(registry.model(MODEL).classes)
    split = cell.split
    tasks = split.forget
    if split.draw:
        wanted = split.draw.classes * split.draw.tasks
        if wanted >= len(known):
            raise UsageError(f"split {split.name!r} draws {wanted} of {len(known)} classes", "leave one to retain")
        drawn = random.Random(cell.seed).sample(known, wanted)  # noqa: S311 - a choice of classes, no secret
        tasks = tuple(tuple(drawn[i :: split.draw.tasks]) for i in range(split.draw.tasks))
    lessons = []
    for data, classes in lessons_of(split):
        source = open_source(place(study, given, data))
        lessons.append(classes or tuple(c for c in source.classes if c not in known))
    return Sets(known, tuple(lessons), tasks)


def lessons_of(split: Split) -> list[tuple[str, tuple[str, ...]]]:
    """Data and classes of each learning task; no classes: all that the base does not know."""
    if split.lessons:
        return [(lesson.data, lesson.classes) for lesson in split.lessons]
    return [(split.learn_data, split.learn)] if split.learn_data else []


def _change(study: Study, given: dict[str, str], folder: Path, cell: Cell, sets: Sets, index: int) -> Change:
    kind = KINDS[cell.order[index]]
    earlier = cell.order[:index].count(cell.order[index])
    recipe = cell.contender.recipe(kind)
    classes = sets.lesson(earlier) if kind == "learn" else sets.task(earlier)
    lessons = lessons_of(cell.split)
    data = place(study, given, lessons[min(earlier, len(lessons) - 1)][0] if kind == "learn" else study.data)
    retain, share = "", cell.contender.retain_share
    if cell.split.images_per_class or cell.split.missing:
        data, retain, share = _few(study, given, folder, cell, sets)
    return Change(
        kind=kind,
        classes=classes,
        source=data,
        retain_source=retain,
        method=recipe.method,
        preset=recipe.preset,
        settings=recipe.settings(),
        rehearsal=Rehearsal(share),
        seed=cell.seed,
        again=earlier >= len(sets.lessons if kind == "learn" else sets.tasks),
        device="cpu",
    )


def _few(study: Study, given: dict[str, str], folder: Path, cell: Cell, sets: Sets) -> tuple[str, str, float]:
    """Folders of few images a class, and of what must stay without the missing classes; and the rehearsed share."""
    source = open_source(place(study, given, study.data))
    each = images_needed(cell.split.images_per_class) if cell.split.images_per_class else None
    stays = [c for c in sets.known if not any(c in task for task in sets.tasks)]
    if cell.split.missing >= len(stays):
        raise UsageError(
            f"split {cell.split.name!r} misses {cell.split.missing} of {len(stays)} classes that stay", "leave one"
        )
    gone = set(random.Random(cell.seed).sample(stays, cell.split.missing))  # noqa: S311 - a choice of classes
    here = folder.parent / "subsets"
    everything = write_subset(source, sets.known, each, cell.seed, here) if each else source.name
    retained = write_subset(source, [c for c in stays if c not in gone], each, cell.seed, here)
    return str(everything), str(retained), 1.0 if each else cell.contender.retain_share
