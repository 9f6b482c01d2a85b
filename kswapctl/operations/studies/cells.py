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
from kswapctl.operations.change import Result, apply
from kswapctl.operations.home import environment
from kswapctl.operations.look import evaluate_version
from kswapctl.operations.studies.schema import Contender, Split, Study, place
from kswapctl.operations.studies.scores import Sets, measure
from kswapctl.operations.studies.subsets import images_needed, write_subset
from kswapctl.progress import Progress
from kswapctl.spec import Change, Kind, Rehearsal

MODEL = "start"
"""The base's name in a study's registries."""
KINDS: dict[str, Kind] = {"l": "learn", "f": "forget"}


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
                found += [_cell(study, given, contender, split, order, seed) for order in study.orders]
    return found


def _cell(study: Study, given: Mapping[str, str], contender: Contender, split: Split, order: str, seed: int) -> Cell:
    decides = [study.base, study.data, dict(given), contender.model_dump(), split.model_dump(), order, seed]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]
    words = f"{contender.name}-{split.name}-{order}-{seed}"
    return Cell(contender, split, order, seed, f"{re.sub(r'[^A-Za-z0-9]+', '-', words)}-{digest}")


def run_cell(registry: Registry, study: Study, given: dict[str, str], cell: Cell, progress: Progress) -> dict[str, Any]:
    """Do the operations of ``cell`` on a branch of its own that starts at the base, and measure after each.

    A method that diverges has that for its result.
    """
    start = time.monotonic()
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"cell": cell.told(), "rows": rows, "error": "", "environment": environment()}
    sets = _sets(study, given, registry, cell)
    branch = _new_branch(registry, cell.key)
    sources = [place(study, given, name) for name in (study.data, cell.split.learn_data) if name]
    try:
        for index, letter in enumerate(cell.order):
            change = _change(study, given, registry.folder, cell, sets, index)
            done = apply(registry, f"{MODEL}@{branch}", change, f"study {study.name}", progress)
            scores = evaluate_version(registry, done.version, sources, False, "cpu", progress)
            if not rows:
                rows.append({"stage": "Start"} | measure(scores, sets, "", None))
            stage = "->".join(cell.order[: index + 1].upper())
            figures = measure(scores, sets, cell.order[: index + 1], rows[-1])
            rows.append({"stage": stage} | figures | _costs(registry, done) | {"kind": letter, "met": done.outcome.met})
    except DivergedError as error:
        result["error"] = error.message
    return result | {"seconds": time.monotonic() - start, "classes": asdict(sets)}


def _costs(registry: Registry, done: Result) -> dict[str, float]:
    model = registry.model(MODEL)
    return {
        "ratio": 100 * done.outcome.adapter.values / model.spec["parameters"],
        "blocks": len(done.outcome.changed),
        "size": done.version.size,
        "seconds": done.seconds,
        "lost": done.outcome.lost,
    }


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
    learn: tuple[str, ...] = ()
    if split.learn_data:
        source = open_source(place(study, given, split.learn_data))
        learn = split.learn or tuple(c for c in source.classes if c not in known)
    return Sets(known, learn, tasks)


def _change(study: Study, given: dict[str, str], folder: Path, cell: Cell, sets: Sets, index: int) -> Change:
    kind = KINDS[cell.order[index]]
    earlier = cell.order[:index].count(cell.order[index])
    recipe = cell.contender.recipe(kind)
    classes = sets.learn if kind == "learn" else sets.task(earlier)
    data = place(study, given, cell.split.learn_data if kind == "learn" else study.data)
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
        again=(kind == "learn" and earlier > 0) or (kind == "forget" and earlier >= len(sets.tasks)),
        device="cpu",
    )


def _few(study: Study, given: dict[str, str], folder: Path, cell: Cell, sets: Sets) -> tuple[str, str, float]:
    """Manifests of few images a class, and of what must stay without the missing classes; and the rehearsed share."""
    source = open_source(place(study, given, study.data))
    each = images_needed(cell.split.images_per_class) if cell.split.images_per_class else None
    stays = [c for c in sets.known if not any(c in task for task in sets.tasks)]
    gone = set(random.Random(cell.seed).sample(stays, cell.split.missing))  # noqa: S311 - a choice of classes
    here = folder.parent / "subsets"
    everything = write_subset(source, sets.known, each, cell.seed, here / f"{cell.key}.csv")
    left = [c for c in stays if c not in gone]
    retained = write_subset(source, left, each, cell.seed, here / f"{cell.key}-retain.csv")
    return str(everything), str(retained), 1.0 if each else cell.contender.retain_share


def _new_branch(registry: Registry, key: str) -> str:
    """A branch at the base; a cell that was killed has left one, so each try has its own."""
    taken = registry.branches(MODEL)
    number = 1
    while (name := f"{key[:40]}-{key[-8:]}-{number}") in taken:
        number += 1
    registry.branch(MODEL, name, 0)
    return name
