"""Manifests of few images a class, for few-shot and missing-class studies; the test part stays whole."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Collection
from pathlib import Path

from kswapctl.data.sources import Source
from kswapctl.data.splits import by_class, take, training_part
from kswapctl.errors import UsageError
from kswapctl.spec import Rehearsal


def images_needed(trained: int) -> int:
    """Images a class of which, less the validation part, ``trained`` are left: 2 for 1, 5 for 4, 18 for 16."""
    count = trained + 1
    while count - max(1, round(Rehearsal.validation * count)) < trained:
        count += 1
    return count


def write_subset(source: Source, classes: Collection[str], each: int | None, seed: int, file: Path) -> Path:
    """A manifest of ``each`` training images (None: all) of every one of ``classes``, drawn by ``seed``."""
    root = Path(source.name)
    if not root.exists():
        raise UsageError(f"{source.name} is no folder or manifest", "few-shot studies need images in files")
    folder = root if root.is_dir() else root.parent
    samples = training_part(source, classes)
    counts = {label: each or len(group) for label, group in by_class(samples).items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    text = [("path", "label", "split")]
    text += [(str(folder / s.key), s.label, "train") for s in take(samples, counts, f"few {seed}")]
    temporary = file.with_suffix(f".{hashlib.sha256(str(file).encode()).hexdigest()[:8]}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(text)
    temporary.replace(file)
    return file
