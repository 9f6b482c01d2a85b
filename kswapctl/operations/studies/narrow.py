"""A part of a study: some of its seeds, some of its contenders."""

from __future__ import annotations

from collections.abc import Sequence

from kswapctl.errors import UsageError, nearest
from kswapctl.operations.studies.schema import Study
from kswapctl.spec import MOST_SEED


def narrowed(study: Study, seeds: Sequence[str], only: Sequence[str]) -> Study:
    """``study`` with these seeds and contenders (empty: all of its own); its cells are the same ones."""
    names = [c.name for c in study.contenders]
    for name in only:
        if name not in names:
            raise UsageError(f"study {study.name} has no contender {name!r}", nearest(name, names))
    for seed in seeds:
        if not seed.isdecimal() or int(seed) > MOST_SEED:
            raise UsageError(f"{seed!r} is no seed", f"seeds are whole numbers up to {MOST_SEED}: --seeds 0,1,2")
    changed: dict[str, object] = {}
    if seeds:
        changed["seeds"] = tuple(dict.fromkeys(int(s) for s in seeds))
    if only:
        changed["contenders"] = tuple(c for c in study.contenders if c.name in only)
    return study.model_copy(update=changed)
