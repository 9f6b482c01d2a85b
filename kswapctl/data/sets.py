"""Choose the images of an operation: what comes or goes, what is shown again, and what decides when to stop."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from kswapctl.data.images import Images, Report, decode
from kswapctl.data.sources import Sample, Source
from kswapctl.data.splits import by_class, keys_of, share, take, training_part
from kswapctl.errors import DataError
from kswapctl.spec import MARKED_LEAST, Preprocessing, Rehearsal

VALIDATION_IMAGES = 400
"""Most validation images of all retained classes together: a point of accuracy lost is four of them."""
VALIDATION_LEAST = 4
"""But as many of each class, where it has them."""

Chosen = list[tuple[Source, list[Sample]]]
"""Samples with the source each is read from."""


@dataclass(frozen=True)
class Parts:
    """Samples to train on, and samples to decide on, which training never sees."""

    train: Chosen
    validation: Chosen


def first_with(
    sources: Sequence[Source], classes: Collection[str]
) -> tuple[list[tuple[Source, set[str]]], tuple[str, ...]]:
    """Each source with the classes to take from it, a class from the first that has it; and the classes none has.

    Only what may be trained on counts: a class that is in a source's test part alone is not there.
    """
    missing = set(classes)
    found = []
    for source in sources:
        here = {s.label for s in training_part(source, missing)}
        missing -= here
        if here:
            found.append((source, here))
    return found, tuple(c for c in classes if c in missing)


def changed_part(sources: Sequence[Source], classes: Collection[str], rehearsal: Rehearsal, seed: int) -> Parts:
    """All training images of the classes to learn or forget, less the validation part; both have some of each class."""
    parts = Parts([], [])
    for source, here in first_with(sources, classes)[0]:
        left, held = _hold_out(source, here, rehearsal, seed)
        trained, checked = by_class(left), by_class(held)
        for name in sorted(here - (trained.keys() & checked.keys())):
            images = len(trained.get(name, [])) + len(checked.get(name, []))
            raise DataError(
                f"class {name!r} has too few training images in {source.name}: {images}",
                "some must be left to train on and some to decide with: two at least, more where images show several",
            )
        parts.train.append((source, once(source, left)))
        parts.validation.append((source, once(source, held)))
    return parts


def retained_part(
    sources: Sequence[Source], classes: Collection[str], rehearsal: Rehearsal, seed: int
) -> tuple[Parts, tuple[str, ...]]:
    """The rehearsal share of each class, and a validation part beside it; also the classes with nothing to train on.

    Of a share at least one image of a class is taken, and ``MARKED_LEAST`` where images have boxes or masks.
    """
    parts = Parts([], [])
    found, missing = first_with(sources, classes)
    cap = max(VALIDATION_LEAST, VALIDATION_IMAGES // max(1, len(classes)))
    for source, here in found:
        left, held = _hold_out(source, here, rehearsal, seed)
        if rehearsal.per_class is None:
            least = MARKED_LEAST if source.mark else 1
            sizes = {c: max(least, round(rehearsal.share * len(g))) for c, g in by_class(left + held).items()}
        else:
            sizes = dict.fromkeys(here, rehearsal.per_class)
        parts.train.append((source, once(source, take(left, sizes, f"rehearsal {seed}"))))
        parts.validation.append((source, once(source, take(held, dict.fromkeys(here, cap), f"cap {seed}"))))
        alone = here - {s.label for s in left}  # its one image decides
        missing += tuple(c for c in classes if c in alone)
    return parts, missing


def _hold_out(
    source: Source, classes: Collection[str], rehearsal: Rehearsal, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Training images of ``classes``, without and in the validation part."""
    samples = training_part(source, classes)
    if source.mark:  # an image is wholly in one part, whichever of its classes is asked for
        keys = keys_of(training_part(source, source.classes), rehearsal.validation, f"validation {seed}")
        return [s for s in samples if s.key not in keys], [s for s in samples if s.key in keys]
    held = share(samples, rehearsal.validation, f"validation {seed}")
    return sorted(set(samples) - set(held), key=lambda s: s.key), held


def once(source: Source, samples: Sequence[Sample]) -> list[Sample]:
    """Each image once, with the first of its classes, where images have several."""
    if not source.mark:
        return list(samples)
    first: dict[str, Sample] = {}
    for sample in samples:
        first.setdefault(sample.key, sample)
    return list(first.values())


def gather(chosen: Chosen, preprocessing: Preprocessing, skip_bad: bool, report: Report | None = None) -> Images:
    """Decode samples of several sources into one set."""
    decoded = [decode(source, samples, preprocessing, skip_bad, report) for source, samples in chosen]
    if not decoded:
        return Images(torch.empty(0, *preprocessing.input_size, dtype=torch.uint8), (), ())
    return Images(
        torch.cat([d.pixels for d in decoded]),
        tuple(s for d in decoded for s in d.samples),
        tuple(h for d in decoded for h in d.digests),
        tuple(b for d in decoded for b in d.bad),
        tuple(m for d in decoded for m in d.marks),
    )


def check_disjoint(one: Images, other: Images, names: tuple[str, str]) -> None:
    """Raise :class:`DataError` where the same file stands in both sets.

    An image with boxes or a mask may: its objects and pixels are told apart.
    """
    if one.marks:
        return
    shared = set(one.digests) & set(other.digests)
    if shared:
        where = next(s.key for s, d in zip(one.samples, one.digests, strict=True) if d in shared)
        raise DataError(
            f"images are in both the {names[0]} and the {names[1]} set: {len(shared)} of them, such as {where}",
            "the same image cannot stay and go: remove the copies",
        )


def count(chosen: Chosen) -> int:
    """Number of samples."""
    return sum(len(samples) for _, samples in chosen)
