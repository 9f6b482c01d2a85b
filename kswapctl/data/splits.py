"""Cut samples into parts, by hashes: the same seed gives the same parts, on any machine, in any order."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from kswapctl.data.sources import Sample, Source

TEST_SHARE = 0.2
"""Share of each class cut off as test part where a source has none."""


def training_part(source: Source, classes: Collection[str]) -> list[Sample]:
    """The samples of ``classes`` that may be trained on."""
    return _part(source, classes, "train")


def test_part(source: Source, classes: Collection[str]) -> list[Sample]:
    """The samples of ``classes`` that only evaluation and audit may see."""
    return _part(source, classes, "test")


def all_tested(source: Source) -> list[Sample]:
    """All samples that only evaluation and audit may see, also those of images with nothing on them."""
    return [*test_part(source, source.classes), *_cut(source.unlabelled, "test")]


def _part(source: Source, classes: Collection[str], part: str) -> list[Sample]:
    """Where the source does not say, a fifth of each class is test; the cut does not depend on any seed."""
    wanted = [s for s in source.samples if s.label in classes]
    if source.mark:
        every = [s for s in source.samples if not s.split]
        held = keys_of(every, TEST_SHARE, "test")
        return [s for s in wanted if (s.split or ("test" if s.key in held else "train")) == part]
    return _cut(wanted, part)


def _cut(wanted: Sequence[Sample], part: str) -> list[Sample]:
    undecided = [s for s in wanted if not s.split]
    test = set(share(undecided, TEST_SHARE, "test")) if undecided else set()
    return [s for s in wanted if (s.split or ("test" if s in test else "train")) == part]


def keys_of(samples: Iterable[Sample], size: float, seed: object) -> set[str]:
    """Images that hold about ``size`` of each class, where an image has several: the rarest classes choose first.

    The cut must be the same whichever classes are asked for, so ``samples`` are all that there are.
    """
    chosen: set[str] = set()
    groups = by_class(samples)
    for label in sorted(groups, key=lambda name: (len(groups[name]), name)):
        wanted = max(1, round(size * len(groups[label]))) if size else 0
        missing = wanted - sum(s.key in chosen for s in groups[label])
        left = [s for s in groups[label] if s.key not in chosen]
        chosen |= {s.key for s in take(left, {label: max(0, missing)}, seed)}
    return chosen


def share(samples: Iterable[Sample], size: float, seed: object) -> list[Sample]:
    """About ``size`` (in [0, 1]) of each class, at least one image of each where ``size`` is positive."""
    kept = list(samples)
    sizes = {label: len(group) for label, group in by_class(kept).items()}
    return take(kept, {label: max(1, round(size * n)) if size else 0 for label, n in sizes.items()}, seed)


def take(samples: Iterable[Sample], counts: dict[str, int], seed: object) -> list[Sample]:
    """``counts[label]`` images of each class, chosen by ``seed``."""
    taken: list[Sample] = []
    for label, group in by_class(samples).items():
        ordered = sorted(
            group,
            key=lambda s: hashlib.sha256(f"{seed}\0{s.key}".encode("utf-8", "surrogateescape")).digest(),
        )
        taken += ordered[: counts[label]]
    return taken


def by_class(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Samples by class name, in the order of first appearance."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.label].append(sample)
    return dict(groups)
