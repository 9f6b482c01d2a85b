"""Folders of few images a class, for few-shot and missing-class studies: training images only.

The images are copied: a manifest may name none outside its own folder.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from kswapctl.data.sources import Source
from kswapctl.data.splits import by_class, take, training_part
from kswapctl.errors import DataError, UnsafeInputError
from kswapctl.spec import Rehearsal


def images_needed(trained: int) -> int:
    """Images a class of which, less the validation part, ``trained`` are left: 2 for 1, 5 for 4, 18 for 16."""
    count = trained + 1
    while count - max(1, round(Rehearsal.validation * count)) < trained:
        count += 1
    return count


def write_subset(source: Source, classes: Collection[str], each: int | None, seed: int, place: Path) -> Path:
    """A folder under ``place`` of ``each`` training images (None: all) of every one of ``classes``, drawn by ``seed``.

    Its name tells what is in it, so that it is written once; it is there whole, or not at all.
    """
    digest = hashlib.sha256("\0".join([source.name, *sorted(classes)]).encode()).hexdigest()[:8]
    folder = place / f"{each or 'all'}-{seed}-{digest}"
    if folder.is_dir():
        return folder
    samples = training_part(source, classes)
    groups = by_class(samples)
    for label, group in groups.items():
        if each and len(group) < each:
            raise DataError(
                f"class {label!r} of {source.name} has {len(group)} training images, fewer than the {each} that the "
                "split wants with those that validate",
                "lower its images_per_class",
            )
    counts = {label: each or len(group) for label, group in groups.items()}
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place, prefix=".") as temporary:
        whole = Path(temporary) / "whole"
        for number, sample in enumerate(take(samples, counts, f"few {seed}")):
            part = whole / "train" / folder_name(sample.label)
            part.mkdir(parents=True, exist_ok=True)
            (part / f"{number:06}{PurePosixPath(sample.key).suffix or '.png'}").write_bytes(source.read(sample))
        try:
            whole.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return folder  # if it was there meanwhile, another worker wrote the same


def folder_name(label: str) -> str:
    """``label``, as the name of a class folder; one that would lead elsewhere, or be hidden, is refused."""
    if label.startswith(".") or "\0" in label or PurePosixPath(label).name != label:
        raise UnsafeInputError(f"class {label!r} cannot be the name of a folder", "rename the class")
    return label
