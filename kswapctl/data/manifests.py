"""Images that a file lists: CSV with a header or JSON lines, with each image's path, class and part."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kswapctl.data.sources import SPLITS, Sample, Source, read_parts
from kswapctl.errors import DataError, UnsafeInputError, first_line


def open_manifest(path: Path) -> Source:
    """CSV with a header, or JSON lines, with ``path``, ``label`` and, where it is known, ``split``."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            rows = list(csv.DictReader(file)) if path.suffix.lower() == ".csv" else _json_lines(file, path.name)
        except UnicodeDecodeError as error:
            raise DataError(f"{path.name} is no UTF-8 text", "save it as UTF-8") from error
        except csv.Error as error:
            raise DataError(f"{path.name} cannot be read: {error}", "it is CSV with a header") from error
    listed = [_sample(row, number, path) for number, row in enumerate(rows, start=1)]
    if not listed:
        raise DataError(f"{path.name} lists no image", "columns: path, label, split (optional)")
    listed = _each_once(listed, path.name)
    kept = read_parts(part for part, _ in listed)
    samples = [sample for part, sample in listed if part in kept]
    return Source(str(path), tuple(samples), lambda s: _read_beside(path, s))


def _json_lines(lines: Iterable[str], name: str) -> list[Any]:
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else first_line(error)
            raise DataError(f"line {number} of {name} is no JSON: {why}", "correct the line") from error
    return rows


def _each_once(listed: list[tuple[str, Sample]], name: str) -> list[tuple[str, Sample]]:
    """``listed`` without repetitions; an image of two parts would be trained on and tested, and one of two classes is
    of neither.
    """
    found: dict[str, tuple[int, str, Sample]] = {}
    for number, (part, sample) in enumerate(listed, start=1):
        first, its_part, other = found.setdefault(os.path.normpath(sample.key), (number, part, sample))
        for what, one, two in (("part", its_part, part), ("class", other.label, sample.label)):
            if one != two:
                raise DataError(
                    f"rows {first} and {number} of {name} list {sample.key} with another {what}: {one!r} and {two!r}",
                    "an image has one row",
                )
    return [(part, sample) for _, part, sample in found.values()]


def _sample(row: Any, number: int, path: Path) -> tuple[str, Sample]:
    """A row's part, as it is called there, and its sample."""
    if not isinstance(row, dict):
        raise DataError(f"row {number} of {path.name} is no object", 'write {"path": ..., "label": ...} a line')
    missing = [name for name in ("path", "label") if row.get(name) in (None, "")]
    if missing:
        raise DataError(f"row {number} of {path.name} has no {missing[0]!r}", "columns: path, label, split (optional)")
    split = str(row.get("split") or "").lower()
    if split not in SPLITS:
        raise DataError(f"row {number} of {path.name} has the unknown split {split!r}", "use train or test")
    key = str(row["path"])
    if os.path.isabs(key):
        raise UnsafeInputError(
            f"row {number} of {path.name} has a whole path: {key}", "write it as seen from the manifest's folder"
        )
    if os.path.normpath(key).startswith(".."):
        raise UnsafeInputError(
            f"row {number} of {path.name} leads out of its folder: {key}",
            "put the manifest in a folder above its images",
        )
    return split, Sample(key, str(row["label"]), SPLITS[split])


def _read_beside(manifest: Path, sample: Sample) -> bytes:
    file = manifest.parent / sample.key
    if not file.is_file():
        raise DataError(f"{manifest.name} lists {sample.key}, which does not exist", "correct the manifest")
    return file.read_bytes()
