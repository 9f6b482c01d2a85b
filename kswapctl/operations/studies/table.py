"""A study's results as one table: means over seeds with their spread; as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kswapctl.errors import counted
from kswapctl.export.files import written_whole
from kswapctl.operations.studies.schema import Study

UNITS = {"size": (1e-6, 2), "ratio": (1.0, 2), "seconds": (1.0, 0), "blocks": (1.0, 1)}
"""Factor and decimals of a column; percent with one decimal where it is not named."""
HEADS = {"size": "MB", "ratio": "tunable %", "Acc_a": "Acc_r, always retained", "drop_a": "drop, always retained"}
"""Heads of columns that are not their names."""

SHORT = 4
"""Operations up to which a stage is named by all of them."""


@dataclass(frozen=True)
class Row:
    """One contender on one split at one stage."""

    split: str
    contender: str
    stage: str
    seeds: int
    values: dict[str, tuple[float, float] | None]
    """Column to mean and standard deviation (0 for one seed); None where nothing was measured."""
    failed: int
    """Seeds with which the method diverged."""


def summarise(study: Study, results: Sequence[dict[str, Any]]) -> list[Row]:
    """Means and spreads over seeds, in the order of the study; a stage that two orders share counts once a seed."""
    groups: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    failures: dict[tuple[str, str], set[int]] = {}
    for result in results:
        cell = result["cell"]
        if result["error"]:
            failures.setdefault((cell["split"], cell["contender"]), set()).add(cell["seed"])
        for row in result["rows"]:
            groups.setdefault((cell["split"], cell["contender"], row["stage"]), {})[cell["seed"]] = row
    for split, contender in failures:
        groups.setdefault((split, contender, "failed"), {})
    splits = [s.name for s in study.splits]
    names = [c.name for c in study.contenders]
    ordered = sorted(groups, key=lambda g: (splits.index(g[0]), names.index(g[1]), _position(study, g[2])))
    return [
        Row(
            *group,
            len(groups[group]),
            {c: _spread([r.get(c) for r in groups[group].values()]) for c in study.columns},
            len(failures.get(group[:2], ())),
        )
        for group in ordered
    ]


def for_readers(rows: Sequence[Row]) -> list[Row]:
    """The same, but the start, which all methods of a split share, once: as that of the base, of the most seeds."""
    starts: dict[str, Row] = {}
    for row in rows:
        if row.stage == "Start" and (row.split not in starts or row.seeds > starts[row.split].seeds):
            starts[row.split] = row
    shown = []
    for row in rows:
        if row.stage != "Start":
            shown.append(row)
        elif start := starts.pop(row.split, None):
            shown.append(replace(start, contender="base", failed=0))
    return shown


def seeds_as_text(row: Row) -> str:
    """How many seeds were measured, and with how many others the method diverged."""
    return f"{row.seeds}, {row.failed} diverged" if row.failed else str(row.seeds)


def cells_as_text(study: Study, row: Row) -> list[str]:
    """The row's columns for a reader: mean, and the spread where there are several seeds."""
    shown = []
    for column in study.columns:
        factor, decimals = UNITS.get(column, (1.0, 1))
        value = row.values[column]
        if value is None:
            shown.append("-")
            continue
        mean, deviation = (f"{factor * v:.{decimals}f}" for v in value)
        shown.append(f"{mean} ± {deviation}" if row.seeds > 1 else mean)
    return shown


def shown_stage(stage: str) -> str:
    """The stage's name for a reader: of a long order, how many operations were done and what the last one did."""
    letters = stage.split("->")
    return stage if len(letters) <= SHORT else f"{len(letters)}: {letters[-1]}"


def heads(study: Study) -> list[str]:
    """The columns' heads."""
    return [HEADS.get(c, c) for c in study.columns]


def write_tables(study: Study, rows: Sequence[Row], results: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Write ``table.md``, ``table.csv`` and ``results.json`` (every cell, every class) into ``folder``."""
    files = {
        "table.md": markdown(study, rows, sum(r["seconds"] for r in results)),
        "table.csv": _csv(study, rows),
        "results.json": json.dumps({"study": study.model_dump(), "cells": list(results)}, indent=1) + "\n",
    }
    for name, text in files.items():
        with written_whole(folder / name, overwrite=True) as file:
            file.write_text(text, encoding="utf-8")
    return [folder / name for name in files]


def markdown(study: Study, rows: Sequence[Row], seconds: float) -> str:
    """One table a split, and the time that all cells took."""
    took = counted(round(seconds / 60), "minute")
    parts = [f"# {study.title}\n", f"All cells together took {took}, on one thread each."]
    readable = for_readers(rows)
    for split in dict.fromkeys(r.split for r in readable):
        parts.append(f"\n## {split}\n\n| method | stage | " + " | ".join(heads(study)) + " | seeds |")
        parts.append("|---|---|" + "---:|" * (len(study.columns) + 1))
        for row in (r for r in readable if r.split == split):
            shown = [row.contender, shown_stage(row.stage), *cells_as_text(study, row), seeds_as_text(row)]
            parts.append("| " + " | ".join(shown) + " |")
    return "\n".join(parts) + "\n"


def _csv(study: Study, rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    both = [name for c in study.columns for name in (c, f"{c} deviation")]
    writer.writerow(["split", "method", "stage", "seeds", "diverged", *both])
    for row in rows:
        values = [v for c in study.columns for v in (row.values[c] or ("", ""))]
        writer.writerow([row.split, row.contender, row.stage, row.seeds, row.failed, *values])
    return text.getvalue()


def _spread(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Mean and standard deviation over seeds."""
    found = [v for v in values if v is not None]
    if not found:
        return None
    return statistics.mean(found), statistics.stdev(found) if len(found) > 1 else 0.0


def _position(study: Study, stage: str) -> tuple[int, int]:
    """Where a stage stands: the start, then along each order."""
    if stage in {"Start", "failed"}:
        return (-1, 0) if stage == "Start" else (len(study.orders), 0)
    order = stage.replace("->", "").lower()
    return next(i for i, o in enumerate(study.orders) if o.startswith(order)), len(order)
