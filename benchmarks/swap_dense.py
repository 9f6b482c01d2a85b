"""Learn a class and forget another with a detector or a segmenter, in both orders: what stays, comes and goes.

The base comes from ``train_detector.py`` or ``train_segmenter.py`` with ``--without``; the same script without it gives
the network to measure the learned classes against. Each figure is measured as ``kswapctl eval`` does, on the test part
of ``--data``. Columns are the papers': the mean over the retained (r), learned (l) and forgotten (f) classes. Run::

    python benchmarks/swap_dense.py --base cells-base --all cells-all --data split/test --learn WBC --forget Platelets
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

from kswap_registry import Registry
from swap_signs import settings_by_kind

from kswapctl.models.checkpoint import Description
from kswapctl.operations.change import apply
from kswapctl.operations.look import evaluate_version
from kswapctl.operations.models import add_model
from kswapctl.progress import Silent
from kswapctl.spec import Change

ORDERS = {"L": "learn", "L->F": "forget", "F": "forget", "F->L": "learn"}
"""Stage to its last operation; L and F begin at the base, the stage after each goes on from it."""

Row = dict[str, float]


def main() -> None:
    """Run every stage, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True)
    parser.add_argument("--all", help="the network trained with every class from the start")
    parser.add_argument("--data", required=True)
    parser.add_argument("--learn", required=True, help="classes, separated by commas")
    parser.add_argument("--forget", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=[*ORDERS], default=[*ORDERS], help="stages to run")
    parser.add_argument("--preset", default="default", help="of the method, for both kinds")
    parser.add_argument("--set", action="append", default=[], metavar="KIND.NAME=VALUE")
    parser.add_argument("--registry", type=Path, help="where to keep the versions; else they are deleted")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    for stage in options.only:
        if "->" in stage and stage.partition("->")[0] not in options.only:
            parser.error(f"{stage} goes on from {stage.partition('->')[0]}: name both with --only")
    settings = settings_by_kind(options.set)
    classes = {"learn": tuple(options.learn.split(",")), "forget": tuple(options.forget.split(","))}
    changes = {
        kind: Change(
            kind, classes[kind], options.data, preset=options.preset, settings=settings[kind], seed=options.seed
        )
        for kind in ("learn", "forget")
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        Registry.create(options.registry or Path(folder) / "registry") as registry,
    ):
        rows = run(registry, options, changes)
    print(table(rows))
    if options.output:
        options.output.write_text(json.dumps({"seed": options.seed, "stages": rows}, indent=2) + "\n")


def run(registry: Registry, options: argparse.Namespace, changes: dict[str, Change]) -> dict[str, Row]:
    """Figures by stage."""
    sets = {"l": changes["learn"].classes, "f": changes["forget"].classes}
    rows: dict[str, Row] = {}
    for name, source in (("swapped", options.base), ("reference", options.all)):
        if source:
            add_model(registry, name, source, Description(), options.data)
    rows["Start"] = measure(registry, "swapped@base", options.data, sets)
    if options.all:
        rows["all classes from the start"] = measure(registry, "reference@base", options.data, sets)
    for stage, kind in ORDERS.items():
        if stage not in options.only:
            continue
        if "->" not in stage:
            registry.move_head("swapped", 0)
        start = time.monotonic()
        result = apply(registry, "swapped", changes[kind], "benchmark", Silent())
        seconds = time.monotonic() - start
        rows[stage] = measure(registry, result.version.ref, options.data, sets) | {"seconds": seconds}
        print(json.dumps({stage: rows[stage]}), flush=True)
    return rows


def measure(registry: Registry, ref: str, data: str, sets: dict[str, tuple[str, ...]]) -> Row:
    """In percent: the deciding metric's mean over the classes of each set, and others over all that the base knew.

    ``drop`` is what the retained classes lost against the base, whose answers count on the same images and pixels:
    also on those of what it did not know, and not on those of what is forgotten.
    """
    version = registry.resolve(ref)
    scores = evaluate_version(registry, version, [data], False, "cpu", Silent())
    each = {c.name: 100 * c.accuracy for c in scores.per_class}
    changed = {name for names in sets.values() for name in names}
    chosen = {"r": [name for name in each if name not in changed]} | {k: list(v) for k, v in sets.items()}
    found = {f"{scores.metric}_{k}": mean([each[n] for n in names if n in each]) for k, names in chosen.items()}
    if version.number:
        found["drop"] = mean([100 * (c.base - c.accuracy) for c in scores.per_class if c.name in chosen["r"]])
    known = next(s for s in scores.sets if s.name == "retain")
    return found | {f"{name} of what must stay": 100 * value for name, (value, _) in known.more.items()}


def mean(values: list[float]) -> float:
    """Of those that are measured; NaN for none."""
    measured = [value for value in values if not math.isnan(value)]
    return statistics.mean(measured) if measured else math.nan


def table(rows: dict[str, Row]) -> str:
    """Markdown."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = ["| stage | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for stage, row in rows.items():
        cells = [f"{row[c]:.1f}" if c in row and not math.isnan(row[c]) else "-" for c in columns]
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
