"""Figures of what was changed where, how accuracy went along, and what the model says before and after."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kswap_registry import Registry, Version

from kswapctl.analysis.charts import FORMATS, draw_layers, draw_sequence, draw_trade_off
from kswapctl.analysis.layers import Profile, changes_by_block, gradient_by_block
from kswapctl.data.images import Images
from kswapctl.errors import DataError, NotFoundError, UsageError, first_line
from kswapctl.evaluation.predict import answer
from kswapctl.evaluation.scores import evaluate
from kswapctl.export.files import made_folder, outside
from kswapctl.operations.look import test_images
from kswapctl.operations.pictures import compare_answers, groups_of
from kswapctl.operations.versions import Composed, load_version
from kswapctl.progress import Progress
from kswapctl.tasks import TASKS

if TYPE_CHECKING:
    from kswapctl.operations.studies.table import Row

EACH = 2
"""Sample images a class."""
IMAGES = 256
"""Most images that a gradient is taken from."""


def analyze(
    registry: Registry,
    versions: Sequence[Version],
    data: Sequence[str],
    folder: Path,
    progress: Progress,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Draw the figures of ``versions`` (stacks of one model) into ``folder``; returns the files."""
    for version in versions:
        if not version.number:
            raise UsageError(f"{version.ref} is the base: nothing was changed", "name a version: kswapctl list")
    if len({v.model for v in versions}) > 1:
        raise UsageError("these are versions of different models", "compare versions of one model")
    outside(registry.folder, folder)
    marks = [f"-{index + 1}" if len(versions) > 1 else "" for index in range(len(versions))]
    names = ["layers", *(f"{name}{mark}" for mark in marks for name in ("sequence", "samples"))]
    files = _free(folder, names, overwrite)
    profiles: list[Profile] = []
    for version, mark in zip(versions, marks, strict=True):
        stack = [registry.resolve(f"{version.model}@base"), *registry.stack(version)]
        composed = [load_version(registry, v) for v in stack]
        images = test_images(composed[-1], data, skip_bad, progress)
        progress.stage(f"looking at {version.ref}", len(stack))
        blocks = {b["name"]: b["layers"] for b in registry.model(version.model).spec["blocks"]}
        for before, after in pairwise(composed):
            if all(not p.name.startswith(f"{after.version.ref} ") for p in profiles):
                profiles.append(_profile(before, after, images, blocks))
            progress.advance()
        _sequence(composed, images, folder, mark)
        _samples(composed, images, folder, mark)
    draw_layers(folder, profiles)
    return files


def _free(folder: Path, names: Sequence[str], overwrite: bool) -> list[Path]:
    """The files of figures in ``folder``, which is made; one that is there and was not to be replaced is refused."""
    files = [made_folder(folder) / f"{name}.{suffix}" for name in names for suffix in (*FORMATS, "json")]
    if not overwrite and (there := next((file for file in files if file.exists()), None)):
        raise UsageError(f"{there} exists", "say --overwrite, or choose another folder")
    return files


def draw_study(folder: Path, split: str, target: Path, overwrite: bool = False) -> list[Path]:
    """A study's figure of ``split`` (empty: its first), from the ``results.json`` of its folder, drawn into ``target``.

    Of a study of long orders, accuracy along the first contender's; else the trade-off between methods.
    """
    from kswapctl.operations.studies.schema import Study
    from kswapctl.operations.studies.table import SHORT, summarise

    file = folder / "results.json"
    if not file.is_file():
        raise NotFoundError(f"no results in {folder}", "run the study first: kswapctl study")
    try:
        stored = json.loads(file.read_text())
        cells = stored["cells"]
        study = Study.model_validate_json(json.dumps(stored["study"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # pydantic's error is a ValueError
        raise DataError(
            f"{file} is not what this release writes of a study ({first_line(error)})",
            "write it again: kswapctl study NAME --table, with the same --use and -o",
        ) from error
    study = study.model_copy(update={"columns": ("Acc_r", "Acc_a", "Acc_l", "Acc_f", "Acc_o")})
    names = [s.name for s in study.splits]
    split = split or names[0]
    if split not in names:
        raise NotFoundError(f"study {study.name} has no split {split!r}", f"known: {', '.join(names)}")
    rows = [row for row in summarise(study, cells) if row.split == split]
    if not rows:
        done = dict.fromkeys(cell["cell"]["split"] for cell in cells)
        raise NotFoundError(f"nothing of the split {split!r} is done", f"done: {', '.join(done)} (--split)")
    if long := [r for r in rows if r.contender == study.contenders[0].name and r.stage.count("->") >= SHORT]:
        first = [r for r in rows if r.contender == long[0].contender]
        files = _free(target, ["sequence"], overwrite)
        _draw_along(target, [r for r in first if long[-1].stage.startswith(r.stage) or r.stage == "Start"])
        return files
    stage, points = _trade_off(rows)
    told = f", after {stage}" + (" (forgotten last)" if stage.count("F") > 1 else "") if stage else ""
    files = _free(target, ["trade-off"], overwrite)
    draw_trade_off(target, f"{study.title}: {split}{told}", points)
    return files


def _trade_off(rows: Sequence[Row]) -> tuple[str, list[dict[str, Any]]]:
    """The last stage after which every method that forgot was measured, and the methods there, with the base.

    Methods with orders of their own may share none: then each is at its last one, by its name, and the first is empty.
    """
    before: list[dict[str, Any]] = []
    forgot: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        values = {column: row.values[column] for column in ("Acc_r", "Acc_f")}
        if not all(values.values()):
            continue
        if row.stage == "Start":
            before = [{"method": "before", "stage": row.stage} | values]
        elif "F" in row.stage:
            name = row.contender + (f", {row.failed} diverged" if row.failed else "")
            point = {"method": name, "stage": row.stage} | values
            forgot.setdefault(row.contender, {})[row.stage] = point
    shared = [s for s in next(iter(forgot.values()), {}) if all(s in stages for stages in forgot.values())]
    if shared:
        if shared[-1].count("F") > 1:  # the base was measured on what is forgotten first
            before = []
        return shared[-1], [*before, *(stages[shared[-1]] for stages in forgot.values())]
    ends = [list(stages.values())[-1] for stages in forgot.values()]
    return "", [*before, *(end | {"method": f"{end['method']}, {end['stage']}"} for end in ends)]


def _draw_along(folder: Path, rows: Sequence[Row]) -> None:
    """Means over seeds after each operation of one long order."""
    sets = {"retain": "Acc_a", "learned": "Acc_l", "forgotten": "Acc_f", "forgotten earlier": "Acc_o"}
    accuracies: dict[str, list[float | None]] = {
        name: [None if (value := row.values[column]) is None else value[0] / 100 for row in rows]
        for name, column in sets.items()
    }
    names = ["base", *(f"{number} {row.stage[-1]}" for number, row in enumerate(rows[1:], start=1))]
    draw_sequence(folder, "sequence", names, accuracies, "accuracy")


def _profile(before: Composed, after: Composed, images: Images, blocks: Mapping[str, Sequence[str]]) -> Profile:
    task, rows = TASKS[after.spec.task], list(after.knowledge.classes)
    changed = [rows.index(name) for name in after.version.spec["classes"]]
    targets = images.targets([*rows, *sorted({s.label for s in images.samples} - set(rows))])
    chosen = [i for i, shown in enumerate(task.show_truth(targets)) if not shown.amounts().keys().isdisjoint(changed)]
    chosen = chosen[:: max(1, -(-len(chosen) // IMAGES))]
    # the operation's starting point: the weights below it, with rows for the classes it learns
    grown = {k: v for k, v in after.weights.items() if k not in before.weights or v.shape != before.weights[k].shape}
    start = replace(after, weights={**before.weights, **grown})
    gradient = None
    if chosen:
        shown = (images.pixels[chosen], targets[chosen])
        gradient = gradient_by_block(start.network(), task, shown, changed, after.spec.preprocessing, blocks)
    change = tuple(c.relative for c in changes_by_block(before.weights, after.weights, blocks))
    return Profile(f"{after.version.ref} {after.version.kind}", tuple(blocks), change, gradient)


def _sequence(composed: Sequence[Composed], images: Images, folder: Path, mark: str) -> None:
    """Every version on the sets of the last one."""
    last = composed[-1].knowledge
    targets = images.targets(last.classes)
    sets = {name: classes for name, classes in last.sets().items() if classes}
    accuracies: dict[str, list[float | None]] = {name: [] for name in sets}
    for one in composed:
        task = TASKS[one.spec.task]
        answers = answer(task, one.network(), images.pixels, one.spec.preprocessing)
        scores = evaluate(task, answers, answers, targets, last)
        for name, classes in sets.items():
            score = scores.set(name)
            known = all(c in one.knowledge.classes for c in classes)
            accuracies[name].append(score.accuracy if score and known else None)
    names = ["base", *(f"@{c.version.number} {c.version.kind}" for c in composed[1:])]
    draw_sequence(folder, f"sequence{mark}", names, accuracies, TASKS[composed[0].spec.task].metric)


def _samples(composed: Sequence[Composed], images: Images, folder: Path, mark: str) -> None:
    """What the base and the last version say of a few images of each set."""
    drawing = compare_answers((composed[0], composed[-1]), images, groups_of(composed[-1].knowledge), EACH)
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in FORMATS:
        drawing.write(folder / f"samples{mark}.{suffix}")
    (folder / f"samples{mark}.json").write_text(json.dumps(drawing.said(), indent=2) + "\n")
